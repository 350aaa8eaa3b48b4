//! The data loader of jaxgpt: token shards in, ordered and prefetched blocks of token ids out.
//!
//! From the bottom up: [`format`](mod@format) knows a shard's header, [`shard`] opens files and reads tokens from them,
//! [`writer`] makes them, [`verify`](mod@verify) checks them. [`permute`] and [`order`] say which tokens belong to which
//! sample, [`batch`] puts the samples of one step into a buffer, and [`prefetch`] has that done ahead of time in a
//! bounded ring of [`pinned`] buffers. [`splitter`] puts encoded documents into a [`series`] of shards for training and
//! one for validation, [`audit`](mod@audit) looks for duplicates among them. [`gpt2`] holds the GPT-2 vocabulary,
//! [`hash`](mod@hash) hashes files of any kind.
//! Nothing here knows Python but the `python` module, which exists under the feature of that name.
//!
//! Three promises shape the code. A batch is a pure function of the seed, the step and the data, so that a resumed run
//! needs one integer. A file that changes or ends early is an error with a name and a place, never a crash and never
//! wrong tokens. A buffer has one owner at a time, so that none is refilled while somebody still reads it.
#![deny(missing_docs)]
#![forbid(unsafe_code)]

#[cfg(target_endian = "big")]
compile_error!("token shards are little-endian and are read straight into memory");

pub mod aside;
pub mod audit;
pub mod batch;
pub mod error;
pub mod format;
pub mod gpt2;
pub mod hash;
pub mod order;
pub mod permute;
pub mod pinned;
pub mod prefetch;
#[cfg(feature = "python")]
mod python;
pub mod series;
pub mod shard;
pub mod splitter;
pub mod verify;
pub mod writer;

pub use error::{Error, Result};

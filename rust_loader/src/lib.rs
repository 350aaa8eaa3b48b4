//! The data loader of jaxgpt: it reads token shards and delivers ordered, prefetched blocks of token ids.
//!
//! | module | content |
//! |---|---|
//! | [`shard`] | token files: their [format](shard::format), [reading](shard::Dataset), [writing](shard::writer), [splits of many shards](shard::split_writer), [verification](shard::verify) |
//! | [`order`] | which tokens belong to which sample, and the [batch](order::batch) of a step |
//! | [`prefetch`] | a bounded ring of [page-aligned buffers](prefetch::aligned) that threads fill ahead of time |
//! | [`split`] | puts encoded documents into training and validation shards |
//! | [`audit`](mod@audit) | finds duplicate documents and validation documents that also occur in train |
//! | [`gpt2`], `hash`, `files`, `workers` | the GPT-2 vocabulary, checksums, atomic writes, the thread pool |
//!
//! Only the `python` module depends on Python. It is compiled with the feature of that name.
//!
//! Three invariants shape the code. A batch is a pure function of the seed, the step and the data, so one integer is
//! enough to resume a run. A file that changes or is cut short causes an error with its path and position, never a
//! crash and never wrong tokens. A buffer has one owner at a time, so none is refilled while somebody still reads it.
#![deny(missing_docs)]
#![forbid(unsafe_code)]
#![warn(unreachable_pub, clippy::match_bool, clippy::missing_errors_doc, clippy::missing_panics_doc)]

#[cfg(target_endian = "big")]
compile_error!("token shards are little-endian and are read directly into memory");

pub mod audit;
pub mod error;
mod files;
pub mod gpt2;
mod hash;
pub mod order;
mod positioned;
pub mod prefetch;
#[cfg(feature = "python")]
mod python;
pub mod shard;
pub mod split;
mod workers;

pub use error::{Error, Result};

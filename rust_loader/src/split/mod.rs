//! Puts encoded documents into training and validation shards.
//!
//! The key of a document, a hash of its text, alone decides to which split it belongs: equal documents belong to the
//! same split, in any order of the input. Validation takes the documents with the lowest keys until it has the number of
//! tokens asked for; it takes whole documents only. All others are for training, in the order of the input, except for
//! those that were [held out](holdout) and not taken, which come last.

pub(crate) mod holdout;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_128;

use crate::audit::clusters::{ClusterMap, document_key_u32};
use crate::error::{Error, Result};
use crate::shard::format::Dtype;
use crate::shard::split_writer::{self, SplitWriter, State};
use crate::shard::writer::Layout;
use holdout::Holdout;
pub use holdout::Key;

/// The options of a [`Splitter`].
#[derive(Debug)]
pub struct Options {
    /// Where the shards go. Their name is replaced by "train" and "val".
    pub files: split_writer::Options,
    /// The token after each document.
    pub end_of_text: Option<u32>,
    /// Tokens that validation should have.
    pub val_tokens: u64,
    /// Only documents whose [`first_half`] is less than this are candidates for validation. 2⁶⁴ makes all of them
    /// candidates.
    pub key_limit: u128,
    /// The near-duplicates that an audit found: they share a key, and so belong to the same split.
    pub clusters: Option<ClusterMap>,
    /// The document that reaches this number of tokens in total is the last one.
    pub max_tokens: u64,
}

/// The progress of a [`Splitter`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// The progress of train.
    pub train: State,
    /// The documents that are held out.
    pub holdout: Totals,
    /// The lengths of the two files that contain them.
    pub holdout_files: (u64, u64),
}

/// The size of a number of documents.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Documents.
    pub documents: u64,
    /// Bytes of their text.
    pub bytes: u64,
    /// Tokens, including end-of-text tokens.
    pub tokens: u64,
}

/// A batch of documents: all texts and all tokens, each one after another.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a> {
    /// The texts in UTF-8.
    pub texts: &'a [u8],
    /// The offset at which each text begins, and the end of the last one.
    pub text_offsets: &'a [i64],
    /// The tokens, without end-of-text tokens.
    pub ids: &'a [u32],
    /// The offset at which the tokens of each document begin, and the end of the last ones.
    pub id_offsets: &'a [i64],
}

impl<'a> Batch<'a> {
    /// Checks that the offsets match the buffers, as [`Splitter::add`] requires.
    ///
    /// # Errors
    /// [`Error::Argument`] if they do not.
    pub fn check(&self) -> Result<()> {
        let match_length = |offsets: &[i64], length: usize| {
            offsets.first().is_some_and(|&first| first >= 0)
                && offsets.is_sorted()
                && offsets.last().is_some_and(|&last| last as u64 <= length as u64)
        };
        let valid = match_length(self.text_offsets, self.texts.len())
            && match_length(self.id_offsets, self.ids.len())
            && self.text_offsets.len() == self.id_offsets.len();
        if valid { Ok(()) } else { Err(Error::Argument("offsets and buffers of the batch do not match".into())) }
    }

    fn document(&self, index: usize) -> (&'a [u8], &'a [u32]) {
        let range = |offsets: &[i64]| offsets[index] as usize..offsets[index + 1] as usize;
        (&self.texts[range(self.text_offsets)], &self.ids[range(self.id_offsets)])
    }
}

/// Distributes documents to training and validation.
#[derive(Debug)]
pub struct Splitter {
    options: Options,
    train: SplitWriter,
    holdout: Option<Holdout>,
    progress: Progress,
    /// The tokens of the current document.
    tokens: Vec<u8>,
}

impl Splitter {
    /// Continues from `progress`. What was written after it is discarded.
    ///
    /// # Errors
    /// S003 if files cannot be written or removed, [`Error::Argument`] for invalid options.
    pub fn resume(options: Options, progress: Progress) -> Result<Self> {
        let train = SplitWriter::resume(for_split(&options.files, "train"), progress.train.clone())?;
        // removes the validation shards of an interrupted `finish`
        SplitWriter::resume(for_split(&options.files, "val"), State::default())?;
        let holdout = if options.val_tokens == 0 {
            None
        } else {
            Some(Holdout::resume(&options.files.folder, progress.holdout_files)?)
        };
        Ok(Splitter { options, train, holdout, progress, tokens: Vec::new() })
    }

    /// The size of all documents so far.
    #[must_use]
    pub fn totals(&self) -> Totals {
        let train = self.train.state();
        let holdout = self.progress.holdout;
        Totals {
            documents: train.documents + holdout.documents,
            bytes: train.bytes + holdout.bytes,
            tokens: train.tokens + holdout.tokens,
        }
    }

    /// Returns true if the documents have `max_tokens` tokens.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.totals().tokens >= self.options.max_tokens
    }

    /// Adds the documents `from..to` of a batch until `max_tokens` is reached, and returns the number of added
    /// documents.
    ///
    /// # Errors
    /// S003 or S004 if files cannot be written, [`Error::Argument`] for documents that the batch does not have and for
    /// ids that do not fit the token type.
    pub fn add(&mut self, batch: &Batch<'_>, from: usize, to: usize) -> Result<usize> {
        if from > to || to >= batch.text_offsets.len() {
            return Err(Error::Argument(format!("documents {from} to {to} of {}", batch.text_offsets.len() - 1)));
        }
        for index in from..to {
            if self.is_full() {
                return Ok(index - from);
            }
            let (text, ids) = batch.document(index);
            self.add_document(text, ids)?;
        }
        Ok(to - from)
    }

    fn add_document(&mut self, text: &[u8], ids: &[u32]) -> Result<()> {
        let key = self.key(text, ids);
        self.encode(ids)?;
        let bytes = text.len() as u64;
        match &mut self.holdout {
            Some(holdout) if u128::from(first_half(&key)) < self.options.key_limit => {
                let totals = &mut self.progress.holdout;
                totals.documents += 1;
                totals.bytes += bytes;
                totals.tokens += (self.tokens.len() / self.options.files.dtype.size()) as u64;
                holdout.add(key, bytes, &self.tokens)
            }
            _ => self.train.add(bytes, &self.tokens),
        }
    }

    fn key(&self, text: &[u8], ids: &[u32]) -> Key {
        let clusters = self.options.clusters.as_ref();
        let representative = clusters.and_then(|map| map.representative(&document_key_u32(ids)));
        representative.unwrap_or_else(|| text_key(text))
    }

    /// Sets `self.tokens` to the document's tokens and the end-of-text token, in the type of the shards.
    fn encode(&mut self, ids: &[u32]) -> Result<()> {
        self.tokens.clear();
        let end = self.options.end_of_text.as_slice();
        match self.options.files.dtype {
            Dtype::U32 => write_le(&mut self.tokens, [ids, end], u32::to_le_bytes),
            Dtype::U16 if ids.iter().chain(end).fold(0, |all, id| all | id) > u32::from(u16::MAX) => {
                return Err(Error::Argument("an id is too large for uint16 tokens".into()));
            }
            Dtype::U16 => write_le(&mut self.tokens, [ids, end], |id| (id as u16).to_le_bytes()),
        }
        Ok(())
    }

    /// Writes everything to disk and returns the progress.
    ///
    /// # Errors
    /// S003 if a file cannot be written.
    pub fn sync(&mut self) -> Result<Progress> {
        self.progress.train = self.train.sync()?;
        if let Some(holdout) = &mut self.holdout {
            self.progress.holdout_files = holdout.sync()?;
        }
        Ok(self.progress.clone())
    }

    /// Distributes the documents that were held out, and finishes the shards of train and val.
    ///
    /// # Errors
    /// S003 or S004 if files cannot be written, D016 if those of the held-out documents cannot be read.
    pub fn finish(mut self) -> Result<(State, Option<State>)> {
        let Some(mut holdout) = self.holdout.take() else { return Ok((self.train.finish()?, None)) };
        let mut val = SplitWriter::resume(for_split(&self.options.files, "val"), State::default())?;
        let wanted = self.options.val_tokens.saturating_mul(self.options.files.dtype.size() as u64);
        let cutoff = holdout.cutoff(wanted)?;
        holdout.for_each(|entry, tokens| {
            let split = if Some(entry.key) <= cutoff { &mut val } else { &mut self.train };
            split.add(entry.text_bytes, tokens)
        })?;
        Ok((self.train.finish()?, Some(val.finish()?)))
    }
}

/// Sets `bytes` to the encoded ids of both parts. A resize and a loop of known length, which the compiler vectorizes.
fn write_le<const N: usize>(bytes: &mut Vec<u8>, parts: [&[u32]; 2], encode: impl Fn(u32) -> [u8; N]) {
    bytes.resize(N * (parts[0].len() + parts[1].len()), 0);
    let (first, second) = bytes.split_at_mut(N * parts[0].len());
    for (target, ids) in [(first, parts[0]), (second, parts[1])] {
        target.chunks_exact_mut(N).zip(ids).for_each(|(token, &id)| token.copy_from_slice(&encode(id)));
    }
}

/// The key of a document: xxh3-128 of its text.
#[must_use]
pub fn text_key(text: &[u8]) -> Key {
    xxh3_128(text).to_be_bytes()
}

/// The part of a key that is compared with [`key_limit`](Options::key_limit).
#[must_use]
pub fn first_half(key: &Key) -> u64 {
    u64::from_be_bytes(std::array::from_fn(|i| key[i]))
}

fn for_split(files: &split_writer::Options, name: &str) -> split_writer::Options {
    let shard_tokens = if files.layout == Layout::Headerless { u64::MAX } else { files.shard_tokens };
    split_writer::Options { name: name.into(), shard_tokens, ..files.clone() }
}

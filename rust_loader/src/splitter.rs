//! Encoded documents on their way into training and validation shards.
//!
//! On which side a document falls is decided by its key alone, a hash of its text: equal documents fall on the same
//! side, whatever their order. Validation takes the documents with the lowest keys until it has as many tokens as it
//! was to have; a document is never cut in two. All others are for training, in the order in which they came, but for
//! those that were held [aside] and not taken, which come last.
//!
//! [aside]: mod@crate::aside

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_128;

use crate::aside::{Aside, Key};
use crate::audit::clusters::{ClusterMap, document_key_u32};
use crate::error::{Error, Result};
use crate::format::Dtype;
use crate::series::{Plan, Series, State};
use crate::writer::Layout;

/// What decides on what is written where.
#[derive(Debug)]
pub struct Options {
    /// Where the shards go; the names in it are replaced by "train" and "val".
    pub plan: Plan,
    /// Put after each document.
    pub end_of_text: Option<u32>,
    /// Tokens that validation is to have.
    pub val_tokens: u64,
    /// Documents with keys from here on are for training. A limit of 2⁶⁴ or more holds back all.
    pub limit: u128,
    /// Near-duplicates that an audit found: they share a key, and so fall on the same side.
    pub clusters: Option<ClusterMap>,
    /// The document that reaches this many tokens in all is the last one.
    pub budget: u64,
}

/// How far a splitter is: train, and the lengths of the files that hold documents aside.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// The training documents.
    pub train: State,
    /// Documents, bytes of text and tokens that are held aside.
    pub aside: (u64, u64, u64),
    /// Lengths of their files.
    pub aside_files: (u64, u64),
}

/// Documents of a batch: all their texts and all their tokens, one after another.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a> {
    /// The texts in UTF-8.
    pub texts: &'a [u8],
    /// Where each text begins, and where the last one ends.
    pub text_ends: &'a [i64],
    /// The tokens, without any end-of-text token.
    pub ids: &'a [u32],
    /// Where each document's tokens begin, and where the last one's end.
    pub id_ends: &'a [i64],
}

impl<'a> Batch<'a> {
    /// Whether the places fit the buffers; a splitter relies on it.
    pub fn check(&self) -> Result<()> {
        let fits = |ends: &[i64], length: usize| {
            ends.first().is_some_and(|&first| first >= 0)
                && ends.windows(2).all(|pair| pair[0] <= pair[1])
                && ends.last().is_some_and(|&last| last as u64 <= length as u64)
        };
        let good = fits(self.text_ends, self.texts.len())
            && fits(self.id_ends, self.ids.len())
            && self.text_ends.len() == self.id_ends.len();
        if good { Ok(()) } else { Err(Error::Argument("offsets and buffers of the batch do not fit".into())) }
    }

    fn document(&self, index: usize) -> (&'a [u8], &'a [u32]) {
        let slice = |ends: &[i64]| ends[index] as usize..ends[index + 1] as usize;
        (&self.texts[slice(self.text_ends)], &self.ids[slice(self.id_ends)])
    }
}

/// Takes documents and puts them where they belong.
#[derive(Debug)]
pub struct Splitter {
    options: Options,
    train: Series,
    aside: Option<Aside>,
    progress: Progress,
    tokens: Vec<u8>,
}

impl Splitter {
    /// A splitter that goes on from `progress`; whatever was written after it is forgotten.
    pub fn resume(options: Options, progress: Progress) -> Result<Self> {
        let train = Series::resume(named(&options.plan, "train"), progress.train.clone())?;
        Series::resume(named(&options.plan, "val"), State::default())?; // removes what a broken-off end left
        let aside = match options.val_tokens {
            0 => None,
            _ => Some(Aside::resume(&options.plan.folder, progress.aside_files)?),
        };
        Ok(Splitter { options, train, aside, progress, tokens: Vec::new() })
    }

    /// Documents, bytes of text and tokens so far.
    pub fn taken(&self) -> (u64, u64, u64) {
        let (train, aside) = (self.train.state(), self.progress.aside);
        (train.documents + aside.0, train.bytes + aside.1, train.tokens + aside.2)
    }

    /// Whether the budget is used up.
    pub fn is_full(&self) -> bool {
        self.taken().2 >= self.options.budget
    }

    /// Adds the documents `from..to` of a batch, or as many of them as the budget allows; returns their number.
    pub fn add(&mut self, batch: &Batch<'_>, from: usize, to: usize) -> Result<usize> {
        if from > to || to >= batch.text_ends.len() {
            return Err(Error::Argument(format!("documents {from} to {to} of {}", batch.text_ends.len() - 1)));
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
        match &mut self.aside {
            Some(aside) if u128::from(first_half(&key)) < self.options.limit => {
                let (documents, held, tokens) = self.progress.aside;
                let count = (self.tokens.len() / self.options.plan.dtype.size()) as u64;
                self.progress.aside = (documents + 1, held + bytes, tokens + count);
                aside.add(key, bytes, &self.tokens)
            }
            _ => self.train.add(bytes, &self.tokens),
        }
    }

    fn key(&self, text: &[u8], ids: &[u32]) -> Key {
        let shared = self.options.clusters.as_ref().and_then(|map| map.representative(&document_key_u32(ids)));
        shared.unwrap_or_else(|| text_key(text))
    }

    /// The document's tokens in the type of the shards, and the end of text.
    fn encode(&mut self, ids: &[u32]) -> Result<()> {
        self.tokens.clear();
        let end = self.options.end_of_text.as_slice();
        match self.options.plan.dtype {
            Dtype::U32 => put(&mut self.tokens, [ids, end], u32::to_le_bytes),
            Dtype::U16 if ids.iter().chain(end).fold(0, |all, id| all | id) > u32::from(u16::MAX) => {
                return Err(Error::Argument("an id is too large for uint16 tokens".into()));
            }
            Dtype::U16 => put(&mut self.tokens, [ids, end], |id| (id as u16).to_le_bytes()),
        }
        Ok(())
    }

    /// Brings everything to the disk, and says how far that is.
    pub fn sync(&mut self) -> Result<Progress> {
        self.progress.train = self.train.sync()?;
        if let Some(aside) = &mut self.aside {
            self.progress.aside_files = aside.sync()?;
        }
        Ok(self.progress.clone())
    }

    /// Decides on the documents that were held aside, and finishes the shards of train and of val.
    pub fn finish(mut self) -> Result<(State, Option<State>)> {
        let Some(mut aside) = self.aside.take() else { return Ok((self.train.finish()?, None)) };
        let mut val = Series::resume(named(&self.options.plan, "val"), State::default())?;
        let wanted = self.options.val_tokens.saturating_mul(self.options.plan.dtype.size() as u64);
        let cutoff = aside.cutoff(wanted)?;
        aside.for_each(|entry, tokens| match Some(entry.key) <= cutoff {
            true => val.add(entry.bytes, tokens),
            false => self.train.add(entry.bytes, tokens),
        })?;
        Ok((self.train.finish()?, Some(val.finish()?)))
    }
}

/// Fills `bytes` with the ids of both parts. A resize and a loop of known length, which the compiler makes wide.
fn put<const N: usize>(bytes: &mut Vec<u8>, parts: [&[u32]; 2], encoded: impl Fn(u32) -> [u8; N]) {
    bytes.resize(N * (parts[0].len() + parts[1].len()), 0);
    let (first, second) = bytes.split_at_mut(N * parts[0].len());
    for (room, ids) in [(first, parts[0]), (second, parts[1])] {
        room.chunks_exact_mut(N).zip(ids).for_each(|(place, &id)| place.copy_from_slice(&encoded(id)));
    }
}

/// The key of a document: xxh3-128 of its text.
pub fn text_key(text: &[u8]) -> Key {
    xxh3_128(text).to_be_bytes()
}

/// The part of a key that is compared with limits.
pub fn first_half(key: &Key) -> u64 {
    u64::from_be_bytes(std::array::from_fn(|i| key[i]))
}

fn named(plan: &Plan, name: &str) -> Plan {
    let shard_tokens = if plan.layout == Layout::Plain { u64::MAX } else { plan.shard_tokens };
    Plan { name: name.into(), shard_tokens, ..plan.clone() }
}

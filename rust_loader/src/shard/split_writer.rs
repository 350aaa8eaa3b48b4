//! Writes the documents of one split, one after another, into shards of a fixed number of tokens.
//!
//! The files depend on the documents alone, not on how often the writing was interrupted. [`SplitWriter::sync`] writes
//! everything to disk and returns a [`State`]. Another process can [resume](SplitWriter::resume) from that state; what
//! was written after it is discarded.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::format::{Dtype, MAX_TOKENS};
use super::writer::{Layout, Summary, Writer};
use crate::error::{Error, Result};
use crate::files::{remove_if_present, temporary_path};

/// The options of a [`SplitWriter`].
#[derive(Clone, Debug)]
pub struct Options {
    /// The folder of the shards.
    pub folder: PathBuf,
    /// The beginning of their names: "train" or "val".
    pub name: String,
    /// The type of the tokens.
    pub dtype: Dtype,
    /// Shards with headers, or a single headerless file.
    pub layout: Layout,
    /// Tokens of each shard except the last.
    pub shard_tokens: u64,
}

impl Options {
    fn check(&self) -> Result<()> {
        match self.layout {
            Layout::Shard if !(1..=MAX_TOKENS).contains(&self.shard_tokens) => {
                Err(Error::Argument(format!("shard_tokens = {}; must be 1 to {MAX_TOKENS}", self.shard_tokens)))
            }
            Layout::Headerless if self.dtype != Dtype::U16 => {
                Err(Error::Argument(format!("headerless files hold uint16 tokens, not {}", self.dtype)))
            }
            _ => Ok(()),
        }
    }

    /// The path of shard `index`, or of the single headerless file `NAME.bin`.
    #[must_use]
    pub fn path(&self, index: usize) -> PathBuf {
        match self.layout {
            Layout::Shard => self.folder.join(format!("{}_{index:06}.bin", self.name)),
            Layout::Headerless => self.folder.join(format!("{}.bin", self.name)),
        }
    }

    /// Tokens that still fit into a file that has `tokens`.
    fn room(&self, tokens: u64) -> u64 {
        match self.layout {
            Layout::Shard => self.shard_tokens - tokens,
            Layout::Headerless => u64::MAX,
        }
    }
}

/// The progress of a split.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Documents so far.
    pub documents: u64,
    /// Bytes of their text.
    pub bytes: u64,
    /// Tokens, including end-of-text tokens.
    pub tokens: u64,
    /// The finished shards.
    pub finished: Vec<Summary>,
    /// Tokens in the unfinished shard; `None` if all are finished.
    pub open: Option<u64>,
    /// The largest token of the unfinished shard.
    pub open_max: Option<u32>,
}

/// Writes the shards of one split. Unfinished files stay when it is dropped.
#[derive(Debug)]
pub struct SplitWriter {
    options: Options,
    state: State,
    writer: Option<Writer>,
}

impl SplitWriter {
    /// Continues from `state`, and removes later shards of an interrupted attempt.
    ///
    /// # Errors
    /// S003 if files cannot be written or removed, [`Error::Argument`] for invalid options.
    pub fn resume(options: Options, state: State) -> Result<Self> {
        options.check()?;
        let open = |tokens| {
            let path = options.path(state.finished.len());
            let mut writer = Writer::resume(&path, options.dtype, options.layout, tokens, state.open_max)?;
            writer.keep(true);
            Ok(writer)
        };
        let writer = state.open.map(open).transpose()?;
        let split = SplitWriter { options, state, writer };
        split.remove_later_shards()?;
        Ok(split)
    }

    /// The progress so far, except for `open` and `open_max`, which [`sync`](Self::sync) sets.
    #[must_use]
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Appends a document: the length of its text, and its little-endian tokens including end-of-text.
    ///
    /// # Errors
    /// S003 or S004 if a shard cannot be written.
    pub fn add(&mut self, text_bytes: u64, tokens: &[u8]) -> Result<()> {
        let size = self.options.dtype.size();
        let mut rest = tokens;
        while !rest.is_empty() {
            let written = self.writer()?.tokens();
            let room = self.options.room(written);
            let count = room.min((rest.len() / size) as u64);
            let (fitting, remaining) = rest.split_at(count as usize * size);
            self.writer()?.append(fitting)?;
            rest = remaining;
            if count == room {
                self.close_shard()?;
            }
        }
        self.state.documents += 1;
        self.state.bytes += text_bytes;
        self.state.tokens += (tokens.len() / size) as u64;
        Ok(())
    }

    /// Writes everything to disk and returns the progress.
    ///
    /// # Errors
    /// S003 if a shard cannot be written.
    pub fn sync(&mut self) -> Result<State> {
        if let Some(writer) = &mut self.writer {
            writer.sync()?;
        }
        self.state.open = self.writer.as_ref().map(Writer::tokens);
        self.state.open_max = self.writer.as_ref().and_then(Writer::max_token);
        Ok(self.state.clone())
    }

    /// Finishes the last shard.
    ///
    /// # Errors
    /// S003 or S004 if it cannot be written.
    pub fn finish(mut self) -> Result<State> {
        self.close_shard()?;
        self.sync()
    }

    fn writer(&mut self) -> Result<&mut Writer> {
        let writer = match self.writer.take() {
            Some(writer) => writer,
            None => self.next_shard()?,
        };
        Ok(self.writer.insert(writer))
    }

    fn next_shard(&self) -> Result<Writer> {
        let path = self.options.path(self.state.finished.len());
        let mut writer = Writer::create_with_layout(&path, self.options.dtype, false, self.options.layout)?;
        writer.keep(true);
        Ok(writer)
    }

    fn close_shard(&mut self) -> Result<()> {
        if let Some(writer) = self.writer.take() {
            self.state.finished.push(writer.finish()?);
        }
        Ok(())
    }

    /// Removes shards that were finished or begun after the state from which this writer continues.
    fn remove_later_shards(&self) -> Result<()> {
        let first = self.state.finished.len() + usize::from(self.writer.is_some());
        let end = if self.options.layout == Layout::Headerless { 1 } else { usize::MAX };
        for index in first..end {
            let path = self.options.path(index);
            let finished = remove(&path)?;
            let unfinished = remove(&temporary_path(&path)?)?;
            if !finished && !unfinished {
                break;
            }
        }
        Ok(())
    }
}

fn remove(path: &Path) -> Result<bool> {
    remove_if_present(path).map_err(|error| Error::write(path, error))
}

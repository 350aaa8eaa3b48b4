//! A split in the making: documents one after another, cut into shards of a set number of tokens.
//!
//! What a series writes depends on its documents alone, not on how often it was interrupted. [`sync`](Series::sync)
//! returns a [`State`] after it has brought everything to the disk; whoever keeps that state can, in another process,
//! [`resume`](Series::resume) from it, whatever was written after it.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::format::{Dtype, MAX_TOKENS};
use crate::writer::{Layout, Summary, Writer};

/// What does not change while a series is written.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Where the shards go.
    pub folder: PathBuf,
    /// What their names begin with: "train" or "val".
    pub name: String,
    /// The type of the tokens.
    pub dtype: Dtype,
    /// Shards with headers, or one plain file.
    pub layout: Layout,
    /// Tokens of each shard but the last.
    pub shard_tokens: u64,
}

impl Plan {
    fn check(&self) -> Result<()> {
        match self.layout {
            Layout::Shard if !(1..=MAX_TOKENS).contains(&self.shard_tokens) => {
                Err(Error::Argument(format!("shard_tokens = {}; 1 to {MAX_TOKENS} are possible", self.shard_tokens)))
            }
            Layout::Plain if self.dtype != Dtype::U16 => {
                Err(Error::Argument(format!("plain files hold uint16 tokens, not {}", self.dtype)))
            }
            _ => Ok(()),
        }
    }

    /// The path of shard `index`; the only one of a plain series is `NAME.bin`.
    pub fn path(&self, index: usize) -> PathBuf {
        match self.layout {
            Layout::Shard => self.folder.join(format!("{}_{index:06}.bin", self.name)),
            Layout::Plain => self.folder.join(format!("{}.bin", self.name)),
        }
    }

    fn room(&self, tokens: u64) -> u64 {
        match self.layout {
            Layout::Shard => self.shard_tokens - tokens,
            Layout::Plain => u64::MAX,
        }
    }
}

/// How far a series is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Documents so far.
    pub documents: u64,
    /// Bytes of their text.
    pub bytes: u64,
    /// Tokens, end-of-text ones included.
    pub tokens: u64,
    /// The finished shards.
    pub finished: Vec<Summary>,
    /// Tokens in the unfinished one; `None` if there is none.
    pub open: Option<u64>,
    /// The largest token of the unfinished one.
    pub open_max: Option<u32>,
}

/// The documents of one split on their way to disk.
#[derive(Debug)]
pub struct Series {
    plan: Plan,
    state: State,
    writer: Option<Writer>,
}

impl Series {
    /// A series from `state` on; later shards that an earlier attempt left are removed.
    pub fn resume(plan: Plan, state: State) -> Result<Self> {
        plan.check()?;
        let open = |tokens| {
            let path = plan.path(state.finished.len());
            let mut writer = Writer::resume(&path, plan.dtype, plan.layout, tokens, state.open_max)?;
            writer.keep(true);
            Ok(writer)
        };
        let writer = state.open.map(open).transpose()?;
        let series = Series { plan, state, writer };
        series.remove_later_shards()?;
        Ok(series)
    }

    /// How far it is.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Appends a document of `bytes` bytes of text: its little-endian tokens, end-of-text included.
    pub fn add(&mut self, bytes: u64, tokens: &[u8]) -> Result<()> {
        let size = self.plan.dtype.size();
        let mut rest = tokens;
        while !rest.is_empty() {
            let written = self.writer()?.tokens();
            let room = self.plan.room(written);
            let count = room.min((rest.len() / size) as u64) as usize;
            let (part, after) = rest.split_at(count * size);
            self.writer()?.append(part)?;
            rest = after;
            if count as u64 == room {
                self.close()?;
            }
        }
        self.state.documents += 1;
        self.state.bytes += bytes;
        self.state.tokens += (tokens.len() / size) as u64;
        Ok(())
    }

    /// Brings everything to the disk, and says how far that is.
    pub fn sync(&mut self) -> Result<State> {
        if let Some(writer) = &mut self.writer {
            writer.sync()?;
        }
        self.state.open = self.writer.as_ref().map(Writer::tokens);
        self.state.open_max = self.writer.as_ref().and_then(Writer::max_token);
        Ok(self.state.clone())
    }

    /// Finishes the last shard.
    pub fn finish(mut self) -> Result<State> {
        if self.writer.is_some() {
            self.close()?;
        }
        self.sync()
    }

    fn writer(&mut self) -> Result<&mut Writer> {
        if self.writer.is_none() {
            let path = self.plan.path(self.state.finished.len());
            let mut writer = Writer::create_as(&path, self.plan.dtype, false, self.plan.layout)?;
            writer.keep(true);
            self.writer = Some(writer);
        }
        Ok(self.writer.as_mut().expect("it was made just now"))
    }

    fn close(&mut self) -> Result<()> {
        if let Some(writer) = self.writer.take() {
            self.state.finished.push(writer.finish()?);
        }
        Ok(())
    }

    /// What was finished or begun after the state that this series goes on from.
    fn remove_later_shards(&self) -> Result<()> {
        let first = self.state.finished.len() + usize::from(self.writer.is_some());
        let most = if self.plan.layout == Layout::Plain { 1 } else { usize::MAX };
        for index in first..most {
            let path = self.plan.path(index);
            let found = remove(&path)? | remove(&crate::writer::temporary_name(&path)?)?;
            if !found {
                break;
            }
        }
        Ok(())
    }
}

/// Removes a file if it is there, and says whether it was.
fn remove(path: &Path) -> Result<bool> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(Error::write(path, error)),
    }
}

//! Token files opened for positioned reads, and datasets: lists of token files read as one stream of tokens.
//!
//! Files are read, not mapped. When a mapped file is cut short, touching the lost part kills the process, while a
//! positioned read returns an error. The files stay open, so a file that is replaced under its name does not change
//! what a run reads.

pub mod format;
pub mod split_writer;
pub mod verify;
pub mod writer;

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::error::{Error, Result};
use crate::files::{open_regular, version};
use crate::positioned::FileExt;
use format::{Dtype, HEADER_BYTES, Header};

/// How to treat a file without the header of a token shard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Headerless {
    /// Read it as uint16 tokens if its name is `train.bin` or `val.bin`, as nanoGPT writes them.
    #[default]
    Auto,
    /// Read every file as uint16 tokens.
    Always,
    /// Refuse it.
    Never,
}

/// One open token file.
#[derive(Debug)]
pub struct Shard {
    path: PathBuf,
    file: File,
    /// Length and time of the last write when the file was opened.
    version: (u64, Option<SystemTime>),
    dtype: Dtype,
    first_byte: u64,
    tokens: u64,
}

impl Shard {
    /// Opens a token file and checks its length against its header.
    ///
    /// # Errors
    /// D003, D007 or D008 for a malformed file, D015 if it is not a regular file, D016 if it cannot be opened.
    pub fn open(path: &Path, headerless: Headerless) -> Result<Self> {
        let (file, metadata) = open_regular(path)?;
        let (header, first_byte) = read_header(path, &file, metadata.len(), headerless)?;
        let Header { dtype, tokens } = header;
        Ok(Shard { path: path.into(), file, version: version(&metadata), dtype, first_byte, tokens })
    }

    /// The path of the file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The number of tokens.
    #[must_use]
    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    /// The type of the tokens.
    #[must_use]
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// The length of the file in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.version.0
    }

    /// The offset of the first token in the file.
    #[must_use]
    pub fn first_byte(&self) -> u64 {
        self.first_byte
    }

    /// Fills `buffer` with the tokens from the index `start` on.
    ///
    /// # Errors
    /// D016 if the file cannot be read, D017 if it became shorter.
    pub fn read(&self, start: u64, buffer: &mut [u8]) -> Result<()> {
        self.read_bytes(self.first_byte + start * self.dtype.size() as u64, buffer)
    }

    /// Fills `buffer` with the file's bytes from `offset` on.
    pub(crate) fn read_bytes(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        self.file.read_exact_at(buffer, offset).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => {
                self.changed(&format!("became shorter; the read at byte {offset} found its end"))
            }
            _ => Error::io(&self.path, "read", error),
        })
    }

    /// Checks that nobody wrote to the file since it was opened.
    ///
    /// # Errors
    /// D017 if somebody did.
    pub fn check_unchanged(&self) -> Result<()> {
        let metadata = self.file.metadata().map_err(|error| Error::io(&self.path, "read", error))?;
        if version(&metadata) == self.version {
            return Ok(());
        }
        let before = self.bytes();
        let now = metadata.len();
        if before == now {
            return Err(self.changed("was written to"));
        }
        Err(self.changed(&format!("had {before} bytes and has {now}")))
    }

    fn changed(&self, change: &str) -> Error {
        Error::ShardChanged { path: self.path.clone(), detail: format!("changed on disk during the run: it {change}") }
    }
}

/// Token files, in the order given, read as one stream of tokens. A window may span files.
#[derive(Debug)]
pub struct Dataset {
    shards: Vec<Shard>,
    /// For each shard, its end as an index in the stream.
    ends: Vec<u64>,
    dtype: Dtype,
}

impl Dataset {
    /// Opens every file and checks that all have the same type of token.
    ///
    /// # Errors
    /// Those of [`Shard::open`], D009 for different types, [`Error::Argument`] for an empty list of paths.
    pub fn open<P: AsRef<Path>>(paths: &[P], headerless: Headerless) -> Result<Self> {
        let shards = paths.iter().map(|path| Shard::open(path.as_ref(), headerless)).collect::<Result<Vec<_>>>()?;
        let first = shards.first().ok_or_else(|| Error::Argument("no token shards were given".into()))?;
        let dtype = first.dtype;
        if let Some(other) = shards.iter().find(|shard| shard.dtype != dtype) {
            return Err(Error::MixedDtype {
                path: other.path.clone(),
                dtype: other.dtype.name(),
                first: first.path.clone(),
                first_dtype: dtype.name(),
            });
        }
        let ends = shards.iter().scan(0, |end, shard| {
            *end += shard.tokens;
            Some(*end)
        });
        let ends = ends.collect();
        Ok(Dataset { shards, ends, dtype })
    }

    /// The files.
    #[must_use]
    pub fn shards(&self) -> &[Shard] {
        &self.shards
    }

    /// The type of the tokens.
    #[must_use]
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// The number of tokens in all files together.
    #[must_use]
    pub fn tokens(&self) -> u64 {
        self.ends.last().copied().unwrap_or(0)
    }

    /// Fills `buffer` with the tokens from the index `start` of the stream on.
    ///
    /// # Errors
    /// Those of [`Shard::read`].
    ///
    /// # Panics
    /// If the stream ends before the buffer is full.
    pub fn read(&self, start: u64, mut buffer: &mut [u8]) -> Result<()> {
        let size = self.dtype.size() as u64;
        let mut position = start;
        while !buffer.is_empty() {
            let (shard, index) = self.locate(position);
            let count = (shard.tokens - index).min(buffer.len() as u64 / size);
            let (target, rest) = buffer.split_at_mut((count * size) as usize);
            shard.read(index, target)?;
            buffer = rest;
            position += count;
        }
        Ok(())
    }

    /// The shard that contains the token at `position` of the stream, and the token's index in that shard.
    ///
    /// # Panics
    /// If `position` is not less than [`tokens`](Self::tokens).
    #[must_use]
    pub fn locate(&self, position: u64) -> (&Shard, u64) {
        let shard = self.ends.partition_point(|&end| end <= position);
        let start = if shard == 0 { 0 } else { self.ends[shard - 1] };
        (&self.shards[shard], position - start)
    }

    /// Checks that nobody wrote to any of the files since they were opened.
    ///
    /// # Errors
    /// D017 if somebody did.
    pub fn check_unchanged(&self) -> Result<()> {
        self.shards.iter().try_for_each(Shard::check_unchanged)
    }
}

/// The header of an open file, and the offset of its first token. For a headerless file, the header it would have.
fn read_header(path: &Path, file: &File, length: u64, headerless: Headerless) -> Result<(Header, u64)> {
    let mut start = Vec::with_capacity(HEADER_BYTES);
    let mut reader = file.take(HEADER_BYTES as u64);
    reader.read_to_end(&mut start).map_err(|error| Error::io(path, "read", error))?;
    let nanogpt_name = matches!(path.file_name().and_then(|name| name.to_str()), Some("train.bin" | "val.bin"));
    match headerless {
        Headerless::Always => headerless_header(path, &start, length),
        Headerless::Auto if nanogpt_name && !format::has_header(&start) => headerless_header(path, &start, length),
        _ => Ok((Header::parse(path, &start, length)?, HEADER_BYTES as u64)),
    }
}

fn headerless_header(path: &Path, start: &[u8], length: u64) -> Result<(Header, u64)> {
    let other_format = if format::has_header(start) {
        Some("it is not headerless: it begins with a shard's header".to_string())
    } else {
        format::not_headerless_tokens(start)
    };
    if let Some(reason) = other_format {
        return Err(Error::NotAShard { path: path.into(), reason });
    }
    if length % 2 != 0 {
        let excess = format::byte_count(1, "too many");
        let detail = format!("{length} bytes are not a whole number of uint16 tokens ({excess})");
        return Err(Error::ShardSize { path: path.into(), detail });
    }
    Ok((Header { dtype: Dtype::U16, tokens: length / 2 }, 0))
}

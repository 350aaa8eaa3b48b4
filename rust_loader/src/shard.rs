//! Token files opened for positioned reads, and a dataset: a list of them, seen as one stream of tokens.
//!
//! Files are read, not mapped: when a mapped file is cut short, touching the lost part kills the process, while a
//! positioned read returns an error that has a place. The files stay open, so a file that is replaced under its name
//! does not change what a run reads.

use std::fs::{self, File, FileType, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::error::{Error, Result};
use crate::format::{self, Dtype, HEADER_BYTES, Header};

/// How to treat a file without the header of a token shard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Headerless {
    /// It is plain uint16 tokens if its name is `train.bin` or `val.bin`, as nanoGPT writes them.
    #[default]
    Auto,
    /// Every file is plain uint16 tokens.
    Always,
    /// It is an error.
    Never,
}

/// One open token file.
#[derive(Debug)]
pub struct Shard {
    path: PathBuf,
    file: File,
    /// The length and time of the last write when the file was opened.
    opened_as: (u64, Option<SystemTime>),
    dtype: Dtype,
    first_byte: u64,
    tokens: u64,
}

impl Shard {
    /// Opens a token file and checks that its length is what its header says.
    pub fn open(path: &Path, headerless: Headerless) -> Result<Self> {
        // Asked before opening, because opening a FIFO waits for a writer.
        let kind = fs::metadata(path).map_err(|error| Error::io(path, "open", error))?.file_type();
        check_kind(path, kind)?;
        let file = File::open(path).map_err(|error| Error::io(path, "open", error))?;
        let metadata = file.metadata().map_err(|error| Error::io(path, "read", error))?;
        check_kind(path, metadata.file_type())?;
        let (header, first_byte) = read_header(path, &file, metadata.len(), headerless)?;
        let Header { dtype, tokens } = header;
        Ok(Shard { path: path.into(), file, opened_as: identity(&metadata), dtype, first_byte, tokens })
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How many tokens it holds.
    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    /// The type of its tokens.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// The length of the file.
    pub fn bytes(&self) -> u64 {
        self.opened_as.0
    }

    /// The place of the first token in the file.
    pub fn first_byte(&self) -> u64 {
        self.first_byte
    }

    /// Fills `buffer` with the tokens from the index `start` on.
    pub fn read(&self, start: u64, buffer: &mut [u8]) -> Result<()> {
        self.read_bytes(self.first_byte + start * self.dtype.size() as u64, buffer)
    }

    /// Fills `buffer` with the file's bytes from `offset` on.
    pub fn read_bytes(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        self.file.read_exact_at(buffer, offset).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => {
                self.changed(&format!("became shorter; the read at byte {offset} found its end"))
            }
            _ => Error::io(&self.path, "read", error),
        })
    }

    /// An error if the file has been written to since it was opened.
    pub fn check_unchanged(&self) -> Result<()> {
        let metadata = self.file.metadata().map_err(|error| Error::io(&self.path, "read", error))?;
        if identity(&metadata) == self.opened_as {
            return Ok(());
        }
        let (before, now) = (self.bytes(), metadata.len());
        Err(self.changed(&match before == now {
            true => "was written to".to_string(),
            false => format!("had {before} bytes and has {now}"),
        }))
    }

    fn changed(&self, what: &str) -> Error {
        Error::ShardChanged { path: self.path.clone(), detail: format!("changed on disk during the run: it {what}") }
    }
}

/// Token files seen as one stream of tokens, in the order given. A window may span files.
#[derive(Debug)]
pub struct Dataset {
    shards: Vec<Shard>,
    /// For each shard, the index in the stream at which it ends.
    ends: Vec<u64>,
    dtype: Dtype,
}

impl Dataset {
    /// Opens every file and checks that all hold the same type of token.
    pub fn open<P: AsRef<Path>>(paths: &[P], headerless: Headerless) -> Result<Self> {
        let shards = paths.iter().map(|path| Shard::open(path.as_ref(), headerless)).collect::<Result<Vec<_>>>()?;
        let first = shards.first().ok_or_else(|| Error::Argument("no token shards were given".into()))?;
        let dtype = first.dtype;
        if let Some(other) = shards.iter().find(|shard| shard.dtype != dtype) {
            let (path, first) = (other.path.clone(), first.path.clone());
            return Err(Error::MixedDtype { path, found: other.dtype, first, expected: dtype });
        }
        let mut end = 0;
        let ends = shards
            .iter()
            .map(|shard| {
                end += shard.tokens;
                end
            })
            .collect();
        Ok(Dataset { shards, ends, dtype })
    }

    /// The files.
    pub fn shards(&self) -> &[Shard] {
        &self.shards
    }

    /// The type of the tokens.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// How many tokens all files hold together.
    pub fn tokens(&self) -> u64 {
        self.ends.last().copied().unwrap_or(0)
    }

    /// Fills `buffer` with the tokens from the index `start` of the stream on.
    pub fn read(&self, start: u64, mut buffer: &mut [u8]) -> Result<()> {
        let size = self.dtype.size() as u64;
        let mut position = start;
        while !buffer.is_empty() {
            let (shard, within) = self.locate(position);
            let count = (shard.tokens - within).min(buffer.len() as u64 / size);
            let (part, rest) = buffer.split_at_mut((count * size) as usize);
            shard.read(within, part)?;
            (buffer, position) = (rest, position + count);
        }
        Ok(())
    }

    /// The shard that holds the token at `position` of the stream, and the token's index there.
    ///
    /// # Panics
    /// If the stream is shorter than that.
    pub fn locate(&self, position: u64) -> (&Shard, u64) {
        let shard = &self.shards[self.ends.partition_point(|&end| end <= position)];
        (shard, position - self.ends_before(position))
    }

    fn ends_before(&self, position: u64) -> u64 {
        match self.ends.partition_point(|&end| end <= position) {
            0 => 0,
            shard => self.ends[shard - 1],
        }
    }

    /// An error if any file has been written to since it was opened.
    pub fn check_unchanged(&self) -> Result<()> {
        self.shards.iter().try_for_each(Shard::check_unchanged)
    }
}

/// What changes when a file is written to.
pub(crate) fn identity(metadata: &Metadata) -> (u64, Option<SystemTime>) {
    (metadata.len(), metadata.modified().ok())
}

/// An error unless `kind` is that of a plain file.
pub(crate) fn check_kind(path: &Path, kind: FileType) -> Result<()> {
    let kind = match () {
        _ if kind.is_file() => return Ok(()),
        _ if kind.is_dir() => "folder",
        _ if kind.is_fifo() => "FIFO",
        _ if kind.is_socket() => "socket",
        _ => "device",
    };
    Err(Error::NotAFile { path: path.into(), kind })
}

/// The header of an open file, or the one that it would have if it had one, and the place of the first token.
fn read_header(path: &Path, file: &File, length: u64, headerless: Headerless) -> Result<(Header, u64)> {
    let mut start = Vec::with_capacity(HEADER_BYTES);
    let mut reader = file.take(HEADER_BYTES as u64);
    reader.read_to_end(&mut start).map_err(|error| Error::io(path, "read", error))?;
    let nanogpt = matches!(path.file_name().and_then(|name| name.to_str()), Some("train.bin" | "val.bin"));
    match headerless {
        Headerless::Always => plain(path, &start, length),
        Headerless::Auto if nanogpt && !format::has_header(&start) => plain(path, &start, length),
        _ => Ok((Header::parse(path, &start, length)?, HEADER_BYTES as u64)),
    }
}

fn plain(path: &Path, start: &[u8], length: u64) -> Result<(Header, u64)> {
    let surprise = match format::has_header(start) {
        true => Some("it is not headerless: it begins with a shard's header".to_string()),
        false => format::not_plain_tokens(start),
    };
    if let Some(found) = surprise {
        return Err(Error::NotAShard { path: path.into(), found });
    }
    if length % 2 != 0 {
        let detail = format!("{length} bytes are no whole number of uint16 tokens ({})", format::off(1, "too many"));
        return Err(Error::ShardSize { path: path.into(), detail });
    }
    Ok((Header { dtype: Dtype::U16, tokens: length / 2 }, 0))
}

//! Writes a token shard so that it is there completely or not at all.
//!
//! Tokens go to `.NAME.tmp` beside the final file. Finishing writes the true count into the header, flushes to the disk
//! and renames. A writer that is dropped before that removes what it wrote, unless it was told to keep it: then another
//! process can go on from a length that this one had [synced](Writer::sync).

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::format::{Dtype, HEADER_BYTES, Header, MAX_TOKENS};
use crate::shard::{Headerless, Shard};
use crate::verify::checksum;

/// Before it is finished a shard has no magic: it is nobody's shard.
const NO_HEADER: [u8; HEADER_BYTES] = [0; HEADER_BYTES];

/// What a finished shard holds, for the manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// Tokens in the file.
    pub tokens: u64,
    /// Bytes of the file.
    pub bytes: u64,
    /// The largest token; `None` in an empty shard.
    pub max_token: Option<u32>,
    /// xxh3-128 of the whole file, as it was read back, in 32 hexadecimal digits.
    pub xxh3_128: String,
}

/// What stands before the tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// The header of a token shard.
    Shard,
    /// Nothing: nanoGPT's plain uint16 tokens.
    Plain,
}

impl Layout {
    fn first_byte(self) -> u64 {
        match self {
            Layout::Shard => HEADER_BYTES as u64,
            Layout::Plain => 0,
        }
    }
}

/// A shard in the making.
#[derive(Debug)]
pub struct Writer {
    path: PathBuf,
    temporary: PathBuf,
    file: BufWriter<File>,
    layout: Layout,
    header: Header,
    max_token: Option<u32>,
    overwrite: bool,
    keep: bool,
}

impl Writer {
    /// Begins the shard `path`. An existing file is replaced only if `overwrite`, and only when this one is finished.
    pub fn create(path: &Path, dtype: Dtype, overwrite: bool) -> Result<Self> {
        Self::create_as(path, dtype, overwrite, Layout::Shard)
    }

    /// Like [`create`](Self::create), with or without a header.
    pub fn create_as(path: &Path, dtype: Dtype, overwrite: bool, layout: Layout) -> Result<Self> {
        check_free(path, overwrite)?;
        let temporary = temporary_name(path)?;
        let file = create_anew(&temporary).map_err(|error| Error::write(&temporary, error))?;
        let mut writer = Self::on(file, path, temporary, Header { dtype, tokens: 0 }, layout);
        writer.overwrite = overwrite;
        writer.write(&NO_HEADER[..layout.first_byte() as usize])?;
        Ok(writer)
    }

    /// Goes on with the shard `path` that another writer left with at least `tokens` tokens, the first of which count.
    pub fn resume(path: &Path, dtype: Dtype, layout: Layout, tokens: u64, max_token: Option<u32>) -> Result<Self> {
        let temporary = temporary_name(path)?;
        let failed = |error| Error::write(&temporary, error);
        if !temporary.exists() && path.exists() {
            fs::rename(path, &temporary).map_err(failed)?; // it was finished after that length was noted
        }
        let file = OpenOptions::new().write(true).open(&temporary).map_err(failed)?;
        let length = layout.first_byte() + tokens * dtype.size() as u64;
        if file.metadata().map_err(failed)?.len() < length {
            return Err(failed(io::Error::new(io::ErrorKind::UnexpectedEof, "it is shorter than was noted")));
        }
        file.set_len(length).map_err(failed)?;
        file.write_all_at(&NO_HEADER[..layout.first_byte() as usize], 0).map_err(failed)?;
        let mut writer = Self::on(file, path, temporary.clone(), Header { dtype, tokens }, layout);
        writer.max_token = max_token;
        writer.file.seek(SeekFrom::End(0)).map_err(failed)?;
        Ok(writer)
    }

    fn on(file: File, path: &Path, temporary: PathBuf, header: Header, layout: Layout) -> Self {
        let file = BufWriter::with_capacity(1 << 20, file);
        Writer { path: path.into(), temporary, file, layout, header, max_token: None, overwrite: false, keep: false }
    }

    /// Whether the unfinished file stays when this writer is dropped.
    pub fn keep(&mut self, keep: bool) {
        self.keep = keep;
    }

    /// Brings all tokens so far to the disk.
    pub fn sync(&mut self) -> Result<()> {
        let synced = self.file.flush().and_then(|()| self.file.get_ref().sync_data());
        synced.map_err(|error| Error::write(&self.temporary, error))
    }

    /// The type of the tokens.
    pub fn dtype(&self) -> Dtype {
        self.header.dtype
    }

    /// How many tokens were appended so far.
    pub fn tokens(&self) -> u64 {
        self.header.tokens
    }

    /// The largest token so far.
    pub fn max_token(&self) -> Option<u32> {
        self.max_token
    }

    /// Appends little-endian tokens.
    pub fn append(&mut self, bytes: &[u8]) -> Result<()> {
        let (size, length) = (self.dtype().size(), bytes.len());
        if length % size != 0 {
            let dtype = self.dtype();
            return Err(Error::Argument(format!("{length} bytes are no whole number of {dtype} tokens")));
        }
        let tokens = self.tokens() + (length / size) as u64;
        if tokens > MAX_TOKENS && self.layout == Layout::Shard {
            return Err(Error::ShardFull { path: self.path.clone() });
        }
        self.write(bytes)?;
        self.header.tokens = tokens;
        self.max_token = self.max_token.max(self.dtype().max(bytes));
        Ok(())
    }

    /// Gives the shard its header and its name.
    pub fn finish(mut self) -> Result<Summary> {
        self.settle().map_err(|error| Error::write(&self.temporary, error))?;
        let headerless = if self.layout == Layout::Shard { Headerless::Never } else { Headerless::Always };
        let shard = Shard::open(&self.temporary, headerless)?;
        let xxh3_128 = checksum(&shard)?;
        check_free(&self.path, self.overwrite)?;
        fs::rename(&self.temporary, &self.path).map_err(|error| Error::write(&self.path, error))?;
        self.keep = true; // there is nothing left to remove, and the name may be somebody else's soon
        sync_folder(&self.path).map_err(|error| Error::write(&self.path, error))?;
        Ok(Summary { tokens: self.tokens(), bytes: shard.bytes(), max_token: self.max_token, xxh3_128 })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(|error| Error::write(&self.temporary, error))
    }

    fn settle(&mut self) -> io::Result<()> {
        self.file.flush()?;
        if self.layout == Layout::Shard {
            self.file.get_ref().write_all_at(&self.header.encode(), 0)?;
        }
        self.file.get_ref().sync_all()
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if !self.keep {
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

fn check_free(path: &Path, overwrite: bool) -> Result<()> {
    match !overwrite && path.symlink_metadata().is_ok() {
        true => Err(Error::Exists { path: path.into() }),
        false => Ok(()),
    }
}

pub(crate) fn temporary_name(path: &Path) -> Result<PathBuf> {
    let name = path.file_name().ok_or_else(|| Error::Argument(format!("{} names no file", path.display())))?;
    let mut temporary = std::ffi::OsString::from(".");
    temporary.push(name);
    temporary.push(".tmp");
    Ok(path.with_file_name(temporary))
}

/// A new file at `path`, whatever an earlier writer left there: never one that somebody else has open or linked.
fn create_anew(path: &Path) -> io::Result<File> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => File::create_new(path),
    }
}

/// Makes the rename itself survive a power failure.
fn sync_folder(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()
}

//! Writes a token shard so that it appears completely or not at all.
//!
//! Tokens go to `.NAME.tmp` beside the final file. [`finish`](Writer::finish) writes the true count into the header,
//! flushes to disk and renames. A writer that is dropped before that removes what it wrote, unless it was told to
//! [keep](Writer::keep) it. Then another process can [resume](Writer::resume) from a length that was
//! [synced](Writer::sync).

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::format::{Dtype, HEADER_BYTES, Header, MAX_TOKENS};
use super::verify::checksum;
use super::{Headerless, Shard};
use crate::error::{Error, Result};
use crate::files::{rename_durably, replace, temporary_path};
use crate::positioned::FileExt;

/// An unfinished shard has no magic, so no reader takes it for a shard.
const NO_HEADER: [u8; HEADER_BYTES] = [0; HEADER_BYTES];

/// The properties of a finished shard, for the manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// Tokens in the file.
    pub tokens: u64,
    /// Bytes of the file.
    pub bytes: u64,
    /// The largest token; `None` in an empty shard.
    pub max_token: Option<u32>,
    /// xxh3-128 of the whole file, read back from disk, as 32 hexadecimal digits.
    pub xxh3_128: String,
}

/// The content of a file before its tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// The header of a token shard.
    Shard,
    /// Nothing, as in nanoGPT's files of uint16 tokens.
    Headerless,
}

impl Layout {
    fn first_byte(self) -> u64 {
        match self {
            Layout::Shard => HEADER_BYTES as u64,
            Layout::Headerless => 0,
        }
    }
}

/// An unfinished shard.
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
    /// Begins the shard `path`. With `overwrite`, an existing file is replaced when this one is finished.
    ///
    /// # Errors
    /// S004 if the file exists and `overwrite` is false, S003 if it cannot be written.
    pub fn create(path: &Path, dtype: Dtype, overwrite: bool) -> Result<Self> {
        Self::create_with_layout(path, dtype, overwrite, Layout::Shard)
    }

    /// Like [`create`](Self::create), with or without a header.
    pub(crate) fn create_with_layout(path: &Path, dtype: Dtype, overwrite: bool, layout: Layout) -> Result<Self> {
        check_free(path, overwrite)?;
        let temporary = temporary_path(path)?;
        let file = replace(&temporary).map_err(|error| Error::write(&temporary, error))?;
        let mut writer = Self::from_file(file, path, temporary, Header { dtype, tokens: 0 }, layout);
        writer.overwrite = overwrite;
        writer.write(&NO_HEADER[..layout.first_byte() as usize])?;
        Ok(writer)
    }

    /// Continues the shard `path` that another writer kept: its first `tokens` tokens stay, later ones are cut off.
    pub(crate) fn resume(
        path: &Path,
        dtype: Dtype,
        layout: Layout,
        tokens: u64,
        max_token: Option<u32>,
    ) -> Result<Self> {
        let temporary = temporary_path(path)?;
        let failed = |error| Error::write(&temporary, error);
        if !temporary.exists() && path.exists() {
            fs::rename(path, &temporary).map_err(failed)?; // the shard was finished after that sync
        }
        let file = OpenOptions::new().write(true).open(&temporary).map_err(failed)?;
        let length = layout.first_byte() + tokens * dtype.size() as u64;
        if file.metadata().map_err(failed)?.len() < length {
            return Err(failed(io::Error::new(io::ErrorKind::UnexpectedEof, "it is shorter than recorded")));
        }
        file.set_len(length).map_err(failed)?;
        file.write_all_at(&NO_HEADER[..layout.first_byte() as usize], 0).map_err(failed)?;
        let mut writer = Self::from_file(file, path, temporary.clone(), Header { dtype, tokens }, layout);
        writer.max_token = max_token;
        writer.file.seek(SeekFrom::End(0)).map_err(failed)?;
        Ok(writer)
    }

    fn from_file(file: File, path: &Path, temporary: PathBuf, header: Header, layout: Layout) -> Self {
        Writer {
            path: path.into(),
            temporary,
            file: BufWriter::with_capacity(1 << 20, file),
            layout,
            header,
            max_token: None,
            overwrite: false,
            keep: false,
        }
    }

    /// Sets whether the unfinished file stays when this writer is dropped.
    pub(crate) fn keep(&mut self, keep: bool) {
        self.keep = keep;
    }

    /// Writes all tokens so far to disk.
    pub(crate) fn sync(&mut self) -> Result<()> {
        let synced = self.file.flush().and_then(|()| self.file.get_ref().sync_data());
        synced.map_err(|error| Error::write(&self.temporary, error))
    }

    /// The type of the tokens.
    #[must_use]
    pub fn dtype(&self) -> Dtype {
        self.header.dtype
    }

    /// The number of tokens so far.
    #[must_use]
    pub fn tokens(&self) -> u64 {
        self.header.tokens
    }

    /// The largest token so far.
    #[must_use]
    pub fn max_token(&self) -> Option<u32> {
        self.max_token
    }

    /// Appends little-endian tokens.
    ///
    /// # Errors
    /// S003 if they cannot be written, S014 if the shard is full, [`Error::Argument`] for a part of a token.
    pub fn append(&mut self, bytes: &[u8]) -> Result<()> {
        let dtype = self.dtype();
        let length = bytes.len();
        if length % dtype.size() != 0 {
            return Err(Error::Argument(format!("{length} bytes are not a whole number of {dtype} tokens")));
        }
        let tokens = self.tokens() + (length / dtype.size()) as u64;
        if tokens > MAX_TOKENS && self.layout == Layout::Shard {
            return Err(Error::ShardFull { path: self.path.clone(), limit: MAX_TOKENS });
        }
        self.write(bytes)?;
        self.header.tokens = tokens;
        self.max_token = self.max_token.max(dtype.max(bytes));
        Ok(())
    }

    /// Writes the header, gives the file its name, and describes it.
    ///
    /// # Errors
    /// S003 if it cannot be written, S004 if a file with that name appeared and may not be replaced.
    pub fn finish(mut self) -> Result<Summary> {
        self.flush_and_sync().map_err(|error| Error::write(&self.temporary, error))?;
        let headerless = if self.layout == Layout::Shard { Headerless::Never } else { Headerless::Always };
        let shard = Shard::open(&self.temporary, headerless)?;
        let xxh3_128 = checksum(&shard)?;
        check_free(&self.path, self.overwrite)?;
        rename_durably(&self.temporary, &self.path).map_err(|error| Error::write(&self.path, error))?;
        self.keep = true; // nothing is left to remove, and another process may use the name soon
        Ok(Summary { tokens: self.tokens(), bytes: shard.bytes(), max_token: self.max_token, xxh3_128 })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(|error| Error::write(&self.temporary, error))
    }

    fn flush_and_sync(&mut self) -> io::Result<()> {
        self.file.flush()?;
        if self.layout == Layout::Shard {
            self.file.get_ref().write_all_at(&self.header.encode(), 0)?;
            self.file.seek(SeekFrom::End(0))?; // Windows has moved the cursor
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
    if !overwrite && path.symlink_metadata().is_ok() {
        return Err(Error::Exists { path: path.into() });
    }
    Ok(())
}

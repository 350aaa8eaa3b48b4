//! Writes a token shard so that it is there completely or not at all.
//!
//! Tokens go to `.NAME.tmp` beside the final file. Finishing writes the true count into the header, flushes to the disk
//! and renames. A writer that is dropped before that removes what it wrote.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::format::{Dtype, HEADER_BYTES, Header, MAX_TOKENS};
use crate::shard::{Headerless, Shard};
use crate::verify::checksum;

/// What a finished shard holds, for the manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
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

/// A shard in the making.
#[derive(Debug)]
pub struct Writer {
    path: PathBuf,
    temporary: PathBuf,
    file: BufWriter<File>,
    header: Header,
    max_token: Option<u32>,
    overwrite: bool,
}

impl Writer {
    /// Begins the shard `path`. An existing file is replaced only if `overwrite`, and only when this one is finished.
    pub fn create(path: &Path, dtype: Dtype, overwrite: bool) -> Result<Self> {
        check_free(path, overwrite)?;
        let temporary = temporary_name(path)?;
        let file = create_anew(&temporary).map_err(|error| Error::write(&temporary, error))?;
        let file = BufWriter::with_capacity(1 << 20, file);
        let header = Header { dtype, tokens: 0 };
        let mut writer = Writer { path: path.into(), temporary, file, header, max_token: None, overwrite };
        writer.write(&[0; HEADER_BYTES])?; // without a magic: an unfinished file is nobody's shard
        Ok(writer)
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
        if tokens > MAX_TOKENS {
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
        let shard = Shard::open(&self.temporary, Headerless::Never)?;
        let xxh3_128 = checksum(&shard)?;
        check_free(&self.path, self.overwrite)?;
        fs::rename(&self.temporary, &self.path).map_err(|error| Error::write(&self.path, error))?;
        sync_folder(&self.path).map_err(|error| Error::write(&self.path, error))?;
        Ok(Summary { tokens: self.tokens(), bytes: shard.bytes(), max_token: self.max_token, xxh3_128 })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(|error| Error::write(&self.temporary, error))
    }

    fn settle(&mut self) -> io::Result<()> {
        self.file.flush()?;
        self.file.get_ref().write_all_at(&self.header.encode(), 0)?;
        self.file.get_ref().sync_all()
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.temporary); // gone already if it was finished
    }
}

fn check_free(path: &Path, overwrite: bool) -> Result<()> {
    match !overwrite && path.symlink_metadata().is_ok() {
        true => Err(Error::Exists { path: path.into() }),
        false => Ok(()),
    }
}

fn temporary_name(path: &Path) -> Result<PathBuf> {
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

//! Documents that may become validation data, held out on disk until all documents are known.
//!
//! Validation takes the documents with the lowest keys, and how many it needs is known only at the end. Until then every
//! document with a key below a generous limit is appended here: its tokens to one file, its key and lengths to another.
//! So memory use stays small, and resuming after an interruption means truncating both files.

use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// The key of a document. An order by keys depends on nothing but the texts.
pub type Key = [u8; 16];

const ENTRY_BYTES: usize = 32;
const BUFFER_BYTES: usize = 1 << 18;

/// The two files.
#[derive(Debug)]
pub(crate) struct Holdout {
    tokens: AppendFile,
    index: AppendFile,
}

/// The index entry of one document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Decides whether the document is for training or validation.
    pub(crate) key: Key,
    /// The length of its text in bytes.
    pub(crate) text_bytes: u64,
    /// The length of its tokens in bytes.
    pub(crate) token_bytes: u64,
}

impl Holdout {
    /// Opens or creates the files in `folder`, truncated to `lengths` (of the tokens and the index, in bytes).
    pub(crate) fn resume(folder: &Path, lengths: (u64, u64)) -> Result<Self> {
        Ok(Holdout {
            tokens: AppendFile::resume(folder.join(".holdout.tokens.tmp"), lengths.0)?,
            index: AppendFile::resume(folder.join(".holdout.index.tmp"), lengths.1)?,
        })
    }

    /// Appends a document.
    pub(crate) fn add(&mut self, key: Key, text_bytes: u64, tokens: &[u8]) -> Result<()> {
        let entry = [key.as_slice(), &text_bytes.to_le_bytes(), &(tokens.len() as u64).to_le_bytes()].concat();
        self.tokens.write(tokens)?;
        self.index.write(&entry)
    }

    /// Writes both files to disk, and returns their lengths.
    pub(crate) fn sync(&mut self) -> Result<(u64, u64)> {
        Ok((self.tokens.sync()?, self.index.sync()?))
    }

    /// Calls `visit` with every document and its tokens, in the order in which they were added.
    pub(crate) fn for_each(&mut self, mut visit: impl FnMut(Entry, &[u8]) -> Result<()>) -> Result<()> {
        let mut tokens = self.tokens.reader()?;
        let mut document = Vec::new();
        for entry in self.entries()? {
            document.resize(entry.token_bytes as usize, 0);
            self.tokens.read(&mut tokens, &mut document)?;
            visit(entry, &document)?;
        }
        Ok(())
    }

    /// The entries of all documents, in the order in which they were added.
    fn entries(&mut self) -> Result<Vec<Entry>> {
        let mut reader = self.index.reader()?;
        let count = self.index.length / ENTRY_BYTES as u64;
        let mut entries = Vec::with_capacity(count as usize);
        let mut bytes = [0; ENTRY_BYTES];
        for _ in 0..count {
            self.index.read(&mut reader, &mut bytes)?;
            let number = |at| u64::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
            entries.push(Entry {
                key: std::array::from_fn(|i| bytes[i]),
                text_bytes: number(16),
                token_bytes: number(24),
            });
        }
        Ok(entries)
    }

    /// The lowest key such that the documents up to it have `wanted` bytes of tokens, or the highest key if all together
    /// have less. `None` without documents.
    pub(crate) fn cutoff(&mut self, wanted: u64) -> Result<Option<Key>> {
        let mut entries = self.entries()?;
        entries.sort_unstable_by_key(|entry| entry.key);
        let mut total = 0;
        let last = entries.iter().find(|entry| {
            total += entry.token_bytes;
            total >= wanted
        });
        Ok(last.or(entries.last()).map(|entry| entry.key))
    }
}

/// A file that is only appended to.
#[derive(Debug)]
struct AppendFile {
    path: PathBuf,
    file: BufWriter<File>,
    length: u64,
}

impl AppendFile {
    fn resume(path: PathBuf, length: u64) -> Result<Self> {
        let failed = |error| Error::write(&path, error);
        let mut options = OpenOptions::new();
        options.create(true).truncate(false).read(true).write(true);
        let mut file = options.open(&path).map_err(failed)?;
        if file.metadata().map_err(failed)?.len() < length {
            return Err(failed(io::Error::new(io::ErrorKind::UnexpectedEof, "it is shorter than recorded")));
        }
        file.set_len(length).and_then(|()| file.seek(SeekFrom::End(0))).map_err(failed)?;
        Ok(AppendFile { file: BufWriter::with_capacity(BUFFER_BYTES, file), path, length })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.length += bytes.len() as u64;
        self.file.write_all(bytes).map_err(|error| Error::write(&self.path, error))
    }

    fn sync(&mut self) -> Result<u64> {
        let synced = self.file.flush().and_then(|()| self.file.get_ref().sync_data());
        synced.map(|()| self.length).map_err(|error| Error::write(&self.path, error))
    }

    fn reader(&mut self) -> Result<BufReader<File>> {
        self.file.flush().map_err(|error| Error::write(&self.path, error))?;
        let file = File::open(&self.path).map_err(|error| Error::io(&self.path, "open", error))?;
        Ok(BufReader::with_capacity(BUFFER_BYTES, file))
    }

    fn read(&self, reader: &mut BufReader<File>, buffer: &mut [u8]) -> Result<()> {
        reader.read_exact(buffer).map_err(|error| Error::io(&self.path, "read", error))
    }
}

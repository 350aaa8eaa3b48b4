//! Documents that may be for validation, kept aside on disk until all are known.
//!
//! Which documents a validation split of so many tokens takes is known only at the end: those whose keys are lowest.
//! Until then every document with a key below a limit, which is generous, is appended here: its tokens to one file, its
//! key and lengths to another. Memory stays small, and going on after an interruption means cutting both files back.

use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// A document's key, and its place in any order that depends on nothing but its text.
pub type Key = [u8; 16];

const ENTRY: usize = 32;

/// The two files.
#[derive(Debug)]
pub struct Aside {
    tokens: Kept,
    index: Kept,
}

/// One document that was kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What decides on its side.
    pub key: Key,
    /// Length of its text.
    pub bytes: u64,
    /// Length of its tokens.
    pub token_bytes: u64,
}

impl Aside {
    /// The files of `folder`, cut back to what `lengths` says of them.
    pub fn resume(folder: &Path, lengths: (u64, u64)) -> Result<Self> {
        let open = |name, length| Kept::resume(folder.join(name), length);
        Ok(Aside { tokens: open(".aside.tokens.tmp", lengths.0)?, index: open(".aside.index.tmp", lengths.1)? })
    }

    /// Keeps a document.
    pub fn add(&mut self, key: Key, bytes: u64, tokens: &[u8]) -> Result<()> {
        let entry = [key.as_slice(), &bytes.to_le_bytes(), &(tokens.len() as u64).to_le_bytes()].concat();
        self.tokens.write(tokens)?;
        self.index.write(&entry)
    }

    /// Brings both files to the disk, and returns their lengths.
    pub fn sync(&mut self) -> Result<(u64, u64)> {
        Ok((self.tokens.sync()?, self.index.sync()?))
    }

    /// Every document in its order, with its tokens.
    pub fn for_each(&mut self, mut visit: impl FnMut(Entry, &[u8]) -> Result<()>) -> Result<()> {
        let mut tokens = self.tokens.reader()?;
        let mut document = Vec::new();
        for entry in self.entries()? {
            document.resize(entry.token_bytes as usize, 0);
            self.tokens.read(&mut tokens, &mut document)?;
            visit(entry, &document)?;
        }
        Ok(())
    }

    /// What is known of every document, in their order.
    pub fn entries(&mut self) -> Result<Vec<Entry>> {
        let mut reader = self.index.reader()?;
        let mut entries = Vec::with_capacity((self.index.length / ENTRY as u64) as usize);
        let mut entry = [0; ENTRY];
        for _ in 0..self.index.length / ENTRY as u64 {
            self.index.read(&mut reader, &mut entry)?;
            let number = |at| u64::from_le_bytes(std::array::from_fn(|i| entry[at + i]));
            let key = std::array::from_fn(|i| entry[i]);
            entries.push(Entry { key, bytes: number(16), token_bytes: number(24) });
        }
        Ok(entries)
    }

    /// The key up to which documents hold `wanted` bytes of tokens, or all there are; `None` if there are none.
    pub fn cutoff(&mut self, wanted: u64) -> Result<Option<Key>> {
        let mut entries = self.entries()?;
        entries.sort_unstable_by_key(|entry| entry.key);
        let mut held = 0;
        let enough = entries.iter().find(|entry| {
            held += entry.token_bytes;
            held >= wanted
        });
        Ok(enough.or(entries.last()).map(|entry| entry.key))
    }
}

/// A file that only grows.
#[derive(Debug)]
struct Kept {
    path: PathBuf,
    file: BufWriter<File>,
    length: u64,
}

impl Kept {
    fn resume(path: PathBuf, length: u64) -> Result<Self> {
        let failed = |error| Error::write(&path, error);
        let mut file =
            OpenOptions::new().create(true).truncate(false).read(true).write(true).open(&path).map_err(failed)?;
        if file.metadata().map_err(failed)?.len() < length {
            return Err(failed(io::Error::new(io::ErrorKind::UnexpectedEof, "it is shorter than was noted")));
        }
        file.set_len(length).and_then(|()| file.seek(SeekFrom::End(0))).map_err(failed)?;
        Ok(Kept { file: BufWriter::with_capacity(1 << 18, file), path, length })
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
        Ok(BufReader::with_capacity(1 << 18, file))
    }

    fn read(&self, reader: &mut BufReader<File>, buffer: &mut [u8]) -> Result<()> {
        reader.read_exact(buffer).map_err(|error| Error::io(&self.path, "read", error))
    }
}

//! The file of near-duplicate clusters. A preparation uses it to put near-duplicates into the same split.
//!
//! The format: 16 bytes of magic, a little-endian u64 count, then that many records in ascending order. A record is the
//! key of a document and the key of its cluster's representative, 16 bytes each. A document has a record if its cluster
//! contains documents with different keys; the representative has one too. A key is the xxh3-128, in big-endian order, of
//! a document's tokens as little-endian uint32, without the end-of-text token.

use std::fs;
use std::path::Path;

use xxhash_rust::xxh3::Xxh3;

use super::tokens::Text;
use crate::error::{Error, Result};
use crate::files::write_atomic;
use crate::hash::hash_bytes;
use crate::shard::format::Dtype;

/// The first bytes of the file.
pub(super) const MAGIC: &[u8; 16] = b"jaxgpt-clusters1";
const HEADER: usize = 24;
const RECORD: usize = 32;

/// A document's key.
pub type Key = [u8; 16];

/// The key of a document of uint16 tokens.
#[must_use]
pub fn document_key_u16(tokens: &[u16]) -> Key {
    of_ids(tokens.iter().map(|&token| token.into()))
}

/// The key of a document of uint32 tokens.
#[must_use]
pub fn document_key_u32(tokens: &[u32]) -> Key {
    of_ids(tokens.iter().copied())
}

/// The key of a document, given as the little-endian tokens of a shard.
#[must_use]
pub fn document_key(tokens: &[u8], dtype: Dtype) -> Key {
    match dtype {
        Dtype::U16 => of_ids(tokens.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]]).into())),
        Dtype::U32 => {
            of_ids(tokens.chunks_exact(4).map(|quad| u32::from_le_bytes([quad[0], quad[1], quad[2], quad[3]])))
        }
    }
}

fn of_ids(ids: impl Iterator<Item = u32>) -> Key {
    let mut hasher = Hasher::default();
    ids.for_each(|id| hasher.push(id));
    hasher.finish().to_be_bytes()
}

/// The key of a stored document, as a number.
pub(super) fn key_of(text: &Text) -> Result<u128> {
    let mut hasher = Hasher::default();
    text.pieces(1, &mut |ids| {
        ids.iter().for_each(|&id| hasher.push(id));
        Ok(())
    })?;
    Ok(hasher.finish())
}

/// Computes the xxh3-128 of tokens as little-endian uint32, a few kilobytes at a time.
struct Hasher {
    inner: Xxh3,
    buffer: [u8; 4096],
    used: usize,
}

impl Default for Hasher {
    fn default() -> Self {
        Hasher { inner: Xxh3::new(), buffer: [0; 4096], used: 0 }
    }
}

impl Hasher {
    fn push(&mut self, id: u32) {
        self.buffer[self.used..self.used + 4].copy_from_slice(&id.to_le_bytes());
        self.used += 4;
        if self.used == self.buffer.len() {
            self.inner.update(&self.buffer);
            self.used = 0;
        }
    }

    fn finish(mut self) -> u128 {
        self.inner.update(&self.buffer[..self.used]);
        self.inner.digest128()
    }
}

/// The clusters of a file.
#[derive(Debug)]
pub struct ClusterMap {
    records: Vec<u8>,
}

impl ClusterMap {
    /// Reads the file `path`.
    ///
    /// # Errors
    /// D016 if it cannot be read, D028 if it is malformed.
    pub fn open(path: &Path) -> Result<Self> {
        let metadata = fs::metadata(path).map_err(|error| Error::io(path, "open", error))?;
        if !metadata.is_file() {
            return Err(malformed(path, "it is not a file".into())); // opening a FIFO would wait for a writer
        }
        Self::parse(path, fs::read(path).map_err(|error| Error::io(path, "read", error))?)
    }

    /// Parses the bytes of the file `path`.
    ///
    /// # Errors
    /// D028 if they are malformed.
    pub fn parse(path: &Path, mut bytes: Vec<u8>) -> Result<Self> {
        if bytes.get(..16) != Some(MAGIC) || bytes.len() < HEADER {
            return Err(malformed(path, "it does not begin like one".into()));
        }
        let count = bytes[16..HEADER].iter().rev().fold(0, |count, &byte| count << 8 | u64::from(byte));
        let expected = count.checked_mul(RECORD as u64).and_then(|size| size.checked_add(HEADER as u64));
        if expected != Some(bytes.len() as u64) {
            let length = bytes.len();
            return Err(malformed(path, format!("its header says {count} records, it has {length} bytes")));
        }
        bytes.drain(..HEADER);
        let map = ClusterMap { records: bytes };
        if let Some(index) = (1..map.len()).find(|&index| map.key(index - 1, 0) >= map.key(index, 0)) {
            return Err(malformed(path, format!("record {index} is out of order")));
        }
        for index in 0..map.len() {
            let representative = map.key(index, 16);
            if map.find(representative).map(|position| map.key(position, 16)) != Some(representative) {
                return Err(malformed(path, format!("record {index} names a document that is not a representative")));
            }
        }
        Ok(map)
    }

    /// The number of documents in the file.
    #[must_use]
    pub fn len(&self) -> usize {
        self.records.len() / RECORD
    }

    /// Returns true if the file has no documents.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// The key of the document that represents the cluster of the document with this key; `None` if it has no
    /// near-duplicates.
    #[must_use]
    pub fn representative(&self, key: &Key) -> Option<Key> {
        self.find(key).and_then(|index| self.key(index, 16).try_into().ok())
    }

    fn key(&self, index: usize, offset: usize) -> &[u8] {
        &self.records[index * RECORD + offset..][..16]
    }

    fn find(&self, key: &[u8]) -> Option<usize> {
        let mut low = 0;
        let mut high = self.len();
        while low < high {
            let middle = low + (high - low) / 2;
            if self.key(middle, 0) < key { low = middle + 1 } else { high = middle }
        }
        (low < self.len() && self.key(low, 0) == key).then_some(low)
    }
}

/// Writes the file atomically and returns its xxh3-128 in hexadecimal. The records may have any order.
pub(super) fn write(path: &Path, mut records: Vec<(u128, u128)>) -> Result<String> {
    records.sort_unstable();
    records.dedup();
    let mut bytes = MAGIC.to_vec();
    bytes.extend((records.len() as u64).to_le_bytes());
    records.iter().for_each(|(member, kept)| {
        bytes.extend(member.to_be_bytes());
        bytes.extend(kept.to_be_bytes());
    });
    write_atomic(path, &bytes)?;
    Ok(hash_bytes(&bytes))
}

fn malformed(path: &Path, reason: String) -> Error {
    Error::NotClusters { path: path.into(), reason }
}

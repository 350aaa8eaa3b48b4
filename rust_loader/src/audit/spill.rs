//! A temporary file with the band hashes and the sketch of each document.
//!
//! The hashes of one band are stored together, because bands are processed one after another. The file has no name, so
//! it disappears however the process ends.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use super::minhash::{BANDS, BINS, Sketch};
use crate::error::{Error, Result};
use crate::positioned::FileExt;

/// Bytes per document.
const BYTES: u64 = (BANDS * 8 + BINS) as u64;

/// The temporary file, or memory instead of it.
pub(crate) struct Spill {
    store: Store,
    documents: u64,
}

enum Store {
    File(File, PathBuf),
    Memory(Mutex<Vec<u8>>),
}

impl Spill {
    /// Space for `documents` documents in a file in `folder`, or in memory.
    pub(crate) fn new(folder: Option<&Path>, documents: usize) -> Result<Self> {
        let documents = documents as u64;
        let store = match folder {
            None => Store::Memory(Mutex::new(vec![0; (documents * BYTES) as usize])),
            Some(folder) => {
                let file = tempfile::tempfile_in(folder).map_err(|error| failed(folder, documents, error))?;
                Store::File(file, folder.into())
            }
        };
        Ok(Spill { store, documents })
    }

    /// Stores the sketches of the documents from `first` on.
    pub(crate) fn write(&self, first: usize, sketches: &[Sketch]) -> Result<()> {
        let first = first as u64;
        let bands: Vec<_> = sketches.iter().map(Sketch::bands).collect();
        for band in 0..BANDS {
            let column: Vec<u8> = bands.iter().flat_map(|hashes| hashes[band].to_le_bytes()).collect();
            self.put((band as u64 * self.documents + first) * 8, &column)?;
        }
        let rows: Vec<u8> = sketches.iter().flat_map(Sketch::bytes).collect();
        self.put(self.rows() + first * BINS as u64, &rows)
    }

    /// The hashes of one band for `count` documents from `first` on.
    pub(crate) fn band(&self, band: usize, first: usize, count: usize) -> Result<Vec<u64>> {
        let mut bytes = vec![0; count * 8];
        self.get((band as u64 * self.documents + first as u64) * 8, &mut bytes)?;
        let word = |part: &[u8]| part.iter().rev().fold(0, |word, &byte| word << 8 | u64::from(byte));
        Ok(bytes.chunks_exact(8).map(word).collect())
    }

    /// The sketch of a document.
    pub(crate) fn sketch(&self, document: u32) -> Result<[u8; BINS]> {
        let mut bytes = [0; BINS];
        self.get(self.rows() + u64::from(document) * BINS as u64, &mut bytes)?;
        Ok(bytes)
    }

    fn rows(&self) -> u64 {
        BANDS as u64 * self.documents * 8
    }

    fn put(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        match &self.store {
            Store::File(file, folder) => {
                file.write_all_at(bytes, offset).map_err(|error| failed(folder, self.documents, error))
            }
            Store::Memory(memory) => {
                if let Ok(mut memory) = memory.lock() {
                    memory[offset as usize..offset as usize + bytes.len()].copy_from_slice(bytes);
                }
                Ok(())
            }
        }
    }

    fn get(&self, offset: u64, bytes: &mut [u8]) -> Result<()> {
        match &self.store {
            Store::File(file, folder) => {
                file.read_exact_at(bytes, offset).map_err(|error| failed(folder, self.documents, error))
            }
            Store::Memory(memory) => {
                if let Ok(memory) = memory.lock() {
                    bytes.copy_from_slice(&memory[offset as usize..offset as usize + bytes.len()]);
                }
                Ok(())
            }
        }
    }
}

fn failed(folder: &Path, documents: u64, source: io::Error) -> Error {
    Error::Spill { path: folder.into(), bytes: documents * BYTES, source: Arc::new(source) }
}

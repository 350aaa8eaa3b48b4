//! Files for the tests.

#![allow(dead_code)] // each test file is its own crate and uses only some of these

pub mod audit;

use std::fs;
use std::path::{Path, PathBuf};

use jaxgpt_loader::shard::format::{Dtype, Header};

/// A shard as llm.c writes it, byte for byte.
pub fn shard_bytes(tokens: &[u16]) -> Vec<u8> {
    let header = Header { dtype: Dtype::U16, tokens: tokens.len() as u64 };
    [header.encode().to_vec(), little_endian(tokens)].concat()
}

pub fn little_endian(tokens: &[u16]) -> Vec<u8> {
    tokens.iter().flat_map(|token| token.to_le_bytes()).collect()
}

pub fn write(folder: &Path, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
    let path = folder.join(name);
    fs::write(&path, bytes).unwrap();
    path
}

/// `count` tokens that differ from their neighbors.
pub fn tokens(count: usize) -> Vec<u16> {
    (0..count).map(|index| (index * 31 % 50_257) as u16).collect()
}

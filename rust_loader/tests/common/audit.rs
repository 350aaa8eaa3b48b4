//! Inputs and options for the tests of the audit.

#![allow(dead_code)] // each test file is its own crate and uses only some of these

use jaxgpt_loader::audit::tokens::InMemory;
use jaxgpt_loader::audit::{Audit, Options, Placement, audit};
use jaxgpt_loader::shard::format::Dtype;

pub const EOT: u32 = 0;

pub fn options(threads: usize) -> Options {
    Options { vocab_size: 50_257, eot: Some(EOT), placement: Placement::Auto, threads, folder: None }
}

pub fn memory(documents: &[Vec<u32>], dtype: Dtype) -> InMemory {
    let ids = documents.iter().flat_map(|document| document.iter().chain(&[EOT]));
    let bytes = match dtype {
        Dtype::U16 => ids.flat_map(|&id| (id as u16).to_le_bytes()).collect(),
        Dtype::U32 => ids.flat_map(|id| id.to_le_bytes()).collect(),
    };
    InMemory::new(bytes, dtype)
}

pub fn audited(train: &[Vec<u32>], val: &[Vec<u32>], options: &Options) -> Audit {
    let (train, val) = (memory(train, Dtype::U16), memory(val, Dtype::U16));
    audit(&train, Some(&val), options, &mut |_| true).unwrap()
}

/// A random number generator, so that the tests do not need a crate for it.
pub struct Numbers(pub u64);

impl Numbers {
    pub fn below(&mut self, limit: u32) -> u32 {
        self.0 = self.0.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(0x1405_7B7E_F767_814F);
        ((self.0 >> 33) as u32) % limit
    }

    pub fn document(&mut self, length: u32) -> Vec<u32> {
        (0..length).map(|_| 1 + self.below(5_000)).collect()
    }

    /// `document` with about `percent` of its tokens replaced.
    pub fn edited(&mut self, document: &[u32], percent: u32) -> Vec<u32> {
        document.iter().map(|&id| if self.below(100) < percent { 1 + self.below(5_000) } else { id }).collect()
    }
}

/// Documents of 0 to 300 tokens, many of them edits of another one.
pub fn documents(count: usize, seed: u64) -> Vec<Vec<u32>> {
    let mut numbers = Numbers(seed);
    let mut all: Vec<Vec<u32>> = Vec::new();
    for _ in 0..count {
        let other = all.get(numbers.below(all.len().max(1) as u32) as usize).cloned();
        all.push(match (numbers.below(2), other) {
            (0, Some(other)) => {
                let percent = [0, 1, 1, 2, 2, 3, 4, 10][numbers.below(8) as usize];
                numbers.edited(&other, percent)
            }
            _ => {
                let length = [6, 40, 300, 300][numbers.below(4) as usize];
                let length = numbers.below(length);
                numbers.document(length)
            }
        });
    }
    all
}

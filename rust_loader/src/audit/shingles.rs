//! Shingles: every run of five tokens of a document as a 64-bit hash, and the Jaccard index of two documents.
//!
//! A document of fewer than five tokens has one shingle, the whole document. The probability that two different shingles
//! of a pair of documents have the same hash is about (shingles)² / 2⁶⁴: one in four hundred million for documents of
//! 100,000 tokens.

use super::tokens::{CHUNK, Text};
use crate::error::Result;

/// Tokens of a shingle.
pub(crate) const WIDTH: usize = 5;

/// Two documents are near-duplicates if their Jaccard index is at least this.
pub(crate) const THRESHOLD: f64 = 0.8;

const SALT: [u64; 4] = [0xA076_1D64_78BD_642F, 0xE703_7ED1_A0B4_28DB, 0x8EBC_6AF0_9C88_C6E3, 0x5899_65CC_7537_4CC3];

/// Shingles in memory at a time when two long documents are compared.
const PART: u64 = 2 * CHUNK;

/// The two halves of a product, folded into one: wyhash's mixing step.
pub(crate) fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    (product as u64) ^ (product >> 64) as u64
}

/// The hash of each shingle of `text`, in order and as often as it occurs.
pub(crate) fn each(text: &Text, visit: &mut impl FnMut(u64)) -> Result<()> {
    if text.length() < WIDTH as u64 {
        return hash_short(text).map(visit);
    }
    text.pieces(WIDTH as u64, &mut |ids| {
        ids.windows(WIDTH).for_each(|window| visit(hash(window)));
        Ok(())
    })
}

fn hash(window: &[u32]) -> u64 {
    let pair = |index: usize| u64::from(window[index]) | u64::from(window[index + 1]) << 32;
    let first = fold(pair(0) ^ SALT[0], pair(2) ^ SALT[1]);
    fold(first ^ SALT[2], u64::from(window[4]) ^ SALT[3])
}

/// The hash of a document that is too short for a shingle.
fn hash_short(text: &Text) -> Result<u64> {
    let mut hash = SALT[0] ^ text.length();
    text.pieces(1, &mut |ids| {
        ids.iter().for_each(|&id| hash = fold(hash ^ u64::from(id), SALT[1]));
        Ok(())
    })?;
    Ok(fold(hash ^ SALT[2], SALT[3]))
}

/// The distinct shingles of a document whose hash leaves the remainder `part` when divided by `parts`, sorted.
pub(crate) fn set(text: &Text, part: u64, parts: u64) -> Result<Vec<u64>> {
    let mut hashes = Vec::with_capacity((text.length() / parts) as usize + 1);
    each(text, &mut |hash| {
        if parts == 1 || hash % parts == part {
            hashes.push(hash);
        }
    })?;
    hashes.sort_unstable();
    hashes.dedup();
    Ok(hashes)
}

/// The number of parts into which a comparison with this document is divided, so that it takes a few megabytes only.
pub(crate) fn parts(text: &Text) -> u64 {
    text.length() / PART + 1
}

/// The Jaccard index of two documents: the number of shingles in both, divided by the number in either.
///
/// # Errors
/// Those of reading the documents.
pub(crate) fn jaccard(a: &Text, b: &Text) -> Result<f64> {
    let parts = parts(a).max(parts(b));
    let mut counts = Counts::default();
    for part in 0..parts {
        counts.add(&set(a, part, parts)?, &set(b, part, parts)?);
    }
    Ok(counts.jaccard())
}

/// The number of shingles in both of two sets, and in either.
#[derive(Default)]
pub(crate) struct Counts {
    both: u64,
    either: u64,
}

impl Counts {
    /// Adds two sorted sets.
    pub(crate) fn add(&mut self, a: &[u64], b: &[u64]) {
        let mut i = 0;
        let mut j = 0;
        let mut both = 0;
        while i < a.len() && j < b.len() {
            both += u64::from(a[i] == b[j]);
            let x = a[i];
            let y = b[j];
            i += usize::from(x <= y);
            j += usize::from(y <= x);
        }
        self.both += both;
        self.either += (a.len() + b.len()) as u64 - both;
    }

    /// The Jaccard index. IEEE division rounds correctly, so 4 of 5 equals the 0.8 of [`THRESHOLD`].
    pub(crate) fn jaccard(&self) -> f64 {
        if self.either == 0 { 1.0 } else { self.both as f64 / self.either as f64 }
    }
}

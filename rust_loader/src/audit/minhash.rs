//! Sketches: 128 numbers per document. The share of equal numbers in two sketches estimates the Jaccard similarity of the
//! two documents' shingles.
//!
//! The scheme is fast similarity sketching (Dahlgaard, Knudsen, Thorup 2017). In the first round each shingle falls
//! into one of the 128 bins, each of which keeps its smallest hash: one multiplication per shingle, not 128. If a short
//! document leaves bins empty, further rounds distribute the shingles again with larger hashes, and from the 128th round
//! on, one bin per round takes them all, until no bin is empty. The estimate is unbiased, and its standard deviation is
//! at most that of 128 independent permutations: √(J(1−J)/128), 0.035 for J = 0.8.

use super::shingles::{self, fold};
use super::tokens::Text;
use crate::error::Result;

/// Numbers in a sketch.
pub(crate) const BINS: usize = 128;
/// Bands into which they are divided; the last three numbers are not in a band.
pub(crate) const BANDS: usize = 25;
/// Numbers in a band. Two documents of similarity J have an equal band, and are compared, with probability
/// 1 − (1 − J⁵)²⁵.
pub(crate) const ROWS: usize = 5;

const EMPTY: u64 = u64::MAX;
const VALUE_BITS: u32 = 48;
const ROUND: u64 = 0x9E37_79B9_7F4A_7C15;
const SALT: [u64; 2] = [0xD6E8_FEB8_6659_FD93, 0xC2B2_AE3D_27D4_EB4F];
const DISTINCT: usize = 1 << 16;

/// A document's sketch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sketch([u64; BINS]);

impl Sketch {
    /// The sketch of `text`.
    pub(crate) fn of(text: &Text) -> Result<Self> {
        let mut sketch = Sketch([EMPTY; BINS]);
        shingles::each(text, &mut |hash| sketch.put((hash >> 57) as usize, hash, 0))?;
        if sketch.0.contains(&EMPTY) {
            sketch.fill(&distinct(text)?);
        }
        Ok(sketch)
    }

    fn put(&mut self, bin: usize, hash: u64, round: u64) {
        let value = hash & ((1 << VALUE_BITS) - 1) | round << VALUE_BITS;
        self.0[bin] = self.0[bin].min(value);
    }

    /// The rounds after the first. `shingles` is not empty, since every document has at least one.
    fn fill(&mut self, shingles: &[u64]) {
        let mut empty = self.0.iter().filter(|&&value| value == EMPTY).count();
        for round in 1..2 * BINS {
            for &shingle in shingles {
                let hash = fold(shingle ^ SALT[0], (round as u64).wrapping_mul(ROUND) ^ SALT[1]);
                let bin = if round < BINS { (hash >> 57) as usize } else { round - BINS };
                empty -= usize::from(self.0[bin] == EMPTY);
                self.put(bin, hash, round as u64);
            }
            if empty == 0 {
                return;
            }
        }
    }

    /// One hash for each band: equal if the whole band is equal.
    pub(crate) fn bands(&self) -> [u64; BANDS] {
        let band = |number: usize| {
            let rows = &self.0[number * ROWS..(number + 1) * ROWS];
            rows.iter().fold(number as u64 ^ SALT[0], |hash, &row| fold(hash ^ row, SALT[1]))
        };
        std::array::from_fn(band)
    }

    /// The last byte of each number, enough to estimate a similarity.
    pub(crate) fn bytes(&self) -> [u8; BINS] {
        self.0.map(|value| value as u8)
    }
}

/// The estimated similarity of two documents, from the bytes of their sketches. It is corrected for different numbers
/// with the same last byte, 1 in 256.
pub(crate) fn estimate(a: &[u8], b: &[u8]) -> f64 {
    let equal = a.iter().zip(b).filter(|(x, y)| x == y).count() as f64;
    (equal / BINS as f64 - 1.0 / 256.0) / (255.0 / 256.0)
}

/// The distinct shingles of a document that left bins empty. They are few, or the bins would be full, so a long document
/// that repeats itself does not fill the memory.
fn distinct(text: &Text) -> Result<Vec<u64>> {
    let mut hashes = Vec::new();
    let mut limit = DISTINCT;
    shingles::each(text, &mut |hash| {
        hashes.push(hash);
        if hashes.len() == limit {
            hashes.sort_unstable();
            hashes.dedup();
            limit = DISTINCT.max(2 * hashes.len());
        }
    })?;
    Ok(hashes)
}

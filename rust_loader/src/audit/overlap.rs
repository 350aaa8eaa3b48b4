//! Runs of 13 tokens of validation that also occur in train.
//!
//! The hashes of the runs of validation are put into a table. One pass over train marks those that occur there. A second
//! pass over validation counts the marked ones. Above [`LIMIT`] runs, the table takes only those whose hash has enough
//! zero bits at a fixed position: a fair sample.

use std::sync::atomic::{AtomicU64, Ordering};

use super::shingles::fold;
use super::tokens::Text;
use crate::error::Result;

/// Tokens in a run, as in GPT-3's search for contamination.
pub(crate) const WIDTH: usize = 13;
/// The number of runs that the table takes without sampling: half a gigabyte.
pub(crate) const LIMIT: u64 = 1 << 25;

const FACTOR: u64 = 0xD134_2543_DE82_EF95;
const SALT: [u64; 2] = [0x2545_F491_4F6C_DD1D, 0x9FB2_1C65_1E98_DF25];
const FILTER_BITS: usize = 16; // per run: 1 in 60 of other runs passes
const BLOCK: usize = 512;

/// The runs of validation, and which of them occur in train.
pub(crate) struct RunTable {
    /// An open-addressing hash table; 0 is an empty slot.
    slots: Vec<u64>,
    /// A bit for each slot: the run occurs in train.
    seen: Vec<AtomicU64>,
    /// A Bloom filter: most runs of train are rejected here, without a look at the slots.
    filter: Vec<u64>,
    sample: u64,
    empty: bool,
}

impl RunTable {
    /// An empty table for the runs of `tokens` tokens, which takes about `limit` of them at most.
    pub(crate) fn new(tokens: u64, limit: u64) -> Self {
        let sample = tokens.div_ceil(limit).next_power_of_two();
        let slots = (2 * tokens.div_ceil(sample)).next_power_of_two().max(64) as usize;
        RunTable {
            slots: vec![0; slots],
            seen: (0..slots / 64).map(|_| AtomicU64::new(0)).collect(),
            filter: vec![0; (slots / 2 * FILTER_BITS / 64).next_power_of_two()],
            sample,
            empty: true,
        }
    }

    /// Returns true if the table has no runs.
    pub(crate) fn is_empty(&self) -> bool {
        self.empty
    }

    /// The table takes one of this number of runs.
    pub(crate) fn sample(&self) -> u64 {
        self.sample
    }

    /// The hashes of the sampled runs of `text`, each with the index of its first token.
    pub(crate) fn runs(&self, text: &Text) -> Result<Vec<(u64, u64)>> {
        let mut runs = Vec::new();
        let mut start = 0;
        text.pieces(WIDTH as u64, &mut |ids| {
            each(ids, &mut |index, hash| {
                if self.samples(hash) {
                    runs.push((hash, start + index as u64));
                }
            });
            start += (ids.len() as u64).saturating_sub(WIDTH as u64 - 1);
            Ok(())
        })?;
        Ok(runs)
    }

    /// Inserts a run. There must not be more runs than the table was made for.
    pub(crate) fn insert(&mut self, hash: u64) {
        let (word, bits) = self.filter_of(hash);
        self.filter[word] |= bits;
        let slot = self.slot(hash);
        self.slots[slot] = hash;
        self.empty = false;
    }

    /// Marks every run of this training document that occurs in validation.
    pub(crate) fn mark_seen(&self, text: &Text) -> Result<()> {
        let mut hashes = Vec::with_capacity(BLOCK);
        text.pieces(WIDTH as u64, &mut |ids| {
            each(ids, &mut |_, hash| {
                hashes.push(hash);
                if hashes.len() == BLOCK {
                    self.mark_block(&mut hashes);
                }
            });
            Ok(())
        })?;
        self.mark_block(&mut hashes);
        Ok(())
    }

    /// All lookups in the filter come first: they miss the cache, and so the misses overlap.
    fn mark_block(&self, hashes: &mut Vec<u64>) {
        let mut kept = 0;
        for index in 0..hashes.len() {
            let hash = hashes[index];
            let (word, bits) = self.filter_of(hash);
            hashes[kept] = hash;
            kept += usize::from(self.filter[word] & bits == bits);
        }
        hashes[..kept].iter().for_each(|&hash| self.mark(hash));
        hashes.clear();
    }

    /// The index of a hash's word in the filter, and its two bits in that word.
    fn filter_of(&self, hash: u64) -> (usize, u64) {
        ((hash >> 12) as usize & (self.filter.len() - 1), 1 << (hash & 63) | 1 << (hash >> 6 & 63))
    }

    fn mark(&self, hash: u64) {
        let slot = self.slot(hash);
        if self.slots[slot] == hash {
            self.seen[slot / 64].fetch_or(1 << (slot % 64), Ordering::Relaxed);
        }
    }

    /// Returns true if a run occurs in train.
    pub(crate) fn has_seen(&self, hash: u64) -> bool {
        let slot = self.slot(hash);
        self.seen[slot / 64].load(Ordering::Relaxed) >> (slot % 64) & 1 == 1
    }

    fn samples(&self, hash: u64) -> bool {
        hash >> 32 & (self.sample - 1) == 0
    }

    /// The slot of a hash, or the empty slot for it. At most half of the slots are full, so the search ends.
    fn slot(&self, hash: u64) -> usize {
        let mask = self.slots.len() - 1;
        let mut slot = fold(hash, SALT[0]) as usize & mask;
        while self.slots[slot] != 0 && self.slots[slot] != hash {
            slot = (slot + 1) & mask;
        }
        slot
    }
}

/// The runs that a validation document shares with train.
#[derive(Clone, Copy, Debug, Default)]
pub struct Shared {
    /// Its sampled runs.
    pub runs: u64,
    /// Those of them that occur in train.
    pub seen: u64,
    /// Its tokens that are in such a run.
    pub covered: u64,
}

/// Counts the runs that a validation document shares with train.
pub(crate) fn shared(table: &RunTable, text: &Text) -> Result<Shared> {
    let mut shared = Shared::default();
    let mut end = 0;
    for (hash, start) in table.runs(text)? {
        shared.runs += 1;
        if table.has_seen(hash) {
            shared.seen += 1;
            shared.covered += start + WIDTH as u64 - end.max(start);
            end = start + WIDTH as u64;
        }
    }
    Ok(shared)
}

/// Calls `visit` with the index and hash (never 0) of every run of 13 tokens.
fn each(ids: &[u32], visit: &mut impl FnMut(usize, u64)) {
    let drop = FACTOR.wrapping_pow(WIDTH as u32);
    let mut sum = 0u64;
    for (index, &id) in ids.iter().enumerate() {
        sum = sum.wrapping_mul(FACTOR).wrapping_add(scatter(id));
        if index >= WIDTH {
            sum = sum.wrapping_sub(scatter(ids[index - WIDTH]).wrapping_mul(drop));
        }
        if index + 1 >= WIDTH {
            visit(index + 1 - WIDTH, fold(sum ^ SALT[0], SALT[1]) | 1 << 63);
        }
    }
}

fn scatter(id: u32) -> u64 {
    fold(u64::from(id) ^ SALT[1], SALT[0])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::tokens::InMemory;
    use crate::shard::format::Dtype;

    #[test]
    fn small_table_takes_a_sample() {
        let ids: Vec<u32> = (0..20_000u32).map(|n| n.wrapping_mul(2_654_435_761) >> 8).collect();
        let source = InMemory::new(ids.iter().flat_map(|id| id.to_le_bytes()).collect(), Dtype::U32);
        let text = Text::stored(&source, 0..20_000);
        let (all, some) = (RunTable::new(20_000, 20_000), RunTable::new(20_000, 3_000));
        assert_eq!((all.sample(), some.sample()), (1, 8));
        let every = all.runs(&text).unwrap();
        assert!(every.iter().map(|&(_, start)| start).eq(0..20_000 - 12));
        let mut sampled = some;
        let runs = sampled.runs(&text).unwrap();
        assert!(runs.iter().all(|run| every.contains(run)) && (2_200..2_800).contains(&runs.len()), "{}", runs.len());
        runs.iter().for_each(|&(hash, _)| sampled.insert(hash));
        sampled.mark_seen(&Text::stored(&source, 0..10_000)).unwrap(); // half of it
        let seen = runs.iter().filter(|&&(hash, _)| sampled.has_seen(hash)).count();
        assert_eq!(seen, runs.iter().filter(|&&(_, start)| start < 10_000 - 12).count());
        let shared = shared(&sampled, &text).unwrap();
        assert_eq!((shared.runs, shared.seen), (runs.len() as u64, seen as u64));
    }
}

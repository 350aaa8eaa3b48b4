//! Runs of 13 tokens of validation that also stand in train.
//!
//! The runs of validation are put into a table by their hash, train is read past it once, and then validation is looked
//! at again. Above [`LIMIT`] of them, the table takes only those whose hash ends in enough zeros: a fair sample.

use std::sync::atomic::{AtomicU64, Ordering};

use super::shingles::fold;
use super::tokens::Text;
use crate::error::Result;

/// Tokens of a run, as in GPT-3's search for contamination.
pub const WIDTH: usize = 13;
/// Runs that the table takes without sampling: half a gigabyte.
pub const LIMIT: u64 = 1 << 25;

const FACTOR: u64 = 0xD134_2543_DE82_EF95;
const SALT: [u64; 2] = [0x2545_F491_4F6C_DD1D, 0x9FB2_1C65_1E98_DF25];
const FILTER_BITS: usize = 16; // per run: 1 in 60 of other runs pass
const BLOCK: usize = 512;

/// The runs of validation, and which of them were seen in train.
pub struct Table {
    /// Hashes by their place, 0 where there is none.
    slots: Vec<u64>,
    /// A bit for each slot.
    seen: Vec<AtomicU64>,
    /// Bits that are set where a hash may be in the table: most runs of train end here, without a look at the slots.
    filter: Vec<u64>,
    sample: u64,
    empty: bool,
}

impl Table {
    /// A table for the runs of `tokens` tokens, without any yet, that takes about `limit` of them at most.
    pub fn new(tokens: u64, limit: u64) -> Self {
        let sample = tokens.div_ceil(limit).next_power_of_two();
        let slots = (2 * tokens.div_ceil(sample)).next_power_of_two().max(64) as usize;
        Table {
            slots: vec![0; slots],
            seen: (0..slots / 64).map(|_| AtomicU64::new(0)).collect(),
            filter: vec![0; (slots / 2 * FILTER_BITS / 64).next_power_of_two()],
            sample,
            empty: true,
        }
    }

    /// Whether there are no runs to look for.
    pub fn is_empty(&self) -> bool {
        self.empty
    }

    /// One of so many runs is looked at.
    pub fn sample(&self) -> u64 {
        self.sample
    }

    /// The hashes of the runs of `text` that are looked at, each with the place at which it ends.
    pub fn runs(&self, text: &Text) -> Result<Vec<(u64, u64)>> {
        let (mut found, mut place) = (Vec::new(), 0);
        text.pieces(WIDTH as u64, &mut |ids| {
            each(ids, &mut |index, hash| {
                if self.samples(hash) {
                    found.push((hash, place + index as u64));
                }
            });
            place += (ids.len() as u64).saturating_sub(WIDTH as u64 - 1);
            Ok(())
        })?;
        Ok(found)
    }

    /// Takes a run. No more than the table was made for may be given.
    pub fn insert(&mut self, hash: u64) {
        let (word, bits) = self.filter_of(hash);
        self.filter[word] |= bits;
        let slot = self.slot(hash);
        self.slots[slot] = hash;
        self.empty = false;
    }

    /// Notes every run of this document of train that validation has.
    pub fn see(&self, text: &Text) -> Result<()> {
        let mut hashes = Vec::with_capacity(BLOCK);
        text.pieces(WIDTH as u64, &mut |ids| {
            each(ids, &mut |_, hash| {
                hashes.push(hash);
                if hashes.len() == BLOCK {
                    self.see_block(&mut hashes);
                }
            });
            Ok(())
        })?;
        self.see_block(&mut hashes);
        Ok(())
    }

    /// The looks at the filter come first, one after another: they miss the cache, and so they wait side by side.
    fn see_block(&self, hashes: &mut Vec<u64>) {
        let mut kept = 0;
        for place in 0..hashes.len() {
            let hash = hashes[place];
            let (word, bits) = self.filter_of(hash);
            hashes[kept] = hash;
            kept += usize::from(self.filter[word] & bits == bits);
        }
        hashes[..kept].iter().for_each(|&hash| self.note(hash));
        hashes.clear();
    }

    /// The word of the filter that a hash has, and its two bits there.
    fn filter_of(&self, hash: u64) -> (usize, u64) {
        ((hash >> 12) as usize & (self.filter.len() - 1), 1 << (hash & 63) | 1 << (hash >> 6 & 63))
    }

    fn note(&self, hash: u64) {
        let slot = self.slot(hash);
        if self.slots[slot] == hash {
            self.seen[slot / 64].fetch_or(1 << (slot % 64), Ordering::Relaxed);
        }
    }

    /// Whether a run was seen in train.
    pub fn has_seen(&self, hash: u64) -> bool {
        let slot = self.slot(hash);
        self.seen[slot / 64].load(Ordering::Relaxed) >> (slot % 64) & 1 == 1
    }

    fn samples(&self, hash: u64) -> bool {
        hash >> 32 & (self.sample - 1) == 0
    }

    /// Where a hash is or would be. At most half of the slots are taken, so there is an end to the search.
    fn slot(&self, hash: u64) -> usize {
        let mask = self.slots.len() - 1;
        let mut slot = fold(hash, SALT[0]) as usize & mask;
        while self.slots[slot] != 0 && self.slots[slot] != hash {
            slot = (slot + 1) & mask;
        }
        slot
    }
}

/// What a document of validation shares with train.
#[derive(Clone, Copy, Debug, Default)]
pub struct Shared {
    /// Its runs that were looked at.
    pub runs: u64,
    /// Those of them that stand in train.
    pub seen: u64,
    /// Its tokens that lie in such a run.
    pub covered: u64,
}

/// What a document of validation shares with train.
pub fn shared(table: &Table, text: &Text) -> Result<Shared> {
    let (mut shared, mut end) = (Shared::default(), 0);
    for (hash, place) in table.runs(text)? {
        shared.runs += 1;
        if table.has_seen(hash) {
            shared.seen += 1;
            shared.covered += place + WIDTH as u64 - end.max(place);
            end = place + WIDTH as u64;
        }
    }
    Ok(shared)
}

/// Calls `visit` with the index and hash (never 0) of every run of 13 tokens.
fn each(ids: &[u32], visit: &mut impl FnMut(usize, u64)) {
    let drop = FACTOR.wrapping_pow(WIDTH as u32);
    let mut sum = 0u64;
    for (index, &id) in ids.iter().enumerate() {
        sum = sum.wrapping_mul(FACTOR).wrapping_add(scattered(id));
        if index >= WIDTH {
            sum = sum.wrapping_sub(scattered(ids[index - WIDTH]).wrapping_mul(drop));
        }
        if index + 1 >= WIDTH {
            visit(index + 1 - WIDTH, fold(sum ^ SALT[0], SALT[1]) | 1 << 63);
        }
    }
}

fn scattered(id: u32) -> u64 {
    fold(u64::from(id) ^ SALT[1], SALT[0])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::tokens::Memory;
    use crate::format::Dtype;

    #[test]
    fn a_table_that_is_too_small_takes_a_sample() {
        let ids: Vec<u32> = (0..20_000u32).map(|n| n.wrapping_mul(2_654_435_761) >> 8).collect();
        let source = Memory::new(ids.iter().flat_map(|id| id.to_le_bytes()).collect(), Dtype::U32);
        let text = Text::stored(&source, 0..20_000);
        let (all, some) = (Table::new(20_000, 20_000), Table::new(20_000, 3_000));
        assert_eq!((all.sample(), some.sample()), (1, 8));
        let every = all.runs(&text).unwrap();
        assert!(every.iter().map(|&(_, place)| place).eq(0..20_000 - 12));
        let mut sampled = some;
        let runs = sampled.runs(&text).unwrap();
        assert!(runs.iter().all(|run| every.contains(run)) && (2_200..2_800).contains(&runs.len()), "{}", runs.len());
        runs.iter().for_each(|&(hash, _)| sampled.insert(hash));
        sampled.see(&Text::stored(&source, 0..10_000)).unwrap(); // half of it
        let seen = runs.iter().filter(|&&(hash, _)| sampled.has_seen(hash)).count();
        assert_eq!(seen, runs.iter().filter(|&&(_, place)| place < 10_000 - 12).count());
        let shared = shared(&sampled, &text).unwrap();
        assert_eq!((shared.runs, shared.seen), (runs.len() as u64, seen as u64));
    }
}

//! Groups documents with equal hashes: pairs of (hash, document) are sorted in parts, in parallel.

use std::ops::Range;
use std::sync::Mutex;

use crate::error::Result;
use crate::workers::Workers;

const CHUNK: usize = 1 << 16;
const PARTS: usize = 64;

/// Groups of two or more documents, each in ascending order.
#[derive(Default)]
pub(crate) struct Groups {
    members: Vec<u32>,
    ends: Vec<usize>,
}

impl Groups {
    /// The number of groups.
    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }

    /// The documents of a group.
    pub(crate) fn get(&self, index: usize) -> &[u32] {
        let start = index.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.members[start..self.ends[index]]
    }

    /// All groups.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &[u32]> {
        (0..self.len()).map(|index| self.get(index))
    }

    fn push(&mut self, group: &[(u64, u32)]) {
        if group.len() > 1 {
            self.members.extend(group.iter().map(|&(_, document)| document));
            self.ends.push(self.members.len());
        }
    }

    fn append(&mut self, other: Groups) {
        let before = self.members.len();
        self.members.extend(other.members);
        self.ends.extend(other.ends.iter().map(|end| end + before));
    }
}

/// Groups the `count` documents by hash. `hashes` calls its second argument with the pairs of a range of documents.
pub(crate) fn groups(
    workers: &mut Workers,
    count: usize,
    mut hashes: impl FnMut(Range<usize>, &mut dyn FnMut(u64, u32)) -> Result<()>,
) -> Result<Groups> {
    let parts = if count < CHUNK { 1 } else { PARTS };
    let mut pairs: Vec<Vec<(u64, u32)>> = vec![Vec::with_capacity(count / parts + count / parts / 8); parts];
    for start in (0..count).step_by(CHUNK) {
        workers.poll()?;
        hashes(start..(start + CHUNK).min(count), &mut |hash, document| {
            let part = ((u128::from(hash) * parts as u128) >> 64) as usize;
            pairs[part].push((hash, document));
        })?;
    }
    let pairs: Vec<_> = pairs.into_iter().map(Mutex::new).collect();
    let sorted = workers.run(parts, |part, counters| {
        let mut pairs = pairs[part].lock().map(|mut pairs| std::mem::take(&mut *pairs)).unwrap_or_default();
        pairs.sort_unstable();
        let mut groups = Groups::default();
        pairs.chunk_by(|a, b| a.0 == b.0).for_each(|group| groups.push(group));
        counters.advance(0, 0, 0).map(|()| groups)
    })?;
    let mut all = Groups::default();
    sorted.into_iter().for_each(|groups| all.append(groups));
    Ok(all)
}

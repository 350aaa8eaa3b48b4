//! Clusters: documents that are joined by a chain of exact duplicates and of pairs at or above the threshold.
//!
//! Bands only propose. A pair becomes one after its sketches' estimate is above [`LEAST_ESTIMATE`] and the Jaccard
//! index of its shingles, counted exactly, reaches the threshold. In a group of documents with one band in common each
//! is compared with all that are not yet in its cluster; in a group of more than [`PIVOTS`] with the first members of
//! that many clusters, so that the work grows with the size of the group and not with its square.

use std::collections::HashSet;

use super::bands::{Groups, groups};
use super::crew::Crew;
use super::documents::Corpus;
use super::minhash::{BANDS, BINS, estimate};
use super::shingles::{self, Counts, THRESHOLD};
use super::spill::Spill;
use crate::error::Result;

/// Members of a large group that all others are compared with.
pub const PIVOTS: usize = 32;
/// Pairs below this estimate are not counted: 4.2 deviations below the threshold, so 1 in 70,000 is lost at it.
pub const LEAST_ESTIMATE: f64 = 0.65;

const TASK: usize = 64;
const REMEMBERED: usize = 1 << 22;

/// A partition of the documents: the root of each set is its first document.
pub struct Forest(Vec<u32>);

impl Forest {
    /// The first document of the set of `document`.
    pub fn root(&mut self, mut document: u32) -> u32 {
        while self.0[document as usize] != document {
            let above = self.0[self.0[document as usize] as usize];
            self.0[document as usize] = above;
            document = above;
        }
        document
    }

    /// Joins the sets of two documents.
    pub fn join(&mut self, a: u32, b: u32) {
        let (a, b) = (self.root(a), self.root(b));
        self.0[a.max(b) as usize] = a.min(b);
    }

    /// The root of every document.
    pub fn roots(mut self) -> Vec<u32> {
        (0..self.0.len()).for_each(|document| self.0[document] = self.root(document as u32));
        self.0
    }
}

/// Documents to compare with one other.
struct Task {
    pivot: u32,
    others: Vec<u32>,
}

/// What became of a comparison.
#[derive(Clone, Copy, PartialEq)]
enum Verdict {
    Unlikely,
    Different,
    Near,
}

/// Joins near-duplicates.
pub struct Clusters<'a> {
    corpus: &'a Corpus<'a>,
    spill: &'a Spill,
    /// The first of the exact duplicates of each document: only those are compared.
    first: &'a [u32],
    forest: Forest,
    different: HashSet<(u32, u32)>,
    /// How many pairs were counted exactly.
    pub counted: u64,
}

impl<'a> Clusters<'a> {
    /// Starts from the clusters of exact duplicates.
    pub fn new(corpus: &'a Corpus<'a>, spill: &'a Spill, first: &'a [u32]) -> Self {
        let forest = Forest(first.to_vec());
        Clusters { corpus, spill, first, forest, different: HashSet::new(), counted: 0 }
    }

    /// Goes through all bands, and returns the first document of each one's cluster.
    pub fn find(mut self, crew: &mut Crew) -> Result<(Vec<u32>, u64)> {
        let count = self.first.len();
        crew.begin("comparing", (count * BANDS * 8) as u64);
        for band in 0..BANDS {
            let found = groups(crew, count, |range, pair| {
                let hashes = self.spill.band(band, range.start, range.len())?;
                for (document, hash) in range.clone().zip(hashes) {
                    if self.first[document] == document as u32 {
                        pair(hash, document as u32);
                    }
                }
                Ok(())
            })?;
            self.join(crew, &found)?;
            crew.tally().advance((count * (band + 1) / BANDS - count * band / BANDS) as u64, 0, count as u64 * 8)?;
        }
        Ok((self.forest.roots(), self.counted))
    }

    /// Compares within groups, in rounds of one pivot per group. What a round compares depends on the rounds before,
    /// never on the threads.
    fn join(&mut self, crew: &mut Crew, found: &Groups) -> Result<()> {
        let mut active: Vec<_> = (0..found.len()).map(|group| (group, Vec::new())).collect();
        while !active.is_empty() {
            let mut tasks = Vec::new();
            active.retain_mut(|(group, used)| self.next_round(found.get(*group), used, &mut tasks));
            let this = &*self;
            let verdicts = crew.run(tasks.len(), |task, tally| {
                tally.advance(0, 0, 0)?;
                this.compare(&tasks[task])
            })?;
            for (task, verdicts) in tasks.iter().zip(verdicts) {
                task.others.iter().zip(verdicts).for_each(|(&other, verdict)| self.note(task.pivot, other, verdict));
            }
        }
        Ok(())
    }

    /// The tasks of the next pivot of a group that has something to compare; false if there is none. `used` are the
    /// indices of the pivots before.
    fn next_round(&mut self, group: &[u32], used: &mut Vec<usize>, tasks: &mut Vec<Task>) -> bool {
        while used.len() < PIVOTS {
            let from = used.last().map_or(0, |last| last + 1);
            let Some(index) = self.next_pivot(group, used, from) else { return false };
            used.push(index);
            let pivot = group[index];
            let root = self.forest.root(pivot);
            let others: Vec<u32> = group[index + 1..]
                .iter()
                .copied()
                .filter(|&other| self.forest.root(other) != root && !self.different.contains(&(pivot, other)))
                .collect();
            if !others.is_empty() {
                tasks.extend(others.chunks(TASK).map(|others| Task { pivot, others: others.to_vec() }));
                return true;
            }
        }
        false
    }

    /// The next member to compare others with: in a large group, the next one of a cluster that had none.
    fn next_pivot(&mut self, group: &[u32], used: &[usize], from: usize) -> Option<usize> {
        let last = group.len() - 1; // nothing is behind it
        if group.len() <= PIVOTS {
            return (from < last).then_some(from);
        }
        let roots: Vec<_> = used.iter().map(|&index| self.forest.root(group[index])).collect();
        (from..last).find(|&index| !roots.contains(&self.forest.root(group[index])))
    }

    fn note(&mut self, pivot: u32, other: u32, verdict: Verdict) {
        self.counted += u64::from(verdict != Verdict::Unlikely);
        match verdict {
            Verdict::Near => self.forest.join(pivot, other),
            Verdict::Different if self.different.len() < REMEMBERED => {
                self.different.insert((pivot, other)); // they often meet again in another band
            }
            _ => {}
        }
    }

    fn compare(&self, task: &Task) -> Result<Vec<Verdict>> {
        let mut pivot = Pivot { text: task.pivot, sketch: self.spill.sketch(task.pivot)?, set: None };
        task.others.iter().map(|&other| self.verdict(&mut pivot, other)).collect()
    }

    fn verdict(&self, pivot: &mut Pivot, other: u32) -> Result<Verdict> {
        if estimate(&pivot.sketch, &self.spill.sketch(other)?) < LEAST_ESTIMATE {
            return Ok(Verdict::Unlikely);
        }
        let near = self.jaccard(pivot, other)? >= THRESHOLD;
        Ok(if near { Verdict::Near } else { Verdict::Different })
    }

    fn jaccard(&self, pivot: &mut Pivot, other: u32) -> Result<f64> {
        let (a, b) = (self.corpus.text(pivot.text as usize), self.corpus.text(other as usize));
        if shingles::parts(&a).max(shingles::parts(&b)) > 1 {
            return shingles::jaccard(&a, &b);
        }
        let set = match pivot.set.take() {
            Some(set) => set,
            None => shingles::set(&a, 0, 1)?,
        };
        let mut counts = Counts::default();
        counts.add(&set, &shingles::set(&b, 0, 1)?);
        pivot.set = Some(set);
        Ok(counts.jaccard())
    }
}

/// The document that others are compared with, its sketch, and its shingles when they were needed.
struct Pivot {
    text: u32,
    sketch: [u8; BINS],
    set: Option<Vec<u64>>,
}

/// The first of the exact duplicates of each document, by the documents' keys.
pub fn exact(crew: &mut Crew, keys: &[u128]) -> Result<Vec<u32>> {
    let found = groups(crew, keys.len(), |range, pair| {
        range.clone().for_each(|document| pair(keys[document] as u64, document as u32));
        Ok(())
    })?;
    let mut first: Vec<u32> = (0..keys.len() as u32).collect();
    for group in found.iter() {
        for (place, &document) in group.iter().enumerate() {
            let same = |&&other: &&u32| keys[other as usize] == keys[document as usize];
            first[document as usize] = *group[..place].iter().find(same).unwrap_or(&document);
        }
    }
    Ok(first)
}

/// The document of each cluster that is kept: its first of validation, or else its first. So no document of validation
/// has a duplicate among those that are kept of train.
pub fn kept(corpus: &Corpus, roots: &[u32]) -> Vec<u32> {
    let mut kept: Vec<u32> = (0..roots.len() as u32).collect();
    for document in (0..roots.len()).rev().filter(|&document| corpus.is_val(document)) {
        kept[roots[document] as usize] = document as u32;
    }
    roots.iter().map(|&root| kept[root as usize]).collect()
}

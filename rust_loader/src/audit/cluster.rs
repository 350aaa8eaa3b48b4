//! Clusters: documents connected by a chain of exact duplicates and of pairs at or above the threshold.
//!
//! Bands only propose pairs. Two documents are joined if the estimate of their sketches is at least [`MIN_ESTIMATE`] and
//! the exact Jaccard index of their shingles reaches the threshold. In a group of documents with an equal band, each is
//! compared with all others that are not yet in its cluster. In a group of more than [`PIVOTS`], all are compared with
//! the first members of that many clusters only, so the work grows linearly with the size of the group.

use std::collections::HashSet;

use super::bands::{Groups, groups};
use super::documents::Corpus;
use super::minhash::{BANDS, BINS, estimate};
use super::shingles::{self, Counts, THRESHOLD};
use super::spill::Spill;
use crate::error::Result;
use crate::workers::Workers;

/// The number of members of a large group that all others are compared with.
pub(crate) const PIVOTS: usize = 32;
/// Pairs below this estimate are not compared exactly: 4.2 standard deviations below the threshold, so that 1 of 70,000
/// pairs at the threshold is lost.
pub(crate) const MIN_ESTIMATE: f64 = 0.65;

const TASK: usize = 64;
const REMEMBERED: usize = 1 << 22;

/// A disjoint-set forest: the root of each set is its first document.
struct Forest(Vec<u32>);

impl Forest {
    /// The first document of the set of `document`.
    fn root(&mut self, mut document: u32) -> u32 {
        while self.0[document as usize] != document {
            let above = self.0[self.0[document as usize] as usize];
            self.0[document as usize] = above;
            document = above;
        }
        document
    }

    /// Joins the sets of two documents.
    fn join(&mut self, a: u32, b: u32) {
        let (a, b) = (self.root(a), self.root(b));
        self.0[a.max(b) as usize] = a.min(b);
    }

    /// The root of every document.
    fn roots(mut self) -> Vec<u32> {
        (0..self.0.len()).for_each(|document| self.0[document] = self.root(document as u32));
        self.0
    }
}

/// Documents to compare with `pivot`.
struct Task {
    pivot: u32,
    others: Vec<u32>,
}

/// The result of comparing two documents.
#[derive(Clone, Copy, PartialEq)]
enum Comparison {
    Unlikely,
    Different,
    Near,
}

/// Joins near-duplicates.
pub(crate) struct Clusters<'a> {
    corpus: &'a Corpus<'a>,
    spill: &'a Spill,
    /// For each document, the first of its exact duplicates: only those are compared.
    first: &'a [u32],
    forest: Forest,
    different: HashSet<(u32, u32)>,
    /// The number of pairs that were compared exactly.
    compared: u64,
}

impl<'a> Clusters<'a> {
    /// Starts from the clusters of exact duplicates.
    pub(crate) fn new(corpus: &'a Corpus<'a>, spill: &'a Spill, first: &'a [u32]) -> Self {
        let forest = Forest(first.to_vec());
        Clusters { corpus, spill, first, forest, different: HashSet::new(), compared: 0 }
    }

    /// Goes through all bands. Returns the first document of the cluster of each document, and the number of pairs that
    /// were compared exactly.
    pub(crate) fn find(mut self, workers: &mut Workers) -> Result<(Vec<u32>, u64)> {
        let count = self.first.len();
        workers.begin("comparing", (count * BANDS * 8) as u64);
        for band in 0..BANDS {
            let candidates = groups(workers, count, |range, pair| {
                let hashes = self.spill.band(band, range.start, range.len())?;
                for (document, hash) in range.clone().zip(hashes) {
                    if self.first[document] == document as u32 {
                        pair(hash, document as u32);
                    }
                }
                Ok(())
            })?;
            self.join(workers, &candidates)?;
            workers.counters().advance(
                (count * (band + 1) / BANDS - count * band / BANDS) as u64,
                0,
                count as u64 * 8,
            )?;
        }
        Ok((self.forest.roots(), self.compared))
    }

    /// Compares within groups, in rounds of one pivot per group. A round depends on the rounds before it, never on the
    /// number of threads.
    fn join(&mut self, workers: &mut Workers, candidates: &Groups) -> Result<()> {
        let mut active: Vec<_> = (0..candidates.len()).map(|group| (group, Vec::new())).collect();
        while !active.is_empty() {
            let mut tasks = Vec::new();
            active.retain_mut(|(group, used)| self.next_round(candidates.get(*group), used, &mut tasks));
            let this = &*self;
            let comparisons = workers.run(tasks.len(), |task, counters| {
                counters.advance(0, 0, 0)?;
                this.compare(&tasks[task])
            })?;
            for (task, comparisons) in tasks.iter().zip(comparisons) {
                task.others
                    .iter()
                    .zip(comparisons)
                    .for_each(|(&other, comparison)| self.record(task.pivot, other, comparison));
            }
        }
        Ok(())
    }

    /// Adds the tasks of a group's next pivot that has documents to compare; returns false if nothing is left. `used`
    /// contains the indices of earlier pivots.
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

    /// The index of the next pivot: in a large group, the first member of the next cluster without a pivot.
    fn next_pivot(&mut self, group: &[u32], used: &[usize], from: usize) -> Option<usize> {
        let last = group.len() - 1; // nothing follows it
        if group.len() <= PIVOTS {
            return (from < last).then_some(from);
        }
        let roots: Vec<_> = used.iter().map(|&index| self.forest.root(group[index])).collect();
        (from..last).find(|&index| !roots.contains(&self.forest.root(group[index])))
    }

    fn record(&mut self, pivot: u32, other: u32, comparison: Comparison) {
        self.compared += u64::from(comparison != Comparison::Unlikely);
        match comparison {
            Comparison::Near => self.forest.join(pivot, other),
            Comparison::Different if self.different.len() < REMEMBERED => {
                self.different.insert((pivot, other)); // the pair often occurs in other bands too
            }
            _ => {}
        }
    }

    fn compare(&self, task: &Task) -> Result<Vec<Comparison>> {
        let mut pivot = Pivot { text: task.pivot, sketch: self.spill.sketch(task.pivot)?, set: None };
        task.others.iter().map(|&other| self.compare_one(&mut pivot, other)).collect()
    }

    fn compare_one(&self, pivot: &mut Pivot, other: u32) -> Result<Comparison> {
        if estimate(&pivot.sketch, &self.spill.sketch(other)?) < MIN_ESTIMATE {
            return Ok(Comparison::Unlikely);
        }
        let near = self.jaccard(pivot, other)? >= THRESHOLD;
        Ok(if near { Comparison::Near } else { Comparison::Different })
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
        counts.add(pivot.set.insert(set), &shingles::set(&b, 0, 1)?);
        Ok(counts.jaccard())
    }
}

/// The document that others are compared with, its sketch, and its shingles once they were needed.
struct Pivot {
    text: u32,
    sketch: [u8; BINS],
    set: Option<Vec<u64>>,
}

/// For each document, the first document with the same key.
pub(crate) fn exact_duplicates(workers: &mut Workers, keys: &[u128]) -> Result<Vec<u32>> {
    let candidates = groups(workers, keys.len(), |range, pair| {
        range.clone().for_each(|document| pair(keys[document] as u64, document as u32));
        Ok(())
    })?;
    let mut first: Vec<u32> = (0..keys.len() as u32).collect();
    for group in candidates.iter() {
        for (index, &document) in group.iter().enumerate() {
            let same = |&&other: &&u32| keys[other as usize] == keys[document as usize];
            first[document as usize] = *group[..index].iter().find(same).unwrap_or(&document);
        }
    }
    Ok(first)
}

/// For each document, the one that is kept of its cluster: the first validation document, or else the first document. So
/// no validation document has a duplicate among the training documents that are kept.
pub(crate) fn kept(corpus: &Corpus, roots: &[u32]) -> Vec<u32> {
    let mut kept: Vec<u32> = (0..roots.len() as u32).collect();
    for document in (0..roots.len()).rev().filter(|&document| corpus.is_val(document)) {
        kept[roots[document] as usize] = document as u32;
    }
    roots.iter().map(|&root| kept[root as usize]).collect()
}

//! From what the passes found to the report.

use std::collections::BTreeMap;

use super::documents::{Corpus, Split};
use super::overlap::Shared;
use super::report::{
    Amount, Cluster, Duplicates, Endings, Leak, Leakage, Method, OutOfVocabulary, Place, Report, RunOverlap,
    SplitReport,
};
use super::statistics::{Foreign, lengths};

/// Clusters and leaks that are named.
const EXAMPLES: usize = 10;

/// What the passes found.
pub struct Found<'a> {
    /// The documents.
    pub corpus: &'a Corpus<'a>,
    /// Of each split, how many ids are outside the vocabulary, and the first.
    pub facts: Vec<(u64, Option<Foreign>)>,
    /// Of each split, how often each id occurs.
    pub counts: &'a [Vec<u64>],
    /// Of each document, the first that equals it.
    pub first: &'a [u32],
    /// Of each document, the one that is kept of its cluster.
    pub kept: &'a [u32],
    /// Pairs that were counted.
    pub counted: u64,
}

impl Found<'_> {
    /// The report. `shared` is what each document of validation shares with train, in one of `sampled` runs.
    pub fn report(&self, shared: &[Shared], sampled: u64) -> Report {
        let splits = self.corpus.splits();
        let reports: BTreeMap<_, _> = (0..splits.len()).map(|place| (splits[place].name, self.split(place))).collect();
        Report {
            documents: reports.values().map(|split| split.documents).sum(),
            tokens: reports.values().map(|split| split.tokens).sum(),
            effective_unique_tokens: reports.values().map(|split| split.effective_unique_tokens).sum(),
            splits: reports,
            duplicates: self.duplicates(),
            leakage: (splits.len() > 1).then(|| self.leakage(shared, sampled)),
            method: Method::default(),
        }
    }

    fn split(&self, place: usize) -> SplitReport {
        let split = &self.corpus.splits()[place];
        let (count, first) = self.facts[place].clone();
        let mut kept = Amount::default();
        let all = split.first..split.first + split.documents.len();
        all.filter(|&document| self.is_kept(document)).for_each(|document| kept.add(self.corpus.size(document)));
        SplitReport {
            documents: split.documents.len() as u64,
            tokens: split.tokens.count(),
            effective_unique_tokens: kept.tokens,
            kept_documents: kept.documents,
            eot: endings(split),
            out_of_vocabulary: OutOfVocabulary { count, first },
            unigram_entropy: entropy(&self.counts[place]),
            distinct_ids: self.counts[place].iter().filter(|&&count| count > 0).count() as u64,
            lengths: lengths(&split.documents),
        }
    }

    fn is_kept(&self, document: usize) -> bool {
        self.kept[document] as usize == document
    }

    /// The documents and tokens of every cluster, by the number of the document that is kept.
    fn clusters(&self) -> Vec<(u32, Amount)> {
        let mut order: Vec<u32> = (0..self.kept.len() as u32).collect();
        order.sort_unstable_by_key(|&document| (self.kept[document as usize], document));
        let groups = order.chunk_by(|&a, &b| self.kept[a as usize] == self.kept[b as usize]);
        let amount = |group: &[u32]| {
            let mut amount = Amount::default();
            group.iter().for_each(|&document| amount.add(self.corpus.size(document as usize)));
            (self.kept[group[0] as usize], amount)
        };
        groups.filter(|group| group.len() > 1).map(amount).collect()
    }

    fn duplicates(&self) -> Duplicates {
        let (mut exact, mut near) = (Amount::default(), Amount::default());
        for document in (0..self.kept.len()).filter(|&document| !self.is_kept(document)) {
            // the kept one may be a later copy: then the first of the copies counts for it
            let copy = self.first[document] as usize != document
                || self.first[self.kept[document] as usize] as usize == document;
            (if copy { &mut exact } else { &mut near }).add(self.corpus.size(document));
        }
        let mut clusters = self.clusters();
        let mut sizes = BTreeMap::new();
        clusters.iter().for_each(|(_, amount)| *sizes.entry(1 << amount.documents.ilog2()).or_default() += 1);
        let count = clusters.len() as u64;
        let wasted = |kept: u32, amount: Amount| amount.tokens - self.corpus.size(kept as usize);
        clusters.sort_by_key(|&(kept, amount)| (std::cmp::Reverse(wasted(kept, amount)), kept));
        let name = |&(kept, amount): &(u32, Amount)| Cluster {
            kept: self.place(kept as usize),
            documents: amount.documents,
            tokens: amount.tokens,
        };
        let largest = clusters.iter().take(EXAMPLES).map(name).collect();
        let (sizes, pairs_counted) = (sizes.into_iter().collect(), self.counted);
        Duplicates { exact, near, clusters: count, sizes, largest, pairs_counted }
    }

    fn place(&self, document: usize) -> Place {
        let (split, index) = self.corpus.locate(document);
        let content = split.documents.content(index);
        let tokens = content.end - content.start;
        Place { split: split.name, document: index as u64, start: content.start, tokens }
    }

    fn leakage(&self, shared: &[Shared], sampled: u64) -> Leakage {
        let mut leakage = Leakage {
            exact: Amount::default(),
            near: Amount::default(),
            examples: Vec::new(),
            runs: RunOverlap::new(sampled),
        };
        let val = self.corpus.splits().last().map_or(0, |split| split.first);
        let train = self.first_of_train(val);
        shared.iter().for_each(|&shared| leakage.runs.add(shared));
        for document in val..self.kept.len() {
            let partner = train[self.kept[document] as usize];
            let range = self.place(document);
            if partner == u32::MAX || range.tokens == 0 {
                continue;
            }
            let exact = (self.first[document] as usize) < val;
            (if exact { &mut leakage.exact } else { &mut leakage.near }).add(self.corpus.size(document));
            if leakage.examples.len() < EXAMPLES {
                let partner = if exact { self.first[document] } else { partner };
                leakage.examples.push(Leak { val: range, train: self.place(partner as usize), exact });
            }
        }
        leakage
    }

    /// For each cluster, by the document that is kept, its first document before `val`.
    fn first_of_train(&self, val: usize) -> Vec<u32> {
        let mut first = vec![u32::MAX; self.kept.len()];
        for document in (0..val).rev() {
            first[self.kept[document] as usize] = document as u32;
        }
        first
    }
}

fn endings(split: &Split) -> Endings {
    let documents = &split.documents;
    Endings {
        count: documents.marks(),
        position: match (documents.marks(), documents.prepended()) {
            (0, _) => "none",
            (_, true) => "prepended",
            (_, false) => "appended",
        },
        missing: documents.has_unmarked().into(),
        doubled: documents.doubled(),
        empty_documents: (0..documents.len()).filter(|&index| documents.content(index).is_empty()).count() as u64,
    }
}

/// Nats per token.
fn entropy(counts: &[u64]) -> f64 {
    let total: u64 = counts.iter().sum();
    let share = |&count: &u64| count as f64 / total as f64;
    -counts.iter().filter(|&&count| count > 0).map(share).map(|share| share * share.ln()).sum::<f64>() + 0.0
}

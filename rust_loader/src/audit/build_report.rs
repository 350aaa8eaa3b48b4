//! Builds the report from the results of the passes.

use std::collections::BTreeMap;

use super::documents::{Corpus, Split};
use super::overlap::Shared;
use super::report::{
    Amount, Cluster, DocumentRef, Duplicates, EndOfText, Leak, Leakage, Method, OutOfVocabulary, Report, RunOverlap,
    SplitReport,
};
use super::statistics::{OutOfVocabId, lengths};

/// The number of clusters and leaks that are listed.
const EXAMPLES: usize = 10;

/// The results of the passes.
pub(crate) struct AuditData<'a> {
    /// The documents.
    pub corpus: &'a Corpus<'a>,
    /// For each split, the number of tokens outside the vocabulary, and the first one.
    pub out_of_vocab: Vec<(u64, Option<OutOfVocabId>)>,
    /// For each split, the number of occurrences of each id.
    pub counts: &'a [Vec<u64>],
    /// For each document, the first one that equals it.
    pub first: &'a [u32],
    /// For each document, the one that is kept of its cluster.
    pub kept: &'a [u32],
    /// The number of pairs that were compared exactly.
    pub compared: u64,
}

impl AuditData<'_> {
    /// The report. `shared` is the overlap of each validation document with train; one of `sampled` runs was sampled.
    pub(crate) fn report(&self, shared: &[Shared], sampled: u64) -> Report {
        let splits = self.corpus.splits();
        let reports: BTreeMap<_, _> = (0..splits.len()).map(|index| (splits[index].name, self.split(index))).collect();
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

    fn split(&self, index: usize) -> SplitReport {
        let split = &self.corpus.splits()[index];
        let (count, first) = self.out_of_vocab[index].clone();
        let mut kept = Amount::default();
        let all = split.first..split.first + split.documents.len();
        all.filter(|&document| self.is_kept(document)).for_each(|document| kept.add(self.corpus.size(document)));
        SplitReport {
            documents: split.documents.len() as u64,
            tokens: split.tokens.count(),
            effective_unique_tokens: kept.tokens,
            kept_documents: kept.documents,
            eot: end_of_text(split),
            out_of_vocabulary: OutOfVocabulary { count, first },
            unigram_entropy: entropy(&self.counts[index]),
            distinct_ids: self.counts[index].iter().filter(|&&count| count > 0).count() as u64,
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
        let mut exact = Amount::default();
        let mut near = Amount::default();
        for document in (0..self.kept.len()).filter(|&document| !self.is_kept(document)) {
            // if the kept document is a later copy, its first copy counts as the duplicate
            let copy = self.first[document] as usize != document
                || self.first[self.kept[document] as usize] as usize == document;
            (if copy { &mut exact } else { &mut near }).add(self.corpus.size(document));
        }
        let mut clusters = self.clusters();
        let mut sizes = BTreeMap::new();
        clusters.iter().for_each(|(_, amount)| *sizes.entry(1 << amount.documents.ilog2()).or_default() += 1);
        let count = clusters.len() as u64;
        let duplicate_tokens = |kept: u32, amount: Amount| amount.tokens - self.corpus.size(kept as usize);
        clusters.sort_by_key(|&(kept, amount)| (std::cmp::Reverse(duplicate_tokens(kept, amount)), kept));
        let describe = |&(kept, amount): &(u32, Amount)| Cluster {
            kept: self.document_ref(kept as usize),
            documents: amount.documents,
            tokens: amount.tokens,
        };
        let largest = clusters.iter().take(EXAMPLES).map(describe).collect();
        let sizes = sizes.into_iter().collect();
        Duplicates { exact, near, clusters: count, sizes, largest, pairs_counted: self.compared }
    }

    fn document_ref(&self, document: usize) -> DocumentRef {
        let (split, index) = self.corpus.locate(document);
        let content = split.documents.content(index);
        let tokens = content.end - content.start;
        DocumentRef { split: split.name, document: index as u64, start: content.start, tokens }
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
            let val_document = self.document_ref(document);
            if partner == u32::MAX || val_document.tokens == 0 {
                continue;
            }
            let exact = (self.first[document] as usize) < val;
            (if exact { &mut leakage.exact } else { &mut leakage.near }).add(self.corpus.size(document));
            if leakage.examples.len() < EXAMPLES {
                let partner = if exact { self.first[document] } else { partner };
                leakage.examples.push(Leak { val: val_document, train: self.document_ref(partner as usize), exact });
            }
        }
        leakage
    }

    /// For the kept document of each cluster, the first document of the cluster before `val`.
    fn first_of_train(&self, val: usize) -> Vec<u32> {
        let mut first = vec![u32::MAX; self.kept.len()];
        for document in (0..val).rev() {
            first[self.kept[document] as usize] = document as u32;
        }
        first
    }
}

fn end_of_text(split: &Split) -> EndOfText {
    let documents = &split.documents;
    EndOfText {
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

/// The entropy of these frequencies in nats per token.
fn entropy(counts: &[u64]) -> f64 {
    let total: u64 = counts.iter().sum();
    let probability = |&count: &u64| count as f64 / total as f64;
    -counts.iter().filter(|&&count| count > 0).map(probability).map(|p| p * p.ln()).sum::<f64>() + 0.0
}

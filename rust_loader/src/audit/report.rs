//! The report of an audit, in the structure in which it is saved as JSON.

use std::collections::BTreeMap;

use serde::Serialize;

use super::cluster::{MIN_ESTIMATE, PIVOTS};
use super::minhash::{BANDS, BINS, ROWS};
use super::statistics::{Lengths, OutOfVocabId};
use super::{overlap, shingles};

/// The parameters of the search for near-duplicates.
#[derive(Clone, Debug, Serialize)]
pub struct Method {
    /// Tokens in a shingle.
    pub shingle_tokens: usize,
    /// The Jaccard index from which two documents are near-duplicates.
    pub threshold: f64,
    /// Numbers in a sketch.
    pub sketch_numbers: usize,
    /// Bands in a sketch.
    pub bands: usize,
    /// Numbers in a band.
    pub rows: usize,
    /// Pairs below this estimated similarity are not compared exactly.
    pub least_estimate: f64,
    /// The number of members of a large group that all others are compared with.
    pub pivots: usize,
    /// The probability that a pair at the threshold is proposed by a band.
    pub recall_at_threshold: f64,
    /// The standard deviation of the estimate at the threshold.
    pub estimate_deviation: f64,
}

impl Default for Method {
    fn default() -> Self {
        let missed = (1.0 - shingles::THRESHOLD.powi(ROWS as i32)).powi(BANDS as i32);
        Method {
            shingle_tokens: shingles::WIDTH,
            threshold: shingles::THRESHOLD,
            sketch_numbers: BINS,
            bands: BANDS,
            rows: ROWS,
            least_estimate: MIN_ESTIMATE,
            pivots: PIVOTS,
            recall_at_threshold: 1.0 - missed,
            estimate_deviation: (shingles::THRESHOLD * (1.0 - shingles::THRESHOLD) / BINS as f64).sqrt(),
        }
    }
}

/// A number of documents and of their tokens, including end-of-text tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Amount {
    /// Documents.
    pub documents: u64,
    /// Their tokens.
    pub tokens: u64,
}

impl Amount {
    /// Adds a document of `tokens` tokens.
    pub fn add(&mut self, tokens: u64) {
        self.documents += 1;
        self.tokens += tokens;
    }
}

/// The end-of-text tokens of a split.
#[derive(Clone, Debug, Serialize)]
pub struct EndOfText {
    /// The number of end-of-text tokens.
    pub count: u64,
    /// "appended" or "prepended" to their documents, or "none".
    pub position: &'static str,
    /// Documents without one.
    pub missing: u64,
    /// End-of-text tokens that directly follow another one.
    pub doubled: u64,
    /// Documents without other tokens.
    pub empty_documents: u64,
}

/// The ids outside the vocabulary.
#[derive(Clone, Debug, Serialize)]
pub struct OutOfVocabulary {
    /// Their number.
    pub count: u64,
    /// The first one.
    pub first: Option<OutOfVocabId>,
}

/// The statistics of one split.
#[derive(Clone, Debug, Serialize)]
pub struct SplitReport {
    /// All documents.
    pub documents: u64,
    /// All tokens.
    pub tokens: u64,
    /// Tokens of the documents that are kept.
    pub effective_unique_tokens: u64,
    /// Documents that are kept.
    pub kept_documents: u64,
    /// Its end-of-text tokens.
    pub eot: EndOfText,
    /// Ids outside the vocabulary.
    pub out_of_vocabulary: OutOfVocabulary,
    /// The entropy of the frequencies of its ids, in nats per token.
    pub unigram_entropy: f64,
    /// The number of ids of the vocabulary that occur.
    pub distinct_ids: u64,
    /// The lengths of its documents.
    pub lengths: Lengths,
}

/// A document, identified by its split and its number in that split.
#[derive(Clone, Debug, Serialize)]
pub struct DocumentRef {
    /// "train" or "val".
    pub split: &'static str,
    /// Its number in the split.
    pub document: u64,
    /// The index of its first token in the split.
    pub start: u64,
    /// The number of its tokens, without the end-of-text token.
    pub tokens: u64,
}

/// One cluster of duplicates.
#[derive(Clone, Debug, Serialize)]
pub struct Cluster {
    /// The document that is kept.
    pub kept: DocumentRef,
    /// All documents.
    pub documents: u64,
    /// All tokens.
    pub tokens: u64,
}

/// Duplicates within and between the splits.
#[derive(Clone, Debug, Serialize)]
pub struct Duplicates {
    /// Documents that equal an earlier one.
    pub exact: Amount,
    /// Other documents that are not kept.
    pub near: Amount,
    /// The number of clusters with more than one document.
    pub clusters: u64,
    /// Clusters by size: a number of documents (a power of two), and the number of clusters with at least that many and
    /// less than twice as many.
    pub sizes: Vec<(u64, u64)>,
    /// The clusters with the most duplicate tokens.
    pub largest: Vec<Cluster>,
    /// Pairs that were compared exactly.
    pub pairs_counted: u64,
}

/// A validation document and a training document that is an exact or near-duplicate of it.
#[derive(Clone, Debug, Serialize)]
pub struct Leak {
    /// The validation document.
    pub val: DocumentRef,
    /// The first training document of its cluster.
    pub train: DocumentRef,
    /// True if the two are equal.
    pub exact: bool,
}

/// The runs of tokens of validation that also occur in train.
#[derive(Clone, Debug, Default, Serialize)]
pub struct RunOverlap {
    /// Tokens in a run.
    pub run_tokens: u64,
    /// One of this number of runs was sampled.
    pub sampled: u64,
    /// The number of sampled runs.
    pub runs: u64,
    /// Those of them that occur in train.
    pub seen: u64,
    /// Documents with at least one run in train.
    pub documents_any: u64,
    /// Documents with at least half of their runs in train.
    pub documents_half: u64,
    /// Tokens that are in a run that occurs in train; `None` if runs were sampled.
    pub tokens_covered: Option<u64>,
    /// Documents by the fraction of their runs in train: none, then in tenths.
    pub histogram: Vec<u64>,
}

impl RunOverlap {
    /// No documents yet, for a table that takes one of `sampled` runs.
    pub fn new(sampled: u64) -> Self {
        RunOverlap {
            run_tokens: overlap::WIDTH as u64,
            sampled,
            histogram: vec![0; 11],
            tokens_covered: (sampled == 1).then_some(0),
            ..Self::default()
        }
    }

    /// Adds a document.
    pub fn add(&mut self, shared: overlap::Shared) {
        self.runs += shared.runs;
        self.seen += shared.seen;
        self.documents_any += u64::from(shared.seen > 0);
        self.documents_half += u64::from(shared.seen > 0 && 2 * shared.seen >= shared.runs);
        self.tokens_covered = self.tokens_covered.map(|covered| covered + shared.covered);
        let tenth = (10 * shared.seen).div_ceil(shared.runs.max(1));
        self.histogram[tenth as usize] += 1;
    }
}

/// The validation documents that also occur in train. Empty documents do not count.
#[derive(Clone, Debug, Serialize)]
pub struct Leakage {
    /// Those that equal a training document.
    pub exact: Amount,
    /// Others that are in a cluster with a training document.
    pub near: Amount,
    /// The first documents of both kinds.
    pub examples: Vec<Leak>,
    /// Runs in common.
    pub runs: RunOverlap,
}

/// The result of an audit.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// All documents.
    pub documents: u64,
    /// All tokens.
    pub tokens: u64,
    /// Tokens that remain when one document of each cluster is kept.
    pub effective_unique_tokens: u64,
    /// The statistics of each split.
    pub splits: BTreeMap<&'static str, SplitReport>,
    /// Duplicates.
    pub duplicates: Duplicates,
    /// Validation documents in train; `None` without a validation split.
    pub leakage: Option<Leakage>,
    /// The parameters of the search.
    pub method: Method,
}

//! What an audit says, in the shape in which it is written down.

use std::collections::BTreeMap;

use serde::Serialize;

use super::cluster::{LEAST_ESTIMATE, PIVOTS};
use super::minhash::{BANDS, BINS, ROWS};
use super::statistics::{Foreign, Lengths};
use super::{overlap, shingles};

/// How near-duplicates were looked for.
#[derive(Clone, Debug, Serialize)]
pub struct Method {
    /// Tokens of a shingle.
    pub shingle_tokens: usize,
    /// The Jaccard index from which two documents are near-duplicates.
    pub threshold: f64,
    /// Numbers of a sketch.
    pub sketch_numbers: usize,
    /// Bands of the sketch.
    pub bands: usize,
    /// Numbers of a band.
    pub rows: usize,
    /// Pairs below this estimated similarity are not counted exactly.
    pub least_estimate: f64,
    /// Members of a large group that all others are compared with.
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
            least_estimate: LEAST_ESTIMATE,
            pivots: PIVOTS,
            recall_at_threshold: 1.0 - missed,
            estimate_deviation: (shingles::THRESHOLD * (1.0 - shingles::THRESHOLD) / BINS as f64).sqrt(),
        }
    }
}

/// Documents and their tokens, end-of-text tokens included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Amount {
    /// Documents.
    pub documents: u64,
    /// Their tokens.
    pub tokens: u64,
}

impl Amount {
    /// Adds a document of so many tokens.
    pub fn add(&mut self, tokens: u64) {
        self.documents += 1;
        self.tokens += tokens;
    }
}

/// The end-of-text tokens of a split.
#[derive(Clone, Debug, Serialize)]
pub struct Endings {
    /// How many there are.
    pub count: u64,
    /// "appended" or "prepended" to their documents, or "none".
    pub position: &'static str,
    /// Documents without one.
    pub missing: u64,
    /// Those that follow another at once.
    pub doubled: u64,
    /// Documents without any other token.
    pub empty_documents: u64,
}

/// Ids outside the vocabulary.
#[derive(Clone, Debug, Serialize)]
pub struct OutOfVocabulary {
    /// How many there are.
    pub count: u64,
    /// The first.
    pub first: Option<Foreign>,
}

/// What one split holds.
#[derive(Clone, Debug, Serialize)]
pub struct SplitReport {
    /// All of it.
    pub documents: u64,
    /// All of it.
    pub tokens: u64,
    /// Tokens of the documents that are kept.
    pub effective_unique_tokens: u64,
    /// Documents that are kept.
    pub kept_documents: u64,
    /// Its end-of-text tokens.
    pub eot: Endings,
    /// Ids outside the vocabulary.
    pub out_of_vocabulary: OutOfVocabulary,
    /// Nats per token of the frequencies of its ids.
    pub unigram_entropy: f64,
    /// How many ids of the vocabulary occur.
    pub distinct_ids: u64,
    /// How long its documents are.
    pub lengths: Lengths,
}

/// A document, by its split and its number there.
#[derive(Clone, Debug, Serialize)]
pub struct Place {
    /// "train" or "val".
    pub split: &'static str,
    /// Its number in the split.
    pub document: u64,
    /// Its first token in the split.
    pub start: u64,
    /// Its tokens, without the end-of-text token.
    pub tokens: u64,
}

/// One cluster of duplicates.
#[derive(Clone, Debug, Serialize)]
pub struct Cluster {
    /// The document that stands for it.
    pub kept: Place,
    /// All documents.
    pub documents: u64,
    /// All tokens.
    pub tokens: u64,
}

/// Duplicates within and between the splits.
#[derive(Clone, Debug, Serialize)]
pub struct Duplicates {
    /// Documents that another one before them equals.
    pub exact: Amount,
    /// Documents that are left out beside those.
    pub near: Amount,
    /// How many clusters have more than one document.
    pub clusters: u64,
    /// Clusters by their size: of at least so many documents, and less than twice that.
    pub sizes: Vec<(u64, u64)>,
    /// The clusters that waste most tokens.
    pub largest: Vec<Cluster>,
    /// Pairs whose shingles were counted.
    pub pairs_counted: u64,
}

/// A document of validation and one of train that equals it, exactly or nearly.
#[derive(Clone, Debug, Serialize)]
pub struct Leak {
    /// The document of validation.
    pub val: Place,
    /// The first document of train in its cluster.
    pub train: Place,
    /// Whether the two are equal.
    pub exact: bool,
}

/// Runs of tokens of validation that also stand in train.
#[derive(Clone, Debug, Default, Serialize)]
pub struct RunOverlap {
    /// Tokens of a run.
    pub run_tokens: u64,
    /// One of so many runs was looked at.
    pub sampled: u64,
    /// The runs looked at.
    pub runs: u64,
    /// Those of them that stand in train.
    pub seen: u64,
    /// Documents with at least one of these.
    pub documents_any: u64,
    /// Documents with half of their runs or more in train.
    pub documents_half: u64,
    /// Tokens that lie in a run that stands in train, where all runs were looked at.
    pub tokens_covered: Option<u64>,
    /// Documents by the share of their runs in train: none, then in tenths.
    pub histogram: Vec<u64>,
}

impl RunOverlap {
    /// Nothing yet, of a table that takes one of `sampled` runs.
    pub fn new(sampled: u64) -> Self {
        let (run_tokens, histogram) = (overlap::WIDTH as u64, vec![0; 11]);
        RunOverlap { run_tokens, sampled, histogram, tokens_covered: (sampled == 1).then_some(0), ..Self::default() }
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

/// Documents of validation that also stand in train. Empty ones do not count.
#[derive(Clone, Debug, Serialize)]
pub struct Leakage {
    /// Those that equal one of train.
    pub exact: Amount,
    /// Beside those, those that are in a cluster with one of train.
    pub near: Amount,
    /// The first of both.
    pub examples: Vec<Leak>,
    /// Runs in common.
    pub runs: RunOverlap,
}

/// What an audit found.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// All documents.
    pub documents: u64,
    /// All tokens.
    pub tokens: u64,
    /// Tokens that remain when one document of each cluster is kept.
    pub effective_unique_tokens: u64,
    /// What the splits hold.
    pub splits: BTreeMap<&'static str, SplitReport>,
    /// Duplicates.
    pub duplicates: Duplicates,
    /// Of validation in train; nothing where one of them is missing.
    pub leakage: Option<Leakage>,
    /// How it was found.
    pub method: Method,
}

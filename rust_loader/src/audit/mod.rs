//! The audit of a dataset: duplicates, validation documents in train, and statistics of documents and tokens.
//!
//! Four passes. [`statistics`] reads every token and finds the documents. The second pass takes the sketch ([`minhash`])
//! and the key of every document, while [`overlap`] looks for runs of validation in train. Then [`bands`] of sketches
//! propose pairs that [`cluster`] compares exactly and joins. The last pass reads validation once more. The time is
//! linear in the number of tokens. Memory use is about 60 bytes per document and a few megabytes per thread; a temporary
//! file contains the sketches. The result does not depend on the number of threads.

mod bands;
mod build_report;
mod cluster;
pub mod clusters;
mod documents;
mod minhash;
mod overlap;
pub mod report;
mod shingles;
mod spill;
mod statistics;
pub mod tokens;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

pub use documents::Placement;

use crate::error::Result;
pub use crate::workers::Progress;
use crate::workers::Workers;
use build_report::AuditData;
use cluster::Clusters;
use documents::Corpus;
use minhash::Sketch;
use overlap::{RunTable, Shared};
use report::Report;
use spill::Spill;
use statistics::token_stats;
use tokens::Tokens;

/// The options of an [`audit`](fn@audit).
#[derive(Clone, Debug)]
pub struct Options {
    /// Ids from this on are outside the vocabulary.
    pub vocab_size: u64,
    /// The end-of-text token. Without one, each split is a single document.
    pub eot: Option<u32>,
    /// The position of end-of-text tokens relative to their documents.
    pub placement: Placement,
    /// The number of worker threads; with 0, the calling thread does the work.
    pub threads: usize,
    /// The folder of the temporary file, 328 bytes per document; with `None`, it is in memory.
    pub folder: Option<PathBuf>,
}

/// A finished audit.
#[derive(Debug)]
pub struct Audit {
    report: Report,
    counts: Vec<Vec<u64>>,
    contents: Vec<Vec<(u64, u64)>>,
    keys: Vec<u128>,
    kept: Vec<u32>,
}

/// Audits train and, if there is one, validation. `tick` gets the progress about 20 times a second, and returns whether
/// to continue.
///
/// # Errors
/// D030 for too many documents, S015 for the temporary file, [`Interrupted`](crate::Error::Interrupted) if `tick` returned
/// false, and the errors of reading tokens.
pub fn audit(
    train: &dyn Tokens,
    val: Option<&dyn Tokens>,
    options: &Options,
    tick: &mut dyn FnMut(&Progress) -> bool,
) -> Result<Audit> {
    let mut workers = Workers::new(options.threads, tick);
    let named: Vec<_> = [("train", Some(train)), ("val", val)]
        .into_iter()
        .filter_map(|(name, source)| source.map(|source| (name, source)))
        .collect();
    workers.begin("reading", named.iter().map(|(_, source)| bytes(*source)).sum());
    let mut splits = Vec::new();
    let mut out_of_vocab = Vec::new();
    let mut counts = Vec::new();
    for (name, source) in named {
        let stats = token_stats(&mut workers, source, options.vocab_size, options.eot, options.placement)?;
        splits.push((name, source, stats.documents));
        out_of_vocab.push((stats.out_of_vocab, stats.first_out_of_vocab));
        counts.push(stats.counts);
    }
    let corpus = Corpus::new(splits)?;
    let table = run_table(&mut workers, &corpus)?;
    let spill = Spill::new(options.folder.as_deref(), corpus.len())?;
    let keys = sketch(&mut workers, &corpus, &spill, &table)?;
    let first = cluster::exact_duplicates(&mut workers, &keys)?;
    let (roots, compared) = Clusters::new(&corpus, &spill, &first).find(&mut workers)?;
    drop(spill);
    let kept = cluster::kept(&corpus, &roots);
    drop(roots);
    let shared = shared(&mut workers, &corpus, &table)?;
    for split in corpus.splits() {
        split.tokens.check_unchanged()?;
    }
    let data = AuditData { corpus: &corpus, out_of_vocab, counts: &counts, first: &first, kept: &kept, compared };
    let report = data.report(&shared, table.sample());
    let contents = corpus.splits().iter().map(contents).collect();
    Ok(Audit { report, counts, contents, keys, kept })
}

fn bytes(source: &dyn Tokens) -> u64 {
    source.count() * source.dtype().size() as u64
}

fn contents(split: &documents::Split) -> Vec<(u64, u64)> {
    let content = |index| split.documents.content(index);
    (0..split.documents.len()).map(content).map(|range| (range.start, range.end)).collect()
}

/// A table of the runs of validation.
fn run_table(workers: &mut Workers, corpus: &Corpus) -> Result<RunTable> {
    let batches = batches_of(corpus, "val");
    let tokens = corpus.splits().iter().filter(|split| split.name == "val").map(|split| split.tokens.count()).sum();
    let mut table = RunTable::new(tokens, overlap::LIMIT);
    workers.begin("runs of validation", tokens * 4);
    let runs = workers.run(batches.len(), |batch, counters| {
        let mut hashes = Vec::new();
        corpus.visit(batches[batch].clone(), &mut |_, text| {
            hashes.extend(table.runs(text)?.into_iter().map(|(hash, _)| hash));
            counters.advance(1, text.length(), text.length() * 4)
        })?;
        Ok(hashes)
    })?;
    runs.into_iter().flatten().for_each(|hash| table.insert(hash));
    Ok(table)
}

fn batches_of(corpus: &Corpus, name: &str) -> Vec<std::ops::Range<usize>> {
    let of_split = |batch: &std::ops::Range<usize>| !batch.is_empty() && corpus.locate(batch.start).0.name == name;
    corpus.batches().into_iter().filter(of_split).collect()
}

/// Stores the sketch of every document, marks the runs that train shares with validation, and returns the keys.
fn sketch(workers: &mut Workers, corpus: &Corpus, spill: &Spill, table: &RunTable) -> Result<Vec<u128>> {
    let batches = corpus.batches();
    workers.begin("sketching", corpus.splits().iter().map(|split| bytes(split.tokens)).sum());
    let keys = workers.run(batches.len(), |batch, counters| {
        let batch = batches[batch].clone();
        let mut keys = Vec::with_capacity(batch.len());
        let mut sketches = Vec::with_capacity(batch.len());
        corpus.visit(batch.clone(), &mut |document, text| {
            let split = corpus.locate(document).0;
            keys.push(clusters::key_of(text)?);
            sketches.push(Sketch::of(text)?);
            if split.name == "train" && !table.is_empty() {
                table.mark_seen(text)?;
            }
            counters.advance(1, text.length(), text.length() * split.tokens.dtype().size() as u64)
        })?;
        spill.write(batch.start, &sketches)?;
        Ok(keys)
    })?;
    Ok(keys.into_iter().flatten().collect())
}

/// The overlap of each validation document with train.
fn shared(workers: &mut Workers, corpus: &Corpus, table: &RunTable) -> Result<Vec<Shared>> {
    let batches = batches_of(corpus, "val");
    workers.begin("validation in train", 0);
    let shared = workers.run(batches.len(), |batch, counters| {
        let mut shared = Vec::new();
        corpus.visit(batches[batch].clone(), &mut |_, text| {
            shared.push(overlap::shared(table, text)?);
            counters.advance(1, text.length(), 0)
        })?;
        Ok(shared)
    })?;
    Ok(shared.into_iter().flatten().collect())
}

impl Audit {
    /// The report.
    #[must_use]
    pub fn report(&self) -> &Report {
        &self.report
    }

    /// For each split, the number of occurrences of each id.
    #[must_use]
    pub fn counts(&self) -> &[Vec<u64>] {
        &self.counts
    }

    /// For each split, the range of each document's tokens.
    #[must_use]
    pub fn contents(&self) -> &[Vec<(u64, u64)>] {
        &self.contents
    }

    /// For each document, the one that is kept of its cluster. Documents are numbered through train, then val.
    #[must_use]
    pub fn kept(&self) -> &[u32] {
        &self.kept
    }

    /// Writes the near-duplicate clusters to `path` atomically, and returns the file's xxh3-128 in hexadecimal.
    ///
    /// # Errors
    /// S003 if the file cannot be written.
    pub fn write_clusters(&self, path: &Path) -> Result<String> {
        let kept = |document: usize| self.kept[document] as usize;
        let mut mixed = HashMap::<u32, bool>::new();
        for document in (0..self.keys.len()).filter(|&document| kept(document) != document) {
            *mixed.entry(self.kept[document]).or_default() |= self.keys[document] != self.keys[kept(document)];
        }
        let near = |&document: &usize| mixed.get(&self.kept[document]) == Some(&true);
        let record = |document: usize| (self.keys[document], self.keys[kept(document)]);
        clusters::write(path, (0..self.keys.len()).filter(near).map(record).collect())
    }
}

//! The audit of a dataset: duplicates, validation in train, and what its documents and tokens are like.
//!
//! Four passes: [`statistics`] reads every token and finds the documents; then the sketch ([`minhash`]) and the key of
//! every document are taken, while [`overlap`] looks for runs of validation in train; [`bands`] of sketches propose
//! pairs that [`cluster`] counts exactly and joins; and validation is looked at once more. The time is linear in the
//! tokens. In memory are about 60 bytes per document and a few megabytes per thread; a temporary file holds the
//! sketches. What comes out does not depend on the number of threads.

mod bands;
mod cluster;
pub mod clusters;
mod crew;
mod documents;
mod minhash;
mod overlap;
pub mod report;
mod shingles;
mod spill;
mod statistics;
mod summary;
pub mod tokens;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

pub use crew::Progress;
pub use documents::Placement;
pub use shingles::jaccard;

use crate::error::Result;
use cluster::Clusters;
use crew::Crew;
use documents::Corpus;
use minhash::Sketch;
use overlap::{Shared, Table};
use report::Report;
use spill::Spill;
use statistics::{Census, census};
use tokens::Tokens;

/// How to audit.
#[derive(Clone, Debug)]
pub struct Options {
    /// Ids from this on are outside the vocabulary.
    pub vocab_size: u64,
    /// The token between documents. Without one, each split is a single document.
    pub eot: Option<u32>,
    /// On which side of its document it stands.
    pub placement: Placement,
    /// Threads that work beside the caller's; none: it works alone.
    pub threads: usize,
    /// The folder of the temporary file, 328 bytes per document; none: it is held in memory.
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

/// Audits train and, where there is one, validation. `tick` is told now and then how far it is; when it returns false,
/// the audit is given up.
pub fn audit(
    train: &dyn Tokens,
    val: Option<&dyn Tokens>,
    options: &Options,
    tick: &mut dyn FnMut(&Progress) -> bool,
) -> Result<Audit> {
    let mut crew = Crew::new(options.threads, tick);
    let named: Vec<_> = [("train", Some(train)), ("val", val)]
        .into_iter()
        .filter_map(|(name, source)| source.map(|source| (name, source)))
        .collect();
    crew.begin("reading", named.iter().map(|(_, source)| bytes(*source)).sum());
    let (mut parts, mut facts, mut counts) = (Vec::new(), Vec::new(), Vec::new());
    for (name, source) in named {
        let found = census(&mut crew, source, options.vocab_size, options.eot, options.placement)?;
        let Census { documents, counts: count, foreign, first_foreign } = found;
        parts.push((name, source, documents));
        facts.push((foreign, first_foreign));
        counts.push(count);
    }
    let corpus = Corpus::new(parts)?;
    let table = table(&mut crew, &corpus)?;
    let spill = Spill::new(options.folder.as_deref(), corpus.len())?;
    let keys = sketch(&mut crew, &corpus, &spill, &table)?;
    let first = cluster::exact(&mut crew, &keys)?;
    let (roots, counted) = Clusters::new(&corpus, &spill, &first).find(&mut crew)?;
    drop(spill);
    let kept = cluster::kept(&corpus, &roots);
    drop(roots);
    let shared = shared(&mut crew, &corpus, &table)?;
    for split in corpus.splits() {
        split.tokens.check_unchanged()?;
    }
    let found = summary::Found { corpus: &corpus, facts, counts: &counts, first: &first, kept: &kept, counted };
    let report = found.report(&shared, table.sample());
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

/// The runs of validation.
fn table(crew: &mut Crew, corpus: &Corpus) -> Result<Table> {
    let batches = batches_of(corpus, "val");
    let tokens = corpus.splits().iter().filter(|split| split.name == "val").map(|split| split.tokens.count()).sum();
    let mut table = Table::new(tokens, overlap::LIMIT);
    crew.begin("runs of validation", tokens * 4);
    let runs = crew.run(batches.len(), |batch, tally| {
        let mut hashes = Vec::new();
        corpus.visit(batches[batch].clone(), &mut |_, text| {
            hashes.extend(table.runs(text)?.into_iter().map(|(hash, _)| hash));
            tally.advance(1, text.length(), text.length() * 4)
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

/// Keeps every document's sketch, notes the runs that it shares with validation, and returns the keys.
fn sketch(crew: &mut Crew, corpus: &Corpus, spill: &Spill, table: &Table) -> Result<Vec<u128>> {
    let batches = corpus.batches();
    crew.begin("sketching", corpus.splits().iter().map(|split| bytes(split.tokens)).sum());
    let keys = crew.run(batches.len(), |batch, tally| {
        let batch = batches[batch].clone();
        let (mut keys, mut sketches) = (Vec::with_capacity(batch.len()), Vec::with_capacity(batch.len()));
        corpus.visit(batch.clone(), &mut |document, text| {
            let split = corpus.locate(document).0;
            keys.push(clusters::key_of(text)?);
            sketches.push(Sketch::of(text)?);
            if split.name == "train" && !table.is_empty() {
                table.see(text)?;
            }
            tally.advance(1, text.length(), text.length() * split.tokens.dtype().size() as u64)
        })?;
        spill.write(batch.start, &sketches)?;
        Ok(keys)
    })?;
    Ok(keys.into_iter().flatten().collect())
}

/// What each document of validation shares with train.
fn shared(crew: &mut Crew, corpus: &Corpus, table: &Table) -> Result<Vec<Shared>> {
    let batches = batches_of(corpus, "val");
    crew.begin("validation in train", 0);
    let found = crew.run(batches.len(), |batch, tally| {
        let mut found = Vec::new();
        corpus.visit(batches[batch].clone(), &mut |_, text| {
            found.push(overlap::shared(table, text)?);
            tally.advance(1, text.length(), 0)
        })?;
        Ok(found)
    })?;
    Ok(found.into_iter().flatten().collect())
}

impl Audit {
    /// What was found.
    pub fn report(&self) -> &Report {
        &self.report
    }

    /// How often each id occurs, for each split.
    pub fn counts(&self) -> &[Vec<u64>] {
        &self.counts
    }

    /// Where each document's tokens begin and end, for each split.
    pub fn contents(&self) -> &[Vec<(u64, u64)>] {
        &self.contents
    }

    /// For each document the one that is kept of its cluster, by numbers that go through train, then val.
    pub fn kept(&self) -> &[u32] {
        &self.kept
    }

    /// Writes the near-duplicate clusters to `path` in one piece; returns the file's xxh3-128 in hexadecimal.
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

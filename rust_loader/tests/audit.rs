//! The audit compared with plain counting over all pairs of documents and all runs of tokens.

mod common;

use std::collections::{BTreeSet, HashSet};
use std::fs;
use std::path::Path;

use common::audit::{Numbers, audited, documents, memory, options};
use jaxgpt_loader::audit::clusters::{ClusterMap, document_key_u32};
use jaxgpt_loader::audit::report::Amount;
use jaxgpt_loader::audit::tokens::{InMemory, Tokens};
use jaxgpt_loader::audit::{Audit, Options, audit};
use jaxgpt_loader::error::{Error, Result};
use jaxgpt_loader::shard::format::Dtype;
use proptest::prelude::*;

fn shingles(document: &[u32]) -> HashSet<Vec<u32>> {
    if document.len() < 5 {
        return [document.to_vec()].into();
    }
    document.windows(5).map(<[u32]>::to_vec).collect()
}

fn jaccard(a: &HashSet<Vec<u32>>, b: &HashSet<Vec<u32>>) -> f64 {
    let both = a.intersection(b).count();
    both as f64 / (a.len() + b.len() - both) as f64
}

/// The first document of each document's cluster, from comparing all pairs.
fn oracle(all: &[Vec<u32>]) -> Vec<usize> {
    let sets: Vec<_> = all.iter().map(|document| shingles(document)).collect();
    let mut root: Vec<usize> = (0..all.len()).collect();
    for a in 0..all.len() {
        for b in a + 1..all.len() {
            if root[a] != root[b] && (all[a] == all[b] || jaccard(&sets[a], &sets[b]) >= 0.8) {
                let (low, high) = (root[a].min(root[b]), root[a].max(root[b]));
                root.iter_mut().filter(|root| **root == high).for_each(|root| *root = low);
            }
        }
    }
    root
}

#[test]
fn clusters_equal_those_of_all_pairs() {
    for seed in 0..4 {
        let (train, val) = (documents(400, seed), documents(60, seed + 100));
        let mut numbers = Numbers(seed + 200);
        let near = train[40..80].iter().map(|document| numbers.edited(document, 1)).collect();
        let val = [val, train[..40].to_vec(), near].concat(); // validation documents that also occur in train
        let result = audited(&train, &val, &options(2));
        let all = [train.clone(), val].concat();
        let roots = oracle(&all);
        let kept: Vec<usize> = (0..all.len())
            .map(|one| {
                let cluster = (0..all.len()).filter(|&other| roots[other] == roots[one]);
                let members: Vec<_> = cluster.collect();
                *members.iter().find(|&&member| member >= train.len()).unwrap_or(&members[0])
            })
            .collect();
        assert_eq!(result.kept().iter().map(|&one| one as usize).collect::<Vec<_>>(), kept, "seed {seed}");
        check_figures(&result, &all, &kept, train.len());
    }
}

fn check_figures(result: &Audit, all: &[Vec<u32>], kept: &[usize], train: usize) {
    let size = |index: usize| all[index].len() as u64 + 1;
    let remaining: u64 = (0..all.len()).filter(|&index| kept[index] == index).map(size).sum();
    let report = result.report();
    assert_eq!(report.effective_unique_tokens, remaining);
    let distinct: HashSet<_> = all.iter().collect();
    let removed = (0..all.len()).filter(|&index| kept[index] != index).count() as u64;
    assert_eq!(report.duplicates.exact.documents, (all.len() - distinct.len()) as u64);
    assert_eq!(report.duplicates.near.documents, removed - report.duplicates.exact.documents);
    let in_train: HashSet<_> = all[..train].iter().collect();
    let full = |index: &usize| !all[*index].is_empty();
    let exact = (train..all.len()).filter(full).filter(|&index| in_train.contains(&all[index])).count();
    let leaked = (train..all.len()).filter(full).filter(|&index| (0..train).any(|other| kept[other] == kept[index]));
    let leakage = report.leakage.as_ref().unwrap();
    assert_eq!(leakage.exact.documents, exact as u64);
    assert_eq!(leakage.exact.documents + leakage.near.documents, leaked.count() as u64);
    assert!(leakage.near.documents > 3 && leakage.exact.documents > 30 && removed > 100, "{leakage:?}");
}

#[test]
fn result_is_independent_of_threads_and_sketch_storage() {
    let (train, val) = (documents(2_000, 7), documents(200, 8));
    let folder = tempfile::tempdir().unwrap();
    let inline = audited(&train, &val, &options(0));
    for threads in [1, 3, 8] {
        let other = audited(&train, &val, &Options { folder: Some(folder.path().into()), ..options(threads) });
        assert_eq!(inline.kept(), other.kept());
        let json = |audit: &Audit| serde_json::to_string(audit.report()).unwrap();
        assert_eq!(json(&inline), json(&other));
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn run_overlap_equals_a_plain_count() {
    let mut numbers = Numbers(3);
    let train: Vec<_> = (0..50).map(|_| numbers.document(200)).collect();
    let mut val: Vec<_> = (0..20).map(|_| numbers.document(100)).collect();
    for (index, document) in val.iter_mut().enumerate() {
        document.splice(20..20 + index, train[index][50..50 + index].iter().copied());
        document.truncate(100);
    }
    val.push(train[9][..12].to_vec()); // too short for a run
    let runs = audited(&train, &val, &options(2)).report().leakage.clone().unwrap().runs;
    let train_runs: HashSet<_> = train.iter().flat_map(|document| document.windows(13)).collect();
    let mut seen = 0;
    let mut all = 0;
    let mut covered = 0;
    let mut any = 0;
    for document in &val {
        let hits: Vec<usize> = (0..document.len().saturating_sub(12))
            .filter(|&start| train_runs.contains(&document[start..start + 13]))
            .collect();
        all += document.len().saturating_sub(12);
        seen += hits.len();
        any += u64::from(!hits.is_empty());
        covered += hits.iter().flat_map(|&start| start..start + 13).collect::<BTreeSet<_>>().len();
    }
    assert_eq!((runs.runs, runs.seen, runs.sampled), (all as u64, seen as u64, 1));
    assert_eq!((runs.documents_any, runs.tokens_covered), (any, Some(covered as u64)));
    assert!(seen > 20, "{seen}");
    assert_eq!(runs.histogram.iter().sum::<u64>(), val.len() as u64);
}

#[test]
fn many_copies_need_few_comparisons() {
    let mut numbers = Numbers(1);
    let one = numbers.document(60);
    let train: Vec<_> = vec![one.clone(); 100_000];
    let report = audited(&train, &[], &options(2)).report().clone();
    assert_eq!(report.effective_unique_tokens, 61);
    assert_eq!(report.duplicates.sizes, [(1 << 16, 1)]);
    // near-copies: each differs in one token, so that all have equal bands
    let train: Vec<_> = (0..20_000).map(|n| [&one[..], &[1 + n % 5_000, 6_000 + n / 5_000]].concat()).collect();
    let report = audited(&train, &[], &options(2)).report().clone();
    assert_eq!((report.effective_unique_tokens, report.duplicates.clusters), (63, 1));
    assert!(report.duplicates.pairs_counted < 32 * 20_000, "{}", report.duplicates.pairs_counted);
}

#[test]
fn large_group_is_compared_with_one_member_per_cluster() {
    let mut numbers = Numbers(2);
    let one = numbers.document(200);
    let other = [&one[..168], &numbers.document(32)].concat(); // 0.7 of the shingles in common
    let ended = |document: &[u32], count: u32| -> Vec<Vec<u32>> {
        (0..count).map(|n| [document, &[10_000 + n]].concat()).collect()
    };
    let train = [ended(&one, 40), ended(&other, 400)].concat();
    let report = audited(&train, &[], &options(2)).report().clone();
    assert_eq!((report.duplicates.clusters, report.effective_unique_tokens), (2, 2 * 202));
    assert!(report.duplicates.pairs_counted < 5 * 440, "{}", report.duplicates.pairs_counted);
}

#[test]
fn pairs_are_found_among_many_documents() {
    let mut numbers = Numbers(9);
    let mut train: Vec<_> = (0..70_000).map(|_| numbers.document(40)).collect(); // enough to be sorted in parts
    for index in 0..100 {
        train.push([&train[index * 700][..39], &[6_000]].concat());
        train.push(train[index * 699 + 1].clone());
    }
    let result = audited(&train, &[], &options(2));
    assert_eq!(result.report().duplicates.near, Amount { documents: 100, tokens: 4_100 });
    assert_eq!(result.report().duplicates.exact, Amount { documents: 100, tokens: 4_100 });
    let pairs = (0..100).flat_map(|index| [index * 700, index * 699 + 1]);
    assert!(result.kept()[70_000..].iter().map(|&kept| kept as usize).eq(pairs));
}

#[test]
fn document_longer_than_the_buffers() {
    let mut numbers = Numbers(5);
    let long: Vec<u32> = (0..2_200_000).map(|_| 1 + numbers.below(40_000)).collect();
    let edited = numbers.edited(&long, 2);
    let repetitive: Vec<u32> = (0..2_200_000).map(|n| 1 + n % 3).collect();
    let train = vec![long.clone(), repetitive.clone(), numbers.edited(&long, 30)];
    let result = audited(&train, &[edited, long.clone(), repetitive], &options(2));
    assert_eq!(result.kept(), [3, 5, 2, 3, 3, 5]);
    let leakage = result.report().leakage.as_ref().unwrap();
    assert_eq!((leakage.exact.documents, leakage.near.documents), (2, 1));
    assert!(leakage.runs.seen > 2_000_000);
    let folder = tempfile::tempdir().unwrap();
    result.write_clusters(&folder.path().join("x")).unwrap();
    let map = ClusterMap::open(&folder.path().join("x")).unwrap();
    assert!(map.representative(&document_key_u32(&long)).is_some());
}

#[test]
fn audit_stops_on_request() {
    let train = memory(&documents(300, 1), Dtype::U16);
    for threads in [0, 2] {
        let mut calls = 0;
        let mut tick = |_: &_| {
            calls += 1;
            calls < 4
        };
        let stopped = audit(&train, None, &options(threads), &mut tick);
        assert!(matches!(stopped, Err(Error::Interrupted)), "{threads}: {calls}");
    }
}

#[test]
fn temporary_file_error_states_its_size() {
    let missing = Path::new("/nowhere/at/all");
    let options = Options { folder: Some(missing.into()), ..options(1) };
    let error = audit(&memory(&[vec![1]], Dtype::U16), None, &options, &mut |_| true).unwrap_err();
    assert_eq!(error.code(), "S015");
    assert!(error.to_string().contains("328 bytes in /nowhere/at/all"), "{error}");
    assert!(error.help().contains("--tmp"));
}

/// Tokens that end early, like those of a file that is truncated while it is read.
struct Truncated(InMemory);

impl Tokens for Truncated {
    fn count(&self) -> u64 {
        self.0.count() + 5
    }
    fn dtype(&self) -> Dtype {
        self.0.dtype()
    }
    fn read(&self, start: u64, buffer: &mut [u8]) -> Result<()> {
        self.0.read(start, buffer)
    }
    fn file_position(&self, position: u64) -> (String, u64) {
        self.0.file_position(position)
    }
    fn check_unchanged(&self) -> Result<()> {
        Ok(())
    }
}

#[test]
fn a_failed_read_ends_the_audit() {
    let source = Truncated(memory(&documents(100, 1), Dtype::U32));
    for threads in [0, 3] {
        assert!(matches!(audit(&source, None, &options(threads), &mut |_| true), Err(Error::Argument(_))));
    }
}

// --- the file of clusters ---------------------------------------------------------------------------------------------

#[test]
fn cluster_file_has_exactly_the_near_duplicates() {
    let (train, val) = (documents(500, 11), documents(50, 12));
    let result = audited(&train, &val, &options(2));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("clusters.bin");
    let checksum = result.write_clusters(&path).unwrap();
    assert_eq!(checksum, format!("{:032x}", xxhash_rust::xxh3::xxh3_128(&fs::read(&path).unwrap())));
    let map = ClusterMap::open(&path).unwrap();
    let all = [train, val].concat();
    let mut members = HashSet::new();
    for (one, &kept) in result.kept().iter().enumerate() {
        let kept = kept as usize;
        let cluster: HashSet<_> =
            (0..all.len()).filter(|&n| result.kept()[n] as usize == kept).map(|n| &all[n]).collect();
        let key = document_key_u32(&all[one]);
        let expected = (cluster.len() > 1).then(|| document_key_u32(&all[kept]));
        assert_eq!(map.representative(&key), expected);
        members.extend(expected.map(|_| key));
    }
    assert_eq!(map.len(), members.len());
    assert!(map.len() > 20);
}

proptest! {
    #[test]
    fn any_tokens_are_audited(ids in prop::collection::vec(0u32..12, 0..400), val in 0usize..400, eot in 0u32..12) {
        let cut = val.min(ids.len());
        let source = |ids: &[u32]| InMemory::new(ids.iter().flat_map(|id| id.to_le_bytes()).collect(), Dtype::U32);
        let options = Options { vocab_size: 10, eot: Some(eot), ..options(0) };
        let result = audit(&source(&ids[cut..]), Some(&source(&ids[..cut])), &options, &mut |_| true).unwrap();
        let report = result.report();
        let Amount { tokens: exact, .. } = report.duplicates.exact;
        prop_assert_eq!(report.effective_unique_tokens + exact + report.duplicates.near.tokens, ids.len() as u64);
        let sizes: u64 = result.contents().iter().flatten().map(|(start, end)| end - start).sum();
        let marks: u64 = report.splits.values().map(|split| split.eot.count).sum();
        prop_assert_eq!(sizes + marks, ids.len() as u64);
    }
}

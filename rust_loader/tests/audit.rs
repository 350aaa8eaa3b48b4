//! The audit against plain counting: every pair of documents, every run of tokens.

mod common;

use std::collections::{BTreeSet, HashSet};
use std::fs;
use std::path::Path;

use jaxgpt_loader::audit::clusters::{ClusterMap, document_key_u32};
use jaxgpt_loader::audit::report::Amount;
use jaxgpt_loader::audit::tokens::{CHUNK, Memory, Text, Tokens};
use jaxgpt_loader::audit::{Audit, Options, Placement, audit};
use jaxgpt_loader::error::{Error, Result};
use jaxgpt_loader::format::Dtype;
use jaxgpt_loader::shard::{Dataset, Headerless};
use proptest::prelude::*;

const EOT: u32 = 0;

fn options(threads: usize) -> Options {
    Options { vocab_size: 50_257, eot: Some(EOT), placement: Placement::Auto, threads, folder: None }
}

fn memory(documents: &[Vec<u32>], dtype: Dtype) -> Memory {
    let ids = documents.iter().flat_map(|document| document.iter().chain(&[EOT]));
    let bytes = match dtype {
        Dtype::U16 => ids.flat_map(|&id| (id as u16).to_le_bytes()).collect(),
        Dtype::U32 => ids.flat_map(|id| id.to_le_bytes()).collect(),
    };
    Memory::new(bytes, dtype)
}

fn audited(train: &[Vec<u32>], val: &[Vec<u32>], options: &Options) -> Audit {
    let (train, val) = (memory(train, Dtype::U16), memory(val, Dtype::U16));
    audit(&train, Some(&val), options, &mut |_| true).unwrap()
}

/// A generator of numbers, so that the tests need no crate for it.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: u32) -> u32 {
        self.0 = self.0.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(0x1405_7B7E_F767_814F);
        ((self.0 >> 33) as u32) % limit
    }

    fn document(&mut self, length: u32) -> Vec<u32> {
        (0..length).map(|_| 1 + self.below(5_000)).collect()
    }

    /// `document` with about `percent` of its tokens replaced.
    fn edited(&mut self, document: &[u32], percent: u32) -> Vec<u32> {
        document.iter().map(|&id| if self.below(100) < percent { 1 + self.below(5_000) } else { id }).collect()
    }
}

/// Documents of 0 to some hundred tokens, many of them edits of another one.
fn documents(count: usize, seed: u64) -> Vec<Vec<u32>> {
    let mut numbers = Numbers(seed);
    let mut all: Vec<Vec<u32>> = Vec::new();
    for _ in 0..count {
        let other = all.get(numbers.below(all.len().max(1) as u32) as usize).cloned();
        all.push(match (numbers.below(2), other) {
            (0, Some(other)) => {
                let percent = [0, 1, 1, 2, 2, 3, 4, 10][numbers.below(8) as usize];
                numbers.edited(&other, percent)
            }
            _ => {
                let length = [6, 40, 300, 300][numbers.below(4) as usize];
                let length = numbers.below(length);
                numbers.document(length)
            }
        });
    }
    all
}

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

/// The first document of each one's cluster, by comparing all pairs.
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
fn clusters_are_those_of_comparing_every_pair() {
    for seed in 0..4 {
        let (train, val) = (documents(400, seed), documents(60, seed + 100));
        let mut numbers = Numbers(seed + 200);
        let near = train[40..80].iter().map(|document| numbers.edited(document, 1)).collect();
        let val = [val, train[..40].to_vec(), near].concat(); // validation that leaks
        let found = audited(&train, &val, &options(2));
        let all = [train.clone(), val].concat();
        let roots = oracle(&all);
        let kept: Vec<usize> = (0..all.len())
            .map(|one| {
                let cluster = (0..all.len()).filter(|&other| roots[other] == roots[one]);
                let places: Vec<_> = cluster.collect();
                *places.iter().find(|&&place| place >= train.len()).unwrap_or(&places[0])
            })
            .collect();
        assert_eq!(found.kept().iter().map(|&one| one as usize).collect::<Vec<_>>(), kept, "seed {seed}");
        check_figures(&found, &all, &kept, train.len());
    }
}

fn check_figures(found: &Audit, all: &[Vec<u32>], kept: &[usize], train: usize) {
    let size = |place: usize| all[place].len() as u64 + 1;
    let remaining: u64 = (0..all.len()).filter(|&place| kept[place] == place).map(size).sum();
    let report = found.report();
    assert_eq!(report.effective_unique_tokens, remaining);
    let distinct: HashSet<_> = all.iter().collect();
    let removed = (0..all.len()).filter(|&place| kept[place] != place).count() as u64;
    assert_eq!(report.duplicates.exact.documents, (all.len() - distinct.len()) as u64);
    assert_eq!(report.duplicates.near.documents, removed - report.duplicates.exact.documents);
    let in_train: HashSet<_> = all[..train].iter().collect();
    let full = |place: &usize| !all[*place].is_empty();
    let exact = (train..all.len()).filter(full).filter(|&place| in_train.contains(&all[place])).count();
    let leaked = (train..all.len()).filter(full).filter(|&place| (0..train).any(|other| kept[other] == kept[place]));
    let leakage = report.leakage.as_ref().unwrap();
    assert_eq!(leakage.exact.documents, exact as u64);
    assert_eq!(leakage.exact.documents + leakage.near.documents, leaked.count() as u64);
    assert!(leakage.near.documents > 3 && leakage.exact.documents > 30 && removed > 100, "{leakage:?}");
}

#[test]
fn the_result_does_not_depend_on_the_threads_or_on_where_sketches_are_kept() {
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
fn runs_of_thirteen_tokens_are_counted_as_by_hand() {
    let mut numbers = Numbers(3);
    let train: Vec<_> = (0..50).map(|_| numbers.document(200)).collect();
    let mut val: Vec<_> = (0..20).map(|_| numbers.document(100)).collect();
    for (place, document) in val.iter_mut().enumerate() {
        document.splice(20..20 + place, train[place][50..50 + place].iter().copied());
        document.truncate(100);
    }
    val.push(train[9][..12].to_vec()); // too short for a run
    let runs = audited(&train, &val, &options(2)).report().leakage.clone().unwrap().runs;
    let known: HashSet<_> = train.iter().flat_map(|document| document.windows(13)).collect();
    let (mut seen, mut all, mut covered, mut any) = (0, 0, 0, 0);
    for document in &val {
        let hits: Vec<usize> = (0..document.len().saturating_sub(12))
            .filter(|&start| known.contains(&document[start..start + 13]))
            .collect();
        (all, seen) = (all + document.len().saturating_sub(12), seen + hits.len());
        any += u64::from(!hits.is_empty());
        covered += hits.iter().flat_map(|&start| start..start + 13).collect::<BTreeSet<_>>().len();
    }
    assert_eq!((runs.runs, runs.seen, runs.sampled), (all as u64, seen as u64, 1));
    assert_eq!((runs.documents_any, runs.tokens_covered), (any, Some(covered as u64)));
    assert!(seen > 20, "{seen}");
    assert_eq!(runs.histogram.iter().sum::<u64>(), val.len() as u64);
}

#[test]
fn copies_beyond_counting_stay_cheap() {
    let mut numbers = Numbers(1);
    let one = numbers.document(60);
    let train: Vec<_> = vec![one.clone(); 100_000];
    let report = audited(&train, &[], &options(2)).report().clone();
    assert_eq!(report.effective_unique_tokens, 61);
    assert_eq!(report.duplicates.sizes, [(1 << 16, 1)]);
    // near-copies: each differs in one token, so that all stand in the same buckets
    let train: Vec<_> = (0..20_000).map(|n| [&one[..], &[1 + n % 5_000, 6_000 + n / 5_000]].concat()).collect();
    let report = audited(&train, &[], &options(2)).report().clone();
    assert_eq!((report.effective_unique_tokens, report.duplicates.clusters), (63, 1));
    assert!(report.duplicates.pairs_counted < 32 * 20_000, "{}", report.duplicates.pairs_counted);
}

#[test]
fn a_large_group_is_compared_with_one_member_of_each_cluster() {
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
    for place in 0..100 {
        train.push([&train[place * 700][..39], &[6_000]].concat());
        train.push(train[place * 699 + 1].clone());
    }
    let found = audited(&train, &[], &options(2));
    assert_eq!(found.report().duplicates.near, Amount { documents: 100, tokens: 4_100 });
    assert_eq!(found.report().duplicates.exact, Amount { documents: 100, tokens: 4_100 });
    let pairs = (0..100).flat_map(|place| [place * 700, place * 699 + 1]);
    assert!(found.kept()[70_000..].iter().map(|&kept| kept as usize).eq(pairs));
}

#[test]
fn a_document_longer_than_the_buffers_is_one_document() {
    let mut numbers = Numbers(5);
    let long: Vec<u32> = (0..2_200_000).map(|_| 1 + numbers.below(40_000)).collect();
    let edited = numbers.edited(&long, 2);
    let repetitive: Vec<u32> = (0..2_200_000).map(|n| 1 + n % 3).collect();
    let train = vec![long.clone(), repetitive.clone(), numbers.edited(&long, 30)];
    let found = audited(&train, &[edited, long.clone(), repetitive], &options(2));
    assert_eq!(found.kept(), [3, 5, 2, 3, 3, 5]);
    let leakage = found.report().leakage.as_ref().unwrap();
    assert_eq!((leakage.exact.documents, leakage.near.documents), (2, 1));
    assert!(leakage.runs.seen > 2_000_000);
    let folder = tempfile::tempdir().unwrap();
    found.write_clusters(&folder.path().join("x")).unwrap();
    let map = ClusterMap::open(&folder.path().join("x")).unwrap();
    assert!(map.representative(&document_key_u32(&long)).is_some());
}

#[test]
fn the_pieces_of_a_long_document_hold_each_of_its_runs_once() {
    for length in CHUNK - 1..CHUNK + 15 {
        let ids: Vec<u32> = (0..length as u32).collect();
        let source = Memory::new(ids.iter().flat_map(|id| id.to_le_bytes()).collect(), Dtype::U32);
        for width in [1, 5, 13] {
            let mut next = 0;
            let mut visit = |piece: &[u32]| {
                for run in piece.windows(width) {
                    assert_eq!(run[0], next);
                    next += 1;
                }
                Ok(())
            };
            Text::stored(&source, 0..length).pieces(width as u64, &mut visit).unwrap();
            assert_eq!(u64::from(next), length + 1 - width as u64);
        }
    }
}

#[test]
fn shards_without_a_manifest_are_cut_into_documents() {
    type Case = (&'static [u32], Placement, &'static [(u64, u64)], u64, u64, &'static str);
    let cases: [Case; 7] = [
        (&[5, 6, EOT, 7, EOT], Placement::Auto, &[(0, 2), (3, 4)], 0, 0, "appended"),
        (&[EOT, 5, 6, EOT, 7], Placement::Auto, &[(1, 3), (4, 5)], 0, 0, "prepended"),
        (&[5, 6, EOT, 7], Placement::Auto, &[(0, 2), (3, 4)], 1, 0, "appended"),
        (&[5, EOT, EOT, 7, EOT], Placement::Auto, &[(0, 1), (2, 2), (3, 4)], 0, 1, "appended"),
        (&[5, EOT, 7, EOT], Placement::Prepended, &[(0, 1), (2, 3), (4, 4)], 1, 0, "prepended"),
        (&[5, 6, 7], Placement::Auto, &[(0, 3)], 1, 0, "none"),
        (&[], Placement::Auto, &[], 0, 0, "none"),
    ];
    for (ids, placement, contents, missing, doubled, position) in cases {
        let source = Memory::new(ids.iter().flat_map(|id| id.to_le_bytes()).collect(), Dtype::U32);
        let found = audit(&source, None, &Options { placement, ..options(0) }, &mut |_| true).unwrap();
        let split = &found.report().splits["train"];
        assert_eq!(found.contents()[0], contents, "{ids:?}");
        assert_eq!((split.eot.missing, split.eot.doubled, split.eot.position), (missing, doubled, position), "{ids:?}");
        assert_eq!(split.tokens, ids.len() as u64);
        let empty = contents.iter().filter(|(start, end)| start == end).count();
        assert_eq!(split.eot.empty_documents, empty as u64);
        assert_eq!(found.report().effective_unique_tokens, split.tokens, "nothing repeats in {ids:?}");
    }
}

#[test]
fn ids_outside_the_vocabulary_are_counted_and_placed() {
    let folder = tempfile::tempdir().unwrap();
    let paths = [[1, 2, 3], [4, 60_000, 0], [60_001, 7, 60_002]].map(|ids| {
        common::write(folder.path(), &format!("{}.bin", ids[0]), common::shard_bytes(&ids.map(|id: u32| id as u16)))
    });
    let dataset = Dataset::open(&paths, Headerless::Never).unwrap();
    let found = audit(&dataset, None, &options(2), &mut |_| true).unwrap();
    let foreign = &found.report().splits["train"].out_of_vocabulary;
    let first = foreign.first.clone().unwrap();
    assert_eq!((foreign.count, first.position, first.token), (3, 1, 60_000));
    assert_eq!(first.file, paths[1].display().to_string());
    assert_eq!(found.report().splits["train"].distinct_ids, 6);
}

#[test]
fn entropy_and_lengths_are_those_of_the_tokens() {
    let train = [vec![1, 1, 2], vec![1, 3, 3, 3], vec![], vec![2; 9]];
    let split = audited(&train, &[], &options(1)).report().splits["train"].clone();
    let counts = [4.0, 3.0, 10.0, 3.0]; // of the ids 0 to 3
    let entropy: f64 = counts.iter().map(|count: &f64| -count / 20.0 * (count / 20.0).ln()).sum();
    assert!((split.unigram_entropy - entropy).abs() < 1e-12);
    assert_eq!(split.lengths.histogram, [(0, 1, 0), (2, 1, 3), (4, 1, 4), (8, 1, 9)]);
    assert_eq!(split.lengths.mean, 4.0);
    assert_eq!(split.lengths.percentiles[0], (0, 0));
    assert_eq!(split.lengths.percentiles[4], (50, 3));
    assert_eq!(split.lengths.percentiles[8], (100, 9));
}

#[test]
fn an_audit_stops_when_it_is_told_to() {
    let train = memory(&documents(300, 1), Dtype::U16);
    for threads in [0, 2] {
        let mut looks = 0;
        let mut tick = |_: &_| {
            looks += 1;
            looks < 4
        };
        let stopped = audit(&train, None, &options(threads), &mut tick);
        assert!(matches!(stopped, Err(Error::Interrupted)), "{threads}: {looks}");
    }
}

#[test]
fn no_room_for_the_temporary_file_is_an_error_with_its_size() {
    let missing = Path::new("/nowhere/at/all");
    let options = Options { folder: Some(missing.into()), ..options(1) };
    let error = audit(&memory(&[vec![1]], Dtype::U16), None, &options, &mut |_| true).unwrap_err();
    assert_eq!(error.code(), "S015");
    assert!(error.to_string().contains("328 bytes in /nowhere/at/all"), "{error}");
    assert!(error.help().contains("--tmp"));
}

/// Tokens that end early, as those of a file that was cut while it was read.
struct Cut(Memory);

impl Tokens for Cut {
    fn count(&self) -> u64 {
        self.0.count() + 5
    }
    fn dtype(&self) -> Dtype {
        self.0.dtype()
    }
    fn read(&self, start: u64, buffer: &mut [u8]) -> Result<()> {
        self.0.read(start, buffer)
    }
    fn place(&self, position: u64) -> (String, u64) {
        self.0.place(position)
    }
    fn check_unchanged(&self) -> Result<()> {
        Ok(())
    }
}

#[test]
fn a_read_that_fails_ends_the_audit() {
    let source = Cut(memory(&documents(100, 1), Dtype::U32));
    for threads in [0, 3] {
        assert!(matches!(audit(&source, None, &options(threads), &mut |_| true), Err(Error::Argument(_))));
    }
}

// --- the file of clusters ---------------------------------------------------------------------------------------------

#[test]
fn the_file_names_every_document_with_near_duplicates_and_no_other() {
    let (train, val) = (documents(500, 11), documents(50, 12));
    let found = audited(&train, &val, &options(2));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("clusters.bin");
    let checksum = found.write_clusters(&path).unwrap();
    assert_eq!(checksum, format!("{:032x}", xxhash_rust::xxh3::xxh3_128(&fs::read(&path).unwrap())));
    let map = ClusterMap::open(&path).unwrap();
    let all = [train, val].concat();
    let mut members = HashSet::new();
    for (one, &kept) in found.kept().iter().enumerate() {
        let kept = kept as usize;
        let cluster: HashSet<_> =
            (0..all.len()).filter(|&n| found.kept()[n] as usize == kept).map(|n| &all[n]).collect();
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
        let source = |ids: &[u32]| Memory::new(ids.iter().flat_map(|id| id.to_le_bytes()).collect(), Dtype::U32);
        let options = Options { vocab_size: 10, eot: Some(eot), ..options(0) };
        let found = audit(&source(&ids[cut..]), Some(&source(&ids[..cut])), &options, &mut |_| true).unwrap();
        let report = found.report();
        let Amount { tokens: exact, .. } = report.duplicates.exact;
        prop_assert_eq!(report.effective_unique_tokens + exact + report.duplicates.near.tokens, ids.len() as u64);
        let sizes: u64 = found.contents().iter().flatten().map(|(start, end)| end - start).sum();
        let marks: u64 = report.splits.values().map(|split| split.eot.count).sum();
        prop_assert_eq!(sizes + marks, ids.len() as u64);
    }
}

//! Cutting a stream into documents, and the statistics of its tokens.

mod common;

use common::audit::{EOT, audited, options};
use jaxgpt_loader::audit::tokens::{CHUNK, InMemory, Text};
use jaxgpt_loader::audit::{Options, Placement, audit};
use jaxgpt_loader::shard::format::Dtype;
use jaxgpt_loader::shard::{Dataset, Headerless};

#[test]
fn pieces_contain_each_run_once() {
    for length in CHUNK - 1..CHUNK + 15 {
        let ids: Vec<u32> = (0..length as u32).collect();
        let source = InMemory::new(ids.iter().flat_map(|id| id.to_le_bytes()).collect(), Dtype::U32);
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
fn streams_are_cut_into_documents() {
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
        let source = InMemory::new(ids.iter().flat_map(|id| id.to_le_bytes()).collect(), Dtype::U32);
        let result = audit(&source, None, &Options { placement, ..options(0) }, &mut |_| true).unwrap();
        let split = &result.report().splits["train"];
        assert_eq!(result.contents()[0], contents, "{ids:?}");
        assert_eq!((split.eot.missing, split.eot.doubled, split.eot.position), (missing, doubled, position), "{ids:?}");
        assert_eq!(split.tokens, ids.len() as u64);
        let empty = contents.iter().filter(|(start, end)| start == end).count();
        assert_eq!(split.eot.empty_documents, empty as u64);
        assert_eq!(result.report().effective_unique_tokens, split.tokens, "nothing repeats in {ids:?}");
    }
}

#[test]
fn ids_outside_the_vocabulary_are_counted_and_located() {
    let folder = tempfile::tempdir().unwrap();
    let paths = [[1, 2, 3], [4, 60_000, 0], [60_001, 7, 60_002]].map(|ids| {
        common::write(folder.path(), &format!("{}.bin", ids[0]), common::shard_bytes(&ids.map(|id: u32| id as u16)))
    });
    let dataset = Dataset::open(&paths, Headerless::Never).unwrap();
    let result = audit(&dataset, None, &options(2), &mut |_| true).unwrap();
    let out_of_vocab = &result.report().splits["train"].out_of_vocabulary;
    let first = out_of_vocab.first.clone().unwrap();
    assert_eq!((out_of_vocab.count, first.position, first.token), (3, 1, 60_000));
    assert_eq!(first.file, paths[1].display().to_string());
    assert_eq!(result.report().splits["train"].distinct_ids, 6);
}

#[test]
fn entropy_and_lengths() {
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

//! Written data is read back unchanged: headers, shards, datasets of many shards, and batches.

mod common;

use std::fs;
use std::path::Path;
use std::sync::Arc;

use common::{little_endian, shard_bytes, tokens, write};
use jaxgpt_loader::error::Error;
use jaxgpt_loader::gpt2;
use jaxgpt_loader::order::batch::Batches;
use jaxgpt_loader::order::{Geometry, Order, Sampler};
use jaxgpt_loader::shard::format::{Dtype, HEADER_BYTES, Header, MAX_TOKENS};
use jaxgpt_loader::shard::verify;
use jaxgpt_loader::shard::writer::Writer;
use jaxgpt_loader::shard::{Dataset, Headerless};
use proptest::prelude::*;

fn dtype() -> impl Strategy<Value = Dtype> {
    prop_oneof![Just(Dtype::U16), Just(Dtype::U32)]
}

proptest! {
    #[test]
    fn headers_round_trip(dtype in dtype(), tokens in 0..=MAX_TOKENS) {
        let header = Header { dtype, tokens };
        let length = HEADER_BYTES as u64 + tokens * dtype.size() as u64;
        prop_assert_eq!(Header::parse(Path::new("x"), &header.encode(), length).unwrap(), header);
        prop_assert!(Header::parse(Path::new("x"), &header.encode(), length + 1).is_err());
    }

    #[test]
    fn parsing_any_header_does_not_panic(mut start in prop::collection::vec(any::<u8>(), 0..1024), known: bool, length: u64) {
        if known && start.len() >= 8 {
            start[..8].copy_from_slice(&shard_bytes(&[])[..8]);
        }
        let length = length.max(start.len() as u64);
        let _ = Header::parse(Path::new("x"), &start, length);
        start.resize(HEADER_BYTES, 0);
        let _ = Header::parse(Path::new("x"), &start, length.max(HEADER_BYTES as u64));
    }

    #[test]
    fn shards_round_trip(dtype in dtype(), parts in prop::collection::vec(prop::collection::vec(any::<u32>(), 0..300), 0..5)) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("000.bin");
        let mut writer = Writer::create(&path, dtype, false).unwrap();
        let widest = if dtype == Dtype::U16 { 0xffff } else { u32::MAX };
        let ids: Vec<u32> = parts.concat().iter().map(|id| id & widest).collect();
        let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()[..dtype.size()].to_vec()).collect();
        bytes.chunks(dtype.size() * 7).for_each(|chunk| writer.append(chunk).unwrap());
        let summary = writer.finish().unwrap();
        prop_assert_eq!((summary.tokens, summary.max_token), (ids.len() as u64, ids.iter().max().copied()));
        let dataset = Dataset::open(&[&path], Headerless::Auto).unwrap();
        let mut read = vec![0; bytes.len()];
        dataset.read(0, &mut read).unwrap();
        prop_assert_eq!(read, bytes);
        prop_assert_eq!((dataset.dtype(), dataset.tokens()), (dtype, ids.len() as u64));
        prop_assert_eq!(verify::checksum(&dataset.shards()[0]).unwrap(), summary.xxh3_128);
        prop_assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "the temporary file is gone");
    }

    /// Every read of a dataset that is cut into arbitrary shards, some of them empty, returns the right tokens.
    #[test]
    fn datasets_are_one_stream(cuts in prop::collection::vec(0usize..500, 0..6), start in 0usize..500, count in 0usize..500) {
        let all = tokens(500);
        let mut cuts = [vec![0], cuts, vec![500]].concat();
        cuts.sort_unstable();
        let folder = tempfile::tempdir().unwrap();
        let shard = |i: usize| write(folder.path(), &format!("{i}.bin"), shard_bytes(&all[cuts[i]..cuts[i + 1]]));
        let paths: Vec<_> = (0..cuts.len() - 1).map(shard).collect();
        let dataset = Dataset::open(&paths, Headerless::Auto).unwrap();
        let count = count.min(500 - start);
        let mut read = vec![0; count * 2];
        dataset.read(start as u64, &mut read).unwrap();
        prop_assert_eq!(read, little_endian(&all[start..start + count]));
    }
}

#[test]
fn a_batch_is_the_windows_of_its_samples() {
    let folder = tempfile::tempdir().unwrap();
    let all = tokens(10_000);
    let paths = [(0, 3000), (3000, 3000), (3000, 10_000)]
        .map(|(from, to)| write(folder.path(), &format!("{from}-{to}.bin"), shard_bytes(&all[from..to])));
    let dataset = Arc::new(Dataset::open(&paths, Headerless::Auto).unwrap());
    for order in [Order::Epoch, Order::Random, Order::Sequential] {
        let sampler = Sampler::new(order, 9, 10_000, 64).unwrap();
        let geometry = Geometry { block: 64, micro_batch: 6, accum: 3, rank: 1, world: 2 };
        let batches = Batches::new(dataset.clone(), order, 9, geometry, Some(50_257)).unwrap();
        let mut block = vec![0; batches.block_bytes().unwrap()];
        for step in [0, 7, 1000] {
            batches.fill(step, &mut block).unwrap();
            let window = |row| sampler.start(geometry.sample(step, row)) as usize;
            let expected: Vec<u16> = (0..9).flat_map(|row| all[window(row)..][..65].to_vec()).collect();
            assert_eq!(block, little_endian(&expected));
        }
    }
}

#[test]
fn an_unfinished_shard_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = Writer::create(&folder.path().join("000.bin"), Dtype::U16, false).unwrap();
    writer.append(&[1, 2, 3, 4]).unwrap();
    assert!(folder.path().join(".000.bin.tmp").exists());
    drop(writer);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn a_shard_is_replaced_only_on_request() {
    let folder = tempfile::tempdir().unwrap();
    let path = write(folder.path(), "000.bin", "precious");
    let error = Writer::create(&path, Dtype::U16, false).unwrap_err();
    assert_eq!((error.code(), error.to_string()), ("S004", format!("{} exists", path.display())));
    let writer = Writer::create(&path, Dtype::U16, true).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"precious", "until the new one is finished");
    writer.finish().unwrap();
    assert_eq!(fs::read(&path).unwrap(), shard_bytes(&[]));
}

#[test]
fn a_shard_that_appeared_in_the_meantime_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("000.bin");
    let writer = Writer::create(&path, Dtype::U16, false).unwrap();
    fs::write(&path, "precious").unwrap();
    assert_eq!(writer.finish().unwrap_err().code(), "S004");
    assert_eq!(fs::read(&path).unwrap(), b"precious");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn leftovers_of_a_killed_writer_are_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let victim = write(folder.path(), "victim", "precious");
    std::os::unix::fs::symlink(&victim, folder.path().join(".000.bin.tmp")).unwrap();
    Writer::create(&folder.path().join("000.bin"), Dtype::U16, false).unwrap().finish().unwrap();
    assert_eq!(fs::read(&victim).unwrap(), b"precious", "a link is replaced, not followed");
}

#[test]
fn write_errors_are_explained() {
    let error = Writer::create(Path::new("/nowhere/000.bin"), Dtype::U16, false).unwrap_err();
    let message = "cannot write /nowhere/.000.bin.tmp: No such file or directory (os error 2)";
    assert_eq!((error.code(), error.to_string().as_str()), ("S003", message));
    let folder = tempfile::tempdir().unwrap();
    let mut writer = Writer::create(&folder.path().join("000.bin"), Dtype::U32, false).unwrap();
    let error = writer.append(&[0; 6]).unwrap_err();
    assert!(matches!(&error, Error::Argument(text) if text == "6 bytes are not a whole number of uint32 tokens"));
}

#[test]
fn gpt2_is_complete() {
    let vocabulary = gpt2::vocabulary();
    let merges = gpt2::merges(&vocabulary);
    assert_eq!((vocabulary.len(), merges.len()), (50_256, 50_000));
    assert_eq!((vocabulary[0].as_slice(), vocabulary[15496].as_slice()), (b"!".as_slice(), b"Hello".as_slice()));
    let pairs = merges.iter().zip(&vocabulary[256..]);
    assert!(pairs.into_iter().all(|((left, right), token)| [left.as_slice(), right].concat() == *token));
    assert_eq!(merges[0], (b" ".to_vec(), b"t".to_vec()));
}

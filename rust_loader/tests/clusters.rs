//! The file of clusters: keys, and malformed files.

mod common;

use std::path::Path;

use jaxgpt_loader::audit::clusters::{ClusterMap, document_key, document_key_u16, document_key_u32};
use jaxgpt_loader::shard::format::Dtype;

#[test]
fn keys_do_not_depend_on_the_token_type() {
    let ids: Vec<u16> = (0..3_000).map(|n| n * 7).collect();
    let wide: Vec<u32> = ids.iter().map(|&id| id.into()).collect();
    let bytes: Vec<u8> = wide.iter().flat_map(|id| id.to_le_bytes()).collect();
    let expected = xxhash_rust::xxh3::xxh3_128(&bytes).to_be_bytes();
    assert_eq!(document_key_u16(&ids), expected);
    assert_eq!(document_key_u32(&wide), expected);
    assert_eq!(document_key(&common::little_endian(&ids), Dtype::U16), expected);
    assert_eq!(document_key(&bytes, Dtype::U32), expected);
}

#[test]
fn malformed_cluster_files_are_refused() {
    let record = |member: u8, kept: u8| [[member; 16], [kept; 16]].concat();
    let file =
        |count: u64, records: &[Vec<u8>]| [&b"jaxgpt-clusters1"[..], &count.to_le_bytes(), &records.concat()].concat();
    let valid = file(3, &[record(1, 2), record(2, 2), record(3, 2)]);
    assert_eq!(ClusterMap::parse(Path::new("x"), valid.clone()).unwrap().representative(&[3; 16]), Some([2; 16]));
    let malformed = [
        (Vec::new(), "begin"),
        (b"jaxgpt-clusters2aaaaaaaa".to_vec(), "begin"),
        (valid[..20].to_vec(), "begin"),
        (valid[..valid.len() - 1].to_vec(), "its header says 3 records, it has 119 bytes"),
        ([&valid[..], &[0]].concat(), "says 3 records"),
        (file(u64::MAX, &[]), "says 18446744073709551615 records"),
        (file(2, &[record(2, 2), record(1, 2)]), "record 1 is out of order"),
        (file(2, &[record(2, 2), record(2, 2)]), "record 1 is out of order"),
        (file(1, &[record(1, 2)]), "record 0 names a document that is not a representative"),
        (
            file(3, &[record(1, 2), record(2, 3), record(3, 3)]),
            "record 0 names a document that is not a representative",
        ),
    ];
    for (bytes, reason) in malformed {
        let error = ClusterMap::parse(Path::new("x"), bytes).unwrap_err();
        assert_eq!(error.code(), "D028");
        assert!(error.to_string().contains(reason), "{error}");
    }
    assert_eq!(ClusterMap::open(Path::new("/")).unwrap_err().code(), "D028");
    assert_eq!(ClusterMap::open(Path::new("/nowhere")).unwrap_err().code(), "D016");
}

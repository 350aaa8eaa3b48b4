//! Any bytes as a file of clusters: an error, or a map in which every representative represents itself.
#![no_main]

use std::path::PathBuf;
use std::sync::LazyLock;

use jaxgpt_loader::audit::clusters::ClusterMap;
use libfuzzer_sys::fuzz_target;

static PATH: LazyLock<PathBuf> =
    LazyLock::new(|| std::env::temp_dir().join(format!("clusters.{}.bin", std::process::id())));

fuzz_target!(|data: &[u8]| {
    std::fs::write(&*PATH, data).expect("the folder of temporary files can be written");
    match ClusterMap::open(&PATH) {
        Err(error) => assert_eq!(error.code(), "D028"),
        Ok(map) => {
            assert_eq!(data.len(), 24 + 32 * map.len());
            for record in data[24..].chunks_exact(32) {
                let member = record[..16].try_into().expect("a key has 16 bytes");
                let representative = map.representative(&member).expect("every member has a representative");
                assert_eq!(representative, record[16..]);
                assert_eq!(map.representative(&representative), Some(representative));
            }
        }
    }
});

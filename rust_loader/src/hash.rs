//! The xxh3-128 of files that are not token shards, and of bytes in memory.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use xxhash_rust::xxh3::{Xxh3, xxh3_128};

use crate::error::{Error, Result};
use crate::files::{open_regular, version};

const CHUNK: usize = 1 << 20;
const CHUNKS_PER_TICK: usize = 32;

/// A 128-bit hash as 32 hexadecimal digits.
pub(crate) fn hex(hash: u128) -> String {
    format!("{hash:032x}")
}

/// The xxh3-128 of `bytes`, in hexadecimal.
pub(crate) fn hash_bytes(bytes: &[u8]) -> String {
    hex(xxh3_128(bytes))
}

/// The xxh3-128 of the file at `path`, in hexadecimal.
///
/// Calls `tick` every 32 MiB and stops with [`Error::Interrupted`] when it returns false. A file that is written to
/// while it is read is an error.
#[cfg_attr(not(feature = "python"), allow(dead_code))] // only Python hashes files that are not shards
pub(crate) fn hash_file(path: &Path, tick: &mut dyn FnMut() -> bool) -> Result<String> {
    let (mut file, before) = open_regular(path)?;
    let hash = digest(path, &mut file, tick)?;
    let after = file.metadata().map_err(|error| Error::io(path, "read", error))?;
    if version(&after) != version(&before) {
        return Err(Error::ShardChanged { path: path.into(), detail: "was written to while it was read".into() });
    }
    Ok(hash)
}

fn digest(path: &Path, file: &mut File, tick: &mut dyn FnMut() -> bool) -> Result<String> {
    let mut hasher = Xxh3::new();
    let mut chunk = vec![0; CHUNK];
    for count in 1.. {
        let length = file.read(&mut chunk).map_err(|error| Error::io(path, "read", error))?;
        if length == 0 {
            break;
        }
        hasher.update(&chunk[..length]);
        if count % CHUNKS_PER_TICK == 0 && !tick() {
            return Err(Error::Interrupted);
        }
    }
    Ok(hex(hasher.digest128()))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn hash_file_equals_hash_of_its_bytes() {
        let folder = tempfile::tempdir().unwrap();
        for length in [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 17] {
            let bytes: Vec<u8> = (0..length).map(|n| (n * n % 251) as u8).collect();
            let path = folder.path().join("file");
            fs::write(&path, &bytes).unwrap();
            assert_eq!(hash_file(&path, &mut || true).unwrap(), hash_bytes(&bytes));
        }
    }

    #[test]
    fn hash_file_stops_on_request() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        fs::write(&path, vec![7; CHUNKS_PER_TICK * CHUNK]).unwrap();
        assert!(matches!(hash_file(&path, &mut || false), Err(Error::Interrupted)));
    }

    #[test]
    fn changed_files_and_folders_are_errors() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        fs::write(&path, vec![7; CHUNKS_PER_TICK * CHUNK]).unwrap();
        let mut write = || fs::write(&path, b"short").is_ok();
        assert!(matches!(hash_file(&path, &mut write), Err(Error::ShardChanged { .. })));
        assert!(matches!(hash_file(folder.path(), &mut || true), Err(Error::NotAFile { .. })));
        assert!(matches!(hash_file(&folder.path().join("none"), &mut || true), Err(Error::ShardIo { .. })));
    }
}

//! The xxh3-128 of files that are not token shards, and of bytes in memory.

use std::fs;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use xxhash_rust::xxh3::{Xxh3, xxh3_128};

use crate::error::{Error, Result};
use crate::shard::{check_kind, identity};

const CHUNK: usize = 1 << 20;
const CHUNKS_PER_TICK: usize = 32;

/// The xxh3-128 of the file at `path`, in hexadecimal.
///
/// While that runs, `tick` is asked now and then whether to go on. A file that is written to meanwhile is an error.
pub fn hash_file(path: &Path, tick: &mut dyn FnMut() -> bool) -> Result<String> {
    // Asked before opening, because opening a FIFO waits for a writer.
    check_kind(path, fs::metadata(path).map_err(|error| Error::io(path, "open", error))?.file_type())?;
    let mut file = File::open(path).map_err(|error| Error::io(path, "open", error))?;
    let state = |file: &File| file.metadata().map(|found| identity(&found)).map_err(|e| Error::io(path, "read", e));
    let before = state(&file)?;
    let hash = digest(path, &mut file, tick)?;
    if state(&file)? != before {
        return Err(Error::ShardChanged { path: path.into(), detail: "was written to while it was read".into() });
    }
    Ok(hash)
}

/// The xxh3-128 of `bytes`, in hexadecimal.
pub fn hash_bytes(bytes: &[u8]) -> String {
    format!("{:032x}", xxh3_128(bytes))
}

fn digest(path: &Path, file: &mut File, tick: &mut dyn FnMut() -> bool) -> Result<String> {
    let (mut hasher, mut chunk) = (Xxh3::new(), vec![0; CHUNK]);
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
    Ok(format!("{:032x}", hasher.digest128()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_the_hash_of_its_bytes() {
        let folder = tempfile::tempdir().unwrap();
        for length in [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 17] {
            let bytes: Vec<u8> = (0..length).map(|n| (n * n % 251) as u8).collect();
            let path = folder.path().join("file");
            fs::write(&path, &bytes).unwrap();
            assert_eq!(hash_file(&path, &mut || true).unwrap(), hash_bytes(&bytes));
        }
    }

    #[test]
    fn it_stops_when_it_is_told_to() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        fs::write(&path, vec![7; CHUNKS_PER_TICK * CHUNK]).unwrap();
        assert!(matches!(hash_file(&path, &mut || false), Err(Error::Interrupted)));
    }

    #[test]
    fn a_change_on_the_way_and_what_is_no_file_are_errors() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        fs::write(&path, vec![7; CHUNKS_PER_TICK * CHUNK]).unwrap();
        let mut write = || fs::write(&path, b"short").is_ok();
        assert!(matches!(hash_file(&path, &mut write), Err(Error::ShardChanged { .. })));
        assert!(matches!(hash_file(folder.path(), &mut || true), Err(Error::NotAFile { .. })));
        assert!(matches!(hash_file(&folder.path().join("none"), &mut || true), Err(Error::ShardIo { .. })));
    }
}

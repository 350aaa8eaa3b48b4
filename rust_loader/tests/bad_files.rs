//! One test for each way in which a token file can be wrong: code, message and help.

mod common;

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{little_endian, shard_bytes, tokens, write};
use jaxgpt_loader::error::Error;
use jaxgpt_loader::order::batch::Batches;
use jaxgpt_loader::order::{Geometry, Order, windows};
use jaxgpt_loader::shard::verify::{Options, verify};
use jaxgpt_loader::shard::{Dataset, Headerless};

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Folder(tempfile::tempdir().unwrap())
    }

    fn file(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        write(self.0.path(), name, bytes)
    }

    /// Code and message without this folder's path. Checks that there is a help text.
    fn message(&self, error: &Error) -> String {
        assert!(!error.help().is_empty(), "{error} does not say what to do");
        format!("{}: {}", error.code(), error.to_string().replace(&format!("{}/", self.0.path().display()), ""))
    }

    fn refused(&self, path: &Path, headerless: Headerless) -> String {
        self.message(&Dataset::open(&[path], headerless).unwrap_err())
    }

    fn refused_bytes(&self, name: &str, bytes: impl AsRef<[u8]>) -> String {
        self.refused(&self.file(name, bytes), Headerless::Auto)
    }
}

fn with_word(index: usize, value: i32) -> Vec<u8> {
    let mut bytes = shard_bytes(&tokens(1000));
    bytes[index * 4..][..4].copy_from_slice(&value.to_le_bytes());
    bytes
}

#[test]
fn other_formats_are_named() {
    let folder = Folder::new();
    let cases: [(&[u8], &str); 16] = [
        (b"PK\x03\x04rest", "starts with 50 4b 03 04: a zip file"),
        (b"\x1f\x8b\x08\x00rest", "starts with 1f 8b 08 00: a gzip file"),
        (b"\x28\xb5\x2f\xfdrest", "starts with 28 b5 2f fd: a zstd file"),
        (b"\xfd7zXZ\x00rest", "starts with fd 37 7a 58: an xz file"),
        (b"BZh9\x00", "starts with 42 5a 68 39: a bzip2 file"),
        (b"PAR1\x15\x04", "starts with 50 41 52 31: a parquet file"),
        (b"ARROW1\0\0", "starts with 41 52 52 4f: an Arrow file"),
        (b"\x93NUMPY\x01\x00", "starts with 93 4e 55 4d: a numpy file"),
        (b"\x89HDF\r\n", "starts with 89 48 44 46: an HDF5 file"),
        (b"GGUF\x03\0\0\0", "starts with 47 47 55 46: a GGUF model"),
        (b"\x80\x04\x95\x00", "starts with 80 04 95 00: a Python pickle"),
        (b"{\"text\": \"caf\xc3", "starts with 7b 22 74 65: text"),
        (&[0; 2048], "starts with 00 00 00 00: all zeros"),
        (b"\x07\x00\xff\xff\xff", "starts with 07 00 ff ff: an unknown format"),
        (b"\x07", "starts with 07: an unknown format"),
        (b"", "the file is empty"),
    ];
    for (bytes, reason) in cases {
        assert_eq!(folder.refused_bytes("000.bin", bytes), format!("D003: 000.bin is not a token shard ({reason})"));
    }
}

#[test]
fn related_formats_are_named() {
    let folder = Folder::new();
    let cases = [
        (with_word(0, 20240522), "magic 20240522: llm.c's evaluation data"),
        (with_word(0, 20240326), "magic 20240326: llm.c's model"),
        (with_word(0, 20240527), "magic 20240527: llm.c's training state"),
        (with_word(1, 2), "magic 20240520 with version 2; version 1 is known"),
        (with_word(0, 20240801), "magic 20240801 with version 1; version 7 is known"),
        (with_word(0, 20240520i32.swap_bytes()), "magic 20240520 in big-endian byte order"),
        (with_word(0, 0)[..1024].to_vec(), "starts with 00 00 00 00: an unknown format"),
        (with_word(0, 20240520)[..4].to_vec(), "magic 20240520, then the file ends"),
    ];
    for (bytes, reason) in cases {
        assert_eq!(folder.refused_bytes("000.bin", bytes), format!("D003: 000.bin is not a token shard ({reason})"));
    }
}

#[test]
fn wrong_length() {
    let folder = Folder::new();
    let whole = shard_bytes(&vec![7; 1_000_000]);
    let mut long = whole.clone();
    long.extend([0; 257]);
    let mut lying = shard_bytes(&[1]);
    lying[8..12].copy_from_slice(&i32::MAX.to_le_bytes());
    let cases = [
        (&whole[..whole.len() - 256], "header says 1,000,000 tokens, file holds 999,872 (256 bytes short)"),
        (&whole[..whole.len() - 1], "header says 1,000,000 tokens, file holds 999,999 (1 byte short)"),
        (&long, "header says 1,000,000 tokens, file holds 1,000,128 (257 bytes too many)"),
        (&lying, "header says 2,147,483,647 tokens, file holds 1 (4,294,967,292 bytes short)"),
        (&whole[..100], "file holds 100 bytes, the header alone is 1,024 (924 bytes short)"),
    ];
    for (bytes, detail) in cases {
        assert_eq!(folder.refused_bytes("000.bin", bytes), format!("D007: 000.bin: {detail}"));
    }
}

#[test]
fn negative_token_count() {
    let message = Folder::new().refused_bytes("000.bin", with_word(2, -1_000));
    assert_eq!(message, "D008: 000.bin: header says -1,000 tokens");
}

#[test]
fn headerless_files_of_other_formats() {
    let folder = Folder::new();
    let text = "tokens, they said; but this is a text, and one that is long enough to be sure of it";
    let cases: [(&[u8], &str); 7] = [
        (b"PK\x03\x04rest", "starts with 50 4b 03 04: a zip file"),
        (b"\x1f\x8b\x08\x00rest", "starts with 1f 8b 08 00: a gzip file"),
        (b"\x28\xb5\x2f\xfdrest", "starts with 28 b5 2f fd: a zstd file"),
        (b"PAR1\x15\x04", "starts with 50 41 52 31: a parquet file"),
        (b"\x93NUMPY\x01\x00", "starts with 93 4e 55 4d: a numpy file"),
        (text.as_bytes(), "starts with 74 6f 6b 65: text"),
        (b"", "the file is empty"),
    ];
    for (bytes, reason) in cases {
        let expected = |name| format!("D003: {name} is not a token shard ({reason})");
        assert_eq!(folder.refused_bytes("train.bin", bytes), expected("train.bin"));
        assert_eq!(folder.refused(&folder.file("any", bytes), Headerless::Always), expected("any"));
    }
    let odd = folder.refused_bytes("val.bin", [1; 1001]);
    assert_eq!(odd, "D007: val.bin: 1001 bytes are not a whole number of uint16 tokens (1 byte too many)");
    let shard = folder.refused(&folder.file("train.bin", shard_bytes(&[1])), Headerless::Always);
    let reason = "it is not headerless: it begins with a shard's header";
    assert_eq!(shard, format!("D003: train.bin is not a token shard ({reason})"));
}

#[test]
fn headerless_depends_on_name_and_option() {
    let folder = Folder::new();
    let tokens = little_endian(&[640, 1, 2, 3]); // begins like a pickle, which headerless tokens may
    let train = folder.file("train.bin", &tokens);
    let other = folder.file("other.bin", &tokens);
    let opens = |path: &Path, headerless| Dataset::open(&[path], headerless).map(|dataset| dataset.tokens()).ok();
    assert_eq!(opens(&train, Headerless::Auto), Some(4));
    assert_eq!(opens(&train, Headerless::Never), None);
    assert_eq!(opens(&other, Headerless::Auto), None);
    assert_eq!(opens(&other, Headerless::Always), Some(4));
    let shard = folder.file("val.bin", shard_bytes(&[1, 2, 3]));
    assert_eq!(opens(&shard, Headerless::Auto), Some(3));
}

#[test]
fn folders_fifos_sockets_and_devices() {
    let folder = Folder::new();
    let fifo = folder.0.path().join("fifo.bin");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let socket = folder.0.path().join("socket.bin");
    let _listener = UnixListener::bind(&socket).unwrap();
    let sub = folder.0.path().join("sub.bin");
    fs::create_dir(&sub).unwrap();
    for (path, message) in
        [(fifo, "fifo.bin is a FIFO"), (socket, "socket.bin is a socket"), (sub, "sub.bin is a folder")]
    {
        assert_eq!(folder.refused(&path, Headerless::Auto), format!("D015: {message}, not a file"));
    }
    assert_eq!(folder.refused(Path::new("/dev/zero"), Headerless::Auto), "D015: /dev/zero is a device, not a file");
}

#[test]
fn files_that_cannot_be_opened() {
    let folder = Folder::new();
    let message = folder.refused(&folder.0.path().join("none.bin"), Headerless::Auto);
    assert_eq!(message, "D016: cannot open none.bin: No such file or directory (os error 2)");
    let ring = folder.0.path().join("loop.bin");
    std::os::unix::fs::symlink(&ring, &ring).unwrap();
    assert!(folder.refused(&ring, Headerless::Auto).starts_with("D016: cannot open loop.bin: "));
}

#[test]
fn mixed_dtypes() {
    let folder = Folder::new();
    let narrow = folder.file("narrow.bin", shard_bytes(&[1]));
    let mut wide = with_word(0, 20240801);
    wide[4..12].copy_from_slice(&[7, 0, 0, 0, 0, 0, 0, 0]);
    let wide = folder.file("wide.bin", &wide[..1024]);
    let error = Dataset::open(&[narrow, wide], Headerless::Auto).unwrap_err();
    assert_eq!(folder.message(&error), "D009: wide.bin holds uint32 tokens, narrow.bin holds uint16");
}

#[test]
fn data_shorter_than_one_sequence() {
    let error = windows(812, 1024).unwrap_err();
    assert_eq!((error.code(), error.to_string().as_str()), ("D013", "812 tokens in all; one sequence needs 1,025"));
    assert_eq!(windows(1025, 1024).unwrap(), 1);
    assert!(matches!(windows(10, 0), Err(Error::Argument(_))));
    assert!(matches!(windows(u64::MAX, u64::MAX), Err(Error::Argument(_))));
}

/// A dataset with a token outside the vocabulary at position 81,920 of its second shard.
fn with_invalid_token(folder: &Folder) -> Dataset {
    let mut ids = tokens(100_000);
    let first = folder.file("002.bin", shard_bytes(&ids));
    ids[81_920] = 50_300;
    Dataset::open(&[first, folder.file("003.bin", shard_bytes(&ids))], Headerless::Auto).unwrap()
}

const INVALID_TOKEN: &str = "D010: 003.bin: token 50300 at position 81,920; the tokenizer's vocabulary is 50257";

fn options(vocab_size: Option<u64>, checksums: Option<Vec<String>>) -> Options {
    Options { vocab_size, checksums, threads: 2 }
}

#[test]
fn verify_finds_token_outside_vocabulary() {
    let folder = Folder::new();
    let dataset = with_invalid_token(&folder);
    let error = verify(&dataset, &options(Some(50_257), None), &mut |_| true).unwrap_err();
    assert_eq!(folder.message(&error), INVALID_TOKEN);
    assert!(verify(&dataset, &options(Some(50_300), None), &mut |_| true).is_err());
    assert!(verify(&dataset, &options(Some(50_301), None), &mut |_| true).is_ok());
}

#[test]
fn loading_finds_token_outside_vocabulary() {
    let folder = Folder::new();
    let batches = sequential(with_invalid_token(&folder), 1000, Some(50_257));
    let mut buffer = vec![0; batches.block_bytes().unwrap()];
    for step in 0..181 {
        batches.fill(step, &mut buffer).unwrap();
    }
    assert_eq!(folder.message(&batches.fill(181, &mut buffer).unwrap_err()), INVALID_TOKEN);
    for (vocab_size, good) in [(50_300, false), (50_301, true)] {
        let batches = sequential(with_invalid_token(&folder), 1000, Some(vocab_size));
        assert_eq!(batches.fill(181, &mut buffer).is_ok(), good, "token 50300 and vocabulary {vocab_size}");
    }
}

fn sequential(dataset: Dataset, block: u64, vocab_size: Option<u64>) -> Batches {
    let geometry = Geometry { block, micro_batch: 1, accum: 1, rank: 0, world: 1 };
    Batches::new(Arc::new(dataset), Order::Sequential, 0, geometry, vocab_size).unwrap()
}

#[test]
fn verify_finds_different_checksum() {
    let folder = Folder::new();
    let path = folder.file("000.bin", shard_bytes(&tokens(1_000_000)));
    let open = || Dataset::open(&[&path], Headerless::Auto).unwrap();
    let sums = verify(&open(), &options(None, None), &mut |_| true).unwrap();
    assert_eq!(verify(&open(), &options(Some(50_257), Some(sums.clone())), &mut |_| true).unwrap(), sums);
    File::options().write(true).open(&path).unwrap().write_all_at(&[9], 2_000_000).unwrap();
    let error = verify(&open(), &options(None, Some(sums.clone())), &mut |_| true).unwrap_err();
    let actual = verify(&open(), &options(None, None), &mut |_| true).unwrap();
    let expected = format!("D011: 000.bin: xxh3-128 is {}, the manifest says {}", actual[0], sums[0]);
    assert_eq!(folder.message(&error), expected);
    let too_many = verify(&open(), &options(None, Some(vec![])), &mut |_| true).unwrap_err();
    assert_eq!(too_many.to_string(), "0 checksums for 1 shards");
}

#[test]
fn verify_reports_earliest_file_and_stops_on_request() {
    let folder = Folder::new();
    let bad = shard_bytes(&[60_000]);
    let paths: Vec<_> = (0..20).map(|index| folder.file(&format!("{index:02}.bin"), &bad)).collect();
    let dataset = Dataset::open(&paths, Headerless::Auto).unwrap();
    let many = Options { threads: 8, ..options(Some(50_257), None) };
    let error = verify(&dataset, &many, &mut |_| true).unwrap_err();
    assert!(folder.message(&error).starts_with("D010: 00.bin: token 60000 at position 0;"));
    let large = folder.file("large.bin", shard_bytes(&vec![0; 64 << 20]));
    let dataset = Dataset::open(&vec![large; 20], Headerless::Auto).unwrap();
    let start = Instant::now();
    assert!(matches!(verify(&dataset, &many, &mut |_| false), Err(Error::Interrupted)));
    assert!(start.elapsed() < Duration::from_secs(1), "2.7 GB were read completely");
}

#[test]
fn file_truncated_during_the_run() {
    let folder = Folder::new();
    let path = folder.file("000.bin", shard_bytes(&tokens(1000)));
    let dataset = Dataset::open(&[&path], Headerless::Auto).unwrap();
    OpenOptions::new().write(true).open(&path).unwrap().set_len(1500).unwrap();
    let error = dataset.read(500, &mut [0; 20]).unwrap_err();
    let detail = "changed on disk during the run: it became shorter; the read at byte 2024 found its end";
    assert_eq!(folder.message(&error), format!("D017: 000.bin: {detail}"));
    let batches = sequential(dataset, 10, None);
    let detail = "changed on disk during the run: it had 3024 bytes and has 1500";
    assert_eq!(folder.message(&batches.fill(0, &mut [0; 22]).unwrap_err()), format!("D017: 000.bin: {detail}"));
}

#[test]
fn file_modified_during_the_run() {
    let folder = Folder::new();
    let path = folder.file("000.bin", shard_bytes(&tokens(1000)));
    let batches = sequential(Dataset::open(&[&path], Headerless::Auto).unwrap(), 10, None);
    batches.fill(0, &mut [0; 22]).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(20)); // the clock of some file systems is coarse
    OpenOptions::new().write(true).open(&path).unwrap().write_all_at(&[1], 1024).unwrap();
    let error = batches.fill(0, &mut [0; 22]).unwrap_err();
    assert_eq!(folder.message(&error), "D017: 000.bin: changed on disk during the run: it was written to");
}

#[test]
fn replaced_or_removed_file_is_read_as_opened() {
    let folder = Folder::new();
    let path = folder.file("000.bin", shard_bytes(&tokens(1000)));
    let batches = sequential(Dataset::open(&[&path], Headerless::Auto).unwrap(), 999, None);
    let mut block = vec![0; 2000];
    fs::rename(folder.file("new.bin", shard_bytes(&[5; 1000])), &path).unwrap();
    batches.fill(0, &mut block).unwrap();
    assert_eq!(block, little_endian(&tokens(1000)));
    fs::remove_file(&path).unwrap();
    batches.fill(1, &mut block).unwrap();
    assert_eq!(block, little_endian(&tokens(1000)));
}

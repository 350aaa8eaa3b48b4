//! Any bytes as a shard: an error, or exactly the tokens in the bytes.
#![no_main]

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use jaxgpt_loader::shard::format::{HEADER_BYTES, Header};
use jaxgpt_loader::shard::{Headerless, Shard};
use libfuzzer_sys::fuzz_target;

static PATH: LazyLock<PathBuf> =
    LazyLock::new(|| std::env::temp_dir().join(format!("shard_header.{}.bin", std::process::id())));

fuzz_target!(|data: &[u8]| {
    let (&kind, bytes) = data.split_first().unwrap_or((&0, &[]));
    let start = &bytes[..bytes.len().min(HEADER_BYTES)];
    if let Ok(header) = Header::parse(Path::new("x"), start, bytes.len() as u64 + u64::from(kind / 4)) {
        assert_eq!(&header.encode()[..12], &start[..12]);
    }
    std::fs::write(&*PATH, bytes).expect("the folder of temporary files can be written");
    let headerless = [Headerless::Auto, Headerless::Always, Headerless::Never][usize::from(kind % 3)];
    if let Ok(shard) = Shard::open(&PATH, headerless) {
        let mut tokens = vec![0; shard.tokens() as usize * shard.dtype().size()];
        shard.read(0, &mut tokens).expect("the file has the tokens that its header counts");
        assert_eq!(tokens, bytes[shard.first_byte() as usize..]);
        assert!(shard.read(shard.tokens(), &mut [0; 2]).is_err());
    }
});

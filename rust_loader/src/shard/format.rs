//! The token shard: 256 little-endian int32 (magic, version, token count, zeros), then the tokens.
//!
//! uint16 tokens come under magic 20240520, version 1 (llm.c and modded-nanogpt write these), uint32 tokens under
//! magic 20240801, version 7. This module works on bytes and opens no file. It also names other formats, for messages.

use std::fmt;
use std::path::Path;

use crate::error::{Error, Result, grouped};

/// The length of a header.
pub const HEADER_BYTES: usize = 1024;
/// The most tokens that a header's int32 can count.
pub const MAX_TOKENS: u64 = i32::MAX as u64;

/// The type of a token on disk and in a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dtype {
    /// Two bytes: vocabularies up to 65,536.
    U16,
    /// Four bytes.
    U32,
}

impl Dtype {
    const ALL: [Dtype; 2] = [Dtype::U16, Dtype::U32];

    /// Bytes per token.
    #[must_use]
    pub fn size(self) -> usize {
        match self {
            Dtype::U16 => 2,
            Dtype::U32 => 4,
        }
    }

    /// numpy's name for it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Dtype::U16 => "uint16",
            Dtype::U32 => "uint32",
        }
    }

    /// The token type with numpy's name `name`.
    ///
    /// # Errors
    /// [`Error::Argument`] for any other name.
    pub fn from_name(name: &str) -> Result<Self> {
        let dtype = Self::ALL.into_iter().find(|dtype| dtype.name() == name);
        dtype.ok_or_else(|| Error::Argument(format!("dtype = '{name}'; must be 'uint16' or 'uint32'")))
    }

    /// The largest of these little-endian tokens; `None` without tokens.
    pub fn max(self, bytes: &[u8]) -> Option<u32> {
        if bytes.is_empty() {
            return None;
        }
        // Folding from 0 in the tokens' own width, rather than `max()` of an iterator, compiles to full vectors.
        match self {
            Dtype::U16 => Some(u16s(bytes).fold(0, u16::max).into()),
            Dtype::U32 => Some(u32s(bytes).fold(0, u32::max)),
        }
    }

    /// The index and value of the first of these tokens that is `limit` or more.
    pub fn first_at_least(self, bytes: &[u8], limit: u64) -> Option<(u64, u32)> {
        let too_large = |&(_, token): &(u64, u32)| u64::from(token) >= limit;
        match self {
            Dtype::U16 => (0..).zip(u16s(bytes).map(u32::from)).find(too_large),
            Dtype::U32 => (0..).zip(u32s(bytes)).find(too_large),
        }
    }

    fn magic_and_version(self) -> (i32, i32) {
        match self {
            Dtype::U16 => (20240520, 1),
            Dtype::U32 => (20240801, 7),
        }
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The content of a shard's first 1,024 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The type of the tokens.
    pub dtype: Dtype,
    /// The number of tokens.
    pub tokens: u64,
}

impl Header {
    /// The header as bytes.
    ///
    /// # Panics
    /// If `tokens` exceeds [`MAX_TOKENS`].
    #[must_use]
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let (magic, version) = self.dtype.magic_and_version();
        let count = i32::try_from(self.tokens).expect("the writer refuses tokens beyond MAX_TOKENS");
        let mut bytes = [0; HEADER_BYTES];
        for (target, word) in bytes.chunks_exact_mut(4).zip([magic, version, count]) {
            target.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// Parses the header of the file `path` from its first bytes `start` and checks it against the file's `length`.
    ///
    /// # Errors
    /// D003 for another format, D007 if the length does not match, D008 for an impossible token count.
    pub fn parse(path: &Path, start: &[u8], length: u64) -> Result<Self> {
        let not_a_shard = |reason| Error::NotAShard { path: path.into(), reason };
        let dtype = known_dtype(start).ok_or_else(|| not_a_shard(describe(start)))?;
        if start.len() < HEADER_BYTES {
            let short = HEADER_BYTES - start.len();
            let detail =
                format!("file holds {length} bytes, the header alone is 1,024 ({})", byte_count(short as u64, "short"));
            return Err(Error::ShardSize { path: path.into(), detail });
        }
        let count = word(start, 2).unwrap_or(-1);
        let tokens = u64::try_from(count).map_err(|_| Error::TokenCount { path: path.into(), count: count.into() })?;
        check_length(path, dtype, tokens, length)?;
        Ok(Header { dtype, tokens })
    }
}

/// Returns true if `start` begins with a header of this format.
pub(crate) fn has_header(start: &[u8]) -> bool {
    known_dtype(start).is_some()
}

/// Names the format of a file that should contain tokens without a header, if it certainly is something else.
///
/// Tokens can look like any short signature, so only signatures of four bytes or more count, and text from 64 bytes on.
pub(crate) fn not_headerless_tokens(start: &[u8]) -> Option<String> {
    let signature = SIGNATURES.iter().find(|(bytes, _)| bytes.len() >= 4 && start.starts_with(bytes));
    match signature {
        Some((_, name)) => Some(starts_with(start, name)),
        None if start.len() >= 64 && is_text(start) => Some(starts_with(start, "text")),
        None => start.is_empty().then(|| "the file is empty".into()),
    }
}

fn known_dtype(start: &[u8]) -> Option<Dtype> {
    let magic_and_version = (word(start, 0)?, word(start, 1)?);
    Dtype::ALL.into_iter().find(|dtype| dtype.magic_and_version() == magic_and_version)
}

fn word(bytes: &[u8], index: usize) -> Option<i32> {
    u32s(bytes).nth(index).map(|word| word as i32)
}

fn u16s(bytes: &[u8]) -> impl Iterator<Item = u16> {
    bytes.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]]))
}

fn u32s(bytes: &[u8]) -> impl Iterator<Item = u32> {
    bytes.chunks_exact(4).map(|quad| u32::from_le_bytes([quad[0], quad[1], quad[2], quad[3]]))
}

fn check_length(path: &Path, dtype: Dtype, tokens: u64, length: u64) -> Result<()> {
    let size = dtype.size() as u64;
    let actual = length - HEADER_BYTES as u64;
    let expected = tokens * size; // tokens < 2³¹: no overflow
    if actual == expected {
        return Ok(());
    }
    let direction = if actual < expected { "short" } else { "too many" };
    let detail = format!(
        "header says {} tokens, file holds {} ({})",
        grouped(tokens),
        grouped(actual / size),
        byte_count(actual.abs_diff(expected), direction)
    );
    Err(Error::ShardSize { path: path.into(), detail })
}

/// "1 byte short", "256 bytes too many".
pub(crate) fn byte_count(bytes: u64, direction: &str) -> String {
    format!("{} byte{} {direction}", grouped(bytes), if bytes == 1 { "" } else { "s" })
}

const SIGNATURES: [(&[u8], &str); 17] = [
    (b"PK\x03\x04", "a zip file"),
    (b"PK\x05\x06", "an empty zip file"),
    (b"\x1f\x8b\x08\x00", "a gzip file"),
    (b"\x1f\x8b\x08\x08", "a gzip file"),
    (b"\x1f\x8b", "a gzip file"),
    (b"\x28\xb5\x2f\xfd", "a zstd file"),
    (b"\xfd7zXZ\x00", "an xz file"),
    (b"BZh", "a bzip2 file"),
    (b"PAR1", "a parquet file"),
    (b"ARROW1", "an Arrow file"),
    (b"\x93NUMPY", "a numpy file"),
    (b"\x89HDF", "an HDF5 file"),
    (b"GGUF", "a GGUF model"),
    (b"\x80\x02", "a Python pickle"),
    (b"\x80\x03", "a Python pickle"),
    (b"\x80\x04", "a Python pickle"),
    (b"\x80\x05", "a Python pickle"),
];

const OTHER_MAGICS: [(i32, &str); 4] = [
    (20240522, "llm.c's evaluation data"),
    (20240326, "llm.c's model"),
    (20240327, "llm.c's debug state"),
    (20240527, "llm.c's training state"),
];

/// Names the format of a file that begins with `start`, which is not a known header.
fn describe(start: &[u8]) -> String {
    if start.is_empty() {
        return "the file is empty".into();
    }
    if let Some(text) = word(start, 0).and_then(|magic| describe_magic(magic, word(start, 1))) {
        return text;
    }
    if let Some((_, name)) = SIGNATURES.iter().find(|(bytes, _)| start.starts_with(bytes)) {
        return starts_with(start, name);
    }
    if start.iter().all(|&byte| byte == 0) {
        starts_with(start, "all zeros")
    } else if is_text(start) {
        starts_with(start, "text")
    } else {
        starts_with(start, "an unknown format")
    }
}

fn describe_magic(magic: i32, version: Option<i32>) -> Option<String> {
    if let Some((_, name)) = OTHER_MAGICS.iter().find(|(other, _)| *other == magic) {
        return Some(format!("magic {magic}: {name}"));
    }
    let known = |magic| Dtype::ALL.map(Dtype::magic_and_version).into_iter().find(|pair| pair.0 == magic);
    if let Some((magic, expected)) = known(magic) {
        return Some(match version {
            Some(version) => format!("magic {magic} with version {version}; version {expected} is known"),
            None => format!("magic {magic}, then the file ends"),
        });
    }
    known(magic.swap_bytes()).map(|(magic, _)| format!("magic {magic} in big-endian byte order"))
}

fn starts_with(start: &[u8], name: &str) -> String {
    let bytes: Vec<_> = start.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    format!("starts with {}: {name}", bytes.join(" "))
}

fn is_text(start: &[u8]) -> bool {
    let valid = match std::str::from_utf8(start) {
        Ok(text) => text,
        // a character may be cut at the end of what was read
        Err(error) if error.error_len().is_none() => std::str::from_utf8(&start[..error.valid_up_to()]).unwrap_or(""),
        Err(_) => return false,
    };
    !valid.is_empty() && !valid.chars().any(|c| c.is_control() && !"\n\r\t".contains(c))
}

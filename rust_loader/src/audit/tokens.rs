//! The sources from which an audit reads tokens: a dataset, or memory.

use std::ops::Range;

use crate::error::{Error, Result};
use crate::shard::Dataset;
use crate::shard::format::Dtype;

/// Tokens that are read at a time. Longer documents are processed in pieces, so memory does not grow with them.
pub const CHUNK: u64 = 1 << 20;

/// A stream of tokens with random access.
pub trait Tokens: Sync {
    /// The number of tokens.
    fn count(&self) -> u64;
    /// Their type.
    fn dtype(&self) -> Dtype;
    /// Fills `buffer` with the little-endian tokens from `start` on.
    ///
    /// # Errors
    /// If they cannot be read.
    fn read(&self, start: u64, buffer: &mut [u8]) -> Result<()>;
    /// The file that contains the token at `position`, and the token's index in that file.
    fn file_position(&self, position: u64) -> (String, u64);
    /// Checks that the tokens did not change since they were opened.
    ///
    /// # Errors
    /// If they may have changed.
    fn check_unchanged(&self) -> Result<()>;
}

impl Tokens for Dataset {
    fn count(&self) -> u64 {
        self.tokens()
    }

    fn dtype(&self) -> Dtype {
        Dataset::dtype(self)
    }

    fn read(&self, start: u64, buffer: &mut [u8]) -> Result<()> {
        Dataset::read(self, start, buffer)
    }

    fn file_position(&self, position: u64) -> (String, u64) {
        let (shard, index) = self.locate(position);
        (shard.path().display().to_string(), index)
    }

    fn check_unchanged(&self) -> Result<()> {
        Dataset::check_unchanged(self)
    }
}

/// Little-endian tokens in memory.
#[derive(Clone, Debug)]
pub struct InMemory {
    bytes: Vec<u8>,
    dtype: Dtype,
}

impl InMemory {
    /// The tokens in `bytes`; an incomplete token at the end is dropped.
    #[must_use]
    pub fn new(mut bytes: Vec<u8>, dtype: Dtype) -> Self {
        bytes.truncate(bytes.len() / dtype.size() * dtype.size());
        InMemory { bytes, dtype }
    }
}

impl Tokens for InMemory {
    fn count(&self) -> u64 {
        (self.bytes.len() / self.dtype.size()) as u64
    }

    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn read(&self, start: u64, buffer: &mut [u8]) -> Result<()> {
        let first = start as usize * self.dtype.size();
        let bytes = self.bytes.get(first..first + buffer.len());
        buffer.copy_from_slice(bytes.ok_or_else(|| Error::Argument(format!("no tokens from {start} on")))?);
        Ok(())
    }

    fn file_position(&self, position: u64) -> (String, u64) {
        ("memory".into(), position)
    }

    fn check_unchanged(&self) -> Result<()> {
        Ok(())
    }
}

/// The tokens of `range` as numbers.
pub(super) fn ids(source: &dyn Tokens, range: Range<u64>) -> Result<Vec<u32>> {
    let mut bytes = vec![0; (range.end - range.start) as usize * source.dtype().size()];
    source.read(range.start, &mut bytes)?;
    Ok(match source.dtype() {
        Dtype::U16 => bytes.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]]).into()).collect(),
        Dtype::U32 => {
            bytes.chunks_exact(4).map(|quad| u32::from_le_bytes([quad[0], quad[1], quad[2], quad[3]])).collect()
        }
    })
}

/// The tokens of one document: in memory, or read when they are needed.
pub struct Text<'a> {
    source: &'a dyn Tokens,
    range: Range<u64>,
    loaded: Option<&'a [u32]>,
}

impl<'a> Text<'a> {
    /// A document that is read piece by piece.
    #[must_use]
    pub fn stored(source: &'a dyn Tokens, range: Range<u64>) -> Self {
        Text { source, range, loaded: None }
    }

    /// A document whose tokens are in memory.
    pub(super) fn loaded(source: &'a dyn Tokens, range: Range<u64>, ids: &'a [u32]) -> Self {
        Text { source, range, loaded: Some(ids) }
    }

    /// The number of tokens.
    pub(super) fn length(&self) -> u64 {
        self.range.end - self.range.start
    }

    /// Calls `visit` with pieces that together contain every run of `width` tokens of the document exactly once.
    ///
    /// # Errors
    /// Those of [`Tokens::read`] and of `visit`.
    pub fn pieces(&self, width: u64, visit: &mut dyn FnMut(&[u32]) -> Result<()>) -> Result<()> {
        if let Some(ids) = self.loaded {
            return visit(ids);
        }
        for start in self.range.clone().step_by(CHUNK as usize) {
            let end = (start + CHUNK + width - 1).min(self.range.end);
            if start > self.range.start && end - start < width {
                return Ok(()); // the piece before contains the rest
            }
            visit(&ids(self.source, start..end)?)?;
        }
        Ok(())
    }
}

//! Reads the samples of one step into one buffer.

use std::sync::Arc;

use super::{Geometry, Order, Sampler};
use crate::error::{Error, Result};
use crate::shard::Dataset;

/// Fills a buffer with the block of any step: `[accum, micro_batch / world, block + 1]` tokens.
#[derive(Debug)]
pub struct Batches {
    dataset: Arc<Dataset>,
    sampler: Sampler,
    geometry: Geometry,
    vocab_size: Option<u64>,
    row_bytes: usize,
    rows: u64,
}

impl Batches {
    /// Batches of `dataset`. With `vocab_size`, ids outside the vocabulary are errors.
    ///
    /// # Errors
    /// Those of [`Geometry::check`] and [`Sampler::new`].
    pub fn new(
        dataset: Arc<Dataset>,
        order: Order,
        seed: u64,
        geometry: Geometry,
        vocab_size: Option<u64>,
    ) -> Result<Self> {
        geometry.check()?;
        let sampler = Sampler::new(order, seed, dataset.tokens(), geometry.block)?;
        let [accum, rows, window] = geometry.shape(); // the data has a whole window: its size fits a usize
        let row_bytes = window as usize * dataset.dtype().size();
        Ok(Batches { dataset, sampler, geometry, vocab_size, row_bytes, rows: accum * rows })
    }

    /// The number of bytes in one block.
    ///
    /// # Errors
    /// [`Error::Argument`] if it does not fit a `usize`.
    pub fn block_bytes(&self) -> Result<usize> {
        let bytes = usize::try_from(self.rows).ok().and_then(|rows| rows.checked_mul(self.row_bytes));
        bytes.ok_or_else(|| Error::Argument(format!("{} sequences per step are too many", self.rows)))
    }

    /// The number of steps whose samples have 64-bit numbers.
    #[must_use]
    pub fn steps(&self) -> u64 {
        u64::MAX / self.geometry.samples_per_step()
    }

    /// Reads the block of `step` into `buffer`, which must have [`block_bytes`](Self::block_bytes).
    ///
    /// # Errors
    /// D010 for an id outside the vocabulary, D016 or D017 if a file cannot be read or changed.
    pub fn fill(&self, step: u64, buffer: &mut [u8]) -> Result<()> {
        for (row, bytes) in (0..).zip(buffer.chunks_exact_mut(self.row_bytes)) {
            self.dataset.read(self.start(step, row), bytes)?;
        }
        self.dataset.check_unchanged()?;
        self.check_vocabulary(step, buffer)
    }

    fn start(&self, step: u64, row: u64) -> u64 {
        self.sampler.start(self.geometry.sample(step, row))
    }

    fn check_vocabulary(&self, step: u64, buffer: &[u8]) -> Result<()> {
        let Some(vocab_size) = self.vocab_size else { return Ok(()) };
        let dtype = self.dataset.dtype();
        if dtype.max(buffer).is_none_or(|max| u64::from(max) < vocab_size) {
            return Ok(());
        }
        for (row, bytes) in (0..).zip(buffer.chunks_exact(self.row_bytes)) {
            if let Some((index, token)) = dtype.first_at_least(bytes, vocab_size) {
                let (shard, position) = self.dataset.locate(self.start(step, row) + index);
                return Err(Error::TokenRange { path: shard.path().into(), token, position, vocab_size });
            }
        }
        Ok(())
    }
}

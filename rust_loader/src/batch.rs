//! The samples of one step, read into one buffer.

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::order::{Geometry, Order, Sampler};
use crate::shard::Dataset;

/// Fills buffers with the block of any step: `[accum, micro_batch / world, block + 1]` tokens.
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
    /// Batches of `dataset`. With a vocabulary size, ids outside it are errors.
    pub fn new(
        dataset: Arc<Dataset>,
        order: Order,
        seed: u64,
        geometry: Geometry,
        vocab_size: Option<u64>,
    ) -> Result<Self> {
        geometry.check()?;
        let sampler = Sampler::new(order, seed, dataset.tokens(), geometry.block)?;
        let [accum, rows, window] = geometry.shape(); // the window is in the data: its bytes fit
        let row_bytes = window as usize * dataset.dtype().size();
        Ok(Batches { dataset, sampler, geometry, vocab_size, row_bytes, rows: accum * rows })
    }

    /// The bytes of one block.
    pub fn block_bytes(&self) -> Result<usize> {
        let bytes = usize::try_from(self.rows).ok().and_then(|rows| rows.checked_mul(self.row_bytes));
        bytes.ok_or_else(|| Error::Argument(format!("{} sequences per step are too many", self.rows)))
    }

    /// The first step that cannot be numbered: sample numbers have 64 bits.
    pub fn steps(&self) -> u64 {
        u64::MAX / self.geometry.samples_per_step()
    }

    /// Puts the block of `step` into `buffer`, which must have [`block_bytes`](Self::block_bytes).
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
        let rows = (0..).zip(buffer.chunks_exact(self.row_bytes));
        let bad = rows.filter_map(|(row, bytes)| Some((row, dtype.first_at_least(bytes, vocab_size)?))).next();
        bad.map_or(Ok(()), |(row, (index, token))| {
            let (shard, position) = self.dataset.locate(self.start(step, row) + index);
            Err(Error::TokenRange { path: shard.path().into(), token, position, vocab_size })
        })
    }
}

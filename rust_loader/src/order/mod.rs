//! Which tokens belong to which sample: the contract that makes a run resumable from one integer.
//!
//! A *window* is `block + 1` tokens: `block` inputs and, one later, as many targets. The windows of an epoch start at
//! every multiple of `block`, so each window is read once per epoch; the first token and an incomplete last window are
//! never targets. Samples are numbered from 0 through the whole run; sample `k` depends on the seed, `k` and the data,
//! and on nothing else.

pub mod batch;
pub mod permute;

use std::str::FromStr;

use crate::error::{Error, Result};
use permute::{hash, permute};

/// The order of the samples.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// A new shuffle in every epoch: each window exactly once.
    Epoch,
    /// nanoGPT's sampling: any start token, with replacement.
    Random,
    /// The windows in the order of the data, epoch after epoch.
    Sequential,
}

impl FromStr for Order {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "epoch" => Ok(Order::Epoch),
            "random" => Ok(Order::Random),
            "sequential" => Ok(Order::Sequential),
            _ => Err(Error::Argument(format!("order = '{name}'; must be 'epoch', 'random' or 'sequential'"))),
        }
    }
}

/// The number of windows of `block + 1` tokens in an epoch.
///
/// # Errors
/// D013 if the data is shorter than one window, [`Error::Argument`] for an invalid `block`.
pub fn windows(tokens: u64, block: u64) -> Result<u64> {
    let needed = positive("block", block)?.checked_add(1);
    let needed = needed.ok_or_else(|| Error::Argument(format!("block = {block} is too large")))?;
    if tokens < needed {
        return Err(Error::CorpusTooShort { tokens, needed });
    }
    Ok((tokens - 1) / block)
}

/// Maps the number of a sample to its start in the stream of tokens.
#[derive(Clone, Copy, Debug)]
pub struct Sampler {
    order: Order,
    seed: u64,
    tokens: u64,
    block: u64,
    windows: u64,
}

impl Sampler {
    /// The samples of a stream of `tokens` tokens, in windows of `block + 1`.
    ///
    /// # Errors
    /// Those of [`windows`].
    pub fn new(order: Order, seed: u64, tokens: u64, block: u64) -> Result<Self> {
        Ok(Sampler { order, seed, tokens, block, windows: windows(tokens, block)? })
    }

    /// The index of the first token of `sample`.
    #[must_use]
    pub fn start(&self, sample: u64) -> u64 {
        let epoch = sample / self.windows;
        let window = sample % self.windows;
        match self.order {
            Order::Epoch => permute(window, self.windows, self.seed, epoch) * self.block,
            Order::Sequential => window * self.block,
            Order::Random => scale(hash(self.seed, sample), self.tokens - self.block),
        }
    }
}

/// Scales a uniform 64-bit hash to `0..n`.
fn scale(hash: u64, n: u64) -> u64 {
    ((u128::from(hash) * u128::from(n)) >> 64) as u64
}

/// The shape of a step, and the rows of this process.
///
/// A step has `accum * micro_batch` samples, in order. Each of the `world` processes takes an equal run of rows from
/// every micro-batch, so the samples of a step do not depend on how it is divided.
#[derive(Clone, Copy, Debug)]
pub struct Geometry {
    /// Tokens that one sequence is trained on.
    pub block: u64,
    /// Sequences per micro-batch, over all processes.
    pub micro_batch: u64,
    /// Micro-batches per step.
    pub accum: u64,
    /// The number of this process.
    pub rank: u64,
    /// The number of processes.
    pub world: u64,
}

impl Geometry {
    /// Checks that the shape is possible.
    ///
    /// # Errors
    /// [`Error::Argument`] if it is not.
    pub fn check(&self) -> Result<()> {
        let Geometry { micro_batch, accum, rank, world, .. } = *self;
        positive("block", self.block)?;
        positive("micro_batch", micro_batch)?;
        positive("accum", accum)?;
        positive("world", world)?;
        let problem = if rank >= world {
            format!("rank = {rank}; must be less than world = {world}")
        } else if micro_batch % world != 0 {
            format!("micro_batch = {micro_batch} is not divisible by world = {world}")
        } else if accum.checked_mul(micro_batch).is_none() {
            format!("accum = {accum} times micro_batch = {micro_batch} is too large")
        } else {
            return Ok(());
        };
        Err(Error::Argument(problem))
    }

    /// The number of samples in a step, over all processes.
    #[must_use]
    pub fn samples_per_step(&self) -> u64 {
        self.accum * self.micro_batch
    }

    /// The shape of this process's block of tokens: `[accum, micro_batch / world, block + 1]`.
    #[must_use]
    pub fn shape(&self) -> [u64; 3] {
        [self.accum, self.micro_batch / self.world, self.block + 1]
    }

    /// The number of the sample in row `row` of this process's block. Rows are numbered through all micro-batches.
    #[must_use]
    pub fn sample(&self, step: u64, row: u64) -> u64 {
        let rows = self.micro_batch / self.world;
        let micro = row / rows;
        step * self.samples_per_step() + micro * self.micro_batch + self.rank * rows + row % rows
    }
}

/// Returns `value` if it is 1 or more.
pub(crate) fn positive(name: &str, value: u64) -> Result<u64> {
    if value == 0 {
        return Err(Error::Argument(format!("{name} = 0; must be 1 or more")));
    }
    Ok(value)
}

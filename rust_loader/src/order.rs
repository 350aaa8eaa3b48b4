//! Which tokens belong to which sample: the contract that makes a run resumable from one integer.
//!
//! A *window* is `block + 1` tokens: `block` inputs and, one later, as many targets. The windows of an epoch start at
//! every multiple of `block`, so each token is a target once per epoch. Samples are numbered from 0 through the whole
//! run; sample `k` depends on the seed, `k` and the data, and on nothing else.

use std::str::FromStr;

use crate::error::{Error, Result};
use crate::permute::{hash, permute};

/// The way in which samples follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Every epoch is a fresh shuffle: each window exactly once.
    Epoch,
    /// nanoGPT's sampling: any start, with replacement.
    Random,
    /// The windows as they lie in the data, over and over.
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

/// How many windows of `block + 1` tokens an epoch has.
pub fn windows(tokens: u64, block: u64) -> Result<u64> {
    let needed = positive("block", block)?.checked_add(1);
    let needed = needed.ok_or_else(|| Error::Argument(format!("block = {block} is too large")))?;
    if tokens < needed {
        return Err(Error::CorpusTooShort { tokens, needed });
    }
    Ok((tokens - 1) / block)
}

/// Maps a sample's number to its place in the stream of tokens.
#[derive(Clone, Copy, Debug)]
pub struct Sampler {
    order: Order,
    seed: u64,
    tokens: u64,
    block: u64,
    windows: u64,
}

impl Sampler {
    /// The samples of `tokens` tokens, in windows of `block + 1`.
    pub fn new(order: Order, seed: u64, tokens: u64, block: u64) -> Result<Self> {
        Ok(Sampler { order, seed, tokens, block, windows: windows(tokens, block)? })
    }

    /// The index of the token at which `sample` starts.
    pub fn start(&self, sample: u64) -> u64 {
        let (epoch, window) = (sample / self.windows, sample % self.windows);
        match self.order {
            Order::Epoch => permute(window, self.windows, self.seed, epoch) * self.block,
            Order::Sequential => window * self.block,
            Order::Random => scale(hash(self.seed, sample), self.tokens - self.block),
        }
    }
}

/// A uniform 64-bit hash brought to `0..n`.
fn scale(hash: u64, n: u64) -> u64 {
    ((u128::from(hash) * u128::from(n)) >> 64) as u64
}

/// The shape of a step, and this process's part of it.
///
/// A step has `accum * micro_batch` samples, in order. Each of the `world` processes takes an equal run of rows from
/// every micro-batch, so the step as a whole is the same however it is divided.
#[derive(Clone, Copy, Debug)]
pub struct Geometry {
    /// Tokens that one sequence trains on.
    pub block: u64,
    /// Sequences per micro-batch, over all processes.
    pub micro_batch: u64,
    /// Micro-batches per step.
    pub accum: u64,
    /// This process.
    pub rank: u64,
    /// How many processes there are.
    pub world: u64,
}

impl Geometry {
    /// Refuses what has no meaning or no bounds.
    pub fn check(&self) -> Result<()> {
        let Geometry { micro_batch, accum, rank, world, .. } = *self;
        positive("block", self.block)?;
        positive("micro_batch", micro_batch)?;
        positive("accum", accum)?;
        positive("world", world)?;
        let problem = match () {
            _ if rank >= world => format!("rank = {rank}; must be less than world = {world}"),
            _ if micro_batch % world != 0 => {
                format!("micro_batch = {micro_batch} is not divisible by world = {world}")
            }
            _ if accum.checked_mul(micro_batch).is_none() => {
                format!("accum = {accum} times micro_batch = {micro_batch} is too large")
            }
            _ => return Ok(()),
        };
        Err(Error::Argument(problem))
    }

    /// The samples of a whole step, over all processes.
    pub fn samples_per_step(&self) -> u64 {
        self.accum * self.micro_batch
    }

    /// The shape of this process's block.
    pub fn shape(&self) -> [u64; 3] {
        [self.accum, self.micro_batch / self.world, self.block + 1]
    }

    /// The number of the sample in a row of this process's block, counting rows through all micro-batches.
    pub fn sample(&self, step: u64, row: u64) -> u64 {
        let rows = self.micro_batch / self.world;
        let (micro, row) = (row / rows, row % rows);
        step * self.samples_per_step() + micro * self.micro_batch + self.rank * rows + row
    }
}

/// `value` if it is 1 or more.
pub(crate) fn positive(name: &str, value: u64) -> Result<u64> {
    match value {
        0 => Err(Error::Argument(format!("{name} = 0; must be 1 or more"))),
        _ => Ok(value),
    }
}

//! One pass over every byte of a dataset: checksums, and ids outside the vocabulary.

use xxhash_rust::xxh3::Xxh3;

use super::{Dataset, Shard};
use crate::error::{Error, Result};
use crate::hash::hex;
use crate::order::positive;
use crate::workers::{Counters, Progress, Workers};

const CHUNK: usize = 1 << 20;

/// The options of [`verify`].
#[derive(Clone, Debug)]
pub struct Options {
    /// Every id must be less than this.
    pub vocab_size: Option<u64>,
    /// The expected xxh3-128 of every file, in hexadecimal.
    pub checksums: Option<Vec<String>>,
    /// The number of files that are read at the same time.
    pub threads: usize,
}

/// Reads every file of `dataset` once and returns the checksums.
///
/// Meanwhile `tick` gets the number of bytes read so far, and returns whether to continue. If several files are bad, the
/// error of the earliest one is returned, whatever the number of threads.
///
/// # Errors
/// D010 for an id outside the vocabulary, D011 for a different checksum, D016 or D017 if a file cannot be read or
/// changed, [`Error::Interrupted`] if `tick` returned false, [`Error::Argument`] for invalid options.
pub fn verify(dataset: &Dataset, options: &Options, tick: &mut dyn FnMut(u64) -> bool) -> Result<Vec<String>> {
    let shards = dataset.shards();
    check(options, shards.len())?;
    let mut tick = |progress: &Progress| tick(progress.bytes);
    let mut workers = Workers::new(options.threads, &mut tick);
    workers.begin("verifying", shards.iter().map(Shard::bytes).sum());
    let checksums = workers.run(shards.len(), |index, counters| {
        let expected = options.checksums.as_ref().map(|checksums| checksums[index].as_str());
        check_shard(&shards[index], expected, options.vocab_size, counters)
    });
    workers.poll()?;
    checksums
}

/// The xxh3-128 of a whole file.
///
/// # Errors
/// D016 or D017 if it cannot be read or changed.
pub fn checksum(shard: &Shard) -> Result<String> {
    let mut hasher = Xxh3::new();
    for_each_chunk(shard, |_, bytes| {
        hasher.update(bytes);
        Ok(())
    })?;
    Ok(hex(hasher.digest128()))
}

fn check(options: &Options, shards: usize) -> Result<()> {
    positive("threads", options.threads as u64)?;
    match &options.checksums {
        Some(checksums) if checksums.len() != shards => {
            Err(Error::Argument(format!("{} checksums for {shards} shards", checksums.len())))
        }
        _ => Ok(()),
    }
}

fn check_shard(shard: &Shard, expected: Option<&str>, vocab_size: Option<u64>, counters: &Counters) -> Result<String> {
    let mut hasher = Xxh3::new();
    let mut out_of_vocab = None;
    for_each_chunk(shard, |offset, bytes| {
        hasher.update(bytes);
        out_of_vocab = out_of_vocab.or_else(|| first_out_of_vocab(shard, offset, bytes, vocab_size?));
        counters.advance(0, 0, bytes.len() as u64)
    })?;
    let actual = hex(hasher.digest128());
    let path = shard.path();
    match (expected, out_of_vocab, vocab_size) {
        (Some(expected), ..) if !expected.eq_ignore_ascii_case(&actual) => {
            Err(Error::Checksum { path: path.into(), actual, expected: expected.into() })
        }
        (_, Some((position, token)), Some(vocab_size)) => {
            Err(Error::TokenRange { path: path.into(), token, position, vocab_size })
        }
        _ => Ok(actual),
    }
}

/// The index in the shard and the value of the first token of this chunk that is outside the vocabulary.
fn first_out_of_vocab(shard: &Shard, offset: u64, bytes: &[u8], vocab_size: u64) -> Option<(u64, u32)> {
    let header = shard.first_byte().saturating_sub(offset) as usize; // in the first chunk only
    let tokens = bytes.get(header..)?;
    if u64::from(shard.dtype().max(tokens)?) < vocab_size {
        return None;
    }
    let before = (offset + header as u64 - shard.first_byte()) / shard.dtype().size() as u64;
    let (index, token) = shard.dtype().first_at_least(tokens, vocab_size)?;
    Some((before + index, token))
}

/// Calls `visit` with each chunk of a file, as long as the file was when it was opened, and checks that nobody wrote to
/// it.
fn for_each_chunk(shard: &Shard, mut visit: impl FnMut(u64, &[u8]) -> Result<()>) -> Result<()> {
    let mut chunk = vec![0; CHUNK];
    for offset in (0..shard.bytes()).step_by(CHUNK) {
        let length = (shard.bytes() - offset).min(CHUNK as u64) as usize;
        shard.read_bytes(offset, &mut chunk[..length])?;
        visit(offset, &chunk[..length])?;
    }
    shard.check_unchanged()
}

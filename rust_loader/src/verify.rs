//! One pass over every byte of a dataset: checksums, and ids against the vocabulary.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use xxhash_rust::xxh3::Xxh3;

use crate::error::{Error, Result};
use crate::order::positive;
use crate::shard::{Dataset, Shard};

const CHUNK: usize = 1 << 20;
const TICK: Duration = Duration::from_millis(50);

/// What to check.
#[derive(Clone, Debug)]
pub struct Options {
    /// Every id must be below it.
    pub vocab_size: Option<u64>,
    /// The xxh3-128 of every file, in hexadecimal.
    pub checksums: Option<Vec<String>>,
    /// Files that are read at the same time.
    pub threads: usize,
}

/// Reads every file of `dataset` once, and returns their checksums.
///
/// While that runs, `tick` is told now and then how many bytes are done; when it returns false, the pass is given up.
/// Of several errors the one in the earliest file is returned, whichever thread met it.
pub fn verify(dataset: &Dataset, options: &Options, tick: &mut dyn FnMut(u64) -> bool) -> Result<Vec<String>> {
    let shards = dataset.shards();
    check(options, shards.len())?;
    let pass =
        Pass { shards, options, next: AtomicUsize::new(0), done: AtomicU64::new(0), stop: AtomicBool::new(false) };
    let results = Mutex::new(vec![None; shards.len()]);
    let mut go_on = true;
    thread::scope(|scope| {
        let (alive, ended) = mpsc::channel::<()>(); // nothing is sent: it is closed when the last worker ends
        for _ in 0..options.threads.min(shards.len()) {
            let (alive, pass, results) = (alive.clone(), &pass, &results);
            scope.spawn(move || {
                let _alive = alive;
                pass.work(results);
            });
        }
        drop(alive);
        while ended.recv_timeout(TICK) == Err(RecvTimeoutError::Timeout) {
            go_on = go_on && tick(pass.done.load(Ordering::Relaxed));
            pass.stop.store(!go_on, Ordering::Relaxed);
        }
    });
    if !go_on || !tick(pass.done.into_inner()) {
        return Err(Error::Interrupted);
    }
    results
        .into_inner()
        .unwrap_or_default()
        .into_iter()
        .map(|result| result.unwrap_or(Err(Error::Interrupted)))
        .collect()
}

/// The xxh3-128 of a whole file.
pub fn checksum(shard: &Shard) -> Result<String> {
    let mut hasher = Xxh3::new();
    for_each_chunk(shard, |_, bytes| {
        hasher.update(bytes);
        Ok(())
    })?;
    Ok(hex(&hasher))
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

struct Pass<'a> {
    shards: &'a [Shard],
    options: &'a Options,
    next: AtomicUsize,
    done: AtomicU64,
    stop: AtomicBool,
}

impl Pass<'_> {
    /// Shards are claimed in order, so when one fails all before it are claimed too, and only later ones are skipped.
    fn work(&self, results: &Mutex<Vec<Option<Result<String>>>>) {
        while !self.stop.load(Ordering::Relaxed) {
            let index = self.next.fetch_add(1, Ordering::Relaxed);
            let Some(shard) = self.shards.get(index) else { return };
            let result = self.check_shard(shard, self.options.checksums.as_ref().map(|all| all[index].as_str()));
            if result.is_err() {
                self.next.store(self.shards.len(), Ordering::Relaxed);
            }
            if let Ok(mut results) = results.lock() {
                results[index] = Some(result);
            }
        }
    }

    fn check_shard(&self, shard: &Shard, expected: Option<&str>) -> Result<String> {
        let mut hasher = Xxh3::new();
        let mut bad = None;
        for_each_chunk(shard, |offset, bytes| {
            hasher.update(bytes);
            bad = bad.or_else(|| self.first_bad(shard, offset, bytes));
            self.done.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            if self.stop.load(Ordering::Relaxed) { Err(Error::Interrupted) } else { Ok(()) }
        })?;
        let (found, path) = (hex(&hasher), shard.path());
        match (expected, bad, self.options.vocab_size) {
            (Some(expected), ..) if !expected.eq_ignore_ascii_case(&found) => {
                Err(Error::Checksum { path: path.into(), found, expected: expected.into() })
            }
            (_, Some((position, token)), Some(vocab_size)) => {
                Err(Error::TokenRange { path: path.into(), token, position, vocab_size })
            }
            _ => Ok(found),
        }
    }

    /// The first token of this chunk that the vocabulary does not have, with its index in the shard.
    fn first_bad(&self, shard: &Shard, offset: u64, bytes: &[u8]) -> Option<(u64, u32)> {
        let vocab_size = self.options.vocab_size?;
        let header = shard.first_byte().saturating_sub(offset) as usize; // in the first chunk only
        let tokens = bytes.get(header..)?;
        if u64::from(shard.dtype().max(tokens)?) < vocab_size {
            return None;
        }
        let before = (offset + header as u64 - shard.first_byte()) / shard.dtype().size() as u64;
        let (index, token) = shard.dtype().first_at_least(tokens, vocab_size)?;
        Some((before + index, token))
    }
}

/// Reads a file in order, all bytes that it had when it was opened, then makes sure that it still is that file.
fn for_each_chunk(shard: &Shard, mut visit: impl FnMut(u64, &[u8]) -> Result<()>) -> Result<()> {
    let mut chunk = vec![0; CHUNK];
    for offset in (0..shard.bytes()).step_by(CHUNK) {
        let length = (shard.bytes() - offset).min(CHUNK as u64) as usize;
        shard.read_bytes(offset, &mut chunk[..length])?;
        visit(offset, &chunk[..length])?;
    }
    shard.check_unchanged()
}

fn hex(hasher: &Xxh3) -> String {
    format!("{:032x}", hasher.digest128())
}

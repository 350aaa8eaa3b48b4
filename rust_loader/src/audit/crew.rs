//! Threads that share a list of jobs, while the caller's thread tells how far they are and whether to stop.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use crate::error::{Error, Result};

const TICK: Duration = Duration::from_millis(50);

/// How far the audit is in one of its stages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// What is being done.
    pub stage: &'static str,
    /// Documents looked at in this stage.
    pub documents: u64,
    /// Tokens looked at in this stage.
    pub tokens: u64,
    /// Bytes read in this stage.
    pub bytes: u64,
    /// Bytes that the stage reads in all.
    pub total: u64,
}

/// What the jobs of a stage have done so far.
#[derive(Default)]
pub struct Tally {
    documents: AtomicU64,
    tokens: AtomicU64,
    bytes: AtomicU64,
    stop: AtomicBool,
}

impl Tally {
    /// Adds to the stage's progress; `Interrupted` if the caller wants to stop.
    pub fn advance(&self, documents: u64, tokens: u64, bytes: u64) -> Result<()> {
        self.documents.fetch_add(documents, Ordering::Relaxed);
        self.tokens.fetch_add(tokens, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        if self.stop.load(Ordering::Relaxed) { Err(Error::Interrupted) } else { Ok(()) }
    }
}

/// A number of threads, and the caller's eye on them.
pub struct Crew<'a> {
    threads: usize,
    tick: &'a mut dyn FnMut(&Progress) -> bool,
    tally: Tally,
    stage: &'static str,
    total: u64,
}

impl<'a> Crew<'a> {
    /// `threads` workers, or none: then the caller's thread does the work. `tick` says whether to go on.
    pub fn new(threads: usize, tick: &'a mut dyn FnMut(&Progress) -> bool) -> Self {
        Crew { threads, tick, tally: Tally::default(), stage: "", total: 0 }
    }

    /// Begins a stage that reads `total` bytes.
    pub fn begin(&mut self, stage: &'static str, total: u64) {
        (self.stage, self.total, self.tally) = (stage, total, Tally::default());
    }

    /// The progress of the stage.
    pub fn tally(&self) -> &Tally {
        &self.tally
    }

    /// The results of `job(0)` to `job(count - 1)`, in that order. Of several errors the earliest job's is returned.
    pub fn run<T: Send>(&mut self, count: usize, job: impl Fn(usize, &Tally) -> Result<T> + Sync) -> Result<Vec<T>> {
        if self.threads == 0 {
            return (0..count).map(|index| self.poll().and_then(|()| job(index, &self.tally))).collect();
        }
        let next = AtomicUsize::new(0);
        let results: Mutex<Vec<_>> = Mutex::new((0..count).map(|_| None).collect());
        thread::scope(|scope| {
            let (alive, ended) = mpsc::channel::<()>(); // nothing is sent: it is closed when the last worker ends
            for _ in 0..self.threads.min(count) {
                let (alive, next, results, job, tally) = (alive.clone(), &next, &results, &job, &self.tally);
                scope.spawn(move || {
                    let _alive = alive;
                    work(next, results, tally, job);
                });
            }
            drop(alive);
            while ended.recv_timeout(TICK) == Err(RecvTimeoutError::Timeout) {
                let progress = progress(self.stage, self.total, &self.tally);
                if !self.tally.stop.load(Ordering::Relaxed) && !(self.tick)(&progress) {
                    self.tally.stop.store(true, Ordering::Relaxed);
                }
            }
        });
        if self.tally.stop.load(Ordering::Relaxed) {
            return Err(Error::Interrupted);
        }
        let results = results.into_inner().unwrap_or_default();
        results.into_iter().map(|result| result.unwrap_or(Err(Error::Interrupted))).collect()
    }

    /// Tells the progress; `Interrupted` if the caller wants to stop.
    pub fn poll(&mut self) -> Result<()> {
        let progress = progress(self.stage, self.total, &self.tally);
        if (self.tick)(&progress) { Ok(()) } else { Err(Error::Interrupted) }
    }
}

fn progress(stage: &'static str, total: u64, tally: &Tally) -> Progress {
    let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    Progress { stage, total, documents: of(&tally.documents), tokens: of(&tally.tokens), bytes: of(&tally.bytes) }
}

/// Jobs are claimed in order, so when one fails all before it are claimed too, and only later ones are skipped.
fn work<T>(
    next: &AtomicUsize,
    results: &Mutex<Vec<Option<Result<T>>>>,
    tally: &Tally,
    job: &(impl Fn(usize, &Tally) -> Result<T> + Sync),
) {
    while !tally.stop.load(Ordering::Relaxed) {
        let index = next.fetch_add(1, Ordering::Relaxed);
        let count = results.lock().map_or(0, |results| results.len());
        if index >= count {
            return;
        }
        let result = job(index, tally);
        if result.is_err() {
            next.store(count, Ordering::Relaxed);
        }
        if let Ok(mut results) = results.lock() {
            results[index] = Some(result);
        }
    }
}

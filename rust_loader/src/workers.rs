//! A thread pool for lists of jobs. The calling thread reports the progress and decides whether to stop.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use crate::error::{Error, Result};

const TICK: Duration = Duration::from_millis(50);

/// The progress of one stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// The name of the stage.
    pub stage: &'static str,
    /// Documents processed in this stage.
    pub documents: u64,
    /// Tokens processed in this stage.
    pub tokens: u64,
    /// Bytes read in this stage.
    pub bytes: u64,
    /// Bytes that the whole stage reads.
    pub total: u64,
}

/// What the jobs of a stage have done so far. All threads add to it.
#[derive(Default)]
pub(crate) struct Counters {
    documents: AtomicU64,
    tokens: AtomicU64,
    bytes: AtomicU64,
    stop: AtomicBool,
}

impl Counters {
    /// Adds to the stage's progress. Returns `Interrupted` if the caller wants to stop.
    pub(crate) fn advance(&self, documents: u64, tokens: u64, bytes: u64) -> Result<()> {
        self.documents.fetch_add(documents, Ordering::Relaxed);
        self.tokens.fetch_add(tokens, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        if self.should_stop() { Err(Error::Interrupted) } else { Ok(()) }
    }

    fn should_stop(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

/// A number of threads that work on one stage after another.
pub(crate) struct Workers<'a> {
    threads: usize,
    tick: &'a mut dyn FnMut(&Progress) -> bool,
    counters: Counters,
    stage: &'static str,
    total: u64,
}

impl<'a> Workers<'a> {
    /// A pool of `threads` threads; with 0, the calling thread does the work. `tick` gets the progress about 20 times
    /// a second and returns whether to continue.
    pub(crate) fn new(threads: usize, tick: &'a mut dyn FnMut(&Progress) -> bool) -> Self {
        Workers { threads, tick, counters: Counters::default(), stage: "", total: 0 }
    }

    /// Begins a stage that reads `total` bytes.
    pub(crate) fn begin(&mut self, stage: &'static str, total: u64) {
        self.stage = stage;
        self.total = total;
        self.counters = Counters::default();
    }

    /// The counters of the current stage.
    pub(crate) fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Runs `job(0)` to `job(count - 1)` and returns their results in that order. If several fail, the error of the
    /// earliest job is returned, whatever the number of threads.
    pub(crate) fn run<T: Send>(
        &mut self,
        count: usize,
        job: impl Fn(usize, &Counters) -> Result<T> + Sync,
    ) -> Result<Vec<T>> {
        if self.threads == 0 {
            return (0..count).map(|index| self.poll().and_then(|()| job(index, &self.counters))).collect();
        }
        let next = AtomicUsize::new(0);
        let results: Mutex<Vec<_>> = Mutex::new((0..count).map(|_| None).collect());
        thread::scope(|scope| {
            let (alive, ended) = mpsc::channel::<()>(); // nothing is sent: it closes when the last worker ends
            for _ in 0..self.threads.min(count) {
                let alive = alive.clone();
                let (next, results, job, counters) = (&next, &results, &job, &self.counters);
                scope.spawn(move || {
                    let _alive = alive;
                    work(next, results, counters, job);
                });
            }
            drop(alive);
            while ended.recv_timeout(TICK) == Err(RecvTimeoutError::Timeout) {
                let progress = progress(self.stage, self.total, &self.counters);
                if !self.counters.should_stop() && !(self.tick)(&progress) {
                    self.counters.stop.store(true, Ordering::Relaxed);
                }
            }
        });
        if self.counters.should_stop() {
            return Err(Error::Interrupted);
        }
        let results = results.into_inner().unwrap_or_default();
        results.into_iter().map(|result| result.unwrap_or(Err(Error::Interrupted))).collect()
    }

    /// Reports the progress now. Returns `Interrupted` if the caller wants to stop.
    pub(crate) fn poll(&mut self) -> Result<()> {
        let progress = progress(self.stage, self.total, &self.counters);
        if (self.tick)(&progress) { Ok(()) } else { Err(Error::Interrupted) }
    }
}

fn progress(stage: &'static str, total: u64, counters: &Counters) -> Progress {
    let value = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    Progress {
        stage,
        total,
        documents: value(&counters.documents),
        tokens: value(&counters.tokens),
        bytes: value(&counters.bytes),
    }
}

/// Takes jobs until none is left. They are started in order, so when one fails, all before it have been started and only
/// later ones are skipped.
fn work<T>(
    next: &AtomicUsize,
    results: &Mutex<Vec<Option<Result<T>>>>,
    counters: &Counters,
    job: &(impl Fn(usize, &Counters) -> Result<T> + Sync),
) {
    while !counters.should_stop() {
        let index = next.fetch_add(1, Ordering::Relaxed);
        let count = results.lock().map_or(0, |results| results.len());
        if index >= count {
            return;
        }
        let result = job(index, counters);
        if result.is_err() {
            next.store(count, Ordering::Relaxed);
        }
        if let Ok(mut results) = results.lock() {
            results[index] = Some(result);
        }
    }
}

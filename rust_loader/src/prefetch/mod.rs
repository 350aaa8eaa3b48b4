//! A bounded ring of buffers that worker threads fill ahead of the consumer, which gets them strictly in order.
//!
//! A buffer always has exactly one owner: the free list, a worker, the ready list or a [`Lease`]. So nobody writes to it
//! while somebody else reads it, and there are never more buffers than slots. A lease returns its buffer when it is
//! dropped. The ring does not know about tokens: it calls a function that fills the buffer of a step.

pub mod aligned;

use std::collections::BTreeMap;
use std::ops::Deref;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::order::positive;
use aligned::AlignedBuffer;

/// How often a waiting consumer asks whether to stop waiting.
const TICK: Duration = Duration::from_millis(50);
/// How often if every buffer is in use: then the wait ends only when the consumer itself releases one.
const STARVED_TICK: Duration = Duration::from_millis(1);
const MAX_THREADS: usize = 256;
const MAX_SLOTS: usize = 4096;
/// No useful ring is larger. A mistyped size must fail before it takes the memory of the machine.
const MAX_BYTES: usize = 8 << 30;

/// The options of a [`Prefetcher`].
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// The number of buffers.
    pub slots: usize,
    /// The number of worker threads.
    pub threads: usize,
    /// The size of one buffer in bytes.
    pub block_bytes: usize,
    /// The first step.
    pub start: u64,
    /// The step after the last one.
    pub stop: u64,
    /// How long [`next`](Prefetcher::next) waits while every buffer is in use.
    pub lease_timeout: Duration,
}

impl Options {
    fn check(&self) -> Result<()> {
        let Options { slots, threads, block_bytes, .. } = *self;
        positive("slots", slots as u64)?;
        positive("threads", threads as u64)?;
        let problem = if threads > MAX_THREADS {
            format!("threads = {threads}; must be {MAX_THREADS} or less")
        } else if slots > MAX_SLOTS {
            format!("slots = {slots}; must be {MAX_SLOTS} or less")
        } else if block_bytes.checked_mul(slots).is_none_or(|bytes| bytes > MAX_BYTES) {
            format!("{slots} slots of {block_bytes} bytes are more than the {MAX_BYTES} bytes that a loader may take")
        } else {
            return Ok(());
        };
        Err(Error::Argument(problem))
    }
}

/// The ring as its consumer sees it. Dropping it stops the workers and waits for them.
#[derive(Debug)]
pub struct Prefetcher {
    ring: Arc<Ring>,
    workers: Mutex<Vec<JoinHandle<()>>>,
    buffers: Vec<(usize, usize)>,
    lease_timeout: Duration,
}

impl Prefetcher {
    /// Starts workers that call `fill(step, buffer)` for every step from `start` to `stop`.
    ///
    /// # Errors
    /// [`Error::Argument`] for invalid options, S007 without enough memory, S008 if a thread cannot be started.
    pub fn start<F>(options: Options, fill: F) -> Result<Self>
    where
        F: Fn(u64, &mut [u8]) -> Result<()> + Send + Sync + 'static,
    {
        options.check()?;
        let free = (0..options.slots).map(|_| AlignedBuffer::new(options.block_bytes)).collect::<Result<Vec<_>>>()?;
        let buffers = free.iter().map(|buffer| (buffer.address(), buffer.len())).collect();
        let ring = Arc::new(Ring::new(free, options.start, options.stop));
        let prefetcher = Prefetcher { ring, workers: Mutex::default(), buffers, lease_timeout: options.lease_timeout };
        let fill = Arc::new(fill);
        for _ in 0..options.threads {
            let (ring, fill) = (prefetcher.ring.clone(), fill.clone());
            let thread = thread::Builder::new().name("jaxgpt-loader".into()).spawn(move || ring.work(&*fill));
            let thread =
                thread.map_err(|error| Error::Worker { reason: format!("it could not be started: {error}") })?;
            locked(&prefetcher.workers).push(thread);
        }
        Ok(prefetcher)
    }

    /// The step of the next block.
    #[must_use]
    pub fn step(&self) -> u64 {
        self.ring.lock().next_take
    }

    /// Address and length of every buffer.
    #[must_use]
    pub fn buffers(&self) -> &[(usize, usize)] {
        &self.buffers
    }

    /// The next block, or `None` after the last.
    ///
    /// While it waits, it calls `keep_waiting(starved)` regularly. `starved` is true if every buffer is in use, so
    /// that the caller can release leases that it no longer needs. The error of a step is returned after the blocks of
    /// all steps before it, and on every later call.
    ///
    /// # Errors
    /// That of the step, S006 if every buffer stays in use for the timeout, S010 in a forked child,
    /// [`Error::Interrupted`] if `keep_waiting` returned false, [`Error::Argument`] if the ring is closed.
    pub fn next(&self, keep_waiting: &mut dyn FnMut(bool) -> bool) -> Result<Option<Lease>> {
        self.ring.check_process()?;
        let mut starved_since = None;
        loop {
            let mut state = self.ring.wait_ready();
            if state.is_ready() {
                let block = state.take()?;
                return Ok(block.map(|(step, buffer)| Lease { step, buffer: Some(buffer), ring: self.ring.clone() }));
            }
            let starved = state.starved();
            drop(state);
            self.check_timeout(starved, &mut starved_since)?;
            if !keep_waiting(starved) {
                return Err(Error::Interrupted);
            }
        }
    }

    fn check_timeout(&self, starved: bool, since: &mut Option<Instant>) -> Result<()> {
        if !starved {
            *since = None;
            return Ok(());
        }
        if since.get_or_insert_with(Instant::now).elapsed() < self.lease_timeout {
            return Ok(());
        }
        Err(Error::SlotsExhausted { slots: self.buffers.len(), seconds: self.lease_timeout.as_secs_f64() })
    }

    /// Stops the workers and waits for them. Buffers that are in use live until their leases are dropped.
    pub fn close(&self) {
        let workers = std::mem::take(&mut *locked(&self.workers));
        if self.ring.check_process().is_err() {
            return std::mem::forget(workers); // a forked child has the handles, but not the threads
        }
        self.ring.close();
        for worker in workers {
            let _ = worker.join(); // a panic in a worker was caught and published
        }
    }
}

impl Drop for Prefetcher {
    fn drop(&mut self) {
        self.close();
    }
}

/// A filled buffer on loan. It returns to its ring when this is dropped.
#[derive(Debug)]
pub struct Lease {
    step: u64,
    buffer: Option<AlignedBuffer>, // `Some` until dropped
    ring: Arc<Ring>,
}

impl Lease {
    /// The step of this block.
    #[must_use]
    pub fn step(&self) -> u64 {
        self.step
    }

    /// The address of the block in memory.
    #[must_use]
    pub fn address(&self) -> usize {
        self.buffer.as_ref().map_or(0, AlignedBuffer::address)
    }
}

impl Deref for Lease {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.buffer.as_deref().unwrap_or_default()
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(buffer) = self.buffer.take() {
            self.ring.release(buffer);
        }
    }
}

/// The state that consumer, workers and leases share.
#[derive(Debug)]
struct Ring {
    state: Mutex<State>,
    /// Signals the workers: a buffer is free, or the ring is closed.
    freed: Condvar,
    /// Signals the consumer: a block or an error is ready, or the ring is closed.
    published: Condvar,
    process: u32,
}

#[derive(Debug)]
struct State {
    free: Vec<AlignedBuffer>,
    ready: BTreeMap<u64, Result<AlignedBuffer>>,
    lent: usize,
    slots: usize,
    next_fill: u64,
    next_take: u64,
    stop: u64,
    closed: bool,
}

impl Ring {
    fn new(free: Vec<AlignedBuffer>, start: u64, stop: u64) -> Self {
        let state = State {
            slots: free.len(),
            free,
            ready: BTreeMap::new(),
            lent: 0,
            next_fill: start,
            next_take: start,
            stop,
            closed: false,
        };
        Ring { state: Mutex::new(state), freed: Condvar::new(), published: Condvar::new(), process: std::process::id() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        locked(&self.state)
    }

    /// Waits until the next block or an error is ready, but no longer than a tick.
    fn wait_ready(&self) -> MutexGuard<'_, State> {
        let state = self.lock();
        if state.is_ready() {
            return state;
        }
        let tick = if state.starved() { STARVED_TICK } else { TICK };
        self.published.wait_timeout(state, tick).unwrap_or_else(PoisonError::into_inner).0
    }

    /// The loop of a worker: take a step and a buffer, fill the buffer, publish it.
    fn work(&self, fill: &dyn Fn(u64, &mut [u8]) -> Result<()>) {
        while let Some((step, mut buffer)) = self.next_job() {
            let outcome = catch_unwind(AssertUnwindSafe(|| fill(step, &mut buffer)));
            let outcome = outcome.unwrap_or_else(|panic| Err(Error::Worker { reason: panic_text(&*panic) }));
            self.publish(step, buffer, outcome);
        }
    }

    /// Takes a step and a buffer under one lock: every step that was taken has a buffer, so the consumer never waits for a
    /// step that cannot be filled.
    fn next_job(&self) -> Option<(u64, AlignedBuffer)> {
        let mut state = self.lock();
        loop {
            if state.closed || state.next_fill >= state.stop {
                return None;
            }
            if let Some(buffer) = state.free.pop() {
                state.next_fill += 1;
                return Some((state.next_fill - 1, buffer));
            }
            state = self.freed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn publish(&self, step: u64, buffer: AlignedBuffer, outcome: Result<()>) {
        let mut state = self.lock();
        match outcome {
            Ok(()) => state.ready.insert(step, Ok(buffer)),
            Err(error) => {
                state.free.push(buffer);
                state.next_fill = u64::MAX; // no step after a failure is ever requested
                state.ready.insert(step, Err(error))
            }
        };
        self.freed.notify_all();
        self.published.notify_all();
    }

    fn release(&self, buffer: AlignedBuffer) {
        if self.check_process().is_err() {
            return; // the lock may have been held when the process was forked
        }
        let mut state = self.lock();
        state.lent -= 1;
        if !state.closed {
            state.free.push(buffer);
        }
        self.freed.notify_one();
    }

    fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        state.free.clear();
        state.ready.clear();
        self.freed.notify_all();
        self.published.notify_all();
    }

    fn check_process(&self) -> Result<()> {
        let child = std::process::id();
        if child != self.process {
            return Err(Error::Forked { parent: self.process, child });
        }
        Ok(())
    }
}

impl State {
    /// Returns true if [`take`](Self::take) has a result: a block, an error or the end.
    fn is_ready(&self) -> bool {
        self.closed || self.next_take >= self.stop || self.ready.contains_key(&self.next_take)
    }

    /// Returns true if every buffer is in use.
    fn starved(&self) -> bool {
        self.lent == self.slots
    }

    /// The next block, `None` at the end, or the error of the step.
    fn take(&mut self) -> Result<Option<(u64, AlignedBuffer)>> {
        if self.closed {
            return Err(Error::Argument("the loader is closed".into()));
        }
        if let Some(Err(error)) = self.ready.get(&self.next_take) {
            return Err(error.clone()); // it stays, for the next call
        }
        let block = self.ready.pop_first().and_then(|(step, buffer)| Some((step, buffer.ok()?)));
        self.next_take += u64::from(block.is_some());
        self.lent += usize::from(block.is_some());
        Ok(block)
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| text.to_string());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "unknown".into())
}

//! A bounded ring of buffers that worker threads fill ahead of the consumer, who gets them strictly in order.
//!
//! A buffer is always owned by one party: the free list, a worker, the ready list, or a [`Lease`]. It moves from one to
//! the next, so nobody can write to it while somebody else reads it, and there are never more of them than slots. A
//! lease gives its buffer back when it is dropped, not before. The ring knows nothing about tokens: it calls a function
//! that fills a buffer for a step.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::order::positive;
use crate::pinned::Buffer;

/// How often a waiting consumer looks up, to see whether it should stop waiting.
const TICK: Duration = Duration::from_millis(50);
/// How often if every buffer is lent out: then only what the consumer does when it looks up can end the wait.
const STARVED_TICK: Duration = Duration::from_millis(1);
const MAX_THREADS: usize = 256;
const MAX_SLOTS: usize = 4096;
/// No sensible ring is larger, and a mistyped size should be an error before it takes the machine's memory.
const MAX_BYTES: usize = 8 << 30;

/// The size of a ring.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Buffers.
    pub slots: usize,
    /// Workers.
    pub threads: usize,
    /// Bytes of one buffer.
    pub block_bytes: usize,
    /// The first step.
    pub start: u64,
    /// The step before which to stop.
    pub stop: u64,
    /// How long to wait when every buffer is lent out.
    pub lease_timeout: Duration,
}

impl Options {
    fn check(&self) -> Result<()> {
        let Options { slots, threads, block_bytes, .. } = *self;
        positive("slots", slots as u64)?;
        positive("threads", threads as u64)?;
        let problem = match () {
            _ if threads > MAX_THREADS => format!("threads = {threads}; must be {MAX_THREADS} or less"),
            _ if slots > MAX_SLOTS => format!("slots = {slots}; must be {MAX_SLOTS} or less"),
            _ if block_bytes.checked_mul(slots).is_none_or(|bytes| bytes > MAX_BYTES) => {
                format!(
                    "{slots} slots of {block_bytes} bytes are more than the {MAX_BYTES} bytes that a loader may take"
                )
            }
            _ => return Ok(()),
        };
        Err(Error::Argument(problem))
    }
}

/// The consumer's end of the ring. Dropping it stops the workers and waits for them.
#[derive(Debug)]
pub struct Prefetcher {
    ring: Arc<Ring>,
    workers: Mutex<Vec<JoinHandle<()>>>,
    buffers: Vec<(usize, usize)>,
    lease_timeout: Duration,
}

impl Prefetcher {
    /// Starts workers that call `fill(step, buffer)` for every step from `start` to `stop`.
    pub fn start<F>(options: Options, fill: F) -> Result<Self>
    where
        F: Fn(u64, &mut [u8]) -> Result<()> + Send + Sync + 'static,
    {
        options.check()?;
        let free = (0..options.slots).map(|_| Buffer::new(options.block_bytes)).collect::<Result<Vec<_>>>()?;
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
    pub fn step(&self) -> u64 {
        self.ring.lock().next_take
    }

    /// Address and length of every buffer.
    pub fn buffers(&self) -> &[(usize, usize)] {
        &self.buffers
    }

    /// The next block, or `None` after the last.
    ///
    /// While it waits, it asks `keep_waiting(starved)` now and then whether to go on; `starved` says that every buffer
    /// is lent out, so that the caller can look for leases that it no longer needs. A step that failed is an error when
    /// its turn comes, after the good ones before it, and on every call after that.
    pub fn next(&self, keep_waiting: &mut dyn FnMut(bool) -> bool) -> Result<Option<Lease>> {
        self.ring.check_process()?;
        let mut starved_since = None;
        loop {
            let mut state = self.ring.await_news();
            if state.has_news() {
                let block = state.take()?;
                return Ok(block.map(|(step, buffer)| Lease { step, buffer: Some(buffer), ring: self.ring.clone() }));
            }
            let starved = state.starved();
            drop(state);
            self.check_patience(starved, &mut starved_since)?;
            if !keep_waiting(starved) {
                return Err(Error::Interrupted);
            }
        }
    }

    fn check_patience(&self, starved: bool, since: &mut Option<Instant>) -> Result<()> {
        if !starved {
            *since = None;
            return Ok(());
        }
        match since.get_or_insert_with(Instant::now).elapsed() >= self.lease_timeout {
            true => {
                let (slots, seconds) = (self.buffers.len(), self.lease_timeout.as_secs_f64());
                Err(Error::SlotsExhausted { slots, seconds })
            }
            false => Ok(()),
        }
    }

    /// Stops the workers and waits for them. Buffers that are lent out live until their leases drop.
    pub fn close(&self) {
        let workers = std::mem::take(&mut *locked(&self.workers));
        if self.ring.check_process().is_err() {
            return std::mem::forget(workers); // a forked child has the handles, but not the threads
        }
        self.ring.close();
        for worker in workers {
            let _ = worker.join(); // a worker's panic has been caught and published already
        }
    }
}

impl Drop for Prefetcher {
    fn drop(&mut self) {
        self.close();
    }
}

/// A filled buffer on loan: it returns to its ring when this is dropped.
#[derive(Debug)]
pub struct Lease {
    step: u64,
    buffer: Option<Buffer>, // `Some` until dropped
    ring: Arc<Ring>,
}

impl Lease {
    /// The step whose block this is.
    pub fn step(&self) -> u64 {
        self.step
    }

    /// Where the block is in memory.
    pub fn address(&self) -> usize {
        self.buffer.as_ref().map_or(0, Buffer::address)
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
            self.ring.take_back(buffer);
        }
    }
}

/// What consumer, workers and leases share.
#[derive(Debug)]
struct Ring {
    state: Mutex<State>,
    /// Something for the workers: a free buffer, or the end.
    freed: Condvar,
    /// Something for the consumer: a block, an error, or the end.
    published: Condvar,
    process: u32,
}

#[derive(Debug)]
struct State {
    free: Vec<Buffer>,
    ready: BTreeMap<u64, Result<Buffer>>,
    lent: usize,
    slots: usize,
    next_fill: u64,
    next_take: u64,
    stop: u64,
    closed: bool,
}

impl Ring {
    fn new(free: Vec<Buffer>, start: u64, stop: u64) -> Self {
        let (slots, ready) = (free.len(), BTreeMap::new());
        let state = State { free, ready, lent: 0, slots, next_fill: start, next_take: start, stop, closed: false };
        Ring { state: Mutex::new(state), freed: Condvar::new(), published: Condvar::new(), process: std::process::id() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        locked(&self.state)
    }

    /// Waits for news, though no longer than a tick.
    fn await_news(&self) -> MutexGuard<'_, State> {
        let state = self.lock();
        if state.has_news() {
            return state;
        }
        let tick = if state.starved() { STARVED_TICK } else { TICK };
        self.published.wait_timeout(state, tick).unwrap_or_else(PoisonError::into_inner).0
    }

    /// A worker's life: take a buffer and a step together, fill, publish.
    fn work(&self, fill: &dyn Fn(u64, &mut [u8]) -> Result<()>) {
        while let Some((step, mut buffer)) = self.claim() {
            let outcome = catch_unwind(AssertUnwindSafe(|| fill(step, &mut buffer)));
            let outcome = outcome.unwrap_or_else(|panic| Err(Error::Worker { reason: panic_text(&*panic) }));
            self.publish(step, buffer, outcome);
        }
    }

    /// Both under one lock: whoever holds an early step holds a buffer for it, so the consumer's turn always comes.
    fn claim(&self) -> Option<(u64, Buffer)> {
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

    fn publish(&self, step: u64, buffer: Buffer, outcome: Result<()>) {
        let mut state = self.lock();
        match outcome {
            Ok(()) => state.ready.insert(step, Ok(buffer)),
            Err(error) => {
                state.free.push(buffer);
                state.next_fill = u64::MAX; // nothing after a failure will ever be asked for
                state.ready.insert(step, Err(error))
            }
        };
        self.freed.notify_all();
        self.published.notify_all();
    }

    fn take_back(&self, buffer: Buffer) {
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
        (state.free, state.ready) = Default::default();
        self.freed.notify_all();
        self.published.notify_all();
    }

    fn check_process(&self) -> Result<()> {
        match std::process::id() {
            child if child != self.process => Err(Error::Forked { parent: self.process, child }),
            _ => Ok(()),
        }
    }
}

impl State {
    fn has_news(&self) -> bool {
        self.closed || self.next_take >= self.stop || self.ready.contains_key(&self.next_take)
    }

    fn starved(&self) -> bool {
        self.lent == self.slots
    }

    /// The news: the next block, `None` at the end, or what went wrong.
    fn take(&mut self) -> Result<Option<(u64, Buffer)>> {
        if self.closed {
            return Err(Error::Argument("the loader is closed".into()));
        }
        if let Some(Err(error)) = self.ready.get(&self.next_take) {
            return Err(error.clone()); // and it stays, for the next call
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

//! `Loader` and `Lease`.

use std::time::Duration;

use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::data::Dataset;
use super::errors::{Int, interrupted, to_py};
use crate::error::Error;
use crate::order::Geometry;
use crate::order::batch::Batches;
use crate::prefetch::{self, Options, Prefetcher};
use crate::shard::format::Dtype;

/// Iterates over the blocks of a run. A block is one step: `[accum, micro_batch / world, block + 1]` tokens.
#[pyclass(frozen, module = "jaxgpt._loader")]
pub struct Loader {
    prefetcher: Prefetcher,
    shape: [u64; 3],
    dtype: Dtype,
}

#[pymethods]
impl Loader {
    #[new]
    #[pyo3(
        signature = (dataset, *, block, micro_batch, accum=Int::from(1), order="epoch", seed=Int::from(0),
            start_step=Int::from(0), stop_step=None, slots=Int::from(4), threads=Int::from(1), rank=Int::from(0),
            world=Int::from(1), vocab_size=None, lease_timeout=60.0),
        text_signature = "(dataset, *, block, micro_batch, accum=1, order='epoch', seed=0, start_step=0, \
            stop_step=None, slots=4, threads=1, rank=0, world=1, vocab_size=None, lease_timeout=60.0)"
    )]
    #[allow(clippy::too_many_arguments)] // one for each keyword in Python
    fn new(
        py: Python<'_>,
        dataset: &Dataset,
        block: Int,
        micro_batch: Int,
        accum: Int,
        order: &str,
        seed: Int,
        start_step: Int,
        stop_step: Option<Int>,
        slots: Int,
        threads: Int,
        rank: Int,
        world: Int,
        vocab_size: Option<Int>,
        lease_timeout: f64,
    ) -> PyResult<Self> {
        let geometry = Geometry {
            block: block.size("block")?,
            micro_batch: micro_batch.size("micro_batch")?,
            accum: accum.size("accum")?,
            rank: rank.size("rank")?,
            world: world.size("world")?,
        };
        let vocab_size = vocab_size.map(|size| size.size("vocab_size")).transpose()?;
        let stop = stop_step.map(|step| step.size("stop_step")).transpose()?.unwrap_or(u64::MAX);
        let order = to_py(order.parse())?;
        let batches = Batches::new(dataset.inner.clone(), order, seed.size("seed")?, geometry, vocab_size);
        let batches = to_py(batches)?;
        let options = Options {
            slots: slots.size("slots")? as usize,
            threads: threads.size("threads")? as usize,
            block_bytes: to_py(batches.block_bytes())?,
            start: start_step.size("start_step")?,
            stop: stop.min(batches.steps()),
            lease_timeout: timeout(lease_timeout)?,
        };
        let fill = move |step, buffer: &mut [u8]| batches.fill(step, buffer);
        let prefetcher = to_py(py.detach(|| Prefetcher::start(options, fill)))?;
        Ok(Loader { prefetcher, shape: geometry.shape(), dtype: dataset.inner.dtype() })
    }

    fn __iter__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    fn __next__(&self, py: Python<'_>) -> PyResult<Option<Lease>> {
        let mut stopped = None;
        let mut starved_calls = 0;
        let mut keep_waiting = |starved| {
            if starved {
                starved_calls += 1;
                collect_garbage(starved_calls);
            }
            !interrupted(&mut stopped)
        };
        let outcome = py.detach(|| self.prefetcher.next(&mut keep_waiting));
        let lease = stopped.map_or_else(|| to_py(outcome), Err)?;
        Ok(lease.map(|inner| Lease { inner, shape: self.shape, dtype: self.dtype }))
    }

    /// The step of the next block.
    #[getter]
    fn step(&self) -> u64 {
        self.prefetcher.step()
    }

    /// The shape of every block.
    #[getter]
    fn shape(&self) -> (u64, u64, u64) {
        self.shape.into()
    }

    /// "uint16" or "uint32".
    #[getter]
    fn dtype(&self) -> &'static str {
        self.dtype.name()
    }

    /// The address and length of every slot.
    fn buffers(&self) -> Vec<(usize, usize)> {
        self.prefetcher.buffers().to_vec()
    }

    /// Stops the threads and waits for them. Blocks in use stay valid.
    fn close(&self, py: Python<'_>) {
        py.detach(|| self.prefetcher.close());
    }

    fn __enter__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    #[pyo3(signature = (*_exception))]
    fn __exit__(&self, py: Python<'_>, _exception: &Bound<'_, PyAny>) {
        self.close(py);
    }
}

/// One block on loan. `numpy.asarray(lease)` is a view of it. The slot is free when no view is left.
#[pyclass(frozen, module = "jaxgpt._loader")]
pub struct Lease {
    inner: prefetch::Lease,
    shape: [u64; 3],
    dtype: Dtype,
}

#[pymethods]
impl Lease {
    /// The step of this block.
    #[getter]
    fn step(&self) -> u64 {
        self.inner.step()
    }

    /// numpy's description of the memory: read-only. An array made from it keeps the lease as its base.
    #[getter]
    fn __array_interface__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let description = PyDict::new(py);
        description.set_item("version", 3)?;
        description.set_item("data", (self.inner.address(), true))?;
        description.set_item("shape", <(u64, u64, u64)>::from(self.shape))?;
        description.set_item("typestr", format!("<u{}", self.dtype.size()))?;
        Ok(description)
    }
}

/// Runs Python's garbage collector, so that it releases blocks that nobody uses.
///
/// JAX releases an array's memory only at its next call, or when the collector runs. While this thread waits for a slot
/// it does not call JAX: without the collector it could wait forever. It is called every millisecond. About once per
/// second all generations are collected, for blocks in a reference cycle.
fn collect_garbage(call: u32) {
    let generation = if call % 1000 == 0 { 2 } else { 0 };
    let collected = Python::attach(|py| py.import("gc")?.call_method1("collect", (generation,)).map(drop));
    collected.unwrap_or_default(); // a failed collection is harmless: the lease timeout ends the wait
}

fn timeout(seconds: f64) -> PyResult<Duration> {
    let problem = |_| Error::Argument(format!("lease_timeout = {seconds}; must be a number of seconds from 0 on"));
    to_py(Duration::try_from_secs_f64(seconds).map_err(problem))
}

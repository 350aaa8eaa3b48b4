//! The Python module `jaxgpt._loader`: it checks arguments, releases the GIL and translates errors, nothing else.

mod audit;
mod data;
mod errors;
mod loader;
mod splitter;
mod writer;

use std::path::PathBuf;

use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::error::Error;
use crate::gpt2;
use crate::hash;
use crate::order::{Order, Sampler};
use errors::{Int, interrupted, raised};

/// A list of starts is for tests and audits: this many are 800 MB.
const MAX_STARTS: u64 = 100_000_000;

/// Token shards, their order, and a bounded ring of prefetched batches.
#[pymodule(gil_used = false)]
fn _loader(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    errors::add_to(module)?;
    module.add_class::<data::Dataset>()?;
    module.add_class::<loader::Loader>()?;
    module.add_class::<loader::Lease>()?;
    module.add_class::<writer::ShardWriter>()?;
    module.add_class::<writer::WrittenShard>()?;
    module.add_class::<splitter::Encoded>()?;
    module.add_class::<splitter::Splitter>()?;
    module.add_class::<splitter::WrittenSplit>()?;
    module.add_function(wrap_pyfunction!(splitter::text_keys, module)?)?;
    module.add_class::<audit::Audit>()?;
    module.add_class::<audit::ClusterMap>()?;
    module.add_function(wrap_pyfunction!(audit::audit, module)?)?;
    module.add_function(wrap_pyfunction!(audit::document_key, module)?)?;
    module.add_function(wrap_pyfunction!(sample_starts, module)?)?;
    module.add_function(wrap_pyfunction!(gpt2_vocabulary, module)?)?;
    module.add_function(wrap_pyfunction!(gpt2_merges, module)?)?;
    module.add_function(wrap_pyfunction!(gpt2_model_json, module)?)?;
    module.add_function(wrap_pyfunction!(hash_file, module)?)?;
    module.add_function(wrap_pyfunction!(hash_bytes, module)?)
}

/// The token at which each of `count` samples starts, from the sample numbered `first` on.
#[pyfunction]
fn sample_starts(
    py: Python<'_>,
    tokens: Int,
    block: Int,
    order: &str,
    seed: Int,
    first: Int,
    count: Int,
) -> PyResult<Vec<u64>> {
    let (tokens, block) = (tokens.size("tokens")?, block.size("block")?);
    let (seed, first, count) = (seed.size("seed")?, first.size("first")?, count.size("count")?);
    let last = first.checked_add(count).filter(|_| count <= MAX_STARTS);
    let last = last.ok_or_else(|| Error::Argument(format!("count = {count}; must be {MAX_STARTS} or less")));
    let order = raised(order.parse::<Order>())?;
    let sampler = raised(Sampler::new(order, seed, tokens, block))?;
    let samples = first..raised(last)?;
    Ok(py.detach(|| samples.map(|sample| sampler.start(sample)).collect()))
}

/// The bytes of GPT-2's tokens 0 to 50255, without the end-of-text token.
#[pyfunction]
fn gpt2_vocabulary(py: Python<'_>) -> Vec<Bound<'_, PyBytes>> {
    py.detach(gpt2::vocabulary).iter().map(|token| PyBytes::new(py, token)).collect()
}

/// GPT-2's 50,000 merges, the first to apply in front.
#[pyfunction]
fn gpt2_merges(py: Python<'_>) -> Vec<(Bound<'_, PyBytes>, Bound<'_, PyBytes>)> {
    let merges = py.detach(|| gpt2::merges(&gpt2::vocabulary()));
    merges.iter().map(|(left, right)| (PyBytes::new(py, left), PyBytes::new(py, right))).collect()
}

/// "vocab" and "merges" of GPT-2's `tokenizer.json`, with a comma between them.
#[pyfunction]
fn gpt2_model_json(py: Python<'_>) -> String {
    py.detach(gpt2::model_json)
}

/// The xxh3-128 of the file at `path`, in hexadecimal.
#[pyfunction]
fn hash_file(py: Python<'_>, path: PathBuf) -> PyResult<String> {
    let mut stopped = None;
    let outcome = py.detach(|| hash::hash_file(&path, &mut || !interrupted(&mut stopped)));
    stopped.map_or_else(|| raised(outcome), Err)
}

/// The xxh3-128 of `data`, in hexadecimal.
#[pyfunction]
fn hash_bytes(py: Python<'_>, data: &[u8]) -> String {
    py.detach(|| hash::hash_bytes(data))
}

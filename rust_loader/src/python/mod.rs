//! The Python module `jaxgpt._loader`. It only checks arguments, releases the GIL and converts errors.

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
pub(crate) use errors::Exception;
use errors::{Int, interrupted, to_py};

/// The longest list of starts: 800 MB. Only tests and benchmarks ask for them.
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
    module.add_class::<splitter::EncodedDocuments>()?;
    module.add_class::<splitter::Splitter>()?;
    module.add_class::<writer::SplitWriter>()?;
    module.add_class::<writer::WrittenSplit>()?;
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

/// The index of the first token of each of `count` samples, from sample `first` on. For tests and benchmarks.
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
    let first = first.size("first")?;
    let count = count.size("count")?;
    let end = first.checked_add(count).filter(|_| count <= MAX_STARTS);
    let end = end.ok_or_else(|| Error::Argument(format!("count = {count}; must be {MAX_STARTS} or less")))?;
    let order = to_py(order.parse::<Order>())?;
    let sampler = to_py(Sampler::new(order, seed.size("seed")?, tokens.size("tokens")?, block.size("block")?))?;
    let samples = first..end;
    Ok(py.detach(|| samples.map(|sample| sampler.start(sample)).collect()))
}

/// The bytes of GPT-2's tokens 0 to 50255, without the end-of-text token. For tests and benchmarks.
#[pyfunction]
fn gpt2_vocabulary(py: Python<'_>) -> Vec<Bound<'_, PyBytes>> {
    py.detach(gpt2::vocabulary).iter().map(|token| PyBytes::new(py, token)).collect()
}

/// GPT-2's 50,000 merges, in the order in which they apply. For tests.
#[pyfunction]
fn gpt2_merges(py: Python<'_>) -> Vec<(Bound<'_, PyBytes>, Bound<'_, PyBytes>)> {
    let merges = py.detach(|| gpt2::merges(&gpt2::vocabulary()));
    merges.iter().map(|(left, right)| (PyBytes::new(py, left), PyBytes::new(py, right))).collect()
}

/// The "vocab" and "merges" of GPT-2's `tokenizer.json`, with a comma between them.
#[pyfunction]
fn gpt2_model_json(py: Python<'_>) -> String {
    py.detach(gpt2::model_json)
}

/// The xxh3-128 of the file at `path`, in hexadecimal.
#[pyfunction]
fn hash_file(py: Python<'_>, path: PathBuf) -> PyResult<String> {
    let mut stopped = None;
    let outcome = py.detach(|| hash::hash_file(&path, &mut || !interrupted(&mut stopped)));
    stopped.map_or_else(|| to_py(outcome), Err)
}

/// The xxh3-128 of `data`, in hexadecimal.
#[pyfunction]
fn hash_bytes(py: Python<'_>, data: &[u8]) -> String {
    py.detach(|| hash::hash_bytes(data))
}

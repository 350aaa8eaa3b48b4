//! `audit`, `Audit`, `ClusterMap` and `document_key`.

use std::path::PathBuf;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use super::data::Dataset;
use super::errors::{Int, interrupted, report_progress, to_py};
use crate::audit::clusters::{self, Key};
use crate::audit::tokens::Tokens;
use crate::audit::{self as core, Options, Placement, Progress};
use crate::error::Error;
use crate::shard::format::Dtype;

/// The result of an audit.
#[pyclass(frozen, module = "jaxgpt._loader")]
pub struct Audit {
    inner: core::Audit,
}

#[pymethods]
impl Audit {
    /// The report as JSON.
    #[getter]
    fn report(&self, py: Python<'_>) -> PyResult<String> {
        let text = py.detach(|| serde_json::to_string(self.inner.report()));
        text.map_err(|error| PyValueError::new_err(error.to_string()))
    }

    /// The number of occurrences of each id in a split, as uint64.
    fn counts<'py>(&self, py: Python<'py>, split: usize) -> PyResult<Bound<'py, PyBytes>> {
        let counts = split_of(self.inner.counts(), split)?;
        Ok(bytes(py, counts.iter().flat_map(|count| count.to_le_bytes())))
    }

    /// The range of each document of a split, as pairs of uint64.
    fn documents<'py>(&self, py: Python<'py>, split: usize) -> PyResult<Bound<'py, PyBytes>> {
        let contents = split_of(self.inner.contents(), split)?;
        Ok(bytes(py, contents.iter().flat_map(|&(start, end)| [start, end]).flat_map(u64::to_le_bytes)))
    }

    /// For each document, the one that is kept of its cluster, as uint32.
    fn kept<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        bytes(py, self.inner.kept().iter().flat_map(|document| document.to_le_bytes()))
    }

    /// Writes the near-duplicate clusters, and returns the file's xxh3-128.
    fn write_clusters(&self, py: Python<'_>, path: PathBuf) -> PyResult<String> {
        to_py(py.detach(|| self.inner.write_clusters(&path)))
    }
}

fn bytes(py: Python<'_>, content: impl Iterator<Item = u8> + Send) -> Bound<'_, PyBytes> {
    PyBytes::new(py, &py.detach(|| content.collect::<Vec<u8>>()))
}

fn split_of<T>(all: &[Vec<T>], split: usize) -> PyResult<&Vec<T>> {
    all.get(split).ok_or_else(|| Error::Argument(format!("split {split}; there are {}", all.len())).into())
}

/// Audits token shards.
#[pyfunction]
#[pyo3(
    signature = (train, val, *, vocab_size, folder, eot=None, placement="auto", threads=Int::from(2), progress=None),
    text_signature = "(train, val, *, vocab_size, folder, eot=None, placement='auto', threads=2, progress=None)"
)]
#[allow(clippy::too_many_arguments)] // one for each keyword in Python
pub(super) fn audit(
    py: Python<'_>,
    train: &Dataset,
    val: Option<&Dataset>,
    vocab_size: Int,
    folder: PathBuf,
    eot: Option<Int>,
    placement: &str,
    threads: Int,
    progress: Option<Py<PyAny>>,
) -> PyResult<Audit> {
    let eot = eot.map(|eot| eot.size("eot")).transpose()?.map(u32::try_from);
    let options = Options {
        vocab_size: vocab_size.size("vocab_size")?,
        eot: eot.transpose().map_err(|_| PyValueError::new_err("eot is not a uint32"))?,
        placement: placement_of(placement)?,
        threads: threads.size("threads")?.max(1) as usize,
        folder: Some(folder),
    };
    let mut stopped = None;
    let mut tick =
        |now: &Progress| !interrupted(&mut stopped) && report_progress(progress.as_ref(), arguments(now), &mut stopped);
    let outcome = py.detach(|| {
        let val = val.map(|val| &*val.inner as &dyn Tokens);
        core::audit(&*train.inner, val, &options, &mut tick)
    });
    stopped.map_or_else(|| to_py(outcome), Err).map(|inner| Audit { inner })
}

fn placement_of(name: &str) -> PyResult<Placement> {
    match name {
        "auto" => Ok(Placement::Auto),
        "appended" => Ok(Placement::Appended),
        "prepended" => Ok(Placement::Prepended),
        _ => Err(PyValueError::new_err(format!("placement = '{name}'; must be 'auto', 'appended' or 'prepended'"))),
    }
}

fn arguments(now: &Progress) -> (&'static str, u64, u64, u64, u64) {
    (now.stage, now.documents, now.tokens, now.bytes, now.total)
}

/// The near-duplicate clusters of an audit.
#[pyclass(frozen, module = "jaxgpt._loader")]
pub struct ClusterMap {
    inner: clusters::ClusterMap,
}

#[pymethods]
impl ClusterMap {
    #[new]
    fn new(py: Python<'_>, path: PathBuf) -> PyResult<Self> {
        Ok(ClusterMap { inner: to_py(py.detach(|| clusters::ClusterMap::open(&path)))? })
    }

    fn __len__(&self) -> usize {
        self.inner.len()
    }

    /// The key of the document that represents the cluster of the document with this key.
    fn representative<'py>(&self, py: Python<'py>, key: Key) -> Option<Bound<'py, PyBytes>> {
        self.inner.representative(&key).map(|key| PyBytes::new(py, &key))
    }
}

/// The key of a document, given as little-endian tokens.
#[pyfunction]
pub(super) fn document_key<'py>(py: Python<'py>, tokens: &[u8], dtype: &str) -> PyResult<Bound<'py, PyBytes>> {
    let dtype = to_py(Dtype::from_name(dtype))?;
    Ok(PyBytes::new(py, &clusters::document_key(tokens, dtype)))
}

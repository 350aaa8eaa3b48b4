//! `Splitter`, `EncodedDocuments` and `text_keys`.

use std::path::PathBuf;

use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use super::errors::{Int, to_py};
use super::writer::{WrittenSplit, elements};
use crate::audit::clusters::ClusterMap;
use crate::error::Error;
use crate::shard::format::Dtype;
use crate::shard::split_writer;
use crate::shard::writer::Layout;
use crate::split::{self, Batch, Options, Progress, text_key};

/// A batch of documents: texts in UTF-8 and ids, each one after another, with the offsets of the documents.
///
/// It copies its arrays once, at about 10 GB/s, so that Rust threads can read them without the GIL and without `unsafe`.
#[pyclass(frozen, module = "jaxgpt._loader")]
pub struct EncodedDocuments {
    texts: Vec<u8>,
    text_offsets: Vec<i64>,
    ids: Vec<u32>,
    id_offsets: Vec<i64>,
}

#[pymethods]
impl EncodedDocuments {
    #[new]
    fn new(
        texts: &Bound<'_, PyAny>,
        text_offsets: &Bound<'_, PyAny>,
        ids: &Bound<'_, PyAny>,
        id_offsets: &Bound<'_, PyAny>,
    ) -> PyResult<Self> {
        let encoded = EncodedDocuments {
            texts: array::<u8>(texts, "texts")?,
            text_offsets: array::<i64>(text_offsets, "text_offsets")?,
            ids: array::<u32>(ids, "ids")?,
            id_offsets: array::<i64>(id_offsets, "id_offsets")?,
        };
        to_py(encoded.batch().check())?;
        Ok(encoded)
    }

    fn __len__(&self) -> usize {
        self.text_offsets.len() - 1
    }
}

impl EncodedDocuments {
    fn batch(&self) -> Batch<'_> {
        Batch { texts: &self.texts, text_offsets: &self.text_offsets, ids: &self.ids, id_offsets: &self.id_offsets }
    }
}

/// Puts encoded documents into training and validation shards. It can continue an interrupted one.
#[pyclass(module = "jaxgpt._loader")]
pub struct Splitter {
    files: split_writer::Options,
    inner: Option<split::Splitter>,
}

#[pymethods]
impl Splitter {
    #[new]
    #[pyo3(
        signature = (folder, dtype, *, shard_tokens, end_of_text=None, val_tokens=Int::from(0), candidate_fraction=0.0,
            max_tokens=None, headerless=false, clusters=None, progress=None),
        text_signature = "(folder, dtype, *, shard_tokens, end_of_text=None, val_tokens=0, candidate_fraction=0.0, \
            max_tokens=None, headerless=False, clusters=None, progress=None)"
    )]
    #[allow(clippy::too_many_arguments)] // one for each keyword in Python
    fn new(
        py: Python<'_>,
        folder: PathBuf,
        dtype: &str,
        shard_tokens: Int,
        end_of_text: Option<u32>,
        val_tokens: Int,
        candidate_fraction: f64,
        max_tokens: Option<Int>,
        headerless: bool,
        clusters: Option<PathBuf>,
        progress: Option<&str>,
    ) -> PyResult<Self> {
        let files = split_writer::Options {
            folder,
            name: String::new(),
            dtype: to_py(Dtype::from_name(dtype))?,
            layout: if headerless { Layout::Headerless } else { Layout::Shard },
            shard_tokens: shard_tokens.size("shard_tokens")?,
        };
        let options = Options {
            files: files.clone(),
            end_of_text,
            val_tokens: val_tokens.size("val_tokens")?,
            key_limit: key_limit(candidate_fraction)?,
            clusters: to_py(py.detach(|| clusters.map(|path| ClusterMap::open(&path)).transpose()))?,
            max_tokens: max_tokens.map(|tokens| tokens.size("max_tokens")).transpose()?.unwrap_or(u64::MAX),
        };
        let progress = progress.map_or_else(|| Ok(Progress::default()), parse_progress)?;
        let inner = to_py(py.detach(|| split::Splitter::resume(options, progress)))?;
        Ok(Splitter { files, inner: Some(inner) })
    }

    /// Adds documents `first` to `last` (exclusive) of a batch until `max_tokens` is reached; returns the number added.
    fn add(&mut self, py: Python<'_>, batch: &EncodedDocuments, first: usize, last: usize) -> PyResult<usize> {
        let inner = open(self.inner.as_mut())?;
        to_py(py.detach(|| inner.add(&batch.batch(), first, last)))
    }

    /// Documents, bytes of text and tokens so far.
    #[getter]
    fn totals(&self) -> PyResult<(u64, u64, u64)> {
        let totals = open(self.inner.as_ref())?.totals();
        Ok((totals.documents, totals.bytes, totals.tokens))
    }

    /// True if `max_tokens` is reached.
    #[getter]
    fn is_full(&self) -> PyResult<bool> {
        Ok(open(self.inner.as_ref())?.is_full())
    }

    /// Writes everything to disk, and returns the `progress` from which another splitter can continue.
    fn sync(&mut self, py: Python<'_>) -> PyResult<String> {
        let inner = open(self.inner.as_mut())?;
        let progress = to_py(py.detach(|| inner.sync()))?;
        serde_json::to_string(&progress).map_err(|error| PyValueError::new_err(error.to_string()))
    }

    /// Closes the unfinished files. They stay on disk.
    fn close(&mut self, py: Python<'_>) {
        let inner = self.inner.take();
        py.detach(|| drop(inner));
    }

    fn __enter__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    #[pyo3(signature = (*_exception))]
    fn __exit__(&mut self, py: Python<'_>, _exception: &Bound<'_, PyAny>) {
        self.close(py);
    }

    /// Finishes all shards. Returns train, and val if there is one.
    fn finish(&mut self, py: Python<'_>) -> PyResult<(WrittenSplit, Option<WrittenSplit>)> {
        let inner = open(self.inner.take())?;
        let (train, val) = to_py(py.detach(|| inner.finish()))?;
        let written = |name: &str, state| {
            let files = split_writer::Options { name: name.into(), ..self.files.clone() };
            WrittenSplit::new(&files, state)
        };
        Ok((written("train", train), val.map(|val| written("val", val))))
    }
}

/// The keys of texts, 16 bytes each.
#[pyfunction]
pub(super) fn text_keys<'py>(
    py: Python<'py>,
    texts: &Bound<'py, PyAny>,
    text_offsets: &Bound<'py, PyAny>,
) -> PyResult<Bound<'py, PyBytes>> {
    let texts = array::<u8>(texts, "texts")?;
    let offsets = array::<i64>(text_offsets, "text_offsets")?;
    let text = |pair: &[i64]| texts.get(pair[0] as usize..pair[1] as usize);
    let keys: Option<Vec<_>> = py.detach(|| offsets.windows(2).map(|pair| text(pair).map(text_key)).collect());
    let keys = keys.ok_or_else(|| PyValueError::new_err("offsets and buffer of the texts do not match"))?;
    Ok(PyBytes::new(py, keys.as_flattened()))
}

fn open<T>(splitter: Option<T>) -> PyResult<T> {
    splitter.ok_or_else(|| Error::Argument("this splitter is finished".into()).into())
}

fn array<T: pyo3::buffer::Element>(object: &Bound<'_, PyAny>, name: &str) -> PyResult<Vec<T>> {
    let expected = std::any::type_name::<T>();
    elements(object)?.ok_or_else(|| PyTypeError::new_err(format!("{name} must be an array of {expected}")))
}

/// Converts a fraction of all keys to a limit for their first halves.
fn key_limit(candidate_fraction: f64) -> PyResult<u128> {
    if !(0.0..=1.0).contains(&candidate_fraction) {
        let message = format!("candidate_fraction = {candidate_fraction}; must be from 0 to 1");
        return Err(PyValueError::new_err(message));
    }
    Ok((candidate_fraction * 2f64.powi(64)) as u128)
}

fn parse_progress(progress: &str) -> PyResult<Progress> {
    serde_json::from_str(progress).map_err(|error| PyValueError::new_err(format!("progress: {error}")))
}

//! `Splitter` and `WrittenSplit`.

use std::path::PathBuf;

use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use super::errors::{Int, raised};
use super::writer::{WrittenShard, elements};
use crate::audit::clusters::ClusterMap;
use crate::error::Error;
use crate::format::Dtype;
use crate::series::{Plan, State};
use crate::splitter::{self, Batch, Options, Progress, text_key};
use crate::writer::Layout;

/// A batch of documents: texts in UTF-8 and ids, each one after another, with the places where documents begin and end.
#[pyclass(frozen, module = "jaxgpt._loader")]
pub struct Encoded {
    texts: Vec<u8>,
    text_ends: Vec<i64>,
    ids: Vec<u32>,
    id_ends: Vec<i64>,
}

#[pymethods]
impl Encoded {
    #[new]
    fn new(
        texts: &Bound<'_, PyAny>,
        text_ends: &Bound<'_, PyAny>,
        ids: &Bound<'_, PyAny>,
        id_ends: &Bound<'_, PyAny>,
    ) -> PyResult<Self> {
        let (texts, ids) = (needed::<u8>(texts, "texts")?, needed::<u32>(ids, "ids")?);
        let (text_ends, id_ends) = (needed::<i64>(text_ends, "text_ends")?, needed::<i64>(id_ends, "id_ends")?);
        let encoded = Encoded { texts, text_ends, ids, id_ends };
        raised(encoded.borrowed().check())?;
        Ok(encoded)
    }

    fn __len__(&self) -> usize {
        self.text_ends.len() - 1
    }
}

impl Encoded {
    fn borrowed(&self) -> Batch<'_> {
        Batch { texts: &self.texts, text_ends: &self.text_ends, ids: &self.ids, id_ends: &self.id_ends }
    }
}

/// Puts encoded documents into training and validation shards, and can go on where an earlier one was interrupted.
#[pyclass(module = "jaxgpt._loader")]
pub struct Splitter {
    plan: Plan,
    inner: Option<splitter::Splitter>,
}

#[pymethods]
impl Splitter {
    #[new]
    #[pyo3(
        signature = (folder, dtype, *, shard_tokens, end_of_text=None, val_tokens=Int::from(0), limit=0.0, budget=None,
            plain=false, clusters=None, progress=None),
        text_signature = "(folder, dtype, *, shard_tokens, end_of_text=None, val_tokens=0, limit=0.0, budget=None, \
            plain=False, clusters=None, progress=None)"
    )]
    #[allow(clippy::too_many_arguments)]
    fn new(
        py: Python<'_>,
        folder: PathBuf,
        dtype: &str,
        shard_tokens: Int,
        end_of_text: Option<u32>,
        val_tokens: Int,
        limit: f64,
        budget: Option<Int>,
        plain: bool,
        clusters: Option<PathBuf>,
        progress: Option<&str>,
    ) -> PyResult<Self> {
        let layout = if plain { Layout::Plain } else { Layout::Shard };
        let (dtype, shard_tokens) = (raised(Dtype::from_name(dtype))?, shard_tokens.size("shard_tokens")?);
        let plan = Plan { folder, name: String::new(), dtype, layout, shard_tokens };
        let options = Options {
            plan: plan.clone(),
            end_of_text,
            val_tokens: val_tokens.size("val_tokens")?,
            limit: share(limit)?,
            clusters: raised(py.detach(|| clusters.map(|path| ClusterMap::open(&path)).transpose()))?,
            budget: budget.map(|budget| budget.size("budget")).transpose()?.unwrap_or(u64::MAX),
        };
        let progress = progress.map_or_else(|| Ok(Progress::default()), parsed)?;
        let inner = raised(py.detach(|| splitter::Splitter::resume(options, progress)))?;
        Ok(Splitter { plan, inner: Some(inner) })
    }

    /// Adds documents `first` to `last` (exclusive) of a batch; returns how many the budget allowed.
    fn add(&mut self, py: Python<'_>, batch: &Encoded, first: usize, last: usize) -> PyResult<usize> {
        let inner = open(self.inner.as_mut())?;
        raised(py.detach(|| inner.add(&batch.borrowed(), first, last)))
    }

    /// Documents, bytes of text and tokens so far.
    #[getter]
    fn taken(&self) -> PyResult<(u64, u64, u64)> {
        Ok(open(self.inner.as_ref())?.taken())
    }

    /// Whether the budget is used up.
    #[getter]
    fn full(&self) -> PyResult<bool> {
        Ok(open(self.inner.as_ref())?.is_full())
    }

    /// Brings everything to the disk; the text returned is what a later splitter goes on from.
    fn sync(&mut self, py: Python<'_>) -> PyResult<String> {
        let inner = open(self.inner.as_mut())?;
        let progress = raised(py.detach(|| inner.sync()))?;
        serde_json::to_string(&progress).map_err(|error| PyValueError::new_err(error.to_string()))
    }

    /// Lets go of the unfinished files, which stay.
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

    /// Finishes all shards; train, and val if there is one.
    fn finish(&mut self, py: Python<'_>) -> PyResult<(WrittenSplit, Option<WrittenSplit>)> {
        let inner = open(self.inner.take())?;
        let (train, val) = raised(py.detach(|| inner.finish()))?;
        Ok((self.written("train", train), val.map(|val| self.written("val", val))))
    }
}

impl Splitter {
    fn written(&self, name: &str, state: State) -> WrittenSplit {
        let plan = Plan { name: name.into(), ..self.plan.clone() };
        let shards = (0..).zip(state.finished).map(|(index, shard)| WrittenShard::new(&plan.path(index), shard));
        let (documents, bytes, tokens) = (state.documents, state.bytes, state.tokens);
        WrittenSplit { documents, bytes, tokens, shards: shards.collect() }
    }
}

/// What a finished split holds, for the manifest.
#[pyclass(frozen, get_all, module = "jaxgpt._loader")]
pub struct WrittenSplit {
    /// Documents.
    documents: u64,
    /// Bytes of their text.
    bytes: u64,
    /// Tokens, end-of-text ones included.
    tokens: u64,
    /// The files.
    shards: Vec<WrittenShard>,
}

/// The keys of texts, 16 bytes each.
#[pyfunction]
pub fn text_keys<'py>(
    py: Python<'py>,
    texts: &Bound<'py, PyAny>,
    text_ends: &Bound<'py, PyAny>,
) -> PyResult<Bound<'py, PyBytes>> {
    let (texts, ends) = (needed::<u8>(texts, "texts")?, needed::<i64>(text_ends, "text_ends")?);
    let text = |pair: &[i64]| texts.get(pair[0] as usize..pair[1] as usize);
    let keys: Option<Vec<_>> = py.detach(|| ends.windows(2).map(|pair| text(pair).map(text_key)).collect());
    let keys = keys.ok_or_else(|| PyValueError::new_err("offsets and buffer of the texts do not fit"))?;
    Ok(PyBytes::new(py, keys.as_flattened()))
}

fn open<T>(splitter: Option<T>) -> PyResult<T> {
    splitter.ok_or_else(|| Error::Argument("this splitter is finished".into()).into())
}

fn needed<T: pyo3::buffer::Element>(object: &Bound<'_, PyAny>, name: &str) -> PyResult<Vec<T>> {
    let wrong = || PyTypeError::new_err(format!("{name} must be an array of {}", std::any::type_name::<T>()));
    elements(object)?.ok_or_else(wrong)
}

/// A share from 0 to 1 as a limit for the first half of keys.
fn share(limit: f64) -> PyResult<u128> {
    match (0.0..=1.0).contains(&limit) {
        true => Ok((limit * 2f64.powi(64)) as u128),
        false => Err(PyValueError::new_err(format!("limit = {limit}; must be a share from 0 to 1"))),
    }
}

fn parsed(progress: &str) -> PyResult<Progress> {
    serde_json::from_str(progress).map_err(|error| PyValueError::new_err(format!("progress: {error}")))
}

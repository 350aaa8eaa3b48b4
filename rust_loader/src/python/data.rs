//! `Dataset`.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;

use pyo3::prelude::*;
use pyo3::types::PyBytes;

use super::errors::{Int, interrupted, raised};
use crate::error::Error;
use crate::order;
use crate::shard::{self, Headerless};
use crate::verify::{self, Options};

/// Token files, in the order given, seen as one stream of tokens.
#[pyclass(frozen, module = "jaxgpt._loader")]
pub struct Dataset {
    pub inner: Arc<shard::Dataset>,
}

#[pymethods]
impl Dataset {
    #[new]
    #[pyo3(signature = (paths, *, headerless=None))]
    fn new(py: Python<'_>, paths: Vec<PathBuf>, headerless: Option<bool>) -> PyResult<Self> {
        let headerless = match headerless {
            None => Headerless::Auto,
            Some(true) => Headerless::Always,
            Some(false) => Headerless::Never,
        };
        let inner = raised(py.detach(|| shard::Dataset::open(&paths, headerless)))?;
        Ok(Dataset { inner: Arc::new(inner) })
    }

    /// How many tokens all files hold together.
    #[getter]
    fn tokens(&self) -> u64 {
        self.inner.tokens()
    }

    /// "uint16" or "uint32".
    #[getter]
    fn dtype(&self) -> &'static str {
        self.inner.dtype().name()
    }

    /// Path and number of tokens of every file.
    #[getter]
    fn shards(&self) -> Vec<(OsString, u64)> {
        self.inner.shards().iter().map(|shard| (shard.path().into(), shard.tokens())).collect()
    }

    /// How many windows of `block + 1` tokens an epoch has.
    fn windows(&self, block: Int) -> PyResult<u64> {
        raised(order::windows(self.inner.tokens(), block.size("block")?))
    }

    /// A copy of `count` tokens from the index `start` on, as little-endian bytes.
    fn read<'py>(&self, py: Python<'py>, start: Int, count: Int) -> PyResult<Bound<'py, PyBytes>> {
        let (start, count) = (start.size("start")?, count.size("count")?);
        let tokens = self.inner.tokens();
        if start.checked_add(count).is_none_or(|end| end > tokens) {
            let problem = format!("{count} tokens from {start} on; there are {tokens} in all");
            return raised(Err(Error::Argument(problem)));
        }
        let bytes = count as usize * self.inner.dtype().size(); // the files hold them: this fits
        PyBytes::new_with(py, bytes, |buffer| raised(py.detach(|| self.inner.read(start, buffer))))
    }

    /// Reads every byte once: checksums against those given, ids against the vocabulary. Returns the checksums.
    #[pyo3(
        signature = (vocab_size=None, checksums=None, threads=Int::from(2), progress=None),
        text_signature = "($self, vocab_size=None, checksums=None, threads=2, progress=None)"
    )]
    fn verify(
        &self,
        py: Python<'_>,
        vocab_size: Option<Int>,
        checksums: Option<Vec<String>>,
        threads: Int,
        progress: Option<Py<PyAny>>,
    ) -> PyResult<Vec<String>> {
        let vocab_size = vocab_size.map(|size| size.size("vocab_size")).transpose()?;
        let options = Options { vocab_size, checksums, threads: threads.size("threads")? as usize };
        let total: u64 = self.inner.shards().iter().map(shard::Shard::bytes).sum();
        let mut stopped = None;
        let outcome = py.detach(|| {
            verify::verify(&self.inner, &options, &mut |done| {
                !interrupted(&mut stopped) && report(progress.as_ref(), done, total, &mut stopped)
            })
        });
        stopped.map_or_else(|| raised(outcome), Err)
    }

    fn __repr__(&self) -> String {
        let (shards, tokens, dtype) = (self.inner.shards().len(), self.tokens(), self.dtype());
        format!("Dataset({shards} shards, {tokens} {dtype} tokens)")
    }
}

/// Calls `progress(done, total)`; false, and its exception kept, if it raised.
fn report(progress: Option<&Py<PyAny>>, done: u64, total: u64, stopped: &mut Option<PyErr>) -> bool {
    let Some(progress) = progress else { return true };
    *stopped = Python::attach(|py| progress.call1(py, (done, total))).err();
    stopped.is_none()
}

//! `Dataset`.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;

use pyo3::prelude::*;
use pyo3::types::PyBytes;

use super::errors::{Int, interrupted, report_progress, to_py};
use crate::error::Error;
use crate::order;
use crate::shard::verify::{self, Options};
use crate::shard::{self, Headerless};

/// Token files, in the order given, read as one stream of tokens.
#[pyclass(frozen, module = "jaxgpt._loader")]
pub struct Dataset {
    pub(super) inner: Arc<shard::Dataset>,
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
        let inner = to_py(py.detach(|| shard::Dataset::open(&paths, headerless)))?;
        Ok(Dataset { inner: Arc::new(inner) })
    }

    /// The number of tokens in all files together.
    #[getter]
    fn tokens(&self) -> u64 {
        self.inner.tokens()
    }

    /// "uint16" or "uint32".
    #[getter]
    fn dtype(&self) -> &'static str {
        self.inner.dtype().name()
    }

    /// The path and number of tokens of every file.
    #[getter]
    fn shards(&self) -> Vec<(OsString, u64)> {
        self.inner.shards().iter().map(|shard| (shard.path().into(), shard.tokens())).collect()
    }

    /// The number of windows of `block + 1` tokens in an epoch.
    fn windows(&self, block: Int) -> PyResult<u64> {
        to_py(order::windows(self.inner.tokens(), block.size("block")?))
    }

    /// A copy of `count` tokens from the index `start` on, as little-endian bytes.
    fn read<'py>(&self, py: Python<'py>, start: Int, count: Int) -> PyResult<Bound<'py, PyBytes>> {
        let start = start.size("start")?;
        let count = count.size("count")?;
        let tokens = self.inner.tokens();
        if start.checked_add(count).is_none_or(|end| end > tokens) {
            let problem = format!("{count} tokens from {start} on; there are {tokens} in all");
            return to_py(Err(Error::Argument(problem)));
        }
        let bytes = count as usize * self.inner.dtype().size(); // the files have them: this fits
        PyBytes::new_with(py, bytes, |buffer| to_py(py.detach(|| self.inner.read(start, buffer))))
    }

    /// Reads every byte once, checks it against checksums and the vocabulary, and returns the checksums.
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
                !interrupted(&mut stopped) && report_progress(progress.as_ref(), (done, total), &mut stopped)
            })
        });
        stopped.map_or_else(|| to_py(outcome), Err)
    }

    fn __repr__(&self) -> String {
        format!("Dataset({} shards, {} {} tokens)", self.inner.shards().len(), self.tokens(), self.dtype())
    }
}

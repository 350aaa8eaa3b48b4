//! `ShardWriter` and `WrittenShard`.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use pyo3::buffer::{Element, PyBuffer};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;

use super::errors::raised;
use crate::error::Error;
use crate::format::Dtype;
use crate::writer::{Summary, Writer};

/// Writes a token shard that is there completely or not at all.
#[pyclass(module = "jaxgpt._loader")]
pub struct ShardWriter {
    path: PathBuf,
    inner: Option<Writer>,
}

#[pymethods]
impl ShardWriter {
    #[new]
    #[pyo3(signature = (path, dtype="uint16", *, overwrite=false))]
    fn new(py: Python<'_>, path: PathBuf, dtype: &str, overwrite: bool) -> PyResult<Self> {
        let dtype = raised(Dtype::from_name(dtype))?;
        let inner = raised(py.detach(|| Writer::create(&path, dtype, overwrite)))?;
        Ok(ShardWriter { path, inner: Some(inner) })
    }

    /// Appends tokens: a contiguous array of the shard's type, or its little-endian bytes.
    fn append(&mut self, py: Python<'_>, tokens: &Bound<'_, PyAny>) -> PyResult<()> {
        let writer = open(self.inner.as_mut())?;
        let bytes = little_endian(tokens, writer.dtype())?;
        raised(py.detach(|| writer.append(&bytes)))
    }

    /// How many tokens were appended so far.
    #[getter]
    fn tokens(&self) -> PyResult<u64> {
        Ok(open(self.inner.as_ref())?.tokens())
    }

    /// The largest token so far.
    #[getter]
    fn max_token(&self) -> PyResult<Option<u32>> {
        Ok(open(self.inner.as_ref())?.max_token())
    }

    /// Gives the shard its header and its name, and describes it.
    fn finish(&mut self, py: Python<'_>) -> PyResult<WrittenShard> {
        let writer = open(self.inner.take())?;
        let summary = raised(py.detach(|| writer.finish()))?;
        Ok(WrittenShard::new(&self.path, summary))
    }

    fn __enter__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    /// Removes the file if it was not finished.
    #[pyo3(signature = (*_exception))]
    fn __exit__(&mut self, _exception: &Bound<'_, PyAny>) {
        self.inner = None;
    }
}

/// What a finished shard holds, for the manifest.
#[derive(Clone)]
#[pyclass(frozen, get_all, module = "jaxgpt._loader")]
pub struct WrittenShard {
    /// Where it is.
    path: OsString,
    /// Tokens in the file.
    tokens: u64,
    /// Bytes of the file.
    bytes: u64,
    /// The largest token, or None in an empty shard.
    max_token: Option<u32>,
    /// xxh3-128 of the whole file in hexadecimal.
    xxh3_128: String,
}

impl WrittenShard {
    pub fn new(path: &Path, summary: Summary) -> Self {
        let Summary { tokens, bytes, max_token, xxh3_128 } = summary;
        WrittenShard { path: path.into(), tokens, bytes, max_token, xxh3_128 }
    }
}

fn open<T>(writer: Option<T>) -> PyResult<T> {
    writer.ok_or_else(|| Error::Argument("this shard is finished or abandoned".into()).into())
}

fn little_endian(tokens: &Bound<'_, PyAny>, dtype: Dtype) -> PyResult<Vec<u8>> {
    if let Some(bytes) = elements::<u8>(tokens)? {
        return Ok(bytes);
    }
    let bytes = match dtype {
        Dtype::U16 => elements::<u16>(tokens)?.map(|ids| ids.into_iter().flat_map(u16::to_le_bytes).collect()),
        Dtype::U32 => elements::<u32>(tokens)?.map(|ids| ids.into_iter().flat_map(u32::to_le_bytes).collect()),
    };
    let expected = || PyTypeError::new_err(format!("tokens must be an array of {dtype}, or little-endian bytes"));
    bytes.ok_or_else(expected)
}

/// A copy of a contiguous buffer, or `None` if its elements are of another type.
pub fn elements<T: Element>(object: &Bound<'_, PyAny>) -> PyResult<Option<Vec<T>>> {
    let Ok(buffer) = PyBuffer::<T>::get(object) else { return Ok(None) };
    match buffer.is_c_contiguous() {
        true => buffer.to_vec(object.py()).map(Some),
        false => Err(PyValueError::new_err("the buffer must be contiguous; pass numpy.ascontiguousarray of it")),
    }
}

//! `ShardWriter` and `SplitWriter`.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use pyo3::buffer::{Element, PyBuffer};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;

use super::errors::{Int, to_py};
use crate::error::Error;
use crate::shard::format::Dtype;
use crate::shard::split_writer::{self, State};
use crate::shard::writer::{Layout, Summary, Writer};

/// Writes a token shard that appears completely or not at all.
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
        let dtype = to_py(Dtype::from_name(dtype))?;
        let inner = to_py(py.detach(|| Writer::create(&path, dtype, overwrite)))?;
        Ok(ShardWriter { path, inner: Some(inner) })
    }

    /// Appends tokens: a contiguous array of the shard's type, or its little-endian bytes.
    fn append(&mut self, py: Python<'_>, tokens: &Bound<'_, PyAny>) -> PyResult<()> {
        let writer = open(self.inner.as_mut())?;
        let bytes = little_endian(tokens, writer.dtype())?;
        to_py(py.detach(|| writer.append(&bytes)))
    }

    /// The number of tokens so far.
    #[getter]
    fn tokens(&self) -> PyResult<u64> {
        Ok(open(self.inner.as_ref())?.tokens())
    }

    /// The largest token so far.
    #[getter]
    fn max_token(&self) -> PyResult<Option<u32>> {
        Ok(open(self.inner.as_ref())?.max_token())
    }

    /// Writes the header, gives the file its name, and describes it.
    fn finish(&mut self, py: Python<'_>) -> PyResult<WrittenShard> {
        let writer = open(self.inner.take())?;
        let summary = to_py(py.detach(|| writer.finish()))?;
        Ok(WrittenShard::new(&self.path, summary))
    }

    fn __enter__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    /// Removes the file unless it is finished.
    #[pyo3(signature = (*_exception))]
    fn __exit__(&mut self, _exception: &Bound<'_, PyAny>) {
        self.inner = None;
    }
}

/// The properties of a finished shard, for the manifest.
#[derive(Clone)]
#[pyclass(frozen, get_all, module = "jaxgpt._loader")]
pub(super) struct WrittenShard {
    /// The path of the file.
    path: OsString,
    /// Tokens in the file.
    tokens: u64,
    /// Bytes of the file.
    bytes: u64,
    /// The largest token, or None in an empty shard.
    max_token: Option<u32>,
    /// The xxh3-128 of the whole file in hexadecimal.
    xxh3_128: String,
}

impl WrittenShard {
    fn new(path: &Path, summary: Summary) -> Self {
        let Summary { tokens, bytes, max_token, xxh3_128 } = summary;
        WrittenShard { path: path.into(), tokens, bytes, max_token, xxh3_128 }
    }
}

/// Writes the documents of one split, one after another, into shards `NAME_000000.bin` and so on.
#[pyclass(module = "jaxgpt._loader")]
pub struct SplitWriter {
    options: split_writer::Options,
    end_of_text: Vec<u8>,
    inner: Option<split_writer::SplitWriter>,
}

#[pymethods]
impl SplitWriter {
    #[new]
    #[pyo3(signature = (folder, name, dtype, *, shard_tokens, end_of_text=None))]
    fn new(
        py: Python<'_>,
        folder: PathBuf,
        name: String,
        dtype: &str,
        shard_tokens: Int,
        end_of_text: Option<u32>,
    ) -> PyResult<Self> {
        let dtype = to_py(Dtype::from_name(dtype))?;
        let shard_tokens = shard_tokens.size("shard_tokens")?;
        let options = split_writer::Options { folder, name, dtype, layout: Layout::Shard, shard_tokens };
        let inner = to_py(py.detach(|| split_writer::SplitWriter::resume(options.clone(), State::default())))?;
        let end_of_text = match (end_of_text, dtype) {
            (None, _) => Vec::new(),
            (Some(token), Dtype::U32) => token.to_le_bytes().to_vec(),
            (Some(token), Dtype::U16) => match u16::try_from(token) {
                Ok(token) => token.to_le_bytes().to_vec(),
                Err(_) => return Err(PyValueError::new_err(format!("end_of_text = {token}; must fit uint16"))),
            },
        };
        Ok(SplitWriter { options, end_of_text, inner: Some(inner) })
    }

    /// Appends a document whose text has `text_bytes` bytes, and the end-of-text token.
    fn add(&mut self, py: Python<'_>, text_bytes: Int, tokens: &Bound<'_, PyAny>) -> PyResult<()> {
        let writer = open(self.inner.as_mut())?;
        let mut bytes = little_endian(tokens, self.options.dtype)?;
        bytes.extend(&self.end_of_text);
        let text_bytes = text_bytes.size("text_bytes")?;
        to_py(py.detach(|| writer.add(text_bytes, &bytes)))
    }

    /// Finishes the last shard and describes the split.
    fn finish(&mut self, py: Python<'_>) -> PyResult<WrittenSplit> {
        let writer = open(self.inner.take())?;
        let state = to_py(py.detach(|| writer.finish()))?;
        Ok(WrittenSplit::new(&self.options, state))
    }
}

/// The properties of a finished split, for the manifest.
#[pyclass(frozen, get_all, module = "jaxgpt._loader")]
pub(super) struct WrittenSplit {
    /// Documents.
    documents: u64,
    /// Bytes of their text.
    bytes: u64,
    /// Tokens, including end-of-text tokens.
    tokens: u64,
    /// The files.
    shards: Vec<WrittenShard>,
}

impl WrittenSplit {
    pub(super) fn new(options: &split_writer::Options, state: State) -> Self {
        let shards = (0..).zip(state.finished).map(|(index, shard)| WrittenShard::new(&options.path(index), shard));
        WrittenSplit { documents: state.documents, bytes: state.bytes, tokens: state.tokens, shards: shards.collect() }
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
    bytes.ok_or_else(|| PyTypeError::new_err(format!("tokens must be an array of {dtype}, or little-endian bytes")))
}

/// A copy of a contiguous buffer, or `None` if its elements are of another type.
pub(super) fn elements<T: Element>(object: &Bound<'_, PyAny>) -> PyResult<Option<Vec<T>>> {
    let Ok(buffer) = PyBuffer::<T>::get(object) else { return Ok(None) };
    if !buffer.is_c_contiguous() {
        return Err(PyValueError::new_err("the buffer must be contiguous; pass numpy.ascontiguousarray of it"));
    }
    buffer.to_vec(object.py()).map(Some)
}

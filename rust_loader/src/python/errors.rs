//! Errors and numbers on their way between Rust and Python.

use pyo3::exceptions::{PyKeyboardInterrupt, PyOverflowError, PyValueError};
use pyo3::prelude::*;
use pyo3::{create_exception, import_exception};

use crate::error::{Error, Result};

import_exception!(jaxgpt.errors, JaxgptError);
create_exception!(jaxgpt._loader, LoaderError, JaxgptError, "The loader cannot go on: `code`, `message`, `help`.");

/// Defines one exception per group of errors, and adds them to the module.
macro_rules! exceptions {
    ($($name:ident: $doc:literal,)*) => {
        $(create_exception!(jaxgpt._loader, $name, LoaderError, $doc);)*

        pub fn add_to(module: &Bound<'_, PyModule>) -> PyResult<()> {
            module.add("LoaderError", module.py().get_type::<LoaderError>())?;
            $(module.add(stringify!($name), module.py().get_type::<$name>())?;)*
            Ok(())
        }
    };
}

exceptions! {
    NotAShardError: "The file is something else (D003).",
    ShardSizeError: "The file's length does not fit its header (D007).",
    TokenCountError: "The header holds an impossible token count (D008).",
    MixedDtypeError: "The shards of one dataset differ in their token type (D009).",
    TokenRangeError: "A token that the vocabulary does not have (D010).",
    ChecksumError: "The file is not the one that the manifest describes (D011).",
    CorpusTooShortError: "The data is shorter than one sequence (D013).",
    NotAFileError: "A folder, FIFO, device or socket (D015).",
    ShardIoError: "The file cannot be opened or read (D016).",
    ShardChangedError: "The file is no longer what was opened (D017).",
    WriterError: "A shard cannot be written (S003, S004, S014).",
    AuditError: "The audit cannot be made: a file of clusters that is none (D028), too many documents (D030), no room for \
        the temporary file (S015).",
    SlotsExhaustedError: "Every slot is lent out (S006), or there is no memory for them (S007).",
    WorkerError: "The loader's threads failed (S008) or did not survive a fork (S010).",
}

/// A result as Python knows it.
pub fn raised<T>(result: Result<T>) -> PyResult<T> {
    result.map_err(PyErr::from)
}

impl From<Error> for PyErr {
    fn from(error: Error) -> PyErr {
        let what = (error.code(), error.to_string(), error.help());
        match error {
            Error::NotAShard { .. } => NotAShardError::new_err(what),
            Error::ShardSize { .. } => ShardSizeError::new_err(what),
            Error::TokenCount { .. } => TokenCountError::new_err(what),
            Error::MixedDtype { .. } => MixedDtypeError::new_err(what),
            Error::TokenRange { .. } => TokenRangeError::new_err(what),
            Error::Checksum { .. } => ChecksumError::new_err(what),
            Error::CorpusTooShort { .. } => CorpusTooShortError::new_err(what),
            Error::NotAFile { .. } => NotAFileError::new_err(what),
            Error::ShardIo { .. } => ShardIoError::new_err(what),
            Error::ShardChanged { .. } => ShardChangedError::new_err(what),
            Error::Write { .. } | Error::Exists { .. } | Error::ShardFull { .. } => WriterError::new_err(what),
            Error::NotClusters { .. } | Error::TooManyDocuments { .. } | Error::Spill { .. } => {
                AuditError::new_err(what)
            }
            Error::SlotsExhausted { .. } | Error::Memory { .. } => SlotsExhaustedError::new_err(what),
            Error::Worker { .. } | Error::Forked { .. } => WorkerError::new_err(what),
            Error::Argument(text) => PyValueError::new_err(text),
            Error::Interrupted => PyKeyboardInterrupt::new_err(()),
        }
    }
}

/// A Python integer of any size, so that a bad one becomes a sentence that names its argument.
pub struct Int(Option<i128>);

impl<'py> FromPyObject<'_, 'py> for Int {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        match object.extract::<i128>() {
            Ok(value) => Ok(Int(Some(value))),
            Err(error) if error.is_instance_of::<PyOverflowError>(object.py()) => Ok(Int(None)),
            Err(error) => Err(error),
        }
    }
}

impl From<u32> for Int {
    fn from(value: u32) -> Self {
        Int(Some(value.into()))
    }
}

impl Int {
    /// This number for the argument `name`, which must fit 64 bits and not be negative.
    pub fn size(self, name: &str) -> PyResult<u64> {
        match self.0 {
            Some(value) if value < 0 => Err(PyValueError::new_err(format!("{name} = {value}; must not be negative"))),
            Some(value) => u64::try_from(value).map_err(|_| too_large(name)),
            None => Err(too_large(name)),
        }
    }
}

fn too_large(name: &str) -> PyErr {
    PyValueError::new_err(format!("{name} is too large; must be less than 2**64"))
}

/// Lets Ctrl-C through while Rust waits: asks Python for pending signals, and keeps what they raised.
pub fn interrupted(raised: &mut Option<PyErr>) -> bool {
    *raised = Python::attach(|py| py.check_signals()).err();
    raised.is_some()
}

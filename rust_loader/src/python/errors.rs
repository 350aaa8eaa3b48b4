//! Errors and integers on their way between Rust and Python.

use pyo3::exceptions::{PyKeyboardInterrupt, PyOverflowError, PyValueError};
use pyo3::prelude::*;
use pyo3::{create_exception, import_exception};

use crate::error::{Error, Result};

import_exception!(jaxgpt.errors, JaxgptError);
create_exception!(
    jaxgpt._loader,
    LoaderError,
    JaxgptError,
    "An error of the loader, with its `code`, `message` and `help`."
);

/// Defines the exceptions, the enum that [`Error`] uses to name them, and the function that adds them to the module.
macro_rules! exceptions {
    ($($name:ident: $doc:literal,)*) => {
        $(create_exception!(jaxgpt._loader, $name, LoaderError, $doc);)*

        /// An exception of this module.
        #[allow(clippy::enum_variant_names)] // the names of the exceptions
        #[derive(Clone, Copy)]
        pub(crate) enum Exception {
            $($name,)*
        }

        impl Exception {
            fn new_err(self, arguments: (&'static str, String, &'static str)) -> PyErr {
                match self {
                    $(Exception::$name => $name::new_err(arguments),)*
                }
            }
        }

        pub(super) fn add_to(module: &Bound<'_, PyModule>) -> PyResult<()> {
            module.add("LoaderError", module.py().get_type::<LoaderError>())?;
            $(module.add(stringify!($name), module.py().get_type::<$name>())?;)*
            Ok(())
        }
    };
}

exceptions! {
    NotAShardError: "The file is not a token shard (D003).",
    ShardSizeError: "The length of the file does not match its header (D007).",
    TokenCountError: "The header states an impossible token count (D008).",
    MixedDtypeError: "The shards of one dataset have different token types (D009).",
    TokenRangeError: "A token is outside the tokenizer's vocabulary (D010).",
    ChecksumError: "The file is not the one that the manifest describes (D011).",
    CorpusTooShortError: "The data is shorter than one sequence (D013).",
    NotAFileError: "The path names a folder, FIFO, device or socket (D015).",
    ShardIoError: "The file cannot be opened or read (D016).",
    ShardChangedError: "The file changed since it was opened (D017).",
    WriterError: "A shard cannot be written (S003), exists (S004) or is full (S014).",
    AuditError: "The audit failed: not a file of clusters (D028), too many documents (D030), or no space for the temporary \
        file (S015).",
    SlotsExhaustedError: "Every prefetch buffer is in use (S006), or there is not enough memory for them (S007).",
    WorkerError: "The loader's threads failed (S008) or did not survive a fork (S010).",
}

/// Converts the error of a result to a Python exception.
pub(super) fn to_py<T>(result: Result<T>) -> PyResult<T> {
    result.map_err(PyErr::from)
}

impl From<Error> for PyErr {
    fn from(error: Error) -> PyErr {
        match (error.class(), error) {
            (Some(exception), error) => exception.new_err((error.code(), error.to_string(), error.help())),
            (None, Error::Interrupted) => PyKeyboardInterrupt::new_err(()),
            (None, error) => PyValueError::new_err(error.to_string()),
        }
    }
}

/// A Python integer of any size, so that the error for an invalid one can name the argument.
pub(super) struct Int(Option<i128>);

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
    /// The value of the argument `name`, which must not be negative and must fit 64 bits.
    pub(super) fn size(self, name: &str) -> PyResult<u64> {
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

/// Lets Ctrl-C through while Rust waits: runs Python's pending signal handlers and stores what they raise.
pub(super) fn interrupted(raised: &mut Option<PyErr>) -> bool {
    *raised = Python::attach(|py| py.check_signals()).err();
    raised.is_some()
}

/// Calls `progress(*arguments)` if there is a callback. Returns false and stores the exception if it raises one.
pub(super) fn report_progress<A>(progress: Option<&Py<PyAny>>, arguments: A, raised: &mut Option<PyErr>) -> bool
where
    A: for<'a> pyo3::call::PyCallArgs<'a>,
{
    let Some(progress) = progress else { return true };
    *raised = Python::attach(|py| progress.call1(py, arguments)).err();
    raised.is_none()
}

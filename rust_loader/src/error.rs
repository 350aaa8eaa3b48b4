//! Errors that say what is wrong, where, and what to do next.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The result of every function of this crate that can fail.
pub type Result<T> = std::result::Result<T, Error>;

/// Defines [`Error`] from one table: for each variant its code, the exception that Python raises for it, its fields,
/// its message and its help.
macro_rules! errors {
    ($(
        $(#[doc = $doc:literal])*
        $code:literal $class:ident => $variant:ident { $($field:ident: $type:ty),* $(,)? }
        message: ($($message:tt)*)
        help: $help:expr;
    )*) => {
        /// Everything that can go wrong. It is `Clone` because a loader repeats its error on every later call.
        #[derive(Clone, Debug, thiserror::Error)]
        #[non_exhaustive]
        #[allow(missing_docs)] // the messages explain the fields
        pub enum Error {
            $(
                #[doc = concat!($code, ":")]
                $(#[doc = $doc])*
                #[error($($message)*)]
                $variant { $($field: $type),* },
            )*
            /// An invalid argument: a mistake in the calling code, hence a `ValueError` in Python.
            #[error("{0}")]
            Argument(String),
            /// The caller's callback asked to stop.
            #[error("interrupted")]
            Interrupted,
        }

        impl Error {
            /// The code under which docs/errors.md lists this error: D for data, S for storage. It is empty for
            /// [`Argument`](Error::Argument) and [`Interrupted`](Error::Interrupted).
            #[must_use]
            pub fn code(&self) -> &'static str {
                match self {
                    $(Error::$variant { .. } => $code,)*
                    Error::Argument(_) | Error::Interrupted => "",
                }
            }

            /// What to do next.
            #[must_use]
            #[allow(unused_variables)]
            pub fn help(&self) -> &'static str {
                match self {
                    $(Error::$variant { $($field),* } => $help,)*
                    Error::Argument(_) | Error::Interrupted => "",
                }
            }

            /// The exception of `jaxgpt._loader` that Python raises; `None` for those that are built into Python.
            #[cfg(feature = "python")]
            pub(crate) fn class(&self) -> Option<crate::python::Exception> {
                match self {
                    $(Error::$variant { .. } => Some(crate::python::Exception::$class),)*
                    Error::Argument(_) | Error::Interrupted => None,
                }
            }
        }
    };
}

errors! {
    /// the file is not a token shard.
    "D003" NotAShardError => NotAShard { path: PathBuf, reason: String }
    message: ("{} is not a token shard ({reason})", path.display())
    help: "make shards with `jaxgpt prepare`; a headerless file of nanoGPT must be named train.bin or val.bin";

    /// the length of the file does not match its header.
    "D007" ShardSizeError => ShardSize { path: PathBuf, detail: String }
    message: ("{}: {detail}", path.display())
    help: "the copy or download is incomplete, or something was appended: download or prepare the file again";

    /// the header states a token count that no file can have.
    "D008" TokenCountError => TokenCount { path: PathBuf, count: i64 }
    message: ("{}: header says {} tokens", path.display(), grouped_signed(*count))
    help: "the header is damaged: download or prepare the file again";

    /// the shards of one dataset have different token types.
    "D009" MixedDtypeError => MixedDtype { path: PathBuf, dtype: &'static str, first: PathBuf, first_dtype: &'static str }
    message: ("{} holds {dtype} tokens, {} holds {first_dtype}", path.display(), first.display())
    help: "use shards that were prepared with one tokenizer";

    /// a token is outside the tokenizer's vocabulary.
    "D010" TokenRangeError => TokenRange { path: PathBuf, token: u32, position: u64, vocab_size: u64 }
    message: (
        "{}: token {token} at position {}; the tokenizer's vocabulary is {vocab_size}",
        path.display(), grouped(*position)
    )
    help: "the data was made with another tokenizer, or the file is damaged";

    /// the file is not the one that the manifest describes.
    "D011" ChecksumError => Checksum { path: PathBuf, actual: String, expected: String }
    message: ("{}: xxh3-128 is {actual}, the manifest says {expected}", path.display())
    help: "the file changed after it was prepared: download or prepare it again";

    /// the data is shorter than one sequence.
    "D013" CorpusTooShortError => CorpusTooShort { tokens: u64, needed: u64 }
    message: ("{} tokens in all; one sequence needs {}", grouped(*tokens), grouped(*needed))
    help: "add data, or use a smaller --model.block-size";

    /// the path names a folder, FIFO, device or socket.
    "D015" NotAFileError => NotAFile { path: PathBuf, kind: &'static str }
    message: ("{} is a {kind}, not a file", path.display())
    help: "name the token files themselves";

    /// the file cannot be opened or read.
    "D016" ShardIoError => ShardIo { path: PathBuf, action: &'static str, source: Arc<io::Error> }
    message: ("cannot {action} {}: {source}", path.display())
    help: io_help(source);

    /// the file changed since it was opened.
    "D017" ShardChangedError => ShardChanged { path: PathBuf, detail: String }
    message: ("{}: {detail}", path.display())
    help: "restore the file, check it with its manifest, and resume the run";

    /// the file does not contain the near-duplicate clusters of an audit.
    "D028" AuditError => NotClusters { path: PathBuf, reason: String }
    message: ("{} is not an audit's file of clusters: {reason}", path.display())
    help: "create it again: python -m jaxgpt.audit DIR --again";

    /// there are more documents than an audit can number.
    "D030" AuditError => TooManyDocuments { count: u64 }
    message: ("{} documents; an audit takes at most {}", grouped(*count), grouped(u32::MAX.into()))
    help: "check the end-of-text token (--eot), or audit the data in parts";

    /// a shard cannot be written.
    "S003" WriterError => Write { path: PathBuf, source: Arc<io::Error> }
    message: ("cannot write {}: {source}", path.display())
    help: "free some space or choose another folder, and run again";

    /// the file to be written already exists.
    "S004" WriterError => Exists { path: PathBuf }
    message: ("{} exists", path.display())
    help: "remove it, or choose another name";

    /// the shard has as many tokens as its header can count.
    "S014" WriterError => ShardFull { path: PathBuf, limit: u64 }
    message: ("{}: a shard holds at most {} tokens", path.display(), grouped(*limit))
    help: "begin another shard";

    /// the consumer keeps every buffer.
    "S006" SlotsExhaustedError => SlotsExhausted { slots: usize, seconds: f64 }
    message: ("no batch for {seconds:.0} s: all {slots} prefetch buffers are in use")
    help: "release earlier batches and every view of them, or raise --data.prefetch-buffers";

    /// there is not enough memory for the ring.
    "S007" SlotsExhaustedError => Memory { bytes: usize }
    message: ("cannot allocate {} bytes for a batch", grouped(*bytes as u64))
    help: "use a smaller --data.micro-batch or fewer --data.prefetch-buffers";

    /// a worker thread failed because of a bug.
    "S008" WorkerError => Worker { reason: String }
    message: ("the loader's worker thread failed: {reason}")
    help: "this is a bug in jaxgpt: please report it with this message";

    /// the loader's threads do not survive a fork.
    "S010" WorkerError => Forked { parent: u32, child: u32 }
    message: ("this loader belongs to process {parent} and has no threads in its forked child {child}")
    help: "make the loader in the process that uses it";

    /// the audit's temporary file cannot be written or read.
    "S015" AuditError => Spill { path: PathBuf, bytes: u64, source: Arc<io::Error> }
    message: ("the audit's temporary file, {} bytes in {}: {source}", grouped(*bytes), path.display())
    help: "free some space, or choose another folder for it: --tmp DIR";
}

impl Error {
    /// A failed attempt to `action` ("open" or "read") the file at `path`.
    pub(crate) fn io(path: &Path, action: &'static str, source: io::Error) -> Self {
        Error::ShardIo { path: path.into(), action, source: Arc::new(source) }
    }

    /// A failed write to the file at `path`.
    pub(crate) fn write(path: &Path, source: io::Error) -> Self {
        Error::Write { path: path.into(), source: Arc::new(source) }
    }
}

fn io_help(source: &io::Error) -> &'static str {
    const TOO_MANY_OPEN_FILES: i32 = 24;
    if source.raw_os_error() == Some(TOO_MANY_OPEN_FILES) {
        return "raise the limit (`ulimit -n 65536`), or join the shards into fewer files";
    }
    match source.kind() {
        io::ErrorKind::NotFound => "check the path",
        io::ErrorKind::PermissionDenied => "check the file's permissions",
        _ => "check the disk or the network drive, then resume the run",
    }
}

/// `number` with commas between the thousands: "1,234,567".
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

fn grouped_signed(number: i64) -> String {
    let sign = if number < 0 { "-" } else { "" };
    format!("{sign}{}", grouped(number.unsigned_abs()))
}

//! What can go wrong, said so that the reader can mend it: a code, the value with its place, and what to do next.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::format::Dtype;

/// The result of anything in this crate that can fail.
pub type Result<T> = std::result::Result<T, Error>;

/// Everything that can go wrong. It can be cloned because a loader repeats its error on every later call.
#[derive(Clone, Debug, thiserror::Error)]
#[allow(missing_docs)] // the messages say what the fields are
pub enum Error {
    /// D003: the file is something else.
    #[error("{} is not a token shard ({found})", path.display())]
    NotAShard { path: PathBuf, found: String },
    /// D007: the file's length does not fit its header.
    #[error("{}: {detail}", path.display())]
    ShardSize { path: PathBuf, detail: String },
    /// D008: the header holds a token count that no file can have.
    #[error("{}: header says {} tokens", path.display(), signed(*count))]
    TokenCount { path: PathBuf, count: i64 },
    /// D009: the shards of one dataset differ in their token type.
    #[error("{} holds {found} tokens, {} holds {expected}", path.display(), first.display())]
    MixedDtype { path: PathBuf, found: Dtype, first: PathBuf, expected: Dtype },
    /// D010: a token that the vocabulary does not have.
    #[error(
        "{}: token {token} at position {}; the tokenizer's vocabulary is {vocab_size}",
        path.display(), grouped(*position)
    )]
    TokenRange { path: PathBuf, token: u32, position: u64, vocab_size: u64 },
    /// D011: the file is not the one that the manifest describes.
    #[error("{}: xxh3-128 is {found}, the manifest says {expected}", path.display())]
    Checksum { path: PathBuf, found: String, expected: String },
    /// D013: not even one sequence.
    #[error("{} tokens in all; one sequence needs {}", grouped(*tokens), grouped(*needed))]
    CorpusTooShort { tokens: u64, needed: u64 },
    /// D015: a folder, FIFO, device or socket.
    #[error("{} is a {kind}, not a file", path.display())]
    NotAFile { path: PathBuf, kind: &'static str },
    /// D016: the file cannot be opened or read.
    #[error("cannot {action} {}: {source}", path.display())]
    ShardIo { path: PathBuf, action: &'static str, source: Arc<io::Error> },
    /// D017: the file is no longer what was opened.
    #[error("{}: {detail}", path.display())]
    ShardChanged { path: PathBuf, detail: String },
    /// D028: no file of near-duplicate clusters.
    #[error("{} is not an audit's file of clusters: {reason}", path.display())]
    NotClusters { path: PathBuf, reason: String },
    /// D030: more documents than an audit can number.
    #[error("{} documents; an audit takes at most {}", grouped(*count), grouped(u32::MAX.into()))]
    TooManyDocuments { count: u64 },
    /// S003: a shard cannot be written.
    #[error("cannot write {}: {source}", path.display())]
    Write { path: PathBuf, source: Arc<io::Error> },
    /// S004: the file to be written is there already.
    #[error("{} exists", path.display())]
    Exists { path: PathBuf },
    /// S014: the header's 32-bit token count is used up.
    #[error("{}: a shard holds at most {} tokens", path.display(), grouped(crate::format::MAX_TOKENS))]
    ShardFull { path: PathBuf },
    /// S006: the consumer keeps every buffer.
    #[error("no batch for {seconds:.0} s: all {slots} slots of the loader are lent out")]
    SlotsExhausted { slots: usize, seconds: f64 },
    /// S007: no memory for the ring.
    #[error("cannot allocate {} bytes for a batch", grouped(*bytes as u64))]
    Memory { bytes: usize },
    /// S008: a bug in a worker thread.
    #[error("the loader's worker thread failed: {reason}")]
    Worker { reason: String },
    /// S010: threads do not survive a fork.
    #[error("this loader belongs to process {parent} and has no threads in its forked child {child}")]
    Forked { parent: u32, child: u32 },
    /// S015: the audit's temporary file cannot be written or read.
    #[error("the audit's temporary file, {} bytes in {}: {source}", grouped(*bytes), path.display())]
    Spill { path: PathBuf, bytes: u64, source: Arc<io::Error> },
    /// A bad argument: a mistake in the calling code, hence a `ValueError` in Python.
    #[error("{0}")]
    Argument(String),
    /// The caller's own callback asked to stop.
    #[error("interrupted")]
    Interrupted,
}

impl Error {
    /// The code under which the documentation lists this error. D is data, S is storage; "" is no user's error.
    pub fn code(&self) -> &'static str {
        match self {
            Error::NotAShard { .. } => "D003",
            Error::ShardSize { .. } => "D007",
            Error::TokenCount { .. } => "D008",
            Error::MixedDtype { .. } => "D009",
            Error::TokenRange { .. } => "D010",
            Error::Checksum { .. } => "D011",
            Error::CorpusTooShort { .. } => "D013",
            Error::NotAFile { .. } => "D015",
            Error::ShardIo { .. } => "D016",
            Error::ShardChanged { .. } => "D017",
            Error::NotClusters { .. } => "D028",
            Error::TooManyDocuments { .. } => "D030",
            Error::Write { .. } => "S003",
            Error::Exists { .. } => "S004",
            Error::ShardFull { .. } => "S014",
            Error::SlotsExhausted { .. } => "S006",
            Error::Memory { .. } => "S007",
            Error::Worker { .. } => "S008",
            Error::Forked { .. } => "S010",
            Error::Spill { .. } => "S015",
            Error::Argument(_) | Error::Interrupted => "",
        }
    }

    /// What to do next.
    pub fn help(&self) -> &'static str {
        match self {
            Error::NotAShard { .. } => {
                "make shards with `jaxgpt prepare`; a headerless file of nanoGPT must be named train.bin or val.bin"
            }
            Error::ShardSize { .. } => {
                "the copy or download broke off, or something was added: fetch or prepare the file again"
            }
            Error::TokenCount { .. } => "the header is damaged: fetch or prepare the file again",
            Error::MixedDtype { .. } => "use shards that were prepared with one tokenizer",
            Error::TokenRange { .. } => "the data was made with another tokenizer, or the file is damaged",
            Error::Checksum { .. } => "the file changed after it was prepared: fetch or prepare it again",
            Error::CorpusTooShort { .. } => "add data, or choose a shorter block",
            Error::NotAFile { .. } => "name the token files themselves",
            Error::ShardIo { source, .. } => io_help(source),
            Error::ShardChanged { .. } => "restore the file, check it with its manifest, and resume the run",
            Error::NotClusters { .. } => "make it anew: python -m jaxgpt.audit DIR --again",
            Error::TooManyDocuments { .. } => "check the end-of-text token (--eot), or audit the data in parts",
            Error::Write { .. } => "free some space or choose another folder, and run again",
            Error::Exists { .. } => "remove it, or choose another name",
            Error::ShardFull { .. } => "begin another shard",
            Error::SlotsExhausted { .. } => {
                "drop earlier batches (and every view of them), or give the loader more slots"
            }
            Error::Memory { .. } => "use a smaller batch or fewer slots",
            Error::Worker { .. } => "this is a bug in jaxgpt: please report it with this message",
            Error::Forked { .. } => "make the loader in the process that uses it",
            Error::Spill { .. } => "free some space, or choose another folder for it: --tmp DIR",
            Error::Argument(_) | Error::Interrupted => "",
        }
    }

    /// A failed attempt to `action` the file at `path`.
    pub fn io(path: &Path, action: &'static str, source: io::Error) -> Self {
        Error::ShardIo { path: path.into(), action, source: Arc::new(source) }
    }

    /// A failed write to the file at `path`.
    pub fn write(path: &Path, source: io::Error) -> Self {
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

/// `number` with a comma between the thousands.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

fn signed(number: i64) -> String {
    format!("{}{}", if number < 0 { "-" } else { "" }, grouped(number.unsigned_abs()))
}

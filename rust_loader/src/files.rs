//! Files that appear completely or not at all, and checks of what a path names.

use std::ffi::OsString;
use std::fs::{self, File, FileType, Metadata};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::error::{Error, Result};

/// Writes `bytes` to `path` atomically: readers see the old file or the complete new one.
pub(crate) fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    let temporary = temporary_path(path)?;
    let write = || -> io::Result<()> {
        let mut file = replace(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        rename_durably(&temporary, path)
    };
    write().map_err(|error| {
        let _ = fs::remove_file(&temporary);
        Error::write(path, error)
    })
}

/// `.NAME.tmp` in the folder of `path`.
pub(crate) fn temporary_path(path: &Path) -> Result<PathBuf> {
    let name = path.file_name().ok_or_else(|| Error::Argument(format!("{} does not name a file", path.display())))?;
    let mut temporary = OsString::from(".");
    temporary.push(name);
    temporary.push(".tmp");
    Ok(path.with_file_name(temporary))
}

/// Creates a new file at `path` and removes an earlier one first, so nobody else has it open or linked.
pub(crate) fn replace(path: &Path) -> io::Result<File> {
    remove_if_present(path)?;
    File::create_new(path)
}

/// Removes the file at `path` and returns whether it existed.
pub(crate) fn remove_if_present(path: &Path) -> io::Result<bool> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Renames a file and syncs its folder, so that the new name survives a power failure.
pub(crate) fn rename_durably(from: &Path, to: &Path) -> io::Result<()> {
    fs::rename(from, to)?;
    let folder = to.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    sync_folder(folder)
}

#[cfg(unix)]
fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// Windows has no call for it.
#[cfg(not(unix))]
fn sync_folder(_: &Path) -> io::Result<()> {
    Ok(())
}

/// The length of a file and the time of its last write: they change when the file is written to.
pub(crate) fn version(metadata: &Metadata) -> (u64, Option<SystemTime>) {
    (metadata.len(), metadata.modified().ok())
}

/// Opens a regular file for reading.
///
/// Checks its type first, because opening a FIFO waits for a writer, and again afterwards, because the path may name
/// another file by then.
pub(crate) fn open_regular(path: &Path) -> Result<(File, Metadata)> {
    let before = fs::metadata(path).map_err(|error| Error::io(path, "open", error))?;
    check_regular(path, before.file_type())?;
    let file = File::open(path).map_err(|error| Error::io(path, "open", error))?;
    let metadata = file.metadata().map_err(|error| Error::io(path, "read", error))?;
    check_regular(path, metadata.file_type())?;
    Ok((file, metadata))
}

fn check_regular(path: &Path, kind: FileType) -> Result<()> {
    if kind.is_file() {
        return Ok(());
    }
    let kind = if kind.is_dir() { "folder" } else { special_kind(kind) };
    Err(Error::NotAFile { path: path.into(), kind })
}

#[cfg(unix)]
fn special_kind(kind: FileType) -> &'static str {
    use std::os::unix::fs::FileTypeExt;

    if kind.is_fifo() {
        "FIFO"
    } else if kind.is_socket() {
        "socket"
    } else {
        "device"
    }
}

#[cfg(not(unix))]
fn special_kind(_: FileType) -> &'static str {
    "device"
}

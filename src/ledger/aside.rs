//! Keeps a database that cannot be read under another name.

use std::io;
use std::path::{Path, PathBuf};

use super::error::Error;
use crate::sys::path::dirfd;

/// Gives a database, and the write-ahead log beside it, other names; returns that of the database.
pub(super) fn put_aside(path: &Path) -> Result<PathBuf, Error> {
    let at = |source| Error::Io { path: path.to_path_buf(), source };
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(at(io::ErrorKind::InvalidInput.into()));
    };
    let with = |suffix: &str| {
        let mut name = name.to_os_string();
        name.push(suffix);
        name
    };
    let dir_fd = std::fs::File::open(dir).map_err(at)?;
    // The write-ahead log belongs to the database it lies beside.
    for (from, to) in [("", ".unreadable"), ("-wal", ".unreadable-wal"), ("-shm", ".unreadable-shm")] {
        match dirfd::rename(&dir_fd, &with(from), &with(to)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(at(e)),
            _ => {}
        }
    }
    Ok(dir.join(with(".unreadable")))
}

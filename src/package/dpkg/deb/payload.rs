//! The names in a .deb's payload, read as a stream: slow, since all of it has to be decompressed.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

use super::ar::{self, invalid};
use super::{Error, members};
use crate::package::absolute;
use crate::package::caught::caught;
use crate::sys::budget;

/// A name in the payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PayloadEntry {
    /// Absolute in the guest.
    pub path: PathBuf,
    /// What it is.
    pub kind: PayloadKind,
}

/// What a name in the payload is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PayloadKind {
    /// A regular file.
    File,
    /// Another name of this file, which an earlier entry has.
    HardLink(PathBuf),
    /// A directory.
    Directory,
    /// A symlink, device or FIFO.
    Other,
}

/// The names in the payload of the archive `path`, the root directory left out.
pub fn payload(path: &Path) -> Result<Vec<PayloadEntry>, Error> {
    let read = || entries(BufReader::new(File::open(path)?));
    caught(read).map_err(|source| Error { path: path.to_path_buf(), source })
}

pub(crate) fn entries(reader: impl Read) -> io::Result<Vec<PayloadEntry>> {
    let mut entries = Vec::new();
    let mut bytes_left = budget::PATH_BYTES;
    members::each(ar::member(reader, "data.tar")?, |entry| {
        let kind = entry.header().entry_type();
        let kind = if kind.is_hard_link() {
            match entry.link_name_bytes().and_then(|target| absolute(&target)) {
                Some(target) => PayloadKind::HardLink(target),
                None => return Ok(()),
            }
        } else if kind.is_dir() {
            PayloadKind::Directory
        } else if kind.is_file() || kind.is_contiguous() {
            PayloadKind::File
        } else {
            PayloadKind::Other
        };
        let Some(path) = absolute(&entry.path_bytes()) else { return Ok(()) };
        let target = if let PayloadKind::HardLink(target) = &kind { target.as_os_str().len() } else { 0 };
        // Each is kept in so many bytes, and in a node of a list.
        let taken = size_of::<PayloadEntry>() + path.as_os_str().len() + target;
        let left = bytes_left.checked_sub(taken);
        bytes_left = left.ok_or_else(|| invalid("it lists too many names".to_owned()))?;
        entries.push(PayloadEntry { path, kind });
        Ok(())
    })?;
    Ok(entries)
}

//! Lists of paths: one after the other, each ended by a NUL byte.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use crate::report::Shown;
use crate::sys::path::dirfd;
use crate::sys::path::root::read_at_most;

/// The largest list that is read, in bytes: what a guest holds is not to fill the host's memory.
pub(super) const MAX_LIST_BYTES: usize = 16 << 20;

pub(super) fn replace_list(
    dir: impl AsFd,
    file: impl AsRef<OsStr>,
    paths: &BTreeSet<PathBuf>,
) -> io::Result<()> {
    let mut content = Vec::new();
    for path in paths {
        content.extend_from_slice(path.as_os_str().as_bytes());
        content.push(0);
    }
    dirfd::replace_file(dir, file.as_ref(), &content)
}

pub(super) fn read_list(dir: impl AsFd, file: &OsStr) -> io::Result<BTreeSet<PathBuf>> {
    Ok(parse_list(&read_content(dir, file)?).collect())
}

/// What is in a list; nothing if it is too large, so that nobody is stuck with it.
pub(super) fn read_content(dir: impl AsFd, file: &OsStr) -> io::Result<Vec<u8>> {
    match read_at_most(dir, file, MAX_LIST_BYTES) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) if e.kind() == io::ErrorKind::FileTooLarge => {
            log::warn!(
                "the list {} of a guest is too large to be read; run `cow-unify` without --changed to find \
                 its files",
                Shown(Path::new(file))
            );
            Ok(Vec::new())
        }
        content => content,
    }
}

pub(crate) fn parse_list(content: &[u8]) -> impl Iterator<Item = PathBuf> {
    let paths = content.split(|&b| b == 0).filter(|path| !path.is_empty());
    paths.map(|path| PathBuf::from(OsString::from_vec(path.to_vec())))
}

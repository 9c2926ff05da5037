//! Lists of paths: one after the other, each ended by a NUL byte.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use crate::report::Shown;
use crate::sys::budget::{self, Exceeded};
use crate::sys::path::dirfd;
use crate::sys::path::root::read_at;

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

/// The paths in a list; none if it is too large, so that nobody is stuck with it.
pub(super) fn read_list(dir: impl AsFd, file: &OsStr) -> io::Result<BTreeSet<PathBuf>> {
    match read_content(dir, file) {
        Ok(content) => Ok(parse_list(&content).collect()),
        Err(e) if e.kind() == io::ErrorKind::FileTooLarge => {
            log::warn!(
                "the list {} of a guest is too large to be read; run `cow-unify` without --changed to find \
                 its files",
                Shown(Path::new(file))
            );
            Ok(BTreeSet::new())
        }
        Err(e) => Err(e),
    }
}

/// What is in a list.
///
/// # Errors
/// `FileTooLarge` beyond [`budget::LIST`] bytes or [`budget::LISTED`] paths.
pub(super) fn read_content(dir: impl AsFd, file: &OsStr) -> io::Result<Vec<u8>> {
    let content = match read_at(dir, file, budget::LIST) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        content => content?,
    };
    Exceeded::check_count(parse_list(&content).count(), budget::LISTED, "paths")?;
    Ok(content)
}

pub(crate) fn parse_list(content: &[u8]) -> impl Iterator<Item = PathBuf> {
    let paths = content.split(|&b| b == 0).filter(|path| !path.is_empty());
    paths.map(|path| PathBuf::from(OsString::from_vec(path.to_vec())))
}

//! Whether the files of a database stay as they are while it is read.

use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use super::installed::Error;
use crate::sys::file::inode::{Inode, InodeId, Kind, Time};
use crate::sys::file::times::{TICK, now};
use crate::sys::path::resolve::is_absent;
use crate::sys::path::root::Root;

/// What tells of a file's changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Witness {
    /// Which file it is.
    pub id: InodeId,
    /// Its size in bytes.
    pub size: u64,
    /// Time of the last change of content.
    pub mtime: Time,
    /// Time of the last change of the inode.
    pub ctime: Time,
}

impl Witness {
    /// The file or directory `path`, if there is one.
    ///
    /// An empty file is as good as none: whoever but looks into an SQLite database may leave an empty log beside it.
    pub fn of(root: &Root, path: &Path) -> io::Result<Option<Witness>> {
        match root.open_at(path, OFlags::PATH) {
            Ok(fd) => {
                let Inode { id, kind, size, mtime, ctime, .. } = Inode::of(fd)?;
                let is_empty = kind == Kind::Regular && size == 0;
                Ok((!is_empty).then_some(Witness { id, size, mtime, ctime }))
            }
            Err(error) if is_absent(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Whether a change right now need not show.
    fn is_recent(&self) -> bool {
        let age =
            i128::from(now()) - (i128::from(self.ctime.secs) * 1_000_000_000 + i128::from(self.ctime.nanos));
        age.unsigned_abs() < TICK.as_nanos()
    }
}

/// Reads a database whose package manager writes to it in place, and says so if it does meanwhile.
pub fn read<T>(
    root: &Root,
    manager: &'static str,
    paths: &[PathBuf],
    read: impl FnOnce() -> Result<T, Error>,
) -> Result<T, Error> {
    let look = || {
        let witness = |path: &PathBuf| {
            Witness::of(root, path).map_err(|source| Error::Unreadable {
                manager,
                path: path.clone(),
                source,
            })
        };
        paths.iter().map(witness).collect::<Result<Vec<_>, _>>()
    };
    let is_recent = |witnesses: &[Option<Witness>]| witnesses.iter().flatten().any(Witness::is_recent);
    let mut before = look()?;
    if is_recent(&before) {
        std::thread::sleep(TICK);
        before = look()?;
    }
    let result = read();
    if is_recent(&before) || look()? != before { Err(Error::Busy { manager }) } else { result }
}

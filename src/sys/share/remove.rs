//! Removes a tree some of whose names are those of shared inodes, which stay as they are.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, IFlags};
use rustix::io::Errno;

use super::gate;
use super::swap::{self, Name, SHARED_LOCK_TIMEOUT, Shared, SwapReport};
use crate::sys::file::inode::{Inode, InodeId};
use crate::sys::path::descent::{Entry, Visitor};
use crate::sys::process::signal;

/// Removes names of one shared inode in as few windows as their number allows; none, if nothing but the names need change.
///
/// What is gone already is no error. A name that has become another file's is removed as well: so all of them must be the
/// caller's to remove.
///
/// # Errors
/// The first that is met. Names may have been removed before it.
pub fn unlink_all(names: &[Name<'_>], inode: InodeId, patience: Duration) -> Result<SwapReport, swap::Error> {
    let mut rest = names;
    while let Some((first, others)) = rest.split_first() {
        match first.unlink() {
            Ok(()) | Err(Errno::NOENT) => rest = others,
            Err(Errno::PERM) => break,
            Err(e) => return Err(io::Error::from(e).into()),
        }
    }
    let Some(first) = rest.first() else { return Ok(SwapReport::default()) };
    let shared = Shared::try_lock_at(first.dir, first.name, patience)?;
    if shared.inode()?.id != inode {
        return Err(io::Error::from(Errno::STALE).into());
    }
    shared.persist(|| {
        for name in rest {
            match name.unlink() {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    })
}

/// Whether a file or directory may lose neither its names nor, if it is a directory, those in it.
pub fn is_kept(inode: &Inode) -> bool {
    inode.immutable || inode.append_only
}

/// Clears the flags of an open file or directory that keep its names.
pub fn release(file: impl AsFd) -> io::Result<()> {
    let flags = rustix::fs::ioctl_getflags(&file)?;
    Ok(rustix::fs::ioctl_setflags(file, flags - IFlags::IMMUTABLE - IFlags::APPEND)?)
}

/// How long a signal does not end the process after a window, beside the time in which others may still be under way.
const BLOCKED: Duration = Duration::from_secs(1);

/// Inodes, all of whose names are to go, and how many these are; of a directory that says nothing.
pub type Released = HashMap<InodeId, u32>;

/// What a [`Remover`] has come to.
#[derive(Debug, Default)]
pub struct Gone {
    /// Windows that were needed.
    pub windows: u64,
    /// Files that others may have changed in a window, or tried to.
    pub contested: Vec<(PathBuf, SwapReport)>,
    /// What is still there, and why.
    pub failed: Vec<(PathBuf, swap::Error)>,
}

/// That a directory, all of whose names were removed, is not empty.
pub fn put_into() -> io::Error {
    io::Error::other(
        "another process has put something into it meanwhile; end that process, then run this again",
    )
}

/// Removes what it is shown.
pub struct Remover<'a> {
    /// Their flags are cleared.
    released: &'a Released,
    /// Told of each name that is gone.
    done: &'a mut dyn FnMut(),
    gone: Gone,
    /// From the first window on, until nobody is under way any more who found a flag clear.
    blocked: Option<(signal::Blocked, Instant)>,
}

impl<'a> Remover<'a> {
    /// Nothing is removed yet. The flags of `released` are cleared; `done` is told of each name that is gone.
    pub fn new(released: &'a Released, done: &'a mut dyn FnMut()) -> Remover<'a> {
        Remover { released, done, gone: Gone::default(), blocked: None }
    }

    /// What has become of all that it was shown.
    pub fn end(mut self) -> Gone {
        self.unblock();
        self.gone
    }

    fn unblock(&mut self) {
        if self.blocked.is_some() {
            gate::wait_for_late_openers();
            self.blocked = None;
        }
    }

    fn unlink(&mut self, name: Name<'_>) -> Result<SwapReport, swap::Error> {
        match name.unlink() {
            Ok(()) | Err(Errno::NOENT) => return Ok(SwapReport::default()),
            Err(Errno::PERM) => {}
            Err(e) => return Err(io::Error::from(e).into()),
        }
        let Some(inode) = name.inode()? else { return Ok(SwapReport::default()) };
        // It has no other name since.
        if self.released.get(&inode.id) == Some(&inode.nlink) {
            release(name.open()?)?;
        }
        self.blocked.get_or_insert_with(|| (signal::block(), Instant::now()));
        swap::unlink_shared(name, SHARED_LOCK_TIMEOUT)
    }
}

impl Visitor for Remover<'_> {
    fn file(&mut self, entry: &Entry<'_>) {
        if self.blocked.as_ref().is_some_and(|(_, since)| since.elapsed() > BLOCKED) {
            self.unblock();
        }
        match self.unlink(Name { dir: entry.dir, name: entry.name }) {
            Ok(report) => {
                self.gone.windows += u64::from(report.window);
                if report.contested || report.leaked {
                    self.gone.contested.push((entry.path(), report));
                }
                (self.done)();
            }
            Err(e) => self.gone.failed.push((entry.path(), e)),
        }
    }

    fn enter(&mut self, entry: &Entry<'_>, directory: &OwnedFd) -> bool {
        let released = Inode::of(directory).and_then(|inode| {
            if is_kept(&inode) && self.released.contains_key(&inode.id) { release(directory) } else { Ok(()) }
        });
        if let Err(e) = released {
            self.gone.failed.push((entry.path(), e.into()));
        }
        true
    }

    fn leave(&mut self, entry: &Entry<'_>) {
        match rustix::fs::unlinkat(entry.dir, entry.name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => (self.done)(),
            // What is still in it has been named.
            Err(Errno::NOTEMPTY | Errno::EXIST) if !self.gone.failed.is_empty() => {}
            Err(Errno::NOTEMPTY | Errno::EXIST) => self.gone.failed.push((entry.path(), put_into().into())),
            Err(e) => self.gone.failed.push((entry.path(), io::Error::from(e).into())),
        }
    }

    fn failed(&mut self, path: &Path, error: io::Error) {
        self.gone.failed.push((path.to_path_buf(), error.into()));
    }
}

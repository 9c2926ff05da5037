//! A run's place in the pool: its directory, and the temporary names in it.
//!
//! A run holds a lock on its directory. A directory that nobody holds is a killed run's: the next run ends what its
//! journal speaks of.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::directory::Pool;
use super::journal::{LinkIntent, encode};
use crate::sys::file::inode::Inode;
use crate::sys::path::dirfd;
use crate::sys::share::lock;
use crate::sys::share::swap::Name;
use crate::unify::{At, Error};

/// The journal's name in the run's directory.
pub(super) const JOURNAL: &str = "journal";
const KEPT: &str = ".kept";
const ADOPTED: &str = ".adopted";
const HELD: &str = ".held";

/// A run's own directory. It goes with the value, unless something is left in it for the next run to end.
#[derive(Debug)]
pub struct RunDir<'p> {
    pool: &'p Pool,
    name: OsString,
    dir: OwnedFd,
    next: AtomicU64,
}

impl<'p> RunDir<'p> {
    /// Begins a run.
    pub fn begin(pool: &'p Pool) -> Result<RunDir<'p>, Error> {
        let at = pool.path();
        for number in 0.. {
            let name = OsString::from(format!("{}-{number}", std::process::id()));
            match dirfd::create_dir(pool.runs(), &name) {
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => continue,
                made => made.at(at)?,
            }
            if let Some(dir) = claim(pool, &name).at(at)? {
                return Ok(RunDir { pool, name, dir, next: AtomicU64::new(0) });
            }
        }
        Err(io::Error::from(io::ErrorKind::AlreadyExists)).at(at)
    }

    /// The run's directory.
    pub fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// The first of `count` numbers that no name in the run's directory has had yet.
    pub fn numbers(&self, count: usize) -> u64 {
        self.next.fetch_add(count as u64, Ordering::Relaxed)
    }

    /// Writes down what is about to be changed. The caller flushes the filesystem before it begins.
    pub fn record(&self, protect: bool, intents: &[LinkIntent]) -> io::Result<()> {
        dirfd::replace_file(&self.dir, OsStr::new(JOURNAL), &encode(protect, intents))
    }

    /// All that was written down has been done, and is on the disk.
    pub fn forget(&self) -> io::Result<()> {
        dirfd::remove_file(&self.dir, OsStr::new(JOURNAL))
    }
}

impl Drop for RunDir<'_> {
    fn drop(&mut self) {
        // If something is left in it, the next run sees to that.
        let _ = dirfd::remove_dir(self.pool.runs(), &self.name);
    }
}

/// The name of something new in a run's directory.
pub fn temporary(number: u64) -> OsString {
    number.to_string().into()
}

/// The name in a run's directory of an inode that has lost its name in a guest.
pub fn kept(number: u64) -> OsString {
    format!("{number}{KEPT}").into()
}

/// The name in a run's directory of a guest's inode that is to be an object, and that this run has marked.
pub fn adopted(number: u64) -> OsString {
    format!("{number}{ADOPTED}").into()
}

/// As [`adopted`], of one that its guest had marked.
pub fn held(number: u64) -> OsString {
    format!("{number}{HELD}").into()
}

/// Whether a name in a run's directory is one that [`adopted`] gave.
pub(super) fn is_adopted(name: &OsStr) -> bool {
    name.as_bytes().ends_with(ADOPTED.as_bytes())
}

/// Whether a name in a run's directory is one that [`held`] gave.
pub(super) fn is_held(name: &OsStr) -> bool {
    name.as_bytes().ends_with(HELD.as_bytes())
}

/// Whether a name in a run's directory is one that [`kept`] gave.
pub(super) fn is_kept(name: &OsStr) -> bool {
    name.as_bytes().ends_with(KEPT.as_bytes())
}

/// Opens and locks a run's directory; `None` if somebody holds it, or it is gone.
pub(super) fn claim(pool: &Pool, name: &OsStr) -> io::Result<Option<OwnedFd>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let dir = match rustix::fs::openat(pool.runs(), name, flags, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(None),
        opened => opened?,
    };
    match lock::exclusive(&dir, Duration::ZERO) {
        Ok(()) => {}
        Err(e) if e.kind() == io::ErrorKind::TimedOut => return Ok(None),
        Err(e) => return Err(e),
    }
    // Whoever held it may have removed it meanwhile.
    let there = Name { dir: pool.runs().as_fd(), name }.inode()?;
    Ok(if there.is_some_and(|inode| inode.id == Inode::of(&dir).map_or(inode.id, |own| own.id)) {
        Some(dir)
    } else {
        None
    })
}

//! Files that may be in a window, and windows of our own.

use std::cell::Cell;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::lookup::OwnedName;
use super::waiting::WaitingCall;
use crate::report::{Reason, Shown, warn_of_possible_write};
use crate::sys::file::inode::{Inode, InodeId, Kind};
use crate::sys::seccomp::Response;
use crate::sys::share::lock;
use crate::sys::share::swap::{self, SHARED_LOCK_TIMEOUT, Shared};

/// How often a change is tried that others come in the way of: by a window of theirs, or by moving the name.
const TRIES: u32 = 64;

/// How long the lock is waited for between two looks at a file that may be in a window.
const LOOK_AGAIN: Duration = Duration::from_millis(2);

impl WaitingCall<'_> {
    /// What is open as `file`, when nobody has a window open on it.
    pub(super) fn look(&self, file: &OwnedFd) -> io::Result<Inode> {
        let inode = Inode::of(file)?;
        // Under the guard there are no windows.
        if self.supervisor.options.guarded || !may_be_in_window(&inode) {
            return Ok(inode);
        }
        outside_window(self.supervisor.processes.reopen(file, OFlags::RDONLY)?)
    }

    /// The file a name has, if it is one that the kernel protects from losing it.
    pub(super) fn protected(&self, entry: &OwnedName) -> io::Result<Option<Inode>> {
        self.protected_now(entry, entry.name().inode()?)
    }

    /// As [`WaitingCall::protected`], of a name that has just been looked at.
    pub(super) fn protected_now(&self, entry: &OwnedName, found: Option<Inode>) -> io::Result<Option<Inode>> {
        let Some(mut inode) = found else { return Ok(None) };
        if may_be_in_window(&inode) {
            inode = outside_window(entry.name().open()?)?;
        }
        Ok(Some(inode).filter(|inode| inode.immutable && self.supervisor.is_shared(inode)))
    }

    /// Records that the file may lose its protection for a moment; returns the path of its name.
    pub(super) fn announce(&mut self, entry: &OwnedName, inode: &Inode) -> io::Result<PathBuf> {
        let dir = self.path_of_dir(entry)?;
        let path = dir.join(&entry.name);
        let announced = self
            .supervisor
            .with_journal(|journal| journal.announce(entry.dir.as_fd(), || dir, &entry.name, inode));
        announced.map_err(|e| {
            log::warn!("{}: {}", Shown(&path), Reason(&e));
            io::Error::other(e)
        })?;
        Ok(path)
    }

    /// The path of the directory, from our own root; nothing where it is too long to have one. The calling thread is at
    /// home afterwards.
    pub(super) fn path_of_dir(&mut self, entry: &OwnedName) -> io::Result<PathBuf> {
        self.thread_root.leave()?;
        let path = || self.thread_root.path_of(&self.supervisor.processes, &entry.dir).unwrap_or_default();
        Ok(entry.dir.path.get_or_init(path).clone())
    }

    /// Opens and locks the inode that the entry names; `None` if that is not `inode` any more.
    fn lock(&self, entry: &OwnedName, inode: InodeId) -> io::Result<Option<Shared>> {
        let known = self.supervisor.recent().take(inode);
        let (locked, named) = match known {
            Some(file) => (Shared::try_lock(file, SHARED_LOCK_TIMEOUT)?, entry.name().inode()?),
            None => match Shared::try_lock_at(entry.dir.as_fd(), &entry.name, SHARED_LOCK_TIMEOUT) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
                locked => {
                    let locked = locked?;
                    let named = locked.inode()?;
                    (locked, Some(named))
                }
            },
        };
        Ok(named.is_some_and(|named| named.id == inode).then_some(locked))
    }

    /// Changes names of protected files, with all their windows open if need be.
    pub(super) fn change_names(
        &self,
        shared: &[(&OwnedName, Inode)],
        change: &dyn Fn() -> rustix::io::Result<()>,
    ) -> io::Result<Tried> {
        let Some(((entry, inode), rest)) = shared.split_first() else {
            return Ok(Tried::Answered(answer_of(change())));
        };
        let Some(locked) = self.lock(entry, inode.id)? else { return Ok(Tried::Again) };
        let inner = Cell::new(Ok(Tried::Again));
        let changed = locked.change_names(|| {
            let tried = self.change_names(rest, change);
            let result = match &tried {
                Ok(Tried::Answered(Response::Failed(errno))) => Err(*errno),
                Ok(Tried::Answered(_)) => Ok(()),
                Ok(Tried::Again) => Err(Errno::AGAIN),
                Err(e) => Err(Errno::from_io_error(e).unwrap_or(Errno::IO)),
            };
            inner.set(tried.map_err(drop));
            result
        });
        if let Ok(file) = locked.unlock() {
            self.supervisor.recent().keep(inode.id, file);
        }
        let path = || Shown(entry.name.as_ref()).to_string();
        match changed {
            Ok(change) => {
                if change.leaked {
                    warn_of_possible_write(entry.name.as_ref());
                }
                self.supervisor.counts.names.fetch_add(1, Ordering::Relaxed);
                Ok(inner.into_inner().unwrap_or(Tried::Answered(Response::Continue)))
            }
            Err(swap::Error::Unchanged(e)) => Ok(match Errno::from_io_error(&e).unwrap_or(Errno::IO) {
                Errno::AGAIN => Tried::Again,
                errno => Tried::Answered(Response::Failed(errno)),
            }),
            Err(e @ swap::Error::Unprotected(_)) => {
                log::error!("{}: {e}; run `cow-prepare --recover`", path());
                Ok(inner.into_inner().unwrap_or(Tried::Answered(Response::Failed(Errno::IO))))
            }
        }
    }
}

/// Whether more is to be asked than this, before a file is taken for one that is not shared.
pub(super) fn may_be_shared(inode: &Inode) -> bool {
    inode.kind == Kind::Regular && (inode.immutable || inode.nlink > 1)
}

/// Whether a file looks like one that is not shared, and may be one whose flag another process has just cleared.
pub(super) fn may_be_in_window(inode: &Inode) -> bool {
    may_be_shared(inode) && !inode.immutable
}

/// The inode of an open file, when nobody has a window open on it. Windows are short, and the lock that they are opened
/// under may be passed from one to the next for long.
pub(super) fn outside_window(file: OwnedFd) -> io::Result<Inode> {
    let begun = Instant::now();
    loop {
        let inode = Inode::of(&file)?;
        // Not all locks are ours.
        if !may_be_in_window(&inode) || begun.elapsed() > SHARED_LOCK_TIMEOUT {
            return Ok(inode);
        }
        match lock::exclusive(&file, LOOK_AGAIN) {
            Ok(()) => return Inode::of(&file),
            Err(e) if e.kind() == io::ErrorKind::TimedOut => {}
            Err(e) => return Err(e),
        }
    }
}

/// What came of one try to change names.
#[derive(Clone, Copy, Debug)]
pub(super) enum Tried {
    /// This is what the caller gets.
    Answered(Response),
    /// Somebody was quicker: it may be another file by now.
    Again,
}

/// Tries until there is an answer. After [`TRIES`] the kernel judges.
pub(super) fn persist(mut attempt: impl FnMut() -> io::Result<Tried>) -> io::Result<Response> {
    for _ in 0..TRIES {
        match attempt()? {
            // Somebody else may have closed a window of ours, with one of the same inode.
            Tried::Again | Tried::Answered(Response::Failed(Errno::PERM)) => std::thread::yield_now(),
            Tried::Answered(answer) => return Ok(answer),
        }
    }
    Ok(Response::Continue)
}

fn answer_of(result: rustix::io::Result<()>) -> Response {
    match result {
        Ok(()) => Response::Done(0),
        Err(errno) => Response::Failed(errno),
    }
}

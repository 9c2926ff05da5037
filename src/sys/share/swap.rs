//! How a name changes its inode while the shared one stays protected.
//!
//! Every change is tried natively first: plain hard links and kernels that know "immutable, but may be unlinked"
//! allow it. Only `EPERM` on an inode that says `STATX_ATTR_IMMUTABLE` opens a *window*: the flag is cleared, the
//! change is made, the flag is set again through the descriptor that is still open.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, IFlags, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use super::gate;
use super::lease::Lease;
use super::lock;
use super::mark;
use crate::sys::file::inode::{Inode, InodeId};
use crate::sys::file::metadata::Metadata;
use crate::sys::file::traits::set_immutable;
use crate::sys::path::resolve::is_absent;

/// How a change went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SwapReport {
    /// The immutable flag was cleared for a moment.
    pub window: bool,
    /// Somebody tried to write to the shared inode in that moment, or changed metadata, which was put back.
    pub contested: bool,
    /// Somebody may hold it open for writing since that moment, or has changed it for good: it wants verification.
    pub leaked: bool,
}

impl SwapReport {
    /// This change, and another one.
    pub fn and(self, other: SwapReport) -> SwapReport {
        SwapReport {
            window: self.window || other.window,
            contested: self.contested || other.contested,
            leaked: self.leaked || other.leaked,
        }
    }
}

/// A change of names that could not be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nothing has changed.
    #[error(transparent)]
    Unchanged(#[from] io::Error),
    /// The names are as asked or as before, but the shared inode could not be protected again.
    #[error("the immutable flag could not be set again: {0}")]
    Unprotected(#[source] io::Error),
}

/// How long the lock on a shared inode is waited for at most, if the change can be made without it.
///
/// What is done under the lock takes microseconds, but every user of a guest may hold it for ever.
pub const SHARED_LOCK_TIMEOUT: Duration = Duration::from_millis(250);

/// How long this process waits in vain for locks on shared inodes in each minute, at most: a user of a guest may hold
/// the locks of all files that the user can read.
const WAIT_IN_ALL: Duration = Duration::from_secs(1);

static WAITED: Mutex<Waited> = Mutex::new(Waited { since: None, time: Duration::ZERO });

/// For how long this process has waited in vain, since when.
struct Waited {
    since: Option<Instant>,
    time: Duration,
}

impl Waited {
    /// How long it may still wait.
    fn left(&mut self) -> Duration {
        if self.since.is_some_and(|since| since.elapsed() > Duration::from_secs(60)) {
            *self = Waited { since: None, time: Duration::ZERO };
        }
        WAIT_IN_ALL.saturating_sub(self.time)
    }

    fn add(&mut self, time: Duration) {
        self.since.get_or_insert_with(Instant::now);
        self.time += time;
    }
}

/// How often a change is made at most whose window another process may have closed.
const MAX_CHANGES: usize = 20;

/// How long metadata is restored that other processes change again and again.
const RESTORE_TIMEOUT: Duration = Duration::from_secs(3);

/// What became of others' changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Undone {
    Nothing,
    All,
    NotAll,
}

/// A shared inode, locked against every other process that opens windows.
#[derive(Debug)]
pub struct Shared {
    fd: OwnedFd,
}

impl Shared {
    /// Opens the inode that `name` in `dir` names, and locks it. If another process keeps the lock, waits no longer than
    /// [`SHARED_LOCK_TIMEOUT`] for it, or than is left of [`WAIT_IN_ALL`], and goes on without the lock then.
    ///
    /// Without it another process may close the window: the change fails with `EPERM`, and nothing has changed.
    ///
    /// # Errors
    /// `ELOOP` for a symlink.
    pub fn try_lock_at(dir: impl AsFd, name: &OsStr, patience: Duration) -> io::Result<Shared> {
        Self::try_lock(open_file(dir, name)?, patience)
    }

    /// As [`Shared::try_lock_at`], for an inode that is open read-only.
    pub fn try_lock(fd: OwnedFd, patience: Duration) -> io::Result<Shared> {
        let begun = Instant::now();
        let left = WAITED.lock().unwrap_or_else(PoisonError::into_inner).left();
        match lock::exclusive(&fd, patience.min(SHARED_LOCK_TIMEOUT).min(left)) {
            Err(e) if e.kind() == io::ErrorKind::TimedOut => {
                WAITED.lock().unwrap_or_else(PoisonError::into_inner).add(begun.elapsed());
            }
            locked => locked?,
        }
        Ok(Shared { fd })
    }

    /// Lets others have the lock; the file stays open.
    pub fn unlock(self) -> io::Result<OwnedFd> {
        lock::release(&self.fd)?;
        Ok(self.fd)
    }

    /// The inode as it is now.
    pub fn inode(&self) -> io::Result<Inode> {
        Inode::of(&self.fd)
    }

    /// Makes `change` to the inode's names, in a window if there is no other way.
    ///
    /// `change` must leave nothing behind if it fails. The flag is set again whatever `change` returns, unless no
    /// name of the inode is left.
    pub fn change_names(&self, change: impl Fn() -> rustix::io::Result<()>) -> Result<SwapReport, Error> {
        match change() {
            Ok(()) => return Ok(SwapReport::default()),
            Err(Errno::PERM) => {}
            Err(e) => return Err(Error::Unchanged(e.into())),
        }
        let before = Metadata::of(&self.fd)?;
        if !before.inode.immutable {
            return Err(Error::Unchanged(Errno::PERM.into()));
        }
        self.in_window(before, Opened::Bare, change)
    }

    /// Makes `change` in a window.
    fn in_window(
        &self,
        before: Metadata,
        opened: Opened,
        change: impl FnOnce() -> rustix::io::Result<()>,
    ) -> Result<SwapReport, Error> {
        // A lease fails if a writer is already there (not of our making), or if there are none.
        let lease = Lease::take(self.fd.as_fd()).ok().flatten();
        // On ext4, too: it takes no writes while the flag is set, but in the next window it would.
        let gate = gate::close(self.fd.as_fd(), before.inode.id);
        if let Some(gate) = &gate
            && before.inode.mode & 0o111 != 0
            && !lease.as_ref().is_some_and(Lease::is_alone)
        {
            gate.wait_for_executions();
        }

        let window = Window::open(&self.fd, opened)?;
        let changed = change();
        if self.inode().map_err(Error::Unprotected)?.nlink > 0 {
            window.close().map_err(Error::Unprotected)?;
        }

        let broken = lease.as_ref().map(|lease| !lease.unbroken().unwrap_or(false));
        // Who has come to the lease is not held by the gate any more; without either nobody knows.
        let passed = broken.unwrap_or(gate.is_none());
        let undone = self.undo(before, passed)?;
        changed.map_err(io::Error::from)?;
        let turned_away = gate.is_some_and(|gate| gate.was_tried() || lease.is_some_and(|l| l.is_wanted()));
        Ok(SwapReport {
            window: true,
            contested: broken == Some(true) || turned_away || undone != Undone::Nothing,
            leaked: passed || undone == Undone::NotAll,
        })
    }

    /// As [`Shared::change_names`], for an inode whose lock another process may hold.
    ///
    /// That process may close our window, or clear the flag just after it has made our change fail: so `EPERM` is tried
    /// again. It is final if the inode is not immutable afterwards, twice in a row: then something else is the reason.
    pub fn persist(&self, change: impl Fn() -> rustix::io::Result<()>) -> Result<SwapReport, Error> {
        let mut earlier = SwapReport::default();
        let mut others_window = false;
        for _ in 1..MAX_CHANGES {
            let refused = match self.change_names(&change) {
                Err(Error::Unchanged(e)) if e.raw_os_error() == Some(libc::EPERM) => e,
                changed => return changed.map(|report| report.and(earlier)),
            };
            if self.inode()?.immutable {
                (earlier.window, others_window) = (true, false);
            } else if std::mem::replace(&mut others_window, true) {
                return Err(Error::Unchanged(refused));
            }
        }
        self.change_names(change).map(|report| report.and(earlier))
    }

    /// Puts back what others changed besides names and content while the flag was clear.
    ///
    /// The kernel looks at the flag and changes metadata under one lock (`chmod_common` of `fs/open.c`, `vfs_setxattr`
    /// of `fs/xattr.c`): what is found once the flag is set stays so. The time of a change of content is left to
    /// tell of it.
    fn undo(&self, mut wanted: Metadata, passed: bool) -> Result<Undone, Error> {
        let mut undone = Undone::Nothing;
        let begun = Instant::now();
        while begun.elapsed() < RESTORE_TIMEOUT {
            let Ok(now) = Metadata::of(&self.fd) else { return Ok(Undone::NotAll) };
            let resized = now.inode.size != wanted.inode.size;
            if passed || resized {
                (wanted.inode.size, wanted.inode.mtime) = (now.inode.size, now.inode.mtime);
            }
            if resized {
                undone = Undone::NotAll;
            }
            if now.same_as(&wanted) || now.inode.nlink == 0 {
                return Ok(undone);
            }
            let Ok(window) = Window::open(&self.fd, Opened::Bare) else { return Ok(Undone::NotAll) };
            let written = wanted.write(&self.fd, &now);
            window.close().map_err(Error::Unprotected)?;
            undone = if written.is_ok() { undone.max(Undone::All) } else { Undone::NotAll };
        }
        Ok(Undone::NotAll)
    }

    /// Sets the immutable flag, unless the inode has no name any more.
    pub fn protect(&self) -> io::Result<()> {
        if self.inode()?.nlink == 0 { Ok(()) } else { set_immutable(&self.fd, true) }
    }

    /// Gives the inode the mark that the guard respects, beside the immutable flag if it has that.
    ///
    /// ext4 changes no flag of an inode that stays immutable (`ext4_ioctl_check_immutable` of `fs/ext4/ioctl.c`): that
    /// takes a window, in which it has the mark already. Somebody whose own change of flags was begun before could clear
    /// the mark in it: hence what is reported.
    pub fn mark(&self) -> Result<SwapReport, Error> {
        match mark::set(&self.fd) {
            Err(e) if e.raw_os_error() == Some(libc::EPERM) && self.inode()?.immutable => {
                self.in_window(Metadata::of(&self.fd)?, Opened::Marked, || Ok(()))
            }
            set => Ok(set.map(|()| SwapReport::default())?),
        }
    }

    /// Clears the immutable flag of a marked inode, which the guard protects from now on. Returns whether it was set.
    ///
    /// # Errors
    /// `EPERM` if the inode has no mark. Nothing has changed.
    pub fn leave_to_guard(&self) -> io::Result<bool> {
        let flags = rustix::fs::ioctl_getflags(&self.fd)?;
        if !flags.contains(IFlags::IMMUTABLE) {
            return Ok(false);
        }
        if !flags.contains(IFlags::NOATIME) {
            return Err(Errno::PERM.into());
        }
        rustix::fs::ioctl_setflags(&self.fd, flags - IFlags::IMMUTABLE)?;
        Ok(true)
    }

    /// Sets the immutable flag instead of the mark that the guard respects, in one call; an inode that is immutable already
    /// keeps the mark if the filesystem wants it so. Returns whether it was not immutable.
    pub fn take_from_guard(&self) -> io::Result<bool> {
        let before = rustix::fs::ioctl_getflags(&self.fd)?;
        let flags = (before - IFlags::NOATIME) | IFlags::IMMUTABLE;
        if flags == before {
            return Ok(false);
        }
        match rustix::fs::ioctl_setflags(&self.fd, flags) {
            Err(Errno::PERM) if before.contains(IFlags::IMMUTABLE) => Ok(false),
            set => Ok(set.map(|()| !before.contains(IFlags::IMMUTABLE))?),
        }
    }
}

impl AsFd for Shared {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// A name in an open directory.
#[derive(Clone, Copy, Debug)]
pub struct Name<'a> {
    /// The directory.
    pub dir: BorrowedFd<'a>,
    /// The last component.
    pub name: &'a OsStr,
}

impl Name<'_> {
    /// Moves this name over `other`, which must name the inode `expected`. With `kept`, that inode has this name
    /// afterwards.
    ///
    /// Never by an exchange of the two names: that moves the directory entry which running programs were started
    /// from, and `/proc/PID/exe` would lead to wherever it went. After a rename over it the kernel still tells the
    /// guest's own path, as deleted (`d_path` of `fs/d_path.c`), which service scripts understand.
    ///
    /// The kernel has no rename that asks which file it replaces, so the name is looked at immediately before. A file
    /// that another process renames to `other` between these two system calls is replaced, as by any other rename
    /// that comes just after. A directory never is.
    ///
    /// # Errors
    /// `ESTALE` if `other` names another file, `EMLINK` if `expected` can have no more names. Nothing has changed.
    pub fn displace(
        self,
        other: Name<'_>,
        expected: InodeId,
        kept: Option<Name<'_>>,
    ) -> rustix::io::Result<()> {
        if let Some(kept) = kept {
            other.link(kept)?;
        }
        let names = |name: Name<'_>| match name.inode() {
            Ok(now) => Ok(now.is_some_and(|now| now.id == expected)),
            Err(e) => Err(Errno::from_io_error(&e).unwrap_or(Errno::IO)),
        };
        // The one that may lose the race comes last.
        let replaced = match kept.map_or(Ok(true), names).and_then(|kept| Ok(kept && names(other)?)) {
            Ok(true) => self.replace(other),
            Ok(false) => Err(Errno::STALE),
            Err(e) => Err(e),
        };
        replaced.inspect_err(|_| {
            // What cannot be removed is left to recovery.
            let _ = kept.map(Name::unlink);
        })
    }

    /// Moves this name over `other`, whatever that names.
    pub fn replace(self, other: Name<'_>) -> rustix::io::Result<()> {
        rustix::fs::renameat(self.dir, self.name, other.dir, other.name)
    }

    /// Moves this name to `other` as `renameat2(2)` does with these flags.
    pub fn rename(self, other: Name<'_>, flags: RenameFlags) -> rustix::io::Result<()> {
        rustix::fs::renameat_with(self.dir, self.name, other.dir, other.name, flags)
    }

    /// Gives an open file this name.
    ///
    /// # Errors
    /// `EEXIST` if the name is taken; `ENOENT` if the file has no name any more.
    pub fn give_to(self, file: impl AsFd) -> rustix::io::Result<()> {
        rustix::fs::linkat(file, "", self.dir, self.name, AtFlags::EMPTY_PATH)
    }

    /// Gives the file a second name.
    pub fn link(self, other: Name<'_>) -> rustix::io::Result<()> {
        rustix::fs::linkat(self.dir, self.name, other.dir, other.name, AtFlags::empty())
    }

    /// Removes the name.
    pub fn unlink(self) -> rustix::io::Result<()> {
        rustix::fs::unlinkat(self.dir, self.name, AtFlags::empty())
    }

    /// What the name names; `None` if there is nothing.
    pub fn inode(self) -> io::Result<Option<Inode>> {
        match Inode::at(self.dir, self.name) {
            Ok(inode) => Ok(Some(inode)),
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Opens the file read-only; a symlink is not followed, a FIFO does not block.
    pub fn open(self) -> io::Result<OwnedFd> {
        open_file(self.dir, self.name)
    }
}

/// The time in which a protected inode's flag is clear; as short as two system calls make it.
#[must_use]
struct Window<'fd> {
    fd: &'fd OwnedFd,
    flags: IFlags,
}

/// What an inode has in a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Opened {
    /// What it had before.
    Bare,
    /// The mark that the guard respects, which it keeps.
    Marked,
}

impl<'fd> Window<'fd> {
    fn open(fd: &'fd OwnedFd, opened: Opened) -> io::Result<Window<'fd>> {
        let mut flags = rustix::fs::ioctl_getflags(fd)?;
        flags.set(IFlags::NOATIME, flags.contains(IFlags::NOATIME) || opened == Opened::Marked);
        rustix::fs::ioctl_setflags(fd, flags - IFlags::IMMUTABLE)?;
        Ok(Window { fd, flags: flags | IFlags::IMMUTABLE })
    }

    fn close(self) -> io::Result<()> {
        Ok(rustix::fs::ioctl_setflags(self.fd, self.flags)?)
    }
}

/// Removes a name of an inode that others share; one that is not there is no error.
///
/// The lock on the inode is only asked for if a window is needed. Any user of a guest may hold it for ever: after
/// [`SHARED_LOCK_TIMEOUT`] it is done without.
pub fn unlink_shared(name: Name<'_>, patience: Duration) -> Result<SwapReport, Error> {
    match name.unlink() {
        Ok(()) | Err(Errno::NOENT) => return Ok(SwapReport::default()),
        Err(Errno::PERM) => {}
        Err(e) => return Err(io::Error::from(e).into()),
    }
    match Shared::try_lock_at(name.dir, name.name, patience) {
        Ok(shared) => shared.persist(|| name.unlink()),
        Err(e) if is_absent(&e) => Ok(SwapReport::default()),
        Err(e) => Err(e.into()),
    }
}

/// Whether this process may set and clear the immutable flag on the filesystem of `dir`.
///
/// Tried on a nameless file: holding `CAP_LINUX_IMMUTABLE` is not enough inside a user namespace. If
/// none can be made in the directory, that says nothing.
pub fn may_change_immutable(dir: impl AsFd) -> io::Result<()> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let Ok(file) = rustix::fs::openat(dir, ".", flags, Mode::RUSR | Mode::WUSR) else { return Ok(()) };
    set_immutable(&file, true)?;
    set_immutable(&file, false)
}

fn open_file(dir: impl AsFd, name: &OsStr) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    // Looking at a file is no use of it: its time of access stays, if we may open it so.
    match rustix::fs::openat(&dir, name, flags | OFlags::NOATIME, Mode::empty()) {
        Err(Errno::PERM) => Ok(rustix::fs::openat(&dir, name, flags, Mode::empty())?),
        opened => Ok(opened?),
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn a_refusal_that_no_flag_explains_is_not_tried_for_long() {
        let shared = Shared::try_lock(tempfile::tempfile().unwrap().into(), Duration::ZERO).unwrap();
        let tries = Cell::new(0);
        let refused = shared.persist(|| {
            tries.set(tries.get() + 1);
            Err(Errno::PERM)
        });
        assert!(matches!(refused, Err(Error::Unchanged(e)) if e.raw_os_error() == Some(libc::EPERM)));
        assert_eq!(tries.get(), 2);
        let changed = shared.persist(|| match tries.replace(tries.get() + 1) {
            2 => Err(Errno::PERM),
            _ => Ok(()),
        });
        assert_eq!((changed.unwrap(), tries.get()), (SwapReport::default(), 4));
    }
}

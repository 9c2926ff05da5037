//! Puts links of an intact inode in the place of names of a damaged one, in windows on both if there is no other way.

use std::cell::RefCell;
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::sys::file::inode::{Inode, InodeId, Time};
use crate::sys::path::resolve::Place;
use crate::sys::share::swap::{self, Name, Shared};
use crate::unify::pool::object::{ObjectName, PoolFile};
use crate::unify::pool::publish::Publisher;
use crate::unify::pool::run::{RunDir, temporary};
use crate::unify::scan::guest::GuestTree;

/// A name of a damaged inode that is to be replaced.
pub(super) struct Target<'n> {
    pub dir: OwnedFd,
    /// The directory's time of modification before its names change.
    pub modified: Time,
    pub name: &'n Place,
    /// Number of the temporary name that takes its place.
    number: u64,
}

impl<'n> Target<'n> {
    /// Opens the directory of a name.
    pub fn open(guest: &GuestTree, name: &'n Place, number: u64) -> io::Result<Target<'n>> {
        let dir = guest.root.open_walked(&name.dir, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW)?;
        Ok(Target { modified: Inode::of(&dir)?.mtime, dir, name, number })
    }
}

/// What became of names.
pub(super) struct Replaced {
    /// Of each name, whether it is one of the intact inode.
    pub names: Vec<rustix::io::Result<()>>,
    /// Somebody tried to write to one of the inodes in a window.
    pub contested: bool,
}

/// Replaces names of a damaged inode by names of an intact one.
pub(super) fn replace(
    publisher: &Publisher<'_>,
    damaged: &PoolFile,
    object: &ObjectName,
    targets: &[Target<'_>],
) -> Result<Replaced, swap::Error> {
    let not_found = || io::Error::from(io::ErrorKind::NotFound);
    let shelf = publisher.pool.shelf(object.shelf(), false)?.ok_or_else(not_found)?;
    let file = object.file();
    let intact = Name { dir: shelf.as_fd(), name: &file };
    let (intact_shared, damaged_shared) = lock_both(publisher, intact, damaged)?;
    let done = RefCell::new(Vec::new());
    let change = || {
        done.replace(replace_all(publisher.run, intact, targets, damaged.inode.id)?);
        Ok(())
    };
    let contested = change_names_of(&intact_shared, &damaged_shared, change)?.contested;
    Ok(Replaced { names: done.into_inner(), contested })
}

/// Locks two inodes, that of the smaller number first: nobody waits for us who has what we wait for.
fn lock_both(
    publisher: &Publisher<'_>,
    intact: Name<'_>,
    damaged: &PoolFile,
) -> io::Result<(Shared, Shared)> {
    let inode = intact.inode()?.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
    let quarantine = publisher.pool.dir_of(damaged)?;
    let lock_timeout = publisher.lock_timeout;
    let lock_damaged = || Shared::try_lock_at(&quarantine, &damaged.file, lock_timeout);
    let lock_intact = || Shared::try_lock_at(intact.dir, intact.name, lock_timeout);
    if inode.id.ino < damaged.inode.id.ino {
        let intact = lock_intact()?;
        Ok((intact, lock_damaged()?))
    } else {
        let damaged = lock_damaged()?;
        Ok((lock_intact()?, damaged))
    }
}

/// Puts a link of `intact` in the place of each name of the inode `damaged`. For each name, whether it was.
///
/// # Errors
/// If an inode refuses; then all is as before.
fn replace_all(
    run: &RunDir<'_>,
    intact: Name<'_>,
    targets: &[Target<'_>],
    damaged: InodeId,
) -> rustix::io::Result<Vec<rustix::io::Result<()>>> {
    let numbered: Vec<OsString> = targets.iter().map(|target| temporary(target.number)).collect();
    let temporary = |at: usize| Name { dir: run.dir(), name: &numbered[at] };
    let undo = |links: usize| {
        for at in 0..links {
            // What cannot be removed is left to recovery.
            let _ = temporary(at).unlink();
        }
    };
    for at in 0..targets.len() {
        intact.link(temporary(at)).inspect_err(|_| undo(at))?;
    }
    let mut replaced = Vec::with_capacity(targets.len());
    for (at, target) in targets.iter().enumerate() {
        let name = Name { dir: target.dir.as_fd(), name: &target.name.name };
        let result = temporary(at).displace(name, damaged, None);
        // The damaged inode refuses: the others are its names, too.
        if at == 0 && result == Err(Errno::PERM) {
            undo(targets.len());
            return Err(Errno::PERM);
        }
        if result.is_err() {
            let _ = temporary(at).unlink();
        }
        replaced.push(result);
    }
    Ok(replaced)
}

/// Makes a change to names of two locked inodes, in windows on one or both if there is no other way.
///
/// `change` must leave nothing behind if it fails.
fn change_names_of(
    intact: &Shared,
    damaged: &Shared,
    change: impl Fn() -> rustix::io::Result<()>,
) -> Result<swap::SwapReport, swap::Error> {
    let unprotected = RefCell::new(None);
    // This way round a window that comes to nothing is one on the damaged inode.
    let changed = intact.change_names(|| match damaged.change_names(&change) {
        Ok(_) => Ok(()),
        Err(swap::Error::Unchanged(e)) => Err(Errno::from_io_error(&e).unwrap_or(Errno::IO)),
        Err(swap::Error::Unprotected(e)) => {
            unprotected.replace(Some(e));
            Ok(())
        }
    });
    match unprotected.into_inner() {
        Some(e) => Err(swap::Error::Unprotected(e)),
        None => changed,
    }
}

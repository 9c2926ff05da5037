//! The second name of an object that the guard protects.
//!
//! The guard leaves alone what has only one name: that is its guest's own. A guest that had all names of an object in guests
//! could open it, remove them, and write to what has only the pool's name left; the next guest would get the result. So
//! the pool has two names of each object, and the second goes only when the first has gone: it is in the same directory, and
//! is called like the first, with an ending of its own. It stays if the pool turns to the immutable flag, which does not
//! need it.
//!
//! A second name without an object is what a killed collection has left.

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use rustix::io::Errno;

use super::directory::Pool;
use super::object::{ObjectName, PoolFile};
use crate::sys::file::inode::InodeId;
use crate::sys::path::resolve::is_absent;
use crate::sys::share::swap::{self, Name, Shared, SwapReport};
use crate::unify::{Error, FailedPath};

/// Whether the inode `id` has the second name of an object.
pub(crate) fn is_there(shelf: impl AsFd, object: &ObjectName, id: InodeId) -> io::Result<bool> {
    let second = Name { dir: shelf.as_fd(), name: &object.second() }.inode()?;
    Ok(second.is_some_and(|inode| inode.id == id))
}

/// Gives an object that is open and locked its second name, in a window if it is immutable.
pub(super) fn give(
    shelf: impl AsFd,
    object: &ObjectName,
    shared: &Shared,
) -> Result<SwapReport, swap::Error> {
    let id = shared.inode()?.id;
    if is_there(&shelf, object, id)? {
        return Ok(SwapReport::default());
    }
    let (first, second) = (object.file(), object.second());
    let first = Name { dir: shelf.as_fd(), name: &first };
    let second = Name { dir: shelf.as_fd(), name: &second };
    shared.persist(|| {
        // What a killed collection has left of an earlier object.
        remove(second)?;
        first.link(second)?;
        // The first name may be another inode's by now.
        let is_it = second.inode().is_ok_and(|inode| inode.is_some_and(|inode| inode.id == id));
        if is_it { Ok(()) } else { remove(second).and(Err(Errno::STALE)) }
    })
}

/// Removes both names of an object, the second last. Leaves nothing behind if the inode refuses.
pub(crate) fn remove_both(shelf: impl AsFd, object: &ObjectName) -> rustix::io::Result<()> {
    Name { dir: shelf.as_fd(), name: &object.file() }.unlink()?;
    remove(Name { dir: shelf.as_fd(), name: &object.second() })
}

/// Removes the second name of an object that has lost the first.
pub(crate) fn remove_left(
    shelf: impl AsFd,
    object: &ObjectName,
    lock_timeout: Duration,
) -> Result<(), swap::Error> {
    match swap::unlink_shared(Name { dir: shelf.as_fd(), name: &object.second() }, lock_timeout) {
        Err(swap::Error::Unchanged(e)) if is_absent(&e) => Ok(()),
        removed => removed.map(drop),
    }
}

fn remove(name: Name<'_>) -> rustix::io::Result<()> {
    match name.unlink() {
        Err(Errno::NOENT) => Ok(()),
        removed => removed,
    }
}

impl Pool {
    /// Looks at a file of the pool once more. `None` if it is another one by now.
    pub(super) fn look_again(&self, stored: &PoolFile) -> io::Result<Option<PoolFile>> {
        let dir = self.dir_of(stored)?;
        let (inode, marked) = self.look_at_file(&dir, &stored.file)?;
        if inode.id != stored.inode.id {
            return Ok(None);
        }
        let second = !stored.quarantined && is_there(&dir, &stored.name, inode.id)?;
        Ok(Some(PoolFile { inode, marked, second, ..stored.clone() }))
    }

    /// Gives a file of the pool, unless it is in quarantine, the second name of its object.
    pub(super) fn give_second(&self, stored: &PoolFile, shared: &Shared) -> Result<SwapReport, swap::Error> {
        // What is in quarantine gets no new names.
        if stored.quarantined {
            return Ok(SwapReport::default());
        }
        give(self.dir_of(stored)?, &stored.name, shared)
    }

    /// Removes second names whose objects are gone.
    ///
    /// # Errors
    /// If the pool cannot be read. What cannot be removed is in the result.
    pub fn remove_left_seconds(&self, lock_timeout: Duration) -> Result<Vec<FailedPath>, Error> {
        let mut failed = Vec::new();
        for shelf in 0..=255 {
            let left = self.read_shelf(shelf)?.seconds_without_object();
            if left.is_empty() {
                continue;
            }
            let dir = self.shelf(shelf, false);
            for name in left {
                let removed = match &dir {
                    Ok(Some(dir)) => remove_left(dir, &name, lock_timeout),
                    Ok(None) => Ok(()),
                    Err(e) => Err(io::Error::from(e.kind()).into()),
                };
                if let Err(e) = removed {
                    failed.push(FailedPath::new(self.object_path(&name).with_file_name(name.second()), e));
                }
            }
        }
        Ok(failed)
    }
}

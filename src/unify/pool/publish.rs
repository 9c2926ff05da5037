//! Gives copies their names among the objects.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;

use super::directory::Pool;
use super::object::ObjectName;
use super::protection::PoolProtection;
use super::run::{RunDir, temporary};
use crate::sys::file::filesystem;
use crate::sys::file::inode::Inode;
use crate::sys::share::copy::Copier;
use crate::sys::share::swap::{Name, Shared};

/// Makes objects of files.
#[derive(Clone, Copy, Debug)]
pub struct Publisher<'a> {
    pub pool: &'a Pool,
    pub run: &'a RunDir<'a>,
    pub protection: PoolProtection,
    /// How long to wait for the lock on one object, at most.
    pub lock_timeout: Duration,
}

/// A file in the run's directory that is what an object must be.
#[derive(Debug)]
pub struct Copied {
    /// Its name there.
    pub name: OsString,
    /// Bytes written for it.
    pub bytes: u64,
    /// Bytes of disk that it takes, its own or not.
    pub allocated: u64,
}

impl Publisher<'_> {
    /// Copies a file into the run's directory, and compares the copy with the object that it is to be. `Err` is a copy that
    /// is another: the file has changed, or a copy cannot have all that it has.
    pub fn copy(
        &self,
        source: &OwnedFd,
        inode: &Inode,
        object: &ObjectName,
    ) -> io::Result<Result<Copied, OwnedFd>> {
        let name = temporary(self.run.numbers(1));
        let (copy, bytes) = Copier::default().copy(source, inode, self.run.dir(), &name)?;
        if object.describes(&copy, self.pool.settings.mtime)? {
            return Ok(Ok(Copied { name, bytes, allocated: Inode::of(&copy)?.allocated }));
        }
        Name { dir: self.run.dir(), name: &name }.unlink()?;
        Ok(Err(copy))
    }

    /// Gives a copy its name among the objects, and protects it before any guest sees it. `false` if another run has made
    /// this object meanwhile.
    pub(crate) fn publish(&self, object: &ObjectName, copy: &OsStr) -> io::Result<bool> {
        let shelf = self.open_shelf(object)?;
        let file = object.file();
        let (copy, name) =
            (Name { dir: self.run.dir(), name: copy }, Name { dir: shelf.as_fd(), name: &file });
        let fresh = match copy.link(name) {
            Ok(()) => true,
            Err(Errno::EXIST) => false,
            Err(e) => return Err(e.into()),
        };
        if fresh && self.protection == PoolProtection::Guard {
            copy.replace(Name { dir: shelf.as_fd(), name: &object.second() })?;
        } else {
            copy.unlink()?;
        }
        if fresh && self.protection != PoolProtection::None {
            self.protection.set(&self.lock(&shelf, object)?)?;
        }
        Ok(fresh)
    }

    /// A further inode of an object that can have no more links, and the bytes written for it.
    pub(crate) fn successor(&self, object: &ObjectName, full: &OwnedFd) -> io::Result<(ObjectName, u64)> {
        let Ok(copied) = self.copy(full, &Inode::of(full)?, object)? else {
            return Err(io::Error::other(
                "the pool's object is damaged; run `cow-unify verify GUEST...` to \
                repair it",
            ));
        };
        filesystem::sync(self.run.dir())?;
        let next = ObjectName { index: object.index + 1, ..*object };
        self.publish(&next, &copied.name)?;
        Ok((next, copied.bytes))
    }

    /// The directory that an object lies in, or is to lie in.
    pub(crate) fn open_shelf(&self, object: &ObjectName) -> io::Result<Arc<OwnedFd>> {
        self.pool.open_shelf(object.shelf())
    }

    /// Opens an object, and locks it if no guest's user holds the lock for longer than we wait.
    pub fn lock(&self, shelf: impl AsFd, object: &ObjectName) -> io::Result<Shared> {
        Shared::try_lock_at(shelf, &object.file(), self.lock_timeout)
    }
}

//! A root directory of a thread's own: paths mean to it what they mean to another process.

#![allow(unsafe_code)]

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};
use rustix::thread::UnshareFlags;

use super::table::Processes;
use super::task::Task;
use crate::sys::file::inode::{Inode, InodeId};

/// A directory, and the mount that it was reached through. Of an open one both stay what they are.
type Identity = (InodeId, u64);

/// The root directory of the thread that made this; no other thread may use it.
#[derive(Debug)]
pub struct ThreadRoot {
    /// The root of the process.
    original: Arc<OwnedFd>,
    original_is: Identity,
    /// The root that was entered last.
    entered: Arc<OwnedFd>,
    entered_is: Identity,
    /// The one of the two that is in force.
    now: Identity,
}

impl ThreadRoot {
    /// Gives the calling thread a root directory of its own: the process's, at first.
    pub fn unshare() -> io::Result<ThreadRoot> {
        // SAFETY: no descriptors are unshared: root, working directory and umask alone become the thread's own.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::FS) }?;
        let original =
            rustix::fs::open("/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let (original_is, original) = (identity(&original)?, Arc::new(original));
        Ok(ThreadRoot {
            entered: Arc::clone(&original),
            entered_is: original_is,
            original,
            original_is,
            now: original_is,
        })
    }

    /// Makes the root of `task` the thread's root; returns it, open.
    pub fn enter_root_of(&mut self, task: &Task) -> io::Result<Arc<OwnedFd>> {
        if of_inode(&task.root_inode()?) != self.entered_is {
            let root = task.root()?;
            (self.entered_is, self.entered) = (identity(&root)?, Arc::new(root));
        }
        self.enter()?;
        Ok(Arc::clone(&self.entered))
    }

    /// Makes the root that was entered last the thread's root again.
    pub fn enter(&mut self) -> io::Result<()> {
        if self.now != self.entered_is {
            go_to(&self.entered)?;
            self.now = self.entered_is;
        }
        Ok(())
    }

    /// Gives the thread the root of the process again.
    pub fn leave(&mut self) -> io::Result<()> {
        if self.now != self.original_is {
            go_to(&self.original)?;
            self.now = self.original_is;
        }
        Ok(())
    }

    /// The path of an open file, from the thread's root. It may lead elsewhere by now, or nowhere.
    pub fn path_of(&self, processes: &Processes, fd: impl AsFd) -> io::Result<PathBuf> {
        let link = processes.own_descriptor(fd.as_fd().as_raw_fd())?;
        Ok(PathBuf::from(OsString::from_vec(link)))
    }
}

fn go_to(root: &OwnedFd) -> io::Result<()> {
    rustix::process::fchdir(root)?;
    Ok(rustix::process::chroot(".")?)
}

fn identity(root: impl AsFd) -> io::Result<Identity> {
    Ok(of_inode(&Inode::of(root)?))
}

fn of_inode(inode: &Inode) -> Identity {
    (inode.id, inode.mount)
}

//! A root directory of a thread's own: paths mean to it what they mean to another process.

#![allow(unsafe_code)]

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use rustix::fs::{Mode, OFlags};
use rustix::thread::UnshareFlags;

use super::inode::{Inode, InodeId};
use super::process::Processes;

/// Where the thread that made it stands.
#[derive(Debug)]
pub struct View {
    home: OwnedFd,
    home_is: (InodeId, u64),
    now: (InodeId, u64),
}

impl View {
    /// Gives the calling thread a root directory of its own: the process's, at first.
    pub fn of_this_thread() -> io::Result<View> {
        // SAFETY: no descriptors are unshared: root, working directory and umask alone become the thread's own.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::FS) }?;
        let home = rustix::fs::open("/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let home_is = identity(&home)?;
        Ok(View { home, home_is, now: home_is })
    }

    /// Makes `root` the thread's root.
    pub fn enter(&mut self, root: impl AsFd) -> io::Result<()> {
        let wanted = identity(&root)?;
        if wanted != self.now {
            rustix::process::fchdir(&root)?;
            rustix::process::chroot(".")?;
            self.now = wanted;
        }
        Ok(())
    }

    /// Gives the thread the root it had at first.
    pub fn go_home(&mut self) -> io::Result<()> {
        if self.now != self.home_is {
            rustix::process::fchdir(&self.home)?;
            rustix::process::chroot(".")?;
            self.now = self.home_is;
        }
        Ok(())
    }

    /// Whether the thread's root is the one it had at first.
    pub fn is_home(&self) -> bool {
        self.now == self.home_is
    }

    /// The path of an open file, from the thread's root. It may lead elsewhere by now, or nowhere.
    pub fn path_of(&self, processes: &Processes, fd: impl AsFd) -> io::Result<PathBuf> {
        let link = processes.own_descriptor(fd.as_fd().as_raw_fd())?;
        Ok(PathBuf::from(OsString::from_vec(link)))
    }
}

fn identity(root: impl AsFd) -> io::Result<(InodeId, u64)> {
    let inode = Inode::of(root)?;
    Ok((inode.id, inode.mount))
}

//! What a file is besides its content: owner, mode, times, extended attributes.

use std::io;
use std::os::fd::AsFd;

use rustix::fs::{Gid, Mode, Timespec, Timestamps, Uid};

use super::inode::{Inode, Time};
use super::xattr::{self, Xattrs};

/// The metadata of an open file at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Metadata {
    /// Owner, mode, times.
    pub inode: Inode,
    /// Extended attributes, ACLs and capabilities.
    pub xattrs: Xattrs,
}

impl Metadata {
    /// Reads the metadata of an open file.
    pub fn of(fd: impl AsFd) -> io::Result<Metadata> {
        Ok(Metadata { inode: Inode::of(&fd)?, xattrs: xattr::read(&fd)? })
    }

    /// Whether nobody can tell the two apart; the times of the last access and of the last change do not count.
    pub(crate) fn same_as(&self, other: &Metadata) -> bool {
        self.inode.same_content_as(&other.inode) && self.xattrs == other.xattrs
    }

    /// Gives it to an open file; `present` tells what that has already.
    pub fn write(&self, fd: impl AsFd, present: &Metadata) -> io::Result<()> {
        let Metadata { inode: present, xattrs } = present;
        let Inode { uid, gid, mode, atime, mtime, .. } = self.inode;
        let owner_differs = (uid, gid) != (present.uid, present.gid);
        if owner_differs {
            rustix::fs::fchown(&fd, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
        }
        // After the owner, whose change strips set-id bits and capabilities.
        if owner_differs || mode != present.mode {
            rustix::fs::fchmod(&fd, Mode::from_raw_mode(mode))?;
        }
        if owner_differs || *xattrs != self.xattrs {
            xattr::write(&fd, &self.xattrs)?;
        }
        if (atime, mtime) != (present.atime, present.mtime) {
            let time = |t: Time| Timespec { tv_sec: t.secs, tv_nsec: t.nanos.into() };
            let times = Timestamps { last_access: time(atime), last_modification: time(mtime) };
            rustix::fs::futimens(&fd, &times)?;
        }
        Ok(())
    }
}

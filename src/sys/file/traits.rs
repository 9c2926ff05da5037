//! How a filesystem treats a file: its inode flags and its project. What a copy must have to be the same file.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::AsFd;

use rustix::fs::IFlags;
use rustix::io::Errno;
use rustix::ioctl::{Getter, Opcode, Setter, opcode};

use super::inode::Inode;

/// `FS_IOC_FSGETXATTR` and `FS_IOC_FSSETXATTR` of `linux/fs.h`.
const GET_EXTENDED: Opcode = opcode::read::<Extended>(b'X', 31);
const SET_EXTENDED: Opcode = opcode::write::<Extended>(b'X', 32);
/// `FS_XFLAG_PROJINHERIT` of `linux/fs.h`.
const HANDED_ON: u32 = 0x200;

/// Flags that must be set while a file is empty to have their effect (btrfs: compression, no copy on write).
const BEFORE_DATA: IFlags = IFlags::COMPRESSED.union(IFlags::NOCOW);
/// All others that people set, and that neither protect a file nor tell of its format.
const AFTER_DATA: IFlags = IFlags::NODUMP
    .union(IFlags::NOATIME)
    .union(IFlags::SYNC)
    .union(IFlags::SECURE_REMOVAL)
    .union(IFlags::UNRM)
    .union(IFlags::JOURNALING)
    .union(IFlags::NOTAIL);

/// `struct fsxattr` of `linux/fs.h`.
#[repr(C)]
#[derive(Default)]
struct Extended {
    flags: u32,
    extent_size: u32,
    extents: u32,
    project: u32,
    cow_extent_size: u32,
    padding: [u8; 8],
}

/// What an open file is besides content and metadata.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Traits {
    flags: IFlags,
    /// The project whose quota it counts for.
    pub project: u32,
}

impl Traits {
    /// The traits of an open file; none if the filesystem has none.
    ///
    /// The `noatime` flag of a file with several names is no trait, unless it is immutable: it is the mark of a shared inode
    /// (`sys::share::mark`), and a private copy must not have it.
    pub fn of(file: impl AsFd) -> io::Result<Traits> {
        let flags = inode_flags(&file)? & (BEFORE_DATA | AFTER_DATA);
        let traits = Traits { flags, project: extended(&file)?.project };
        if !flags.contains(IFlags::NOATIME) {
            return Ok(traits);
        }
        let inode = Inode::of(file)?;
        let is_mark = inode.nlink > 1 && !inode.immutable;
        Ok(traits.with_noatime(!is_mark))
    }

    /// The same, with the `noatime` flag or without it.
    pub(crate) fn with_noatime(mut self, noatime: bool) -> Traits {
        self.flags.set(IFlags::NOATIME, noatime);
        self
    }

    /// As one number; 0 for none.
    pub fn number(self) -> u64 {
        u64::from(self.flags.bits()) << 32 | u64::from(self.project)
    }

    /// Gives an empty file those that have no effect later.
    pub(crate) fn give_first(self, file: impl AsFd) -> io::Result<()> {
        add_flags(&file, self.flags & BEFORE_DATA)
    }

    /// Gives a file of `dir` that has its data the others; but not the project if the directory has given it one,
    /// and takes no other. What the filesystem or the kernel refuses is left out: who must know looks.
    pub fn give(self, file: impl AsFd, dir: impl AsFd) -> io::Result<()> {
        let mut present = extended(&file)?;
        if present.project != self.project && handed_on(dir)?.is_none() {
            present.project = self.project;
            // SAFETY: the call reads a `struct fsxattr`.
            let _ = unsafe { rustix::ioctl::ioctl(&file, Setter::<SET_EXTENDED, Extended>::new(present)) };
        }
        add_flags(&file, self.flags & AFTER_DATA)
    }
}

/// The project that an open directory gives all that is made in it, and without which nothing gets a link in it.
pub fn handed_on(dir: impl AsFd) -> io::Result<Option<u32>> {
    let extended = extended(dir)?;
    Ok((extended.flags & HANDED_ON != 0).then_some(extended.project))
}

fn extended(file: impl AsFd) -> io::Result<Extended> {
    // SAFETY: the call writes a `struct fsxattr`.
    match unsafe { rustix::ioctl::ioctl(file, Getter::<GET_EXTENDED, Extended>::new()) } {
        Err(Errno::OPNOTSUPP | Errno::NOTTY | Errno::NOSYS | Errno::INVAL) => Ok(Extended::default()),
        read => Ok(read?),
    }
}

fn inode_flags(file: impl AsFd) -> io::Result<IFlags> {
    match rustix::fs::ioctl_getflags(file) {
        Ok(flags) => Ok(flags),
        Err(Errno::OPNOTSUPP | Errno::NOTTY | Errno::NOSYS) => Ok(IFlags::empty()),
        Err(e) => Err(e.into()),
    }
}

fn add_flags(file: impl AsFd, wanted: IFlags) -> io::Result<()> {
    let present = inode_flags(&file)?;
    if present.contains(wanted) {
        return Ok(());
    }
    let add = |flags: IFlags| match rustix::fs::ioctl_setflags(&file, flags) {
        Ok(()) => Ok(true),
        Err(Errno::OPNOTSUPP | Errno::INVAL | Errno::PERM) => Ok(false),
        Err(e) => Err(io::Error::from(e)),
    };
    if add(present | wanted)? {
        return Ok(());
    }
    // One of them is refused.
    for flag in wanted {
        add(inode_flags(&file)? | flag)?;
    }
    Ok(())
}

/// Sets or clears the immutable flag of an open file; its other flags stay.
pub fn set_immutable(fd: impl AsFd, immutable: bool) -> io::Result<()> {
    let mut flags = rustix::fs::ioctl_getflags(&fd)?;
    flags.set(IFlags::IMMUTABLE, immutable);
    Ok(rustix::fs::ioctl_setflags(&fd, flags)?)
}

//! Files in layers (overlayfs): what is below is never changed, for the kernel copies a file up before that.
//!
//! An immutable file below keeps its flag in the eyes of those above. Taking the flag off is a change like any other: it
//! makes the file theirs, and the one below keeps its own.

use std::io;
use std::os::fd::AsFd;

use rustix::fs::IFlags;
use rustix::io::Errno;

use super::inode::Inode;

/// `OVERLAYFS_SUPER_MAGIC` of `linux/magic.h`.
const OVERLAYFS: u64 = 0x794c_7630;

/// Whether an open file or directory is in layers.
pub fn is_layered(fd: impl AsFd) -> io::Result<bool> {
    Ok(rustix::fs::fstatfs(fd)?.f_type as u64 == OVERLAYFS)
}

/// Makes a file that is open for reading one of the uppermost layer, which may be changed.
///
/// # Errors
/// As the system calls; `EPERM` if it is immutable afterwards, too.
pub fn lift(file: impl AsFd) -> io::Result<()> {
    let flags = rustix::fs::ioctl_getflags(&file)?;
    rustix::fs::ioctl_setflags(&file, flags - IFlags::IMMUTABLE)?;
    if Inode::of(&file)?.immutable { Err(Errno::PERM.into()) } else { Ok(()) }
}

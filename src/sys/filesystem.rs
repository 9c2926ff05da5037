//! A filesystem as a whole: room, read-only state, flushing.

use std::io;
use std::os::fd::AsFd;

use rustix::fs::StatVfsMountFlags;

/// What this process may still allocate; unlimited where the filesystem does not say.
#[derive(Clone, Copy, Debug)]
pub struct Available {
    /// Bytes.
    pub bytes: u64,
    /// Inodes.
    pub inodes: u64,
}

/// How much is left on the filesystem of `fd`.
pub fn available(fd: impl AsFd) -> io::Result<Available> {
    let stat = rustix::fs::fstatvfs(fd)?;
    let bytes = if stat.f_blocks == 0 { u64::MAX } else { stat.f_bavail.saturating_mul(stat.f_frsize) };
    // A filesystem that makes inodes as they are needed counts none.
    let inodes = if stat.f_files == 0 { u64::MAX } else { stat.f_favail };
    Ok(Available { bytes, inodes })
}

/// Whether the mount is read-only.
pub fn is_read_only(fd: impl AsFd) -> io::Result<bool> {
    Ok(rustix::fs::fstatvfs(fd)?.f_flag.contains(StatVfsMountFlags::RDONLY))
}

/// Whether two files can share blocks here (`FICLONE`): their copies take no room for data.
pub fn shares_blocks(source: impl AsFd, dir: impl AsFd) -> bool {
    use rustix::fs::{Mode, OFlags};
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    rustix::fs::openat(dir, ".", flags, Mode::RUSR | Mode::WUSR)
        .is_ok_and(|probe| rustix::fs::ioctl_ficlone(probe, source).is_ok())
}

/// Writes everything the filesystem holds in memory to disk.
pub fn sync(fd: impl AsFd) -> io::Result<()> {
    Ok(rustix::fs::syncfs(fd)?)
}

/// Whether files in a directory can share blocks (`FICLONE`).
pub fn can_clone(dir: impl AsFd) -> bool {
    use rustix::fs::{Mode, OFlags};
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let probe = || rustix::fs::openat(&dir, ".", flags, Mode::RUSR | Mode::WUSR);
    probe().is_ok_and(|source| {
        rustix::io::pwrite(&source, &[1; 8192], 0).is_ok_and(|_| shares_blocks(source, &dir))
    })
}

//! A filesystem as a whole: room, identity, read-only state, flushing.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::AsFd;

use rustix::fs::{Access, AtFlags, StatVfsMountFlags};
use rustix::io::Errno;
use rustix::ioctl::{Getter, Opcode, opcode};

/// What this process may still allocate; unlimited if the filesystem does not say.
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

/// A number that a filesystem, on btrfs a subvolume, keeps when it is mounted again: its device does not. 0 if it has
/// none.
pub fn identity(dir: impl AsFd) -> io::Result<u64> {
    /// `FS_IOC_GETFSUUID` of `linux/fs.h`, with a `struct fsuuid2`: the length and 16 bytes.
    const GET_UUID: Opcode = opcode::read::<[u8; 17]>(0x15, 0);
    /// `BTRFS_SUPER_MAGIC` of `linux/magic.h`.
    const BTRFS: i64 = 0x9123_683e;
    let of_statfs = rustix::fs::fstatvfs(&dir)?.f_fsid;
    // Subvolumes of btrfs have one UUID; on xfs the other number is made of the device.
    if rustix::fs::fstatfs(&dir)?.f_type as i64 == BTRFS {
        return Ok(of_statfs);
    }
    // SAFETY: the call writes that many bytes.
    let uuid = unsafe { rustix::ioctl::ioctl(&dir, Getter::<GET_UUID, [u8; 17]>::new()) };
    let Ok(uuid) = uuid else { return Ok(of_statfs) };
    let halves =
        uuid[1..].chunks_exact(8).map(|half| half.iter().fold(0, |all, byte| all << 8 | u64::from(*byte)));
    Ok(halves.fold(0, |all, half| all ^ half))
}

/// Whether the mount is read-only.
pub fn is_read_only(fd: impl AsFd) -> io::Result<bool> {
    Ok(rustix::fs::fstatvfs(fd)?.f_flag.contains(StatVfsMountFlags::RDONLY))
}

/// Whether no name in this open directory can be changed, whoever asks: it is on a read-only mount, or in a read-only
/// subvolume of btrfs, which only a question for access tells of (`btrfs_permission` of `fs/btrfs/inode.c`).
pub fn takes_no_names(dir: impl AsFd) -> io::Result<bool> {
    match rustix::fs::accessat(dir, ".", Access::WRITE_OK, AtFlags::EACCESS) {
        Err(Errno::ROFS) => Ok(true),
        // Not for its own flag or mode: these are another matter.
        Ok(()) | Err(Errno::PERM | Errno::ACCESS) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

/// Whether two files can share blocks here (`FICLONE`): their copies take no room for data.
pub fn shares_blocks(source: impl AsFd, dir: impl AsFd) -> bool {
    use rustix::fs::{Mode, OFlags};
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    rustix::fs::openat(dir, ".", flags, Mode::RUSR | Mode::WUSR)
        .is_ok_and(|probe| rustix::fs::ioctl_ficlone(probe, source).is_ok())
}

/// Whether files of this filesystem could share blocks, by its kind: without a file that is made to try it.
pub fn may_share_blocks(dir: impl AsFd) -> io::Result<bool> {
    /// `EXT4_SUPER_MAGIC` and `TMPFS_MAGIC` of `linux/magic.h`: those that cannot.
    const CANNOT: [i64; 2] = [0xef53, 0x0102_1994];
    Ok(!CANNOT.contains(&(rustix::fs::fstatfs(dir)?.f_type as i64)))
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

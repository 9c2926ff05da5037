//! What one `statx(2)` call says about a file; or, if a filter forbids that, what several others say.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, UNIX_EPOCH};

use rustix::fs::{AtFlags, FileType, IFlags, Mode, OFlags, Statx, StatxAttributes, StatxFlags};
use rustix::io::Errno;
use serde::Serialize;

use crate::sys::seccomp::filter;

/// Identifies an inode on this machine while it exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct InodeId {
    /// Device number of the filesystem (of the subvolume, on btrfs).
    pub dev: u64,
    /// Inode number.
    pub ino: u64,
}

/// A point in time, to the nanosecond.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Time {
    /// Seconds since 1970.
    pub secs: i64,
    /// Nanoseconds within the second.
    pub nanos: u32,
}

impl Time {
    /// Nanoseconds since 1970; enough until the year 2262.
    pub fn nanoseconds(self) -> i64 {
        self.secs.saturating_mul(1_000_000_000).saturating_add(i64::from(self.nanos))
    }

    /// Whether `span` has gone by since, by the system's clock.
    pub fn is_past(self, span: Duration) -> bool {
        let since = UNIX_EPOCH.checked_add(Duration::new(self.secs.try_into().unwrap_or(0), self.nanos));
        since.and_then(|since| since.elapsed().ok()).is_some_and(|gone| gone > span)
    }
}

/// The type of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum Kind {
    Regular,
    Directory,
    Symlink,
    Fifo,
    Socket,
    CharacterDevice,
    BlockDevice,
    Unknown,
}

impl Kind {
    /// The name of the type in messages.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Regular => "regular file",
            Kind::Directory => "directory",
            Kind::Symlink => "symbolic link",
            Kind::Fifo => "FIFO",
            Kind::Socket => "socket",
            Kind::CharacterDevice => "character device",
            Kind::BlockDevice => "block device",
            Kind::Unknown => "file of unknown type",
        }
    }
}

impl From<FileType> for Kind {
    fn from(file_type: FileType) -> Kind {
        match file_type {
            FileType::RegularFile => Kind::Regular,
            FileType::Directory => Kind::Directory,
            FileType::Symlink => Kind::Symlink,
            FileType::Fifo => Kind::Fifo,
            FileType::Socket => Kind::Socket,
            FileType::CharacterDevice => Kind::CharacterDevice,
            FileType::BlockDevice => Kind::BlockDevice,
            FileType::Unknown => Kind::Unknown,
        }
    }
}

/// An inode as `statx(2)` saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inode {
    /// Which inode.
    pub id: InodeId,
    /// Mount the path led through; 0 before Linux 5.8.
    pub mount: u64,
    /// Type of the file.
    pub kind: Kind,
    /// Permission bits with set-id and sticky bits (`07777`).
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Number of names.
    pub nlink: u32,
    /// Length in bytes.
    pub size: u64,
    /// Bytes of disk that hold it.
    pub allocated: u64,
    /// Time of the last access.
    pub atime: Time,
    /// Time of the last change of content.
    pub mtime: Time,
    /// Time of the last change of the inode.
    pub ctime: Time,
    /// `STATX_ATTR_IMMUTABLE`.
    pub immutable: bool,
    /// `STATX_ATTR_APPEND`.
    pub append_only: bool,
    /// `STATX_ATTR_MOUNT_ROOT`: of anything but a directory, something is mounted on its name.
    pub mount_root: bool,
}

impl Inode {
    /// The inode of `name` in `dir`; a symlink is not followed.
    pub fn at(dir: impl AsFd, name: &OsStr) -> io::Result<Inode> {
        Self::statx(dir, name, AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT)
    }

    /// The inode that `path` leads to from `dir`; symlinks are followed, magic links of procfs, too.
    pub fn behind(dir: impl AsFd, path: &str) -> io::Result<Inode> {
        Self::statx(dir, OsStr::new(path), AtFlags::NO_AUTOMOUNT)
    }

    /// The inode behind an open descriptor.
    pub fn of(fd: impl AsFd) -> io::Result<Inode> {
        Self::statx(fd, OsStr::new(""), AtFlags::EMPTY_PATH)
    }

    /// As [`Inode::of`], from what the kernel knows: a filesystem that somebody serves is not asked.
    pub fn cached(fd: impl AsFd) -> io::Result<Inode> {
        Self::statx(fd, OsStr::new(""), AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC)
    }

    fn statx(dir: impl AsFd, name: &OsStr, flags: AtFlags) -> io::Result<Inode> {
        if !filter::permits(libc::SYS_statx) {
            return Self::without_statx(dir, name, flags);
        }
        let mask = StatxFlags::BASIC_STATS | StatxFlags::MNT_ID;
        Ok(Inode::from(&rustix::fs::statx(dir, name, flags, mask)?))
    }

    /// Whether the name leads to another file that is mounted there: the one that has the name cannot be seen.
    pub fn is_mounted_on(&self) -> bool {
        self.mount_root && self.kind != Kind::Directory
    }

    /// As from `statx(2)`, if a filter forbids that; without the mount.
    fn without_statx(dir: impl AsFd, name: &OsStr, flags: AtFlags) -> io::Result<Inode> {
        let stat = rustix::fs::statat(&dir, name, flags)?;
        let file_type = FileType::from_raw_mode(stat.st_mode);
        let attributes = if file_type.is_file() || file_type.is_dir() {
            attributes(dir, name, flags, file_type.is_dir())?
        } else {
            IFlags::empty()
        };
        let time = |secs, nanos| Time { secs, nanos };
        Ok(Inode {
            id: InodeId { dev: stat.st_dev, ino: stat.st_ino },
            mount: 0,
            kind: Kind::from(file_type),
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            nlink: u32::try_from(stat.st_nlink).unwrap_or(u32::MAX),
            size: stat.st_size.cast_unsigned(),
            allocated: stat.st_blocks.cast_unsigned().saturating_mul(512),
            atime: time(stat.st_atime, stat.st_atime_nsec as u32),
            mtime: time(stat.st_mtime, stat.st_mtime_nsec as u32),
            ctime: time(stat.st_ctime, stat.st_ctime_nsec as u32),
            immutable: attributes.contains(IFlags::IMMUTABLE),
            append_only: attributes.contains(IFlags::APPEND),
            mount_root: false,
        })
    }

    /// Whether this is the inode that `earlier` saw, with its content, owner and mode.
    ///
    /// The time of its last change says nothing: any guest's window changes that.
    pub fn same_content_as(&self, earlier: &Inode) -> bool {
        let key = |inode: &Inode| (inode.id, inode.size, inode.mtime, inode.mode, inode.uid, inode.gid);
        key(self) == key(earlier)
    }
}

/// The flags of a file or a directory, which has to be opened for that if it is not open already.
fn attributes(dir: impl AsFd, name: &OsStr, flags: AtFlags, is_dir: bool) -> io::Result<IFlags> {
    let flags = if flags.contains(AtFlags::SYMLINK_NOFOLLOW) { OFlags::NOFOLLOW } else { OFlags::empty() };
    let flags = flags | OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
    let read = if name.is_empty() {
        match rustix::fs::ioctl_getflags(&dir) {
            // Open with `O_PATH`.
            Err(Errno::BADF) if is_dir => {
                rustix::fs::ioctl_getflags(rustix::fs::openat(&dir, ".", flags, Mode::empty())?)
            }
            Err(Errno::BADF) => {
                let path = format!("/proc/self/fd/{}", dir.as_fd().as_raw_fd());
                rustix::fs::ioctl_getflags(rustix::fs::open(path, flags, Mode::empty())?)
            }
            read => read,
        }
    } else {
        rustix::fs::ioctl_getflags(rustix::fs::openat(dir, name, flags, Mode::empty())?)
    };
    match read {
        Err(Errno::OPNOTSUPP | Errno::NOTTY | Errno::NOSYS) => Ok(IFlags::empty()),
        other => Ok(other?),
    }
}

impl From<&Statx> for Inode {
    fn from(stx: &Statx) -> Inode {
        let time = |t: rustix::fs::StatxTimestamp| Time { secs: t.tv_sec, nanos: t.tv_nsec };
        let mode = u32::from(stx.stx_mode);
        Inode {
            id: InodeId { dev: rustix::fs::makedev(stx.stx_dev_major, stx.stx_dev_minor), ino: stx.stx_ino },
            mount: stx.stx_mnt_id,
            kind: Kind::from(FileType::from_raw_mode(mode)),
            mode: mode & 0o7777,
            uid: stx.stx_uid,
            gid: stx.stx_gid,
            nlink: stx.stx_nlink,
            size: stx.stx_size,
            allocated: stx.stx_blocks.saturating_mul(512),
            atime: time(stx.stx_atime),
            mtime: time(stx.stx_mtime),
            ctime: time(stx.stx_ctime),
            immutable: stx.stx_attributes.contains(StatxAttributes::IMMUTABLE),
            append_only: stx.stx_attributes.contains(StatxAttributes::APPEND),
            mount_root: stx.stx_attributes.contains(StatxAttributes::MOUNT_ROOT),
        }
    }
}

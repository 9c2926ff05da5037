//! What one `statx(2)` call says about a file.

use std::ffi::OsStr;
use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, UNIX_EPOCH};

use rustix::fs::{AtFlags, FileType, Statx, StatxAttributes, StatxFlags};
use serde::Serialize;

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
        let mask = StatxFlags::BASIC_STATS | StatxFlags::MNT_ID;
        Ok(Inode::from(&rustix::fs::statx(dir, name, flags, mask)?))
    }

    /// Whether the name leads to another file that is mounted there: the one that has the name cannot be seen.
    pub fn is_mounted_on(&self) -> bool {
        self.mount_root && self.kind != Kind::Directory
    }

    /// Whether this is the inode that `earlier` saw, with its content, owner and mode.
    ///
    /// The time of its last change says nothing: any guest's window changes that.
    pub fn same_content_as(&self, earlier: &Inode) -> bool {
        let key = |inode: &Inode| (inode.id, inode.size, inode.mtime, inode.mode, inode.uid, inode.gid);
        key(self) == key(earlier)
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

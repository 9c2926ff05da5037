//! A walk through a guest's tree by directory descriptors, on one filesystem.

use std::ffi::OsStr;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{OFlags, RawDir, SeekFrom};

use super::root::Root;
use crate::sys::budget::{self, Exceeded};
use crate::sys::file::inode::{Inode, Kind};
use crate::sys::seccomp::filter;

/// One entry of a directory.
#[derive(Debug)]
pub struct TreeEntry<'a> {
    /// Canonical path of the directory, from the guest's root.
    pub dir_path: &'a Path,
    /// The open directory.
    pub dir: BorrowedFd<'a>,
    /// Name in it.
    pub name: &'a OsStr,
    /// Its type, as the directory says.
    pub kind: Kind,
    /// Its inode number, as the directory says.
    pub ino: u64,
}

impl TreeEntry<'_> {
    /// The path of the entry, from the guest's root.
    pub fn path(&self) -> PathBuf {
        self.dir_path.join(self.name)
    }

    /// The inode of the entry.
    pub fn inode(&self) -> io::Result<Inode> {
        Inode::at(self.dir, self.name)
    }
}

/// What a visitor wants of the directory it was shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Descend {
    /// Walk into it, if it is one.
    Into,
    /// Leave it out.
    Past,
    /// End the walk: nothing more is wanted, but for the rest of the directory that is being listed.
    End,
}

/// Calls `visit` for every entry below the canonical directory `top`, a directory before what is in it.
///
/// `skipped` is told of each directory that is not entered: without an error if another filesystem or mount
/// begins, with one if it cannot be read.
pub fn walk(
    root: &Root,
    top: &Path,
    visit: &mut dyn FnMut(&TreeEntry<'_>) -> Descend,
    skipped: &mut dyn FnMut(&Path, Option<io::Error>),
) {
    let start = root.open_dir(top).and_then(|fd| {
        let start = Start { root, home: Inode::of(&fd)?, top: Root::from_fd(fd.try_clone()?, top) };
        Ok((start, fd))
    });
    let (start, fd) = match start {
        Ok(start) => start,
        Err(e) => return skipped(top, Some(e)),
    };
    let mut waiting = Waiting { directories: vec![(top.to_path_buf(), Some(fd))], bytes: 0 };
    while let Some((path, fd)) = waiting.pop() {
        let entered = fd.map_or_else(|| start.enter(&path), |fd| Ok(Some(fd)));
        let listed = match entered {
            Ok(Some(fd)) if path != top && root.is_border(&fd) => Ok(()),
            Ok(Some(fd)) => list(&path, &fd, &mut waiting, visit),
            Ok(None) => {
                skipped(&path, None);
                Ok(())
            }
            Err(e) => Err(e),
        };
        match listed {
            // Gone, or no longer a directory, since it was listed.
            Err(e) if super::resolve::is_absent(&e) => {}
            Err(e) => skipped(&path, Some(e)),
            Ok(()) => {}
        }
    }
}

/// Directories that are still to be entered, the next one last.
struct Waiting {
    directories: Vec<(PathBuf, Option<OwnedFd>)>,
    bytes: usize,
}

impl Waiting {
    fn push(&mut self, mut path: PathBuf) -> Result<(), Exceeded> {
        // Joined from two, it has room for twice as much.
        path.shrink_to_fit();
        let bytes = self.bytes + path.as_os_str().len() + budget::ENTRY;
        Exceeded::check_bytes(bytes as u64, budget::TREE_PATHS as u64)?;
        self.bytes = bytes;
        self.directories.push((path, None));
        Ok(())
    }

    fn clear(&mut self) {
        *self = Waiting { directories: Vec::new(), bytes: 0 };
    }

    fn pop(&mut self) -> Option<(PathBuf, Option<OwnedFd>)> {
        let (path, fd) = self.directories.pop()?;
        // The first was not counted.
        self.bytes = self.bytes.saturating_sub(path.as_os_str().len() + budget::ENTRY);
        Some((path, fd))
    }
}

/// Where a walk begins.
struct Start<'r> {
    root: &'r Root,
    top: Root,
    home: Inode,
}

impl Start<'_> {
    /// Opens a directory found on the way, if it is on the filesystem and mount where the walk began. Nothing that is
    /// mounted is asked: it may be a filesystem that does not answer.
    fn enter(&self, path: &Path) -> io::Result<Option<OwnedFd>> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW;
        // Without openat2(2) only the root itself knows how to open what is in it.
        let opened = if filter::permits(libc::SYS_openat2) {
            let below = path.strip_prefix(self.top.path()).unwrap_or(path);
            self.top.open_unless_mounted(below, flags)?
        } else {
            Some(self.root.open_at(path, flags)?)
        };
        let Some(fd) = opened else { return Ok(None) };
        let inode = Inode::of(&fd)?;
        Ok((inode.id.dev == self.home.id.dev && inode.mount == self.home.mount).then_some(fd))
    }
}

fn list(
    path: &Path,
    fd: &OwnedFd,
    waiting: &mut Waiting,
    visit: &mut dyn FnMut(&TreeEntry<'_>) -> Descend,
) -> io::Result<()> {
    let (mut failed, mut ended) = (None, false);
    entries(fd, &mut listing_buffer(), |name, kind, ino| {
        let dir = std::os::fd::AsFd::as_fd(fd);
        let kind =
            if kind == Kind::Unknown { Inode::at(dir, name).map(|inode| inode.kind) } else { Ok(kind) };
        let kind = match kind {
            Ok(kind) => kind,
            Err(e) => return failed = Some(e),
        };
        let shown = TreeEntry { dir_path: path, dir, name, kind, ino };
        match visit(&shown) {
            Descend::Into if kind == Kind::Directory => {
                failed = waiting.push(path.join(name)).err().map(io::Error::from).or(failed.take());
            }
            Descend::Into | Descend::Past => {}
            Descend::End => ended = true,
        }
    })?;
    if ended {
        waiting.clear();
    }
    failed.map_or(Ok(()), Err)
}

/// What [`entries`] reads into; to be used again for the next directory.
pub fn listing_buffer() -> Vec<MaybeUninit<u8>> {
    vec![MaybeUninit::uninit(); 1 << 16]
}

/// Calls `visit` with name, type and inode number of everything in an open directory, from its beginning; `.` and
/// `..` are left out. The type is `Unknown` if the filesystem does not keep it there.
pub fn entries(
    dir: &OwnedFd,
    buffer: &mut [MaybeUninit<u8>],
    mut visit: impl FnMut(&OsStr, Kind, u64),
) -> io::Result<()> {
    rustix::fs::seek(dir, SeekFrom::Start(0))?;
    let mut listing = RawDir::new(dir, buffer);
    while let Some(entry) = listing.next() {
        let entry = entry?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if name != "." && name != ".." {
            visit(name, Kind::from(entry.file_type()), entry.ino());
        }
    }
    Ok(())
}

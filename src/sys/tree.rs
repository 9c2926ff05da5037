//! A walk through a guest's tree by directory descriptors, on one filesystem.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Dir, Mode, OFlags};

use super::inode::{Inode, Kind};
use super::root::Root;

/// One entry of a directory.
#[derive(Debug)]
pub struct Entry<'a> {
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

impl Entry<'_> {
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
}

/// Calls `visit` for every entry below the canonical directory `top`, a directory before what is in it.
///
/// `skipped` is told of each directory that is not entered: without an error where another filesystem or mount
/// begins, with one where it cannot be read.
pub fn walk(
    root: &Root,
    top: &Path,
    visit: &mut dyn FnMut(&Entry<'_>) -> Descend,
    skipped: &mut dyn FnMut(&Path, Option<io::Error>),
) {
    let start = root.open_dir(top).and_then(|fd| Ok((Inode::of(&fd)?, fd)));
    let (home, fd) = match start {
        Ok((inode, fd)) => (inode, fd),
        Err(e) => return skipped(top, Some(e)),
    };
    let mut waiting: Vec<(PathBuf, Option<OwnedFd>)> = vec![(top.to_path_buf(), Some(fd))];
    while let Some((path, fd)) = waiting.pop() {
        let entered = fd.map_or_else(|| enter(root, &path, &home), |fd| Ok(Some(fd)));
        let listed = match entered {
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

/// Opens a directory found on the way, if it is on the filesystem and mount where the walk began.
fn enter(root: &Root, path: &Path, home: &Inode) -> io::Result<Option<OwnedFd>> {
    let fd = root.open_at(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW)?;
    let inode = Inode::of(&fd)?;
    Ok((inode.id.dev == home.id.dev && inode.mount == home.mount).then_some(fd))
}

fn list(
    path: &Path,
    fd: &OwnedFd,
    waiting: &mut Vec<(PathBuf, Option<OwnedFd>)>,
    visit: &mut dyn FnMut(&Entry<'_>) -> Descend,
) -> io::Result<()> {
    let reading =
        rustix::fs::openat(fd, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    for entry in Dir::new(reading)? {
        let entry = entry?;
        let name = OsString::from_vec(entry.file_name().to_bytes().to_vec());
        if name == "." || name == ".." {
            continue;
        }
        let dir = std::os::fd::AsFd::as_fd(fd);
        let mut kind = Kind::from(entry.file_type());
        if kind == Kind::Unknown {
            kind = Inode::at(dir, &name)?.kind;
        }
        let shown = Entry { dir_path: path, dir, name: &name, kind, ino: entry.ino() };
        if visit(&shown) == Descend::Into && kind == Kind::Directory {
            waiting.push((path.join(&name), None));
        }
    }
    Ok(())
}

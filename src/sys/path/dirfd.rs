//! Our own files and directories in a guest or a pool, by the descriptor of their directory (the `dirfd` of `openat(2)`)
//! and a name. No symlink is followed; a small file is replaced whole.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{AtFlags, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;

use super::regular;
use super::root::{Root, relative};
use crate::sys::budget::{self, Exceeded};

/// Opens the directory `path` beneath the root, made with its parents if it is missing (mode 0700).
///
/// No symlink is followed: nobody can lead us elsewhere.
pub fn make_dir(root: &Root, path: &Path) -> io::Result<OwnedFd> {
    let mut dir = rustix::fs::openat(root, ".", dir_flags(), Mode::empty())?;
    for name in relative(path) {
        dir = make_dir_at(&dir, name)?;
    }
    Ok(dir)
}

/// Opens the directory `name` in `dir`, made if it is missing (mode 0700).
pub fn make_dir_at(dir: impl AsFd, name: &OsStr) -> io::Result<OwnedFd> {
    match rustix::fs::openat(&dir, name, dir_flags(), Mode::empty()) {
        Err(Errno::NOENT) => {}
        opened => return Ok(opened?),
    }
    match rustix::fs::mkdirat(&dir, name, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => Ok(rustix::fs::openat(&dir, name, dir_flags(), Mode::empty())?),
        Err(e) => Err(e.into()),
    }
}

/// Makes the directory `name` (mode 0700).
///
/// # Errors
/// `AlreadyExists` if the name is taken.
pub fn create_dir(dir: impl AsFd, name: &OsStr) -> io::Result<()> {
    Ok(rustix::fs::mkdirat(dir, name, Mode::RWXU)?)
}

fn dir_flags() -> OFlags {
    OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC
}

/// Opens a lock file, made if it is missing. It belongs to the owner of the directory, as with [`replace_file`].
pub fn open_lock_file(dir: impl AsFd, name: &OsStr) -> io::Result<OwnedFd> {
    let open = |flags: OFlags| -> io::Result<OwnedFd> {
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(rustix::fs::openat(&dir, name, flags, Mode::RUSR | Mode::WUSR)?)
    };
    let make = || match open(OFlags::RDONLY | OFlags::CREATE | OFlags::EXCL) {
        // Another process has made it meanwhile.
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => regular::open(open),
        made => made,
    };
    let file = match regular::open(open) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => make()?,
        opened => opened?,
    };
    let inode = rustix::fs::fstat(&file)?;
    // A guest may have given the name to another file.
    if inode.st_size == 0 && inode.st_nlink == 1 {
        give_to_owner_of(dir, &file)?;
    }
    Ok(file)
}

/// Gives a file to the owner of its directory, as far as this process may.
fn give_to_owner_of(dir: impl AsFd, file: impl AsFd) -> io::Result<()> {
    let owner = rustix::fs::fstat(dir)?;
    let ours = rustix::fs::fstat(&file)?;
    if (owner.st_uid, owner.st_gid) != (ours.st_uid, ours.st_gid) {
        let (uid, gid) = (Uid::from_raw(owner.st_uid), Gid::from_raw(owner.st_gid));
        // Who cannot give it away keeps it.
        let _ = rustix::fs::fchown(&file, Some(uid), Some(gid));
    }
    Ok(())
}

/// Makes a file with this content; one that is there stays as it is.
///
/// # Errors
/// `AlreadyExists` if the name is taken.
pub fn create_file(dir: impl AsFd, name: &OsStr, content: &[u8]) -> io::Result<()> {
    create(dir, name, content).map(drop)
}

fn create(dir: impl AsFd, name: &OsStr, content: &[u8]) -> io::Result<OwnedFd> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(dir, name, flags, Mode::RUSR | Mode::WUSR)?;
    let mut file = std::fs::File::from(fd);
    file.write_all(content)?;
    Ok(file.into())
}

/// Replaces `name` by a file with this content: readers see the old one or the new one, whole.
///
/// It belongs to the owner of the directory: what the host leaves in a guest with shifted users, root there can read.
pub fn replace_file(dir: impl AsFd, name: &OsStr, content: &[u8]) -> io::Result<()> {
    let temporary = temporary_name(name);
    // A killed process may have left one; whatever else has the name is not written to.
    remove_file(&dir, &temporary)?;
    let written = create(&dir, &temporary, content).and_then(|file| give_to_owner_of(&dir, file));
    let replaced = written.and_then(|()| Ok(rustix::fs::renameat(&dir, &temporary, &dir, name)?));
    if replaced.is_err() {
        let _ = remove_file(&dir, &temporary);
    }
    replaced
}

/// The name beside `name` that [`replace_file`] writes to first.
pub fn temporary_name(name: &OsStr) -> OsString {
    let mut temporary = name.to_os_string();
    temporary.push(".new");
    temporary
}

/// Removes a file; one that is not there is no error.
pub fn remove_file(dir: impl AsFd, name: &OsStr) -> io::Result<()> {
    match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// Removes a directory if it is empty. Returns whether it is gone: `false` if it holds something.
pub fn remove_dir(dir: impl AsFd, name: &OsStr) -> io::Result<bool> {
    match rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(true),
        Err(Errno::NOTEMPTY | Errno::EXIST) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

/// Renames a file within a directory.
pub fn rename(dir: impl AsFd, from: &OsStr, to: &OsStr) -> io::Result<()> {
    Ok(rustix::fs::renameat(&dir, from, &dir, to)?)
}

/// The names in a directory, without `.` and `..`.
///
/// # Errors
/// `FileTooLarge` if they take more than [`budget::NAMES`].
pub fn names(dir: impl AsFd) -> io::Result<Vec<OsString>> {
    names_where(dir, usize::MAX, |_| true)
}

/// The names in a directory that are `wanted`, at most so many: without `.` and `..`.
///
/// # Errors
/// As [`names`].
pub fn names_where(
    dir: impl AsFd,
    most: usize,
    wanted: impl Fn(&OsStr) -> bool,
) -> io::Result<Vec<OsString>> {
    let (mut names, mut bytes) = (Vec::new(), 0);
    for entry in rustix::fs::Dir::read_from(dir)? {
        if names.len() == most {
            break;
        }
        let entry = entry?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if name != "." && name != ".." && wanted(name) {
            bytes += name.len() + budget::ENTRY;
            Exceeded::check_bytes(bytes as u64, budget::NAMES as u64)?;
            names.push(name.to_os_string());
        }
    }
    Ok(names)
}

/// Whether a directory holds nothing.
pub fn is_empty(dir: impl AsFd) -> io::Result<bool> {
    Ok(names_where(dir, 1, |_| true)?.is_empty())
}

/// The numbers of the inodes that the names in a directory stand for.
pub fn inode_numbers(dir: &OwnedFd) -> io::Result<HashSet<u64>> {
    let mut inodes = HashSet::new();
    super::tree::entries(dir, &mut super::tree::listing_buffer(), |_, _, ino| {
        inodes.insert(ino);
    })?;
    Ok(inodes)
}

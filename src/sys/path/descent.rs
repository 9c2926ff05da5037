//! A walk through a directory to its very bottom, by directory descriptors: whatever is in a directory is shown before the
//! directory itself, so that all of it can be removed.
//!
//! It never leaves the directory. No symlink is followed, and no mount is entered. A tree may be deeper than paths can be
//! long and deeper than a process may have files open: of the directories above, the last [`KEPT_OPEN`] stay open, and those
//! further up are reached by `..` again, which must lead to the same directory.

use std::ffi::{OsStr, OsString};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, RawDir, ResolveFlags, SeekFrom};

use super::{patient, tree};
use crate::sys::file::inode::{Inode, InodeId, Kind};

/// As many directories stay open above the one that is being read.
const KEPT_OPEN: usize = 64;

/// As many directories of one directory are kept in memory at once; then the rest of it is read.
const NAMES_AT_ONCE: usize = 1000;

/// What is shown.
#[derive(Clone, Copy, Debug)]
pub struct Entry<'a> {
    /// Path of the directory, from the top, which is `/`.
    pub dir_path: &'a Path,
    /// The open directory.
    pub dir: BorrowedFd<'a>,
    /// Name in it.
    pub name: &'a OsStr,
}

impl Entry<'_> {
    /// The path of the entry, from the top.
    pub fn path(&self) -> PathBuf {
        self.dir_path.join(self.name)
    }
}

/// Is shown what is in a directory.
pub trait Visitor {
    /// What is no directory.
    fn file(&mut self, entry: &Entry<'_>);

    /// A directory, open, before what is in it. Returns whether to go into it.
    fn enter(&mut self, entry: &Entry<'_>, directory: &OwnedFd) -> bool;

    /// A directory, after all that is in it.
    fn leave(&mut self, entry: &Entry<'_>);

    /// A directory that was not entered, or not read to its end. `EXDEV`: something is mounted on it.
    fn failed(&mut self, path: &Path, error: io::Error);
}

/// Shows everything that is in the directory `top`, but for `top` itself.
///
/// What another process moves out of a directory while that is walked is not followed. If it moves a directory that is
/// being walked, the walk ends with an error for it.
pub fn descend(top: OwnedFd, visitor: &mut dyn Visitor) {
    let mut walk = Descent { levels: Vec::new(), path: PathBuf::from("/"), buffer: tree::listing_buffer() };
    if let Err(e) = walk.push(OsString::new(), top, visitor) {
        return visitor.failed(&walk.path, e);
    }
    while let Some(level) = walk.levels.last_mut() {
        let done = if let Some(name) = level.waiting.pop() {
            walk.go_down(name, visitor);
            Ok(())
        } else if let Some(from) = level.rest.take() {
            walk.list(from, visitor);
            Ok(())
        } else {
            walk.go_up(visitor)
        };
        if let Err(e) = done {
            return visitor.failed(&walk.path, e);
        }
    }
}

/// A directory that is being walked.
struct Level {
    /// Its name in the directory above.
    name: OsString,
    id: InodeId,
    /// Always open for the last of them.
    dir: Option<OwnedFd>,
    /// Directories in it that are to be entered yet.
    waiting: Vec<OsString>,
    /// Where what has not been read of it begins.
    rest: Option<u64>,
}

struct Descent {
    levels: Vec<Level>,
    /// Path of the last level.
    path: PathBuf,
    buffer: Vec<MaybeUninit<u8>>,
}

impl Descent {
    fn go_down(&mut self, name: OsString, visitor: &mut dyn Visitor) {
        let Some(Level { dir: Some(above), .. }) = self.levels.last() else { return };
        let entry = Entry { dir_path: &self.path, dir: above.as_fd(), name: &name };
        let opened = open_directory(above, &name);
        let directory = match opened {
            Ok(directory) => directory,
            Err(e) => return visitor.failed(&entry.path(), e),
        };
        if visitor.enter(&entry, &directory)
            && let Err(e) = self.push(name, directory, visitor)
        {
            visitor.failed(&self.path, e);
        }
    }

    /// Begins with a directory.
    fn push(&mut self, name: OsString, dir: OwnedFd, visitor: &mut dyn Visitor) -> io::Result<()> {
        let id = Inode::of(&dir)?.id;
        self.path.push(&name);
        self.levels.push(Level { name, id, dir: Some(dir), waiting: Vec::new(), rest: None });
        if let Some(far_up) = self.levels.len().checked_sub(KEPT_OPEN + 1) {
            self.levels[far_up].dir = None;
        }
        self.list(0, visitor);
        Ok(())
    }

    /// Shows what is in the last directory, from a place on that the kernel has told of.
    fn list(&mut self, from: u64, visitor: &mut dyn Visitor) {
        let Some(level) = self.levels.last_mut() else { return };
        let Some(dir) = &level.dir else { return };
        let mut read = || -> io::Result<()> {
            rustix::fs::seek(dir, SeekFrom::Start(from))?;
            let mut listing = RawDir::new(dir, &mut self.buffer);
            while let Some(listed) = listing.next() {
                let listed = listed?;
                let name = OsStr::from_bytes(listed.file_name().to_bytes());
                if name == "." || name == ".." {
                    continue;
                }
                let entry = Entry { dir_path: &self.path, dir: dir.as_fd(), name };
                let kind = match Kind::from(listed.file_type()) {
                    Kind::Unknown => Inode::at(dir, name).map_or(Kind::Unknown, |inode| inode.kind),
                    kind => kind,
                };
                if kind != Kind::Directory {
                    visitor.file(&entry);
                    continue;
                }
                level.waiting.push(name.to_os_string());
                if level.waiting.len() == NAMES_AT_ONCE {
                    level.rest = Some(listed.next_entry_cookie());
                    break;
                }
            }
            Ok(())
        };
        if let Err(e) = read() {
            visitor.failed(&self.path, e);
        }
    }

    /// Ends the last directory, and goes on with the one above.
    ///
    /// # Errors
    /// If it is not in the directory any more in which it was entered.
    fn go_up(&mut self, visitor: &mut dyn Visitor) -> io::Result<()> {
        let Some(below) = self.levels.pop() else { return Ok(()) };
        let Some(above) = self.levels.last_mut() else { return Ok(()) };
        if let (None, Some(dir)) = (&above.dir, &below.dir) {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let dir = rustix::fs::openat(dir, "..", flags, Mode::empty())?;
            if Inode::of(&dir)?.id != above.id {
                return Err(io::Error::other("another process has moved this directory meanwhile"));
            }
            above.dir = Some(dir);
        }
        self.path.pop();
        if let Some(dir) = &above.dir {
            visitor.leave(&Entry { dir_path: &self.path, dir: dir.as_fd(), name: &below.name });
        }
        Ok(())
    }
}

/// Opens a directory of a directory, and nothing that is mounted on it.
fn open_directory(above: &OwnedFd, name: &OsStr) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::NOCTTY;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    Ok(patient::openat2(above, name, flags, resolve)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Removes everything, and notes what it was shown.
    #[derive(Default)]
    struct Shown {
        remove: bool,
        files: Vec<PathBuf>,
        directories: usize,
        failed: Vec<(PathBuf, io::Error)>,
    }

    impl Visitor for Shown {
        fn file(&mut self, entry: &Entry<'_>) {
            self.files.push(entry.path());
            if self.remove {
                rustix::fs::unlinkat(entry.dir, entry.name, rustix::fs::AtFlags::empty()).unwrap();
            }
        }

        fn enter(&mut self, _: &Entry<'_>, _: &OwnedFd) -> bool {
            true
        }

        fn leave(&mut self, entry: &Entry<'_>) {
            self.directories += 1;
            if self.remove {
                rustix::fs::unlinkat(entry.dir, entry.name, rustix::fs::AtFlags::REMOVEDIR).unwrap();
            }
        }

        fn failed(&mut self, path: &Path, error: io::Error) {
            self.failed.push((path.to_path_buf(), error));
        }
    }

    fn shown(dir: &Path, remove: bool) -> Shown {
        let mut shown = Shown { remove, ..Shown::default() };
        descend(std::fs::File::open(dir).unwrap().into(), &mut shown);
        assert!(shown.failed.is_empty(), "{:?}", shown.failed);
        shown
    }

    #[test]
    fn a_tree_deeper_than_any_path_is_walked_to_its_end() {
        let dir = tempfile::tempdir().unwrap();
        let mut at: OwnedFd = std::fs::File::open(dir.path()).unwrap().into();
        let depth = 400;
        for _ in 0..depth {
            rustix::fs::mkdirat(&at, "x".repeat(100), Mode::RWXU).unwrap();
            rustix::fs::symlinkat("/", &at, "link").unwrap();
            at = open_directory(&at, OsStr::new(&"x".repeat(100))).unwrap();
        }
        for remove in [false, true] {
            let shown = shown(dir.path(), remove);
            assert_eq!((shown.files.len(), shown.directories), (depth, depth));
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn more_directories_than_are_kept_at_once_are_all_walked() {
        let dir = tempfile::tempdir().unwrap();
        let count = 2 * NAMES_AT_ONCE + 7;
        for number in 0..count {
            std::fs::create_dir(dir.path().join(number.to_string())).unwrap();
            std::fs::write(dir.path().join(format!("file-{number}")), "").unwrap();
        }
        for remove in [false, true] {
            let shown = shown(dir.path(), remove);
            assert_eq!((shown.files.len(), shown.directories), (count, count));
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}

//! What a scan found: the files of all guests that could be unified, in little memory.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::io;
use std::ops::{Index, IndexMut};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use rustix::fs::OFlags;

use super::guest::GuestTree;
use super::not_unified::NotUnified;
use crate::sys::file::inode::{Inode, InodeId};
use crate::unify::pool::identity::Digest;
use crate::unify::{FailedPath, SharedError};

/// A guest's place in [`Catalog::guests`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GuestIndex(u32);

/// A directory's place in [`Catalog::dirs`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DirIndex(u32);

/// A file's place in [`Catalog::files`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileIndex(u32);

impl GuestIndex {
    /// The place `at` among guests.
    pub fn new(at: usize) -> GuestIndex {
        GuestIndex(at as u32)
    }

    /// The place as it was given.
    pub fn position(self) -> usize {
        self.0 as usize
    }
}

/// A directory of a guest.
#[derive(Clone, Debug)]
pub struct Dir {
    pub guest: GuestIndex,
    /// Canonical path, from the guest's root.
    pub path: PathBuf,
    /// Inode number; its device is that of the guest's root.
    pub ino: u64,
    /// Time of its last change, in nanoseconds, before it was listed; 0 if it may have changed since.
    pub ctime: i64,
    /// What an earlier run remembers of it and its files, if anything, is not what is here.
    pub fresh: bool,
}

/// One name of a file that is not the pool's yet.
#[derive(Clone, Copy, Debug)]
pub struct PrivateFile {
    /// Files that may be equal have equal keys.
    pub key: u64,
    /// Inode number; its device is that of the guest's root.
    pub ino: u64,
    /// Length in bytes.
    pub size: u64,
    /// Bytes of disk that hold it.
    pub allocated: u64,
    /// Time of the last change of the inode, in nanoseconds.
    pub ctime: i64,
    /// Time of modification, in nanoseconds.
    pub mtime: i64,
    pub nlink: u32,
    pub dir: DirIndex,
    /// What an earlier run, or this one, has read of it; in [`Catalog::digests`].
    pub(crate) digest: Option<std::num::NonZero<u32>>,
    name: u32,
    name_len: u16,
    /// Why it stays as it is.
    pub not_unified: Option<NotUnified>,
    /// It shares the blocks of its object already.
    pub shares_blocks: bool,
}

/// Files of guests.
#[derive(Debug, Default)]
pub struct Catalog {
    /// The guests, as they were given.
    pub guests: Vec<GuestTree>,
    /// Directories with such files, and those whose names were read.
    pub dirs: Vec<Dir>,
    pub files: Vec<PrivateFile>,
    pub(crate) digests: Vec<Digest>,
    /// Files that could not be read, with the reason.
    pub unreadable: Vec<(FileIndex, SharedError)>,
    /// Names that were seen to be the pool's already.
    pub shared: u64,
    /// Names that are in quarantine.
    pub damaged: u64,
    /// Directories that could not be read, from the caller's root, with the reason.
    pub(crate) unread: Vec<FailedPath>,
    /// Directories that an earlier run may have seen, and that are not there any more: guest and path.
    pub gone: Vec<(GuestIndex, PathBuf)>,
    names: Vec<u8>,
}

impl Index<GuestIndex> for Catalog {
    type Output = GuestTree;

    fn index(&self, at: GuestIndex) -> &GuestTree {
        &self.guests[at.0 as usize]
    }
}

impl Index<DirIndex> for Catalog {
    type Output = Dir;

    fn index(&self, at: DirIndex) -> &Dir {
        &self.dirs[at.0 as usize]
    }
}

impl IndexMut<DirIndex> for Catalog {
    fn index_mut(&mut self, at: DirIndex) -> &mut Dir {
        &mut self.dirs[at.0 as usize]
    }
}

impl Index<FileIndex> for Catalog {
    type Output = PrivateFile;

    fn index(&self, at: FileIndex) -> &PrivateFile {
        &self.files[at.0 as usize]
    }
}

impl IndexMut<FileIndex> for Catalog {
    fn index_mut(&mut self, at: FileIndex) -> &mut PrivateFile {
        &mut self.files[at.0 as usize]
    }
}

impl Catalog {
    /// The places of all files, in their order.
    pub(crate) fn indices(&self) -> impl Iterator<Item = FileIndex> + use<> {
        (0..self.files.len() as u32).map(FileIndex)
    }

    /// The places of all directories, in their order.
    pub(crate) fn dir_indices(&self) -> impl Iterator<Item = DirIndex> + use<> {
        (0..self.dirs.len() as u32).map(DirIndex)
    }

    /// The places of all guests, in their order.
    pub(crate) fn guest_indices(&self) -> impl Iterator<Item = GuestIndex> + use<> {
        (0..self.guests.len() as u32).map(GuestIndex)
    }

    /// Adds a directory.
    pub(crate) fn add_dir(&mut self, dir: Dir) -> DirIndex {
        self.dirs.push(dir);
        DirIndex(self.dirs.len() as u32 - 1)
    }

    /// Adds a name in the directory `dir`.
    pub(crate) fn add_file(
        &mut self,
        dir: DirIndex,
        name: &OsStr,
        inode: &Inode,
        key: u64,
        not_unified: Option<NotUnified>,
    ) -> FileIndex {
        self.files.push(PrivateFile {
            key,
            ino: inode.id.ino,
            size: inode.size,
            allocated: inode.allocated,
            ctime: inode.ctime.nanoseconds(),
            mtime: inode.mtime.nanoseconds(),
            nlink: inode.nlink,
            dir,
            digest: None,
            name: self.names.len() as u32,
            name_len: name.len() as u16,
            not_unified,
            shares_blocks: false,
        });
        self.names.extend_from_slice(name.as_bytes());
        FileIndex(self.files.len() as u32 - 1)
    }

    /// Notes what is known of the file `at`.
    pub(crate) fn set_digest(&mut self, at: FileIndex, digest: Digest) {
        if self.digests.is_empty() {
            // The first place is nobody's, so that a file's index is never 0.
            self.digests.push(digest);
        }
        self.digests.push(digest);
        self[at].digest = std::num::NonZero::new(self.digests.len() as u32 - 1);
    }

    /// What is known of a file.
    pub(crate) fn digest(&self, file: &PrivateFile) -> Option<Digest> {
        file.digest.map(|at| self.digests[at.get() as usize])
    }

    /// Forgets files. Those that follow change their places.
    pub fn remove(&mut self, files: &HashSet<FileIndex>) {
        let mut at = self.indices();
        self.files.retain(|_| at.next().is_some_and(|at| !files.contains(&at)));
    }

    /// Takes over what another thread found.
    pub fn absorb(&mut self, part: Catalog) {
        let (dirs, names) = (self.dirs.len() as u32, self.names.len() as u32);
        let digests = self.digests.len() as u32;
        // Room for just that: doubling would need twice as much at the end.
        self.names.reserve_exact(part.names.len());
        self.files.reserve_exact(part.files.len());
        self.dirs.extend(part.dirs);
        self.names.extend(part.names);
        self.digests.extend(part.digests);
        self.files.extend(part.files.into_iter().map(|file| PrivateFile {
            dir: DirIndex(file.dir.0 + dirs),
            name: file.name + names,
            digest: file.digest.and_then(|at| at.checked_add(digests)),
            ..file
        }));
        self.shared += part.shared;
        self.damaged += part.damaged;
        self.unread.extend(part.unread);
        self.gone.extend(part.gone);
    }

    /// The last component of a file's path.
    pub fn name(&self, file: &PrivateFile) -> &OsStr {
        let start = file.name as usize;
        OsStr::from_bytes(&self.names[start..start + usize::from(file.name_len)])
    }

    /// The directory of a file.
    pub fn dir(&self, file: &PrivateFile) -> &Dir {
        &self[file.dir]
    }

    /// Which inode a file is.
    pub fn id(&self, file: &PrivateFile) -> InodeId {
        let guest = &self[self.dir(file).guest];
        InodeId { dev: guest.inode.id.dev, ino: file.ino }
    }

    /// Which inode the directory of a file is.
    pub(crate) fn dir_id(&self, file: &PrivateFile) -> InodeId {
        let dir = self.dir(file);
        InodeId { dev: self[dir.guest].inode.id.dev, ino: dir.ino }
    }

    /// The path of a file, from its guest's root.
    pub fn path(&self, file: &PrivateFile) -> PathBuf {
        self.dir(file).path.join(self.name(file))
    }

    /// The path of a file, from the caller's root: for messages.
    pub fn outer_path(&self, file: &PrivateFile) -> PathBuf {
        let root = self[self.dir(file).guest].root.path();
        root.join(crate::sys::path::root::relative(&self.path(file)))
    }

    /// Opens a directory; it must be the one that was scanned.
    ///
    /// # Errors
    /// `ESTALE` if another directory has its path by now.
    pub fn open_dir(&self, dir: &Dir) -> io::Result<OwnedFd> {
        let guest = &self[dir.guest];
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW;
        let fd = guest.root.open_walked(&dir.path, flags)?;
        let inode = Inode::of(&fd)?;
        let same =
            inode.id.ino == dir.ino && inode.id.dev == guest.inode.id.dev && inode.mount == guest.inode.mount;
        if same { Ok(fd) } else { Err(io::Error::from_raw_os_error(libc::ESTALE)) }
    }
}

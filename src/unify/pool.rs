//! The pool: the host's directory of shared inodes, one per filesystem.
//!
//! ```text
//! .cow-pool/                 0700, root's
//!     pool.toml              how files are shared here
//!     lock                   held by the one run that may work on the whole pool
//!     objects/XX/NAME        the shared inodes, by content (XX: its first byte)
//!     quarantine/XXNAME@INO  objects whose content or metadata no longer matches their name
//!     runs/N/                what a run is about to change: journal and temporary names
//!     cache.db               what the last run saw; may be lost without harm
//! ```
//!
//! An object's name says what it must be: `CONTENT-TAG-XATTRS.INDEX`, digests in hexadecimal. There are several
//! indices where an inode has as many links as the filesystem allows. With a reference guest, a fifth part keeps
//! files of different paths apart.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};

use super::identity::{self, Digest, Mtime};
use super::{At, Error};
use crate::parallel;
use crate::sys::inode::{Inode, Kind};
use crate::sys::resolve::is_absent;
use crate::sys::root::Root;
use crate::sys::swap::{self, Name, Shared};
use crate::sys::{filesystem, lock, state, tree};

/// The directory beside the guests that is their pool unless another is named.
pub const DEFAULT_NAME: &str = ".cow-pool";

const SETTINGS: &str = "pool.toml";
const OBJECTS: &str = "objects";
const RUNS: &str = "runs";
const QUARANTINE: &str = "quarantine";

/// How equal files share.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Share {
    /// One inode: disk and page cache are used once; protected against changes.
    #[default]
    Hardlink,
    /// Blocks (xfs, btrfs): disk is used once, every guest keeps an inode of its own; needs no protection.
    Reflink,
}

/// How files are shared in a pool, chosen when it is made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// How equal files share.
    pub share: Share,
    /// Whether times of modification must agree.
    pub mtime: Mtime,
}

/// An open pool.
#[derive(Debug)]
pub struct Pool {
    root: Root,
    objects: OwnedFd,
    runs: OwnedFd,
    inode: Inode,
    /// How files are shared here.
    pub settings: Settings,
}

/// While it lives, no other run works on the whole pool.
#[derive(Debug)]
pub struct Locked(#[allow(dead_code)] OwnedFd);

impl Pool {
    /// Makes the pool `path`, where nothing or an empty directory is, and opens it.
    pub fn create(path: &Path, settings: Settings) -> Result<Pool, Error> {
        let parent = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let name = path.file_name().ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput)).at(path)?;
        let dir = state::make_dir_at(Root::open(parent).at(parent)?, name).at(path)?;
        if let Some(stranger) = state::names(&dir).at(path)?.first() {
            return Err(Error::NoPool { path: path.to_path_buf(), stranger: stranger.clone() });
        }
        for name in [OBJECTS, RUNS, QUARANTINE] {
            state::make_dir_at(&dir, OsStr::new(name)).at(path)?;
        }
        let text = toml::to_string(&settings).map_err(io::Error::other).at(path)?;
        // Last: what has settings is a whole pool.
        state::replace(&dir, OsStr::new(SETTINGS), text.as_bytes()).at(path)?;
        Pool::open(path)?.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound)).at(path)
    }

    /// Opens the pool `path`; `None` where there is none yet.
    ///
    /// # Errors
    /// Where it is not the caller's, or open to others: a guest must never reach it.
    pub fn open(path: &Path) -> Result<Option<Pool>, Error> {
        let root = match Root::open(path) {
            Ok(root) => root,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e).at(path),
        };
        Pool::at(root)
    }

    /// Opens the pool in a directory that is open already; `None` where there is none in it.
    ///
    /// # Errors
    /// As [`Pool::open`].
    pub fn at(root: Root) -> Result<Option<Pool>, Error> {
        let path = &root.path().to_path_buf();
        let text = match root.read(Path::new(SETTINGS)) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e).at(path),
        };
        let inode = Inode::of(&root).at(path)?;
        if inode.mode & 0o077 != 0 || inode.uid != rustix::process::geteuid().as_raw() {
            return Err(Error::Exposed { path: path.to_path_buf() });
        }
        let settings = std::str::from_utf8(&text).map_err(io::Error::other).and_then(|text| {
            toml::from_str(text).map_err(|e| io::Error::other(format!("{SETTINGS}: {}", e.message())))
        });
        let open = |name: &str| root.open_dir(Path::new(name)).at(&path.join(name));
        let (objects, runs) = (open(OBJECTS)?, open(RUNS)?);
        Ok(Some(Pool { objects, runs, inode, settings: settings.at(path)?, root }))
    }

    /// The path the pool was opened by.
    pub fn path(&self) -> &Path {
        self.root.path()
    }

    /// The pool's own directory, open.
    pub fn root(&self) -> &Root {
        &self.root
    }

    /// The pool's own directory as it was opened.
    pub fn inode(&self) -> &Inode {
        &self.inode
    }

    /// The directory of the runs.
    pub fn runs(&self) -> &OwnedFd {
        &self.runs
    }

    /// The directory of what verification has set aside.
    pub fn quarantine(&self) -> Result<OwnedFd, Error> {
        self.root.open_dir(Path::new(QUARANTINE)).at(&self.path().join(QUARANTINE))
    }

    /// The file of the settings: one that is sure to be there, with data in it.
    pub fn settings_file(&self) -> io::Result<OwnedFd> {
        self.root.open_at(Path::new(SETTINGS), OFlags::RDONLY)
    }

    /// Where the cache lies, as a path of the calling process.
    pub fn cache_path(&self) -> PathBuf {
        self.path().join("cache.db")
    }

    /// Takes the lock of the whole pool, waiting at most `patience`.
    ///
    /// # Errors
    /// [`Error::Busy`] where another run keeps it.
    pub fn lock(&self, patience: Duration) -> Result<Locked, Error> {
        let file = state::lock_file(&self.root, OsStr::new("lock")).at(self.path())?;
        match lock::exclusive(&file, patience) {
            Ok(()) => Ok(Locked(file)),
            Err(e) if e.kind() == io::ErrorKind::TimedOut => {
                Err(Error::Busy { path: self.path().to_path_buf() })
            }
            Err(e) => Err(e).at(self.path()),
        }
    }

    /// Opens the directory an object lies in, made where it is missing and asked for.
    pub fn shelf(&self, shelf: u8, make: bool) -> io::Result<Option<OwnedFd>> {
        let name = OsString::from(format!("{shelf:02x}"));
        if make {
            return state::make_dir_at(&self.objects, &name).map(Some);
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match rustix::fs::openat(&self.objects, &name, flags, rustix::fs::Mode::empty()) {
            Ok(fd) => Ok(Some(fd)),
            Err(rustix::io::Errno::NOENT) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// Reads the names of one directory of objects. What is no object's name is passed over.
    pub fn read_shelf(&self, shelf: u8) -> Result<Vec<Object>, Error> {
        let path = || self.path().join(OBJECTS).join(format!("{shelf:02x}"));
        let Some(dir) = self.shelf(shelf, false).map_err(|source| Error::At { path: path(), source })? else {
            return Ok(Vec::new());
        };
        let mut objects = Vec::new();
        let listed = tree::entries(&dir, &mut tree::listing_buffer(), |name, _, ino| {
            let parsed = name.to_str().and_then(|name| ObjectName::parse(shelf, name));
            objects.extend(parsed.map(|name| Object { name, ino }));
        });
        listed.map_err(|source| Error::At { path: path(), source })?;
        Ok(objects)
    }

    /// The newest inode of one object, without reading the names of all.
    pub fn find(&self, name: &ObjectName) -> Result<Option<Object>, Error> {
        let at = |source| Error::At { path: self.path().to_path_buf(), source };
        let Some(shelf) = self.shelf(name.shelf(), false).map_err(at)? else { return Ok(None) };
        let mut found = None;
        // Where collection has left a gap, a lower index is begun anew: no harm.
        for index in 0.. {
            let name = ObjectName { index, ..*name };
            match (Name { dir: shelf.as_fd(), name: &name.file() }).inode().map_err(at)? {
                Some(inode) => found = Some(Object { name, ino: inode.id.ino }),
                None => break,
            }
        }
        Ok(found)
    }

    /// Reads the names of all objects.
    pub fn index(&self, threads: usize) -> Result<Index, Error> {
        let shelves: Vec<u8> = (0..=255).collect();
        let mut objects = Vec::new();
        for read in parallel::map(threads, &shelves, |shelf| self.read_shelf(*shelf)) {
            objects.extend(read?);
        }
        let set_aside = state::inodes(&self.quarantine()?).at(self.path())?;
        Ok(Index::new(objects, set_aside))
    }

    /// Looks at the inodes of all objects.
    pub fn look(&self, threads: usize) -> Result<Vec<Stored>, Error> {
        let shelves: Vec<u8> = (0..=255).collect();
        let mut stored = Vec::new();
        for looked in parallel::map(threads, &shelves, |shelf| self.look_at_shelf(*shelf)) {
            stored.extend(looked?);
        }
        Ok(stored)
    }

    fn look_at_shelf(&self, shelf: u8) -> Result<Vec<Stored>, Error> {
        self.look_at(shelf, self.read_shelf(shelf)?.into_iter())
    }

    /// Looks at all inodes of an object.
    pub fn inodes_of(&self, name: &ObjectName) -> Result<Vec<Stored>, Error> {
        let shelf = self.read_shelf(name.shelf())?;
        self.look_at(name.shelf(), shelf.into_iter().filter(|object| object.name.same_object(name)))
    }

    fn look_at(&self, shelf: u8, objects: impl Iterator<Item = Object>) -> Result<Vec<Stored>, Error> {
        let path = self.path().join(OBJECTS).join(format!("{shelf:02x}"));
        let Some(dir) = self.shelf(shelf, false).at(&path)? else { return Ok(Vec::new()) };
        look_in(&dir, &path, objects.map(|object| (object.name, object.name.file(), false)))
    }

    /// Looks at the inodes of all that verification has set aside.
    pub fn look_at_quarantine(&self) -> Result<Vec<Stored>, Error> {
        let (dir, path) = (self.quarantine()?, self.path().join(QUARANTINE));
        let names = state::names(&dir).at(&path)?;
        let parsed = |file: OsString| Some((ObjectName::parse_quarantined(&file)?, file, true));
        look_in(&dir, &path, names.into_iter().filter_map(parsed))
    }

    /// The directory that a file of the pool lies in.
    pub fn dir_of(&self, stored: &Stored) -> io::Result<OwnedFd> {
        if stored.set_aside {
            return self.root.open_dir(Path::new(QUARANTINE));
        }
        self.shelf(stored.name.shelf(), false)?.ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// The path of a file of the pool, for messages.
    pub fn path_of(&self, stored: &Stored) -> PathBuf {
        if stored.set_aside {
            self.path().join(QUARANTINE).join(&stored.file)
        } else {
            self.object_path(&stored.name)
        }
    }

    /// The path of an object, for messages.
    pub fn object_path(&self, name: &ObjectName) -> PathBuf {
        self.path().join(OBJECTS).join(format!("{:02x}", name.shelf())).join(name.file())
    }

    /// Makes a file of the pool immutable, unless it is, or is another one by now. Returns whether it was not.
    pub fn protect(&self, stored: &Stored, patience: Duration) -> io::Result<bool> {
        let shared = match Shared::lock_at(self.dir_of(stored)?, &stored.file, patience) {
            Err(e) if is_absent(&e) => return Ok(false),
            locked => locked?,
        };
        // Asked under the lock: a guest may have had a window open.
        let now = shared.inode()?;
        if now.immutable || now.id != stored.inode.id {
            return Ok(false);
        }
        shared.protect().map(|()| true)
    }

    /// Whether objects can be changed.
    ///
    /// # Errors
    /// Where the filesystem is mounted read-only, or objects are `protected` and the flag cannot be cleared.
    pub fn may_change(&self, protected: bool) -> Result<(), Error> {
        let path = || self.path().to_path_buf();
        if filesystem::is_read_only(&self.runs).at(self.path())? {
            return Err(Error::ReadOnly { path: path() });
        }
        let capable = if protected { swap::may_change_immutable(&self.runs) } else { Ok(()) };
        capable.map_err(|source| Error::Capability { path: path(), source })
    }

    /// Whether a file or directory with this inode is within reach of a hard link from the pool.
    pub fn reaches(&self, inode: &Inode) -> bool {
        inode.id.dev == self.inode.id.dev && inode.mount == self.inode.mount
    }
}

/// What an object must be, and which one of several it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectName {
    /// The [`super::identity::tag`] of its metadata.
    pub tag: u64,
    /// Content and extended attributes.
    pub digest: Digest,
    /// Keeps apart what a reference guest has under different paths; 0 without one.
    pub salt: u64,
    /// Several inodes of one object are counted from 0.
    pub index: u32,
}

impl ObjectName {
    /// The directory the object lies in.
    pub fn shelf(&self) -> u8 {
        self.digest.content[0]
    }

    /// The same but for the index.
    pub fn same_object(&self, other: &ObjectName) -> bool {
        ObjectName { index: 0, ..*self } == ObjectName { index: 0, ..*other }
    }

    /// Whether an open file that nobody writes to is what the name says.
    pub fn describes(&self, file: impl AsFd, mtime: Mtime) -> io::Result<bool> {
        let (inode, digest) = Digest::of_quiet(file)?;
        Ok(identity::tag(&inode, mtime) == self.tag && digest == self.digest)
    }

    /// What candidates are grouped by.
    pub fn key(&self) -> u64 {
        self.tag ^ self.salt
    }

    fn parse(shelf: u8, name: &str) -> Option<ObjectName> {
        let (digests, rest) = name.split_once('.')?;
        let (index, salt) = match rest.split_once('.') {
            Some((index, salt)) => (index, number(salt)?),
            None => (rest, 0),
        };
        let mut parts = digests.split('-');
        let content = blake3::Hash::from_hex(format!("{shelf:02x}{}", parts.next()?)).ok()?;
        let (tag, xattrs) = (number(parts.next()?)?, number(parts.next()?)?);
        let parsed = ObjectName {
            tag,
            digest: Digest { content: content.into(), xattrs },
            salt,
            index: index.parse().ok()?,
        };
        // One object has one name.
        (parsed.to_string() == name).then_some(parsed)
    }

    /// Reads what [`ObjectName::whole`] wrote.
    pub fn parse_whole(name: &OsStr) -> Option<ObjectName> {
        let name = name.to_str()?;
        let (shelf, rest) = name.split_at_checked(2)?;
        ObjectName::parse(u8::from_str_radix(shelf, 16).ok()?, rest)
    }

    /// The name with the directory's two digits before it.
    pub fn whole(&self) -> OsString {
        format!("{:02x}{self}", self.shelf()).into()
    }

    /// The name in quarantine of the object that had the inode number `ino`: several may have been the same one.
    pub fn quarantined(&self, ino: u64) -> OsString {
        format!("{:02x}{self}@{ino}", self.shelf()).into()
    }

    /// The object that a file of this name in quarantine was.
    pub fn parse_quarantined(name: &OsStr) -> Option<ObjectName> {
        let (whole, ino) = name.to_str()?.split_once('@')?;
        ino.parse::<u64>().ok()?;
        ObjectName::parse_whole(OsStr::new(whole))
    }

    /// The file's name in its directory.
    pub fn file(&self) -> OsString {
        self.to_string().into()
    }
}

fn number(hex: &str) -> Option<u64> {
    (hex.len() == 16).then(|| u64::from_str_radix(hex, 16).ok()).flatten()
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let content = blake3::Hash::from(self.digest.content).to_hex();
        let (content, xattrs) = (&content.as_str()[2..], self.digest.xattrs);
        write!(f, "{content}-{:016x}-{xattrs:016x}.{}", self.tag, self.index)?;
        if self.salt == 0 { Ok(()) } else { write!(f, ".{:016x}", self.salt) }
    }
}

/// One inode of the pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Object {
    /// Its name.
    pub name: ObjectName,
    /// Its inode number, on the pool's filesystem.
    pub ino: u64,
}

/// An object as it lies in the pool, or in quarantine.
#[derive(Clone, Debug)]
pub struct Stored {
    /// What it is, or was.
    pub name: ObjectName,
    /// The name of its file.
    pub file: OsString,
    /// It lies in quarantine.
    pub set_aside: bool,
    /// Its inode.
    pub inode: Inode,
}

impl Stored {
    /// Whether no guest has a link to it.
    pub fn is_unused(&self) -> bool {
        self.inode.nlink == 1
    }
}

/// Looks at files of a directory of the pool; what is none, or gone since it was listed, is passed over.
fn look_in(
    dir: &OwnedFd,
    path: &Path,
    files: impl Iterator<Item = (ObjectName, OsString, bool)>,
) -> Result<Vec<Stored>, Error> {
    let mut stored = Vec::new();
    for (name, file, set_aside) in files {
        match Inode::at(dir, &file) {
            Ok(inode) if inode.kind == Kind::Regular => stored.push(Stored { name, file, set_aside, inode }),
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e).at(&path.join(&file)),
        }
    }
    Ok(stored)
}

/// All objects, to be asked which inodes are the pool's and what there is for a file.
#[derive(Debug, Default)]
pub struct Index {
    /// By key, name and index.
    objects: Vec<Object>,
    inodes: HashSet<u64>,
    set_aside: HashSet<u64>,
}

impl Index {
    /// An index of these objects.
    pub fn new(mut objects: Vec<Object>, set_aside: HashSet<u64>) -> Index {
        objects.sort_unstable_by_key(|object| (object.name.key(), object.name));
        let inodes = objects.iter().map(|object| object.ino).collect();
        Index { objects, inodes, set_aside }
    }

    /// Whether the inode of this number is an object, or was one and is in quarantine.
    pub fn holds(&self, ino: u64) -> bool {
        self.inodes.contains(&ino) || self.set_aside.contains(&ino)
    }

    /// Whether the inode of this number is in quarantine.
    pub fn is_set_aside(&self, ino: u64) -> bool {
        !self.set_aside.is_empty() && self.set_aside.contains(&ino)
    }

    /// Whether there is any object with this key.
    pub fn knows(&self, key: u64) -> bool {
        let at = self.objects.partition_point(|object| object.name.key() < key);
        self.objects.get(at).is_some_and(|object| object.name.key() == key)
    }

    /// The newest inode of the object `name`, whatever its index.
    pub fn newest(&self, name: &ObjectName) -> Option<Object> {
        let last = ObjectName { index: u32::MAX, ..*name };
        let end =
            self.objects.partition_point(|object| (object.name.key(), object.name) <= (last.key(), last));
        let object = self.objects[..end].last()?;
        object.name.same_object(name).then_some(*object)
    }

    /// All objects.
    pub fn objects(&self) -> &[Object] {
        &self.objects
    }
}

/// Whether what is listed in a directory of objects is a file at all.
pub fn is_object(inode: &Inode) -> bool {
    inode.kind == Kind::Regular && inode.size > 0
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn name(tag: u64, first: u8, salt: u64, index: u32) -> ObjectName {
        let mut content = [0x5a; 32];
        content[0] = first;
        ObjectName { tag, digest: Digest { content, xattrs: 7 }, salt, index }
    }

    #[test]
    fn the_newest_index_of_an_object_is_found_among_others() {
        let names =
            [name(1, 0, 0, 0), name(1, 0, 0, 10), name(1, 0, 0, 2), name(1, 1, 0, 3), name(2, 0, 0, 4)];
        let objects = names.iter().zip(1..).map(|(name, ino)| Object { name: *name, ino }).collect();
        let index = Index::new(objects, HashSet::from([99]));
        assert_eq!(index.newest(&name(1, 0, 0, 0)).map(|object| object.name.index), Some(10));
        assert_eq!(index.newest(&name(3, 0, 0, 0)), None);
        assert_eq!(index.newest(&name(1, 0, 8, 0)), None);
        assert!(index.knows(1) && !index.knows(3));
        assert!(index.holds(1) && index.holds(99) && !index.holds(77));
        assert!(index.is_set_aside(99) && !index.is_set_aside(1));
    }

    #[test]
    fn a_stranger_is_no_object() {
        for text in ["", "x", "00-00-00.0", "lost+found"] {
            assert_eq!(ObjectName::parse(0, text), None);
            assert_eq!(ObjectName::parse_whole(OsStr::new(text)), None);
            assert_eq!(ObjectName::parse_quarantined(OsStr::new(text)), None);
        }
    }

    proptest! {
        #[test]
        fn names_are_read_as_they_are_written(tag: u64, first: u8, salt: u64, index: u32) {
            let name = name(tag, first, salt, index);
            prop_assert_eq!(ObjectName::parse(first, &name.to_string()), Some(name));
            prop_assert_eq!(ObjectName::parse_whole(&name.whole()), Some(name));
            prop_assert_eq!(ObjectName::parse_quarantined(&name.quarantined(tag)), Some(name));
            prop_assert_eq!(ObjectName::parse_quarantined(&name.whole()), None);
        }
    }
}

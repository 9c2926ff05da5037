//! The pool: the host's directory of shared inodes, one per filesystem.
//!
//! ```text
//! .cow-pool/                 0700, root's
//!     pool.toml              how files are shared here
//!     lock                   held by the one run that may work on the whole pool
//!     objects/XX/NAME        the shared inodes, by content (XX: its first byte)
//!     objects/XX/NAME.second the second name of an object that the guard protects
//!     quarantine/XXNAME@INO  objects whose content or metadata no longer matches their name
//!     suspects/N             lists of objects that were not protected, and have not been read again since
//!     runs/N/                what a run is about to change: journal and temporary names
//!     cache.db               what the last run saw; may be lost without harm
//! ```
//!
//! An object's name says what it must be: `CONTENT-TAG-XATTRS.INDEX`, digests in hexadecimal. There are several
//! indices if an inode has as many links as the filesystem allows. With a reference guest, a fifth part keeps
//! files of different paths apart.

use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use rustix::fs::OFlags;
use rustix::process::{Resource, getrlimit};

use super::object::{Object, ObjectIndex, ObjectName, PoolFile};
use super::protection::PoolProtection;
use super::settings::{PoolSettings, SETTINGS, Sharing};
use crate::parallel;
use crate::report::{Reason, Shown};
use crate::sys::budget;
use crate::sys::file::inode::{Inode, Kind};
use crate::sys::file::{extents, filesystem};
use crate::sys::path::root::Root;
use crate::sys::path::{dirfd, tree};
use crate::sys::share::swap::{self, Name};
use crate::sys::share::{lock, mark};
use crate::unify::{At, Error};

/// The directory beside the guests that is their pool unless another is named.
pub(crate) const DEFAULT_NAME: &str = ".cow-pool";

const OBJECTS: &str = "objects";
const RUNS: &str = "runs";
const QUARANTINE: &str = "quarantine";

/// One directory of objects stays open for so many descriptors that this process may have.
const DESCRIPTORS_PER_SHELF: u64 = 8;

/// An open pool.
#[derive(Debug)]
pub struct Pool {
    root: Root,
    objects: OwnedFd,
    /// Directories of objects that were opened to link: none is ever removed.
    shelves: [OnceLock<Arc<OwnedFd>>; 256],
    /// How many of these may stay open.
    kept_shelves: usize,
    runs: OwnedFd,
    inode: Inode,
    pub settings: PoolSettings,
    /// Objects to be read again that could not be written down.
    pub(crate) unlisted: Mutex<HashSet<OsString>>,
}

/// The names in one directory of objects.
#[derive(Debug, Default)]
pub(super) struct Shelf {
    objects: Vec<Object>,
    /// Second names, with the numbers of their inodes.
    seconds: HashMap<ObjectName, u64>,
}

impl Shelf {
    fn has_second(&self, object: &Object) -> bool {
        self.seconds.get(&object.name) == Some(&object.ino)
    }

    /// The objects whose second names are left here, and name other inodes than the objects if these are there.
    pub fn seconds_without_object(&self) -> Vec<ObjectName> {
        let with: HashSet<&ObjectName> =
            self.objects.iter().filter(|object| self.has_second(object)).map(|object| &object.name).collect();
        self.seconds.keys().filter(|name| !with.contains(name)).copied().collect()
    }
}

/// A name of the pool that is to be looked at.
struct PoolName {
    name: ObjectName,
    file: OsString,
    quarantined: bool,
    second: bool,
}

/// While it lives, no other run works on the whole pool.
#[derive(Debug)]
pub struct PoolLock(#[allow(dead_code)] OwnedFd);

impl Pool {
    /// Makes the pool `path` and opens it. At the path is nothing, an empty directory, or a pool whose making was interrupted.
    pub fn create(path: &Path, settings: PoolSettings) -> Result<Pool, Error> {
        let parent = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let name = path.file_name().ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput)).at(path)?;
        let parent = Root::open(parent).at(parent)?;
        let made = !path.exists();
        let dir = dirfd::make_dir_at(&parent, name).at(path)?;
        if let Some(stranger) = stranger(&dir).at(path)? {
            return Err(Error::NoPool { path: path.to_path_buf(), stranger });
        }
        if let Err(e) = furnish(&dir, settings) {
            // Nobody has seen it yet.
            [OBJECTS, RUNS, QUARANTINE].iter().for_each(|name| drop(dirfd::remove_dir(&dir, name.as_ref())));
            if made {
                let _ = dirfd::remove_dir(&parent, name);
            }
            return Err(e).at(path);
        }
        Pool::open(path)?.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound)).at(path)
    }

    /// Writes down how objects are protected from now on.
    pub fn set_protection(&mut self, protection: PoolProtection) -> Result<(), Error> {
        self.settings.protection = Some(protection);
        self.settings.write(&self.root).at(self.path())
    }

    /// Opens the pool `path`; `None` if there is none yet.
    ///
    /// # Errors
    /// If it is not the caller's, or open to others: a guest must never reach it.
    pub fn open(path: &Path) -> Result<Option<Pool>, Error> {
        let root = match Root::open(path) {
            Ok(root) => root,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e).at(path),
        };
        Pool::at(root)
    }

    /// Opens the pool in a directory that is open already; `None` if there is none in it.
    ///
    /// # Errors
    /// As [`Pool::open`].
    pub fn at(root: Root) -> Result<Option<Pool>, Error> {
        let path = &root.path().to_path_buf();
        let text = match root.read(Path::new(SETTINGS), budget::CONFIGURATION) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e).at(path),
        };
        let inode = Inode::of(&root).at(path)?;
        if inode.mode & 0o077 != 0 || inode.uid != rustix::process::geteuid().as_raw() {
            return Err(Error::Exposed { path: path.to_path_buf() });
        }
        let settings = PoolSettings::read(&text).at(path)?;
        let open = |name: &str| root.open_dir(Path::new(name)).at(&path.join(name));
        let (objects, runs) = (open(OBJECTS)?, open(RUNS)?);
        let unlisted = Mutex::default();
        let shelves = [const { OnceLock::new() }; 256];
        let descriptors = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        let kept_shelves = usize::try_from(descriptors / DESCRIPTORS_PER_SHELF).unwrap_or(usize::MAX);
        Ok(Some(Pool { objects, shelves, kept_shelves, runs, inode, settings, unlisted, root }))
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
    pub(crate) fn settings_file(&self) -> io::Result<OwnedFd> {
        self.root.open_at(Path::new(SETTINGS), OFlags::RDONLY)
    }

    /// Where the cache lies, as a path of the calling process.
    pub(crate) fn cache_path(&self) -> PathBuf {
        self.path().join("cache.db")
    }

    /// Takes the lock of the whole pool, waiting at most `lock_timeout`.
    ///
    /// # Errors
    /// [`Error::Busy`] if another run keeps it.
    pub fn lock(&self, lock_timeout: Duration) -> Result<PoolLock, Error> {
        let file = dirfd::open_lock_file(&self.root, OsStr::new("lock")).at(self.path())?;
        match lock::exclusive(&file, lock_timeout) {
            Ok(()) => Ok(PoolLock(file)),
            Err(e) if e.kind() == io::ErrorKind::TimedOut => {
                Err(Error::Busy { path: self.path().to_path_buf() })
            }
            Err(e) => Err(e).at(self.path()),
        }
    }

    /// Opens the directory an object lies in, made if it is missing and asked for.
    pub fn shelf(&self, shelf: u8, make: bool) -> io::Result<Option<OwnedFd>> {
        let name = OsString::from(format!("{shelf:02x}"));
        if make {
            return dirfd::make_dir_at(&self.objects, &name).map(Some);
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match rustix::fs::openat(&self.objects, &name, flags, rustix::fs::Mode::empty()) {
            Ok(fd) => Ok(Some(fd)),
            Err(rustix::io::Errno::NOENT) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// The directory an object lies in, or is to lie in. It stays open for the next one, if there are descriptors for it.
    pub(super) fn open_shelf(&self, shelf: u8) -> io::Result<Arc<OwnedFd>> {
        let known = &self.shelves[usize::from(shelf)];
        if let Some(open) = known.get() {
            return Ok(Arc::clone(open));
        }
        let opened = Arc::new(self.shelf(shelf, true)?.ok_or(io::ErrorKind::NotFound)?);
        if usize::from(shelf) < self.kept_shelves {
            // Another thread may have been faster.
            drop(known.set(Arc::clone(&opened)));
        }
        Ok(opened)
    }

    /// Reads the names of one directory of objects. What is no object's name is passed over.
    pub(super) fn read_shelf(&self, shelf: u8) -> Result<Shelf, Error> {
        let path = || self.path().join(OBJECTS).join(format!("{shelf:02x}"));
        let Some(dir) = self.shelf(shelf, false).map_err(|source| Error::At { path: path(), source })? else {
            return Ok(Shelf::default());
        };
        let mut read = Shelf::default();
        let listed = tree::entries(&dir, &mut tree::listing_buffer(), |name, _, ino| {
            let Some(file) = name.to_str() else { return };
            if let Some(name) = ObjectName::parse(shelf, file) {
                read.objects.push(Object { name, ino });
            } else if let Some(name) = ObjectName::parse_second(shelf, file) {
                read.seconds.insert(name, ino);
            }
        });
        listed.map_err(|source| Error::At { path: path(), source })?;
        Ok(read)
    }

    /// The newest inode of one object, without reading the names of all.
    pub fn find(&self, name: &ObjectName) -> Result<Option<Object>, Error> {
        let at = |source| Error::At { path: self.path().to_path_buf(), source };
        let Some(shelf) = self.shelf(name.shelf(), false).map_err(at)? else { return Ok(None) };
        let mut found = None;
        // If collection has left a gap, a lower index is begun anew: no harm.
        for index in 0.. {
            let name = ObjectName { index, ..*name };
            match (Name { dir: shelf.as_fd(), name: &name.file() }).inode().map_err(at)? {
                Some(inode) => found = Some(Object { name, ino: inode.id.ino }),
                None => break,
            }
        }
        Ok(found)
    }

    /// About how many objects there are, by those in one directory: digests are spread evenly.
    pub(crate) fn estimate(&self) -> Result<usize, Error> {
        Ok(self.read_shelf(0)?.objects.len() * self.shelves.len())
    }

    /// The objects whose metadata have one of these tags, except those that are kept apart by path.
    pub(crate) fn tagged(&self, tags: &HashSet<u64>, threads: usize) -> Result<ObjectIndex, Error> {
        let shelves: Vec<u8> = (0..=255).collect();
        let read = parallel::map(threads, &shelves, |&number| {
            let mut found = Vec::new();
            let Some(dir) = self.shelf(number, false)? else { return Ok(found) };
            tree::entries(&dir, &mut tree::listing_buffer(), |name, _, ino| {
                let is_wanted = |file: &&str| ObjectName::tag_of(file).is_some_and(|tag| tags.contains(&tag));
                let name = name.to_str().filter(is_wanted).and_then(|file| ObjectName::parse(number, file));
                found.extend(name.filter(|name| name.salt == 0).map(|name| Object { name, ino }));
            })?;
            Ok(found)
        });
        let objects = read.into_iter().collect::<io::Result<Vec<_>>>().at(self.path())?.concat();
        let quarantined = dirfd::inode_numbers(&self.quarantine()?).at(self.path())?;
        Ok(ObjectIndex::new(objects, quarantined))
    }

    /// Reads the names of all objects.
    pub fn index(&self, threads: usize) -> Result<ObjectIndex, Error> {
        let shelves: Vec<u8> = (0..=255).collect();
        let mut objects = Vec::new();
        for read in parallel::map(threads, &shelves, |shelf| self.read_shelf(*shelf)) {
            objects.extend(read?.objects);
        }
        let quarantined = dirfd::inode_numbers(&self.quarantine()?).at(self.path())?;
        Ok(ObjectIndex::new(objects, quarantined))
    }

    /// Looks at the inodes of all objects.
    pub fn look(&self, threads: usize) -> Result<Vec<PoolFile>, Error> {
        let shelves: Vec<u8> = (0..=255).collect();
        let mut stored = Vec::new();
        for looked in parallel::map(threads, &shelves, |shelf| self.look_at_shelf(*shelf)) {
            stored.extend(looked?);
        }
        Ok(stored)
    }

    /// Looks at the inodes of all objects, and of all that was set aside.
    pub fn look_at_all(&self, threads: usize) -> Result<Vec<PoolFile>, Error> {
        let mut files = self.look(threads)?;
        files.extend(self.look_at_quarantine()?);
        Ok(files)
    }

    fn look_at_shelf(&self, shelf: u8) -> Result<Vec<PoolFile>, Error> {
        self.look_at(shelf, &self.read_shelf(shelf)?, |_| true)
    }

    /// Looks at all inodes of an object.
    pub(crate) fn inodes_of(&self, name: &ObjectName) -> Result<Vec<PoolFile>, Error> {
        self.look_at(name.shelf(), &self.read_shelf(name.shelf())?, |object| object.same_object(name))
    }

    fn look_at(
        &self,
        shelf: u8,
        read: &Shelf,
        wanted: impl Fn(&ObjectName) -> bool,
    ) -> Result<Vec<PoolFile>, Error> {
        let path = self.path().join(OBJECTS).join(format!("{shelf:02x}"));
        let Some(dir) = self.shelf(shelf, false).at(&path)? else { return Ok(Vec::new()) };
        let objects = read.objects.iter().filter(|object| wanted(&object.name));
        let files = objects.map(|object| PoolName {
            name: object.name,
            file: object.name.file(),
            quarantined: false,
            second: read.has_second(object),
        });
        self.look_in(&dir, &path, files)
    }

    /// Looks at the inodes of all that verification has set aside.
    pub(crate) fn look_at_quarantine(&self) -> Result<Vec<PoolFile>, Error> {
        let (dir, path) = (self.quarantine()?, self.path().join(QUARANTINE));
        let names = dirfd::names(&dir).at(&path)?;
        let parsed = |file: OsString| {
            let name = ObjectName::parse_quarantined(&file)?;
            Some(PoolName { name, file, quarantined: true, second: false })
        };
        self.look_in(&dir, &path, names.into_iter().filter_map(parsed))
    }

    /// Looks at files of a directory of the pool; what is none, or gone since it was listed, is passed over.
    fn look_in(
        &self,
        dir: &OwnedFd,
        path: &Path,
        files: impl Iterator<Item = PoolName>,
    ) -> Result<Vec<PoolFile>, Error> {
        let mut stored = Vec::new();
        for PoolName { name, file, quarantined, second } in files {
            match self.look_at_file(dir, &file) {
                Ok((inode, marked)) if inode.kind == Kind::Regular => {
                    stored.push(PoolFile { name, file, quarantined, inode, marked, second })
                }
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(e).at(&path.join(&file)),
            }
        }
        Ok(stored)
    }

    /// Looks at a file of the pool, and whether it has the guard's mark if the pool relies on it.
    pub(super) fn look_at_file(&self, dir: impl AsFd, file: &OsStr) -> io::Result<(Inode, bool)> {
        let inode = Inode::at(&dir, file)?;
        if self.settings.protection != Some(PoolProtection::Guard) || inode.kind != Kind::Regular {
            return Ok((inode, false));
        }
        match (Name { dir: dir.as_fd(), name: file }).open().and_then(mark::is_set) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Err(e),
            // A guest's lease may keep it from being opened. What is not known to be protected is not.
            Err(e) => {
                log::debug!("{}: {}", Shown(file.as_ref()), Reason(e));
                Ok((inode, false))
            }
            Ok(marked) => Ok((inode, marked)),
        }
    }

    /// How many damaged files guests still have names of.
    pub fn still_seen(&self) -> Result<u64, Error> {
        Ok(self.look_at_quarantine()?.iter().filter(|stored| !stored.is_unused()).count() as u64)
    }

    /// The directory that a file of the pool lies in.
    pub fn dir_of(&self, stored: &PoolFile) -> io::Result<OwnedFd> {
        if stored.quarantined {
            return self.root.open_dir(Path::new(QUARANTINE));
        }
        self.shelf(stored.name.shelf(), false)?.ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// The path of a file of the pool, for messages.
    pub fn path_of(&self, stored: &PoolFile) -> PathBuf {
        if stored.quarantined {
            self.path().join(QUARANTINE).join(&stored.file)
        } else {
            self.object_path(&stored.name)
        }
    }

    /// The path of an object, for messages.
    pub(crate) fn object_path(&self, name: &ObjectName) -> PathBuf {
        self.path().join(OBJECTS).join(format!("{:02x}", name.shelf())).join(name.file())
    }

    /// Whether no guest has a file of the pool, or its blocks.
    pub(crate) fn is_unused(&self, stored: &PoolFile) -> io::Result<bool> {
        if self.settings.share == Sharing::Hardlink {
            return Ok(stored.is_unused());
        }
        extents::is_alone(Name { dir: self.dir_of(stored)?.as_fd(), name: &stored.file }.open()?)
    }

    /// Whether objects can be changed.
    ///
    /// # Errors
    /// If the filesystem is mounted read-only, or objects are `protected` and the flag cannot be cleared.
    pub fn may_change(&self, protected: bool) -> Result<(), Error> {
        may_change(&self.runs, self.path(), protected)
    }

    /// Whether a file or directory with this inode is within reach of a hard link from the pool.
    pub fn reaches(&self, inode: &Inode) -> bool {
        inode.id.dev == self.inode.id.dev && inode.mount == self.inode.mount
    }
}

/// Whether objects can be changed that lie on the filesystem of a directory, in the pool `path`.
///
/// # Errors
/// As [`Pool::may_change`].
pub fn may_change(dir: impl AsFd, path: &Path, protected: bool) -> Result<(), Error> {
    if filesystem::is_read_only(&dir).at(path)? {
        return Err(Error::ReadOnly { path: path.to_path_buf() });
    }
    let capable = if protected { swap::may_change_immutable(dir) } else { Ok(()) };
    capable.map_err(|source| Error::Capability { path: path.to_path_buf(), source })
}

fn furnish(dir: &OwnedFd, settings: PoolSettings) -> io::Result<()> {
    for name in [OBJECTS, RUNS, QUARANTINE] {
        dirfd::make_dir_at(dir, OsStr::new(name))?;
    }
    // Last: what has settings is a whole pool.
    settings.write(dir)
}

/// What holds a name here that a pool does not have while it is made.
fn stranger(dir: &OwnedFd) -> io::Result<Option<OsString>> {
    let temporary = dirfd::temporary_name(OsStr::new(SETTINGS));
    let is_ours = |name: &OsString| {
        let is_empty =
            || dirfd::make_dir_at(dir, name).and_then(dirfd::names).is_ok_and(|names| names.is_empty());
        *name == temporary || [OBJECTS, RUNS, QUARANTINE].iter().any(|ours| name == ours) && is_empty()
    };
    Ok(dirfd::names(dir)?.into_iter().find(|name| !is_ours(name)))
}

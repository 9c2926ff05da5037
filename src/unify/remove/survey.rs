//! What is in a guest that is to be removed: how much that frees, and what forbids it.

use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use super::place::{Place, outer};
use super::refusal::{Allowed, Flagged, Held, Refusal};
use crate::report::Watch;
use crate::sys::budget;
use crate::sys::file::inode::{Inode, InodeId, Kind};
use crate::sys::file::{extents, filesystem};
use crate::sys::path::descent::{Entry, Visitor, descend};
use crate::sys::path::root::Root;
use crate::sys::process::mounts::MountPoints;
use crate::sys::share::remove::{Released, is_kept};
use crate::sys::share::swap::Name;

/// A name of a guest.
#[derive(Clone, Debug)]
pub(super) struct PlacedName {
    directory: usize,
    pub name: OsString,
}

/// What is in a guest.
#[derive(Debug, Default)]
pub struct Survey {
    /// Names, with directories and the guest's own.
    pub names: u64,
    /// Names of inodes that have names outside of the guest, too: those stay. At least.
    pub shared: u64,
    /// How many names these have in the guest.
    pub shared_inodes: HashMap<InodeId, u32>,
    /// Bytes of disk that are free afterwards, at least.
    pub freed: u64,
    /// Files and directories, none of whose names are outside of the guest, that are immutable or append-only.
    pub flagged: Flagged,
    /// The same.
    pub(super) flagged_inodes: Released,
    /// Append-only files that have names outside of the guest.
    stuck: Flagged,
    /// Immutable inodes that have names outside of the guest, with their names in it.
    pub(super) protected: Vec<(InodeId, Vec<PlacedName>)>,
    /// The directories of these names.
    directories: Vec<PathBuf>,
    mounted: Flagged,
    read_only: Option<PathBuf>,
}

impl Survey {
    /// Looks at everything in a guest. `borders` are directories that are none of it, and what they are.
    ///
    /// # Errors
    /// If a directory cannot be read, or is none of the guest's.
    pub fn of(place: &Place, borders: HashMap<InodeId, Held>, watch: &dyn Watch) -> Result<Survey, Refusal> {
        let path = place.path();
        let at = |source| Refusal::At { path: path.to_path_buf(), source };
        let directory = place.open_directory().map_err(at)?;
        // Without a process table, what this process sees has been looked at.
        let points = MountPoints::look().unwrap_or_default();
        let shares_blocks = filesystem::may_share_blocks(&directory).map_err(at)?;
        let mut surveyor = Surveyor {
            path,
            borders,
            points,
            shares_blocks,
            watch,
            found: Survey::default(),
            devices: HashSet::new(),
            linked: HashMap::new(),
            path_bytes: 0,
            refused: None,
        };
        watch.begin("looking at", 0);
        let root = Entry { dir_path: Path::new("/"), dir: directory.as_fd(), name: OsStr::new("") };
        surveyor.directory(&root, &directory, &place.guest.inode);
        descend(directory.try_clone().map_err(at)?, &mut surveyor);
        watch.end();
        surveyor.end()
    }

    /// Whether nothing forbids to remove it.
    pub fn check(&self, path: &Path, allowed: Allowed) -> Result<(), Refusal> {
        if self.mounted.count > 0 {
            let points = self.mounted.examples.iter().map(|point| outer(path, point)).collect();
            return Err(Refusal::Mounted { points, count: self.mounted.count });
        }
        let named = |flagged: &Flagged| Flagged {
            count: flagged.count,
            examples: flagged.examples.iter().map(|example| outer(path, example)).collect(),
        };
        if let Some(inner) = &self.read_only {
            return Err(Refusal::ReadOnly { path: outer(path, inner) });
        }
        if self.stuck.count > 0 {
            return Err(Refusal::Stuck { flagged: named(&self.stuck) });
        }
        if self.flagged.count > 0 && !allowed.flagged {
            return Err(Refusal::Flagged { flagged: named(&self.flagged) });
        }
        Ok(())
    }

    /// Whether flags have to be cleared to remove it.
    pub(super) fn needs_capability(&self) -> bool {
        !self.protected.is_empty() || self.flagged.count > 0
    }

    /// The path of a name, from the guest's root.
    pub(super) fn path_of(&self, name: &PlacedName) -> PathBuf {
        self.directories.get(name.directory).map_or_else(PathBuf::new, |directory| directory.join(&name.name))
    }

    /// Opens the directory that a name is in.
    pub(super) fn open_dir(&self, root: &Root, name: &PlacedName) -> io::Result<OwnedFd> {
        let path = self.directories.get(name.directory).ok_or(io::ErrorKind::NotFound)?;
        root.open_walked(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW)
    }
}

/// As many inodes with several names are remembered: the guest pays for each with as much disk as it takes of memory. What
/// is beyond is in no figure but that of names. An immutable or append-only one always is remembered: no guest can make such.
const LINKED: usize = 4_000_000;

/// An inode with several names, not all of which have been seen.
struct Linked {
    /// Names there are, in all.
    nlink: u32,
    /// Names seen.
    seen: u32,
    allocated: u64,
    flagged: Option<Box<FlaggedLinks>>,
}

/// What is remembered besides of an inode that has a flag.
struct FlaggedLinks {
    immutable: bool,
    append_only: bool,
    names: Vec<PlacedName>,
    /// One of its paths.
    example: PathBuf,
}

struct Surveyor<'a> {
    path: &'a Path,
    borders: HashMap<InodeId, Held>,
    points: MountPoints,
    shares_blocks: bool,
    watch: &'a dyn Watch,
    found: Survey,
    linked: HashMap<InodeId, Linked>,
    /// Those of which it is known whether names can be removed: subvolumes of btrfs have one each.
    devices: HashSet<u64>,
    /// Of the directories that are kept.
    path_bytes: usize,
    refused: Option<Refusal>,
}

impl Surveyor<'_> {
    fn refuse(&mut self, refusal: Refusal) {
        self.refused.get_or_insert(refusal);
    }

    // Its path is put together only if it is needed: a tree may be deep without end.
    fn directory(&mut self, entry: &Entry<'_>, directory: &OwnedFd, inode: &Inode) {
        self.found.names += 1;
        self.found.freed += inode.allocated;
        if is_kept(inode) {
            self.found.flagged.add(entry.path());
            self.found.flagged_inodes.insert(inode.id, inode.nlink);
        }
        if !self.devices.insert(inode.id.dev) {
            return;
        }
        match filesystem::takes_no_names(directory) {
            Ok(true) => drop(self.found.read_only.get_or_insert_with(|| entry.path())),
            Ok(false) => {}
            Err(source) => self.refuse(Refusal::At { path: outer(self.path, &entry.path()), source }),
        }
    }

    /// What a file takes that no other file has.
    fn size(&self, name: Name<'_>, inode: &Inode) -> u64 {
        if !self.shares_blocks || inode.kind != Kind::Regular || inode.allocated == 0 {
            return inode.allocated;
        }
        match name.open().and_then(extents::of) {
            Ok(extents) if extents.iter().any(|extent| extent.shared) => {
                extents.iter().filter(|extent| !extent.shared).map(|extent| extent.end - extent.start).sum()
            }
            _ => inode.allocated,
        }
    }

    /// A name of an inode that has several, or had them just now.
    fn link(&mut self, entry: &Entry<'_>, inode: Inode) {
        let is_flagged = is_kept(&inode);
        if !is_flagged && self.linked.len() >= LINKED && !self.linked.contains_key(&inode.id) {
            return;
        }
        let linked = self.linked.entry(inode.id).or_insert_with(|| Linked {
            nlink: inode.nlink,
            seen: 0,
            allocated: inode.allocated,
            flagged: is_flagged.then(|| {
                let (immutable, append_only) = (inode.immutable, inode.append_only);
                Box::new(FlaggedLinks { immutable, append_only, names: Vec::new(), example: entry.path() })
            }),
        });
        linked.seen += 1;
        let Some(flagged) = &mut linked.flagged else {
            if linked.seen == linked.nlink {
                self.found.freed += linked.allocated;
                self.linked.remove(&inode.id);
            }
            return;
        };
        if !flagged.immutable {
            return;
        }
        // Beyond the limit each name goes in a window of its own.
        let directories = &mut self.found.directories;
        if directories.last().is_none_or(|last| last != entry.dir_path) {
            self.path_bytes += entry.dir_path.as_os_str().len() + budget::ENTRY;
            if self.path_bytes > budget::TREE_PATHS {
                return;
            }
            directories.push(entry.dir_path.to_path_buf());
        }
        flagged.names.push(PlacedName { directory: directories.len() - 1, name: entry.name.to_os_string() });
    }

    fn end(mut self) -> Result<Survey, Refusal> {
        for (id, Linked { nlink, seen, allocated, flagged }) in self.linked {
            let has_others = seen < nlink;
            if has_others {
                self.found.shared += u64::from(seen);
                self.found.shared_inodes.insert(id, seen);
            } else {
                self.found.freed += allocated;
            }
            match flagged {
                Some(flagged) if has_others && flagged.append_only => self.found.stuck.add(flagged.example),
                Some(flagged) if has_others => self.found.protected.push((id, flagged.names)),
                Some(flagged) => {
                    self.found.flagged.add(flagged.example);
                    self.found.flagged_inodes.insert(id, nlink);
                }
                None => {}
            }
        }
        match self.refused {
            Some(refusal) => Err(refusal),
            None => Ok(self.found),
        }
    }
}

impl Visitor for Surveyor<'_> {
    fn file(&mut self, entry: &Entry<'_>) {
        self.watch.add(1, 0);
        self.found.names += 1;
        if self.points.are_on(entry.name, || Inode::of(entry.dir).ok().map(|inode| inode.id)) {
            self.found.mounted.add(entry.path());
        }
        let inode = match Inode::at(entry.dir, entry.name) {
            Ok(inode) => inode,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return,
            Err(source) => return self.refuse(Refusal::At { path: outer(self.path, &entry.path()), source }),
        };
        if inode.nlink > 1 {
            return self.link(entry, inode);
        }
        self.found.freed += self.size(Name { dir: entry.dir, name: entry.name }, &inode);
        if is_kept(&inode) {
            self.found.flagged.add(entry.path());
            self.found.flagged_inodes.insert(inode.id, inode.nlink);
        }
    }

    fn enter(&mut self, entry: &Entry<'_>, directory: &OwnedFd) -> bool {
        if self.points.are_on(entry.name, || Inode::of(entry.dir).ok().map(|inode| inode.id)) {
            self.found.mounted.add(entry.path());
            return false;
        }
        match Inode::of(directory.as_fd()) {
            Ok(inode) => {
                if let Some(what) = self.borders.get(&inode.id).copied() {
                    let inner = outer(self.path, &entry.path());
                    self.refuse(Refusal::Holds { path: self.path.to_path_buf(), what, inner });
                    return false;
                }
                self.directory(entry, directory, &inode);
                true
            }
            Err(source) => {
                self.refuse(Refusal::At { path: outer(self.path, &entry.path()), source });
                false
            }
        }
    }

    fn leave(&mut self, _: &Entry<'_>) {}

    fn failed(&mut self, path: &Path, error: io::Error) {
        if error.raw_os_error() == Some(libc::EXDEV) {
            return self.found.mounted.add(path.to_path_buf());
        }
        self.refuse(Refusal::At { path: outer(self.path, path), source: error });
    }
}

//! Where a guest is that is to be removed, and the name that it gets meanwhile.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{OFlags, RenameFlags};

use super::refusal::Refusal;
use crate::report::Shown;
use crate::sys::file::filesystem;
use crate::sys::file::inode::{Inode, InodeId, Kind};
use crate::sys::path::dirfd;
use crate::sys::path::root::{Root, relative};
use crate::sys::process::inside::processes_in;
use crate::sys::process::mounts;
use crate::sys::share::remove::{is_kept, put_into};
use crate::sys::share::swap::Name;
use crate::unify::scan::guest::{GuestTree, OF_EVERY_ROOT};

/// What a guest's name begins with from the moment in which it is being removed. A pattern of the shell passes it over.
const ASIDE: &str = ".cow-removed-";

/// The longest name of a file, in bytes (`NAME_MAX` of `linux/limits.h`).
const LONGEST_NAME: usize = 255;

/// As many mounts are named at most.
const EXAMPLES: usize = 3;

/// A guest's directory in the directory that it lies in.
#[derive(Debug)]
pub struct Place {
    pub guest: GuestTree,
    parent: Root,
    /// Its name there now.
    name: OsString,
}

/// Whether a directory of this name is what is left of a guest that is being removed.
pub(crate) fn is_aside(name: &OsStr) -> bool {
    name.as_bytes().starts_with(ASIDE.as_bytes())
}

/// The name that a guest gets when it is being removed.
fn aside(name: &OsStr) -> OsString {
    let mut aside = OsString::from(ASIDE);
    if ASIDE.len() + name.len() <= LONGEST_NAME {
        aside.push(name);
    } else {
        aside.push(blake3::hash(name.as_bytes()).to_hex().as_str());
    }
    aside
}

/// A path of a guest as one of the host.
pub(super) fn outer(guest: &Path, path: &Path) -> PathBuf {
    guest.join(path.strip_prefix("/").unwrap_or(path))
}

/// Which directory is at a path, if there is one.
pub(super) fn id(path: &Path) -> Option<InodeId> {
    Some(Inode::of(Root::open(path).ok()?).ok()?.id)
}

impl Place {
    /// The guest at a path, after what an earlier run has left of one that had the same path.
    ///
    /// # Errors
    /// If there is neither, or the path leads to something else than a directory.
    pub fn find(path: &Path) -> Result<Vec<Place>, Refusal> {
        let at = |source| Refusal::At { path: path.to_path_buf(), source };
        // Not of what a link leads to: that is what would be removed.
        let path = match path.file_name() {
            Some(_) => path.to_path_buf(),
            None => std::fs::canonicalize(path).map_err(at)?,
        };
        let Some(name) = path.file_name() else {
            // The root of this process is the parent of itself; the next check refuses it.
            return Ok(vec![Place::open(Root::open(&path).map_err(at)?, OsStr::new("."))?]);
        };
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let parent = std::fs::canonicalize(parent).map_err(at)?;
        let parent = Root::open(&parent).map_err(at)?;
        let exists = |name: &OsStr| match (Name { dir: parent.as_fd(), name }).inode() {
            Ok(inode) => Ok(inode.is_some()),
            Err(source) => Err(Refusal::At { path: path.clone(), source }),
        };
        let mut places = Vec::new();
        let left = aside(name);
        if !is_aside(name) && exists(&left)? {
            places.push(Place::open(parent.try_clone().map_err(at)?, &left)?);
        }
        if places.is_empty() || exists(name)? {
            places.push(Place::open(parent, name)?);
        }
        Ok(places)
    }

    fn open(parent: Root, name: &OsStr) -> Result<Place, Refusal> {
        let path = parent.path().join(name);
        let at = |source| Refusal::At { path: path.clone(), source };
        let inode = Inode::at(&parent, name).map_err(at)?;
        match inode.kind {
            Kind::Directory => {}
            Kind::Symlink => return Err(Refusal::Link { path }),
            _ => return Err(Refusal::NoGuest { path, what: "not a directory" }),
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW;
        let opened = parent.open_at(Path::new(name), flags).map_err(at)?;
        let root = Root::from_fd(opened, &path).without_mounts();
        let guest = GuestTree { inode: Inode::of(&root).map_err(at)?, root };
        Ok(Place { guest, parent, name: name.to_os_string() })
    }

    /// The guest's directory, as it was called when it was found.
    pub fn path(&self) -> &Path {
        self.guest.root.path()
    }

    /// Whether it is what is left of a guest, and no guest any more.
    pub fn is_aside(&self) -> bool {
        is_aside(&self.name)
    }

    /// The directory that it lies in, open.
    pub fn parent(&self) -> io::Result<OwnedFd> {
        self.parent.as_fd().try_clone_to_owned()
    }

    /// The guest's directory, open to be read.
    pub fn open_directory(&self) -> io::Result<OwnedFd> {
        self.guest.root.open_dir(relative(Path::new("/")))
    }

    /// Refuses what is no guest: who has mistyped a path loses nothing. A guest is what a pool has `seen`, and what has
    /// the directories of every system.
    pub fn check_is_guest(&self, seen: &[PathBuf]) -> Result<(), Refusal> {
        if self.is_aside() || seen.iter().any(|path| path == self.path()) {
            return Ok(());
        }
        let is_dir = |name: &&str| {
            Inode::at(&self.guest.root, OsStr::new(name)).is_ok_and(|inode| inode.kind == Kind::Directory)
        };
        if OF_EVERY_ROOT.iter().all(is_dir) {
            return Ok(());
        }
        let what = "no pool knows it, and it does not contain the directories `usr`, `etc` and `var`";
        Err(Refusal::NoGuest { path: self.path().to_path_buf(), what })
    }

    /// Refuses a guest with mounts that this process sees, on its directory and below.
    pub fn check_mounts(&self) -> Result<(), Refusal> {
        let at = |path: &Path, source| Refusal::At { path: path.to_path_buf(), source };
        let all = mounts::of("self").map_err(|e| at(Path::new("/proc/self/mountinfo"), e))?;
        let here: Vec<PathBuf> =
            all.into_iter().map(|mount| mount.point).filter(|point| point.starts_with(self.path())).collect();
        let is_mount = Inode::of(&self.parent).is_ok_and(|above| above.mount != self.guest.inode.mount);
        let points = if here.is_empty() && is_mount { vec![self.path().to_path_buf()] } else { here };
        let count = points.len() as u64;
        let points: Vec<PathBuf> = points.into_iter().take(EXAMPLES).collect();
        if points.is_empty() { Ok(()) } else { Err(Refusal::Mounted { points, count }) }
    }

    /// Refuses a guest whose name cannot be removed from the directory that it lies in.
    pub fn check_parent(&self) -> Result<(), Refusal> {
        let path = || self.parent.path().to_path_buf();
        let at = |source| Refusal::At { path: path(), source };
        if is_kept(&Inode::of(&self.parent).map_err(at)?) {
            return Err(Refusal::Kept { path: path() });
        }
        if filesystem::takes_no_names(&self.parent).map_err(at)? {
            return Err(Refusal::ReadOnly { path: path() });
        }
        Ok(())
    }

    /// Refuses a guest that processes are in, or that is mounted elsewhere.
    pub fn check_unused(&self) -> Result<(), Refusal> {
        let path = self.path().to_path_buf();
        let proc = |source| Refusal::At { path: "/proc".into(), source };
        let inside = processes_in(&self.guest.inode, &path).map_err(proc)?;
        if !inside.is_empty() {
            return Err(Refusal::InUse { path, inside });
        }
        let at = mounts::of_directory(self.guest.inode.mount, &path).map_err(proc)?;
        if at.is_empty() { Ok(()) } else { Err(Refusal::MountedElsewhere { path, at }) }
    }

    /// Gives the guest the name of what is being removed, if it has another one. Returns the one it had.
    pub fn set_aside(&mut self) -> io::Result<Option<OsString>> {
        if self.is_aside() {
            return Ok(None);
        }
        let aside = aside(&self.name);
        match self.rename(aside.clone()) {
            // It is removed before, and was not.
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Err(io::Error::other(format!(
                "what an earlier run has left of a guest of this path is still there ({})",
                Shown(&self.parent.path().join(aside))
            ))),
            renamed => renamed.map(Some),
        }
    }

    /// Gives the guest another name, which is not taken yet. Returns the one it had.
    pub(super) fn rename(&mut self, name: OsString) -> io::Result<OsString> {
        self.check_name()?;
        self.name_of(&self.name).rename(self.name_of(&name), RenameFlags::NOREPLACE)?;
        let root = self.guest.root.as_fd().try_clone_to_owned()?;
        self.guest.root = Root::from_fd(root, &self.parent.path().join(&name)).without_mounts();
        Ok(std::mem::replace(&mut self.name, name))
    }

    /// Removes the guest's directory, which is empty.
    pub fn remove_directory(&self) -> io::Result<()> {
        self.check_name()?;
        if dirfd::remove_dir(&self.parent, &self.name)? {
            return Ok(());
        }
        Err(put_into())
    }

    fn name_of<'a>(&'a self, name: &'a OsStr) -> Name<'a> {
        Name { dir: self.parent.as_fd(), name }
    }

    /// That the name still is that of this directory.
    fn check_name(&self) -> io::Result<()> {
        match self.name_of(&self.name).inode()? {
            Some(inode) if inode.id == self.guest.inode.id => Ok(()),
            _ => Err(io::Error::other("another process has renamed or replaced this directory")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_of_any_length_can_be_set_aside() {
        assert_eq!(aside(OsStr::new("web1")), ".cow-removed-web1");
        let long = OsString::from("x".repeat(LONGEST_NAME));
        let other = OsString::from("x".repeat(LONGEST_NAME - 1));
        assert!(aside(&long).len() <= LONGEST_NAME && is_aside(&aside(&long)));
        assert_ne!(aside(&long), aside(&other));
    }
}

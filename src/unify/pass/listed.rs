//! Files that a list names: what a guest's hooks say has changed.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use super::Pass;
use crate::package::path_set::PathKey;
use crate::report::{Reason, Shown};
use crate::sys::file::inode::{Inode, Kind};
use crate::sys::path::dirfd;
use crate::sys::path::resolve::{Place, Resolver, is_absent};
use crate::sys::path::root::Root;
use crate::unify::eligible::line::Choice;
use crate::unify::pool::directory::Pool;
use crate::unify::pool::identity;
use crate::unify::pool::object::{ObjectIndex, ObjectName};
use crate::unify::pool::settings::Sharing;
use crate::unify::scan::catalog::{Catalog, Dir, DirIndex, GuestIndex};
use crate::unify::scan::guest::GuestTree;
use crate::unify::scan::walk;
use crate::unify::{At, Error};

/// The objects there are for these files.
pub(super) fn found(pool: &Pool, catalog: &Catalog) -> Result<ObjectIndex, Error> {
    let mut objects = Vec::new();
    for file in &catalog.files {
        if let Some(digest) = catalog.digest(file) {
            objects.extend(pool.find(&ObjectName { tag: file.key, digest, salt: 0, index: 0 })?);
        }
    }
    objects.sort_unstable();
    objects.dedup();
    Ok(ObjectIndex::new(objects, dirfd::inode_numbers(&pool.quarantine()?).at(pool.path())?))
}

/// Files that were named, not found by a scan.
pub(super) struct ListedFiles<'p> {
    pass: &'p Pass<'p>,
    pub(super) catalog: Catalog,
    /// What is in the pool, if that was looked at.
    known: Option<&'p ObjectIndex>,
    seen: HashSet<(GuestIndex, PathKey)>,
    /// Paths that could not be looked at, by the paths of their guests.
    pub(super) unseen: HashMap<PathBuf, BTreeSet<PathBuf>>,
}

impl<'p> ListedFiles<'p> {
    /// Nothing is listed yet.
    pub(super) fn new(pass: &'p Pass<'p>, known: Option<&'p ObjectIndex>) -> ListedFiles<'p> {
        let (seen, unseen) = (HashSet::new(), HashMap::new());
        ListedFiles { pass, catalog: Catalog::default(), known, seen, unseen }
    }

    /// Adds the files of a guest that are there, and that the rules allow. Nothing else is taken on trust.
    pub(super) fn add<'n>(&mut self, number: GuestIndex, paths: impl Iterator<Item = &'n Path>) {
        let ListedFiles { pass, catalog, known, seen, unseen } = self;
        let mut part = Catalog::default();
        let mut last: Option<(PathBuf, DirIndex, OwnedFd)> = None;
        let guest = &catalog[number];
        let root = match guest.root.try_clone() {
            Ok(root) => root.without_mounts(),
            Err(e) => return log::warn!("{}: {}", Shown(guest.root.path()), Reason(e)),
        };
        let mut resolver = Resolver::new(&root);
        for path in paths {
            let Place { dir, name } = match resolver.place(path) {
                Ok(Some(place)) => place,
                Ok(None) => continue,
                // No file on a mount of the guest's is unified.
                Err(e) if e.raw_os_error() == Some(libc::EXDEV) => continue,
                Err(e) => {
                    log::warn!("{}: {}", Shown(path), Reason(e));
                    unseen.entry(guest.root.path().to_path_buf()).or_default().insert(path.to_path_buf());
                    continue;
                }
            };
            let path = dir.join(&name);
            let wanted = match pass.options.rules.choose(&path) {
                Some(choice) => choice == Choice::Include,
                None => !pass.options.never.matches(&path),
            };
            if !wanted || !seen.insert((number, PathKey::of(&path))) {
                continue;
            }
            if last.as_ref().is_none_or(|(open, ..)| *open != dir) {
                let Some((at, fd)) = open(&root, guest, number, &dir, &mut part) else { continue };
                last = Some((dir, at, fd));
            }
            let Some((dir, at, fd)) = &last else { continue };
            match Inode::at(fd, &name) {
                Ok(inode) if known.is_some_and(|index| pass.is_object(index, &inode)) => {
                    let quarantined = known.is_some_and(|index| index.is_quarantined(inode.id.ino));
                    *(if quarantined { &mut part.damaged } else { &mut part.shared }) += 1;
                }
                Ok(inode) if inode.kind == Kind::Regular => pass.file(guest, &mut part, *at, &name, &inode),
                Err(e) if !is_absent(&e) => log::warn!("{}: {}", Shown(&dir.join(&name)), Reason(e)),
                _ => {}
            }
        }
        catalog.absorb(part);
    }
}

/// Adds a directory of a guest; `None` if it is none of it.
fn open(
    root: &Root,
    guest: &GuestTree,
    number: GuestIndex,
    path: &Path,
    part: &mut Catalog,
) -> Option<(DirIndex, OwnedFd)> {
    let fd = root.open_dir(path).ok()?;
    let inode = Inode::of(&fd).ok()?;
    let ours = inode.id.dev == guest.inode.id.dev && inode.mount == guest.inode.mount;
    ours.then(|| {
        let dir = Dir { guest: number, path: path.to_path_buf(), ino: inode.id.ino, ctime: 0, fresh: false };
        (part.add_dir(dir), fd)
    })
}

impl Pass<'_> {
    /// Whether a guest's file is an inode of the pool.
    fn is_object(&self, index: &ObjectIndex, inode: &Inode) -> bool {
        self.settings.share == Sharing::Hardlink && index.holds(inode.id.ino)
    }

    fn file(&self, guest: &GuestTree, part: &mut Catalog, dir: DirIndex, name: &OsStr, inode: &Inode) {
        let not_unified = walk::not_unified(inode, guest, self.options.min_size, self.options.allow_setid);
        part.add_file(dir, name, inode, identity::tag(inode, self.settings.mtime), not_unified);
    }
}

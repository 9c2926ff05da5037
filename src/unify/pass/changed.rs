//! A pass over what the guests' own hooks say has changed: as much work as there are such files, however large the trees.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use super::whole::{Pass, Passed};
use crate::report::{Reason, Shown};
use crate::state::store::{Taken, take_spool};
use crate::sys::file::inode::{Inode, Kind};
use crate::sys::path::resolve::{Place, Resolver, is_absent};
use crate::unify::eligible::rules::Choice;
use crate::unify::pool::directory::{Pool, Share};
use crate::unify::pool::identity;
use crate::unify::pool::object::{Index, ObjectName};
use crate::unify::scan::catalog::{Catalog, Dir, Guest, Unfit};
use crate::unify::scan::walk;
use crate::unify::{At, Error};

impl Pass<'_> {
    /// Unifies the files in the guests' spools with the pool, and with one another.
    ///
    /// # Errors
    /// As [`Pass::unify`].
    pub fn changed(&self, guests: Vec<Guest>) -> Result<Passed, Error> {
        let Some(pool) = self.pool else { return Ok(Passed::default()) };
        let (mut passed, index) = self.begin(pool, &guests)?;
        let known = Some(&index);
        let mut listed = Listed {
            pass: self,
            catalog: Catalog::default(),
            known,
            seen: HashSet::new(),
            unseen: HashMap::new(),
        };
        let mut taken: Vec<(PathBuf, Taken)> = Vec::new();
        listed.catalog.guests = guests;
        for number in 0..listed.catalog.guests.len() {
            let root = &listed.catalog.guests[number].root;
            let path = root.path().to_path_buf();
            match take_spool(root) {
                Ok(spool) => {
                    listed.add(number, spool.paths.iter().map(PathBuf::as_path));
                    taken.push((path, spool));
                }
                Err(e) => passed.skipped.push((path, format!("its spool: {}", Reason(e)))),
            }
        }
        let mut cache = self.cache(pool)?;
        let planner = self.planner();
        planner.read(&mut listed.catalog, |_| true);
        // What nobody has told of may have waited for just these: the private files that an earlier pass has seen.
        let unmatched = |file: &&crate::unify::scan::catalog::File| {
            let tag = file.key;
            listed
                .catalog
                .digest(file)
                .is_some_and(|digest| index.newest(&ObjectName { tag, digest, salt: 0, index: 0 }).is_none())
        };
        let keys: HashSet<u64> = listed.catalog.files.iter().filter(unmatched).map(|file| file.key).collect();
        for key in keys {
            for (guest, path) in cache.with_key(key).unwrap_or_default() {
                let number = listed.catalog.guests.iter().position(|known| known.root.path() == guest);
                if let Some(number) = number {
                    listed.add(number, std::iter::once(path.as_path()));
                }
            }
        }
        let Listed { mut catalog, unseen, .. } = listed;
        walk::mark_linked_elsewhere(&mut catalog);
        if self.settings.share == Share::Hardlink {
            walk::mark_mount_points(&mut catalog);
            if self.options.immutable {
                walk::mark_unable(&mut catalog);
            }
        }
        planner.read(&mut catalog, |_| true);
        passed.looked_at = catalog.files.len() as u64;
        passed.shared_before = catalog.shared;
        passed.damaged = catalog.damaged;
        self.note_left(&catalog, &mut passed);
        let works = planner.works(&catalog, &index);
        self.link(pool, &catalog, works, &mut passed)?;
        let linked: HashSet<u32> = passed.linked.names.iter().copied().collect();
        let mut waiting = unseen;
        for at in to_be_tried_again(&catalog, &passed, &linked) {
            let file = &catalog.files[at as usize];
            let guest = &catalog.guests[usize::from(catalog.dir(file).guest)];
            waiting.entry(guest.root.path().to_path_buf()).or_default().insert(catalog.path(file));
        }
        // What found no equal waits for one.
        let mut at = 0;
        catalog.files.retain(|_| {
            at += 1;
            !linked.contains(&(at - 1))
        });
        cache.note(&catalog).unwrap_or_else(|e| log::warn!("the pool's cache: {e}"));
        for (path, spool) in taken {
            if !passed.skipped.iter().any(|(skipped, _)| *skipped == path) {
                let released = spool.release(&waiting.remove(&path).unwrap_or_default());
                released.unwrap_or_else(|e| log::warn!("{}: its spool: {}", Shown(&path), Reason(e)));
            }
        }
        Ok(passed)
    }
}

/// The names that a later run looks at again, by their places in the catalog's files: what could not be done this time
/// for a reason that may go away, and what is equal to files that wait for running programs.
fn to_be_tried_again(catalog: &Catalog, passed: &Passed, linked: &HashSet<u32>) -> Vec<u32> {
    let goes_away = |unfit: Unfit| {
        use Unfit::{Changed, Damaged, InUse, Unprotected, Unreadable, Writer};
        matches!(unfit, Changed | Damaged | InUse | Unprotected | Unreadable | Writer)
    };
    let failed: HashSet<&Path> = passed.linked.failed.iter().map(|(path, _)| path.as_path()).collect();
    let left: HashSet<u32> =
        passed.linked.left.iter().filter(|(_, unfit)| goes_away(*unfit)).map(|(at, _)| *at).collect();
    let awaited: HashSet<u64> = passed.waiting.iter().map(|&at| catalog.files[at as usize].key).collect();
    let again = |at: &u32| {
        let file = &catalog.files[*at as usize];
        !linked.contains(at)
            && (left.contains(at)
                || file.unfit.is_some_and(goes_away)
                || awaited.contains(&file.key)
                || !failed.is_empty() && failed.contains(catalog.outer_path(file).as_path()))
    };
    (0..catalog.files.len() as u32).filter(again).collect()
}

/// The objects there are for these files.
pub(super) fn found(pool: &Pool, catalog: &Catalog) -> Result<Index, Error> {
    let mut objects = Vec::new();
    for file in &catalog.files {
        if let Some(digest) = catalog.digest(file) {
            objects.extend(pool.find(&ObjectName { tag: file.key, digest, salt: 0, index: 0 })?);
        }
    }
    objects.sort_unstable();
    objects.dedup();
    Ok(Index::new(objects, crate::sys::path::dirfd::inode_numbers(&pool.quarantine()?).at(pool.path())?))
}

/// Files that were named, not found by a scan.
pub(super) struct Listed<'p> {
    pub(super) pass: &'p Pass<'p>,
    pub(super) catalog: Catalog,
    /// What is in the pool, if that was looked at.
    pub(super) known: Option<&'p Index>,
    pub(super) seen: HashSet<(usize, PathBuf)>,
    /// Paths that could not be looked at, by the paths of their guests.
    pub(super) unseen: HashMap<PathBuf, BTreeSet<PathBuf>>,
}

impl Listed<'_> {
    /// Adds the files of a guest that are there, and that the rules allow. Nothing else is taken on trust.
    pub(super) fn add<'n>(&mut self, number: usize, paths: impl Iterator<Item = &'n Path>) {
        let Listed { pass, catalog, known, seen, unseen } = self;
        let mut part = Catalog::default();
        let mut last: Option<(PathBuf, u32)> = None;
        let guest = &catalog.guests[number];
        let mut resolver = Resolver::new(&guest.root);
        for path in paths {
            let Place { dir, name } = match resolver.place(path) {
                Ok(Some(place)) => place,
                Ok(None) => continue,
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
            if !wanted || !seen.insert((number, path)) {
                continue;
            }
            if last.as_ref().is_none_or(|(open, _)| *open != dir) {
                let Some(at) = open(guest, number, &dir, &mut part) else { continue };
                last = Some((dir, at));
            }
            let Some((dir, at)) = &last else { continue };
            match guest.root.open_dir(dir).and_then(|fd| Inode::at(fd, &name)) {
                Ok(inode) if known.is_some_and(|index| pass.is_object(index, &inode)) => {
                    let set_aside = known.is_some_and(|index| index.is_set_aside(inode.id.ino));
                    *(if set_aside { &mut part.damaged } else { &mut part.shared }) += 1;
                }
                Ok(inode) if inode.kind == Kind::Regular => pass.file(guest, &mut part, *at, &name, &inode),
                Err(e) if !is_absent(&e) => log::warn!("{}: {}", Shown(&dir.join(&name)), Reason(e)),
                _ => {}
            }
        }
        catalog.absorb(part);
    }
}

/// Adds a directory of a guest; `None` where it is none of it.
fn open(guest: &Guest, number: usize, path: &Path, part: &mut Catalog) -> Option<u32> {
    let inode = Inode::of(guest.root.open_dir(path).ok()?).ok()?;
    let ours = inode.id.dev == guest.inode.id.dev && inode.mount == guest.inode.mount;
    ours.then(|| {
        part.add_dir(Dir {
            guest: number as u16,
            path: path.to_path_buf(),
            ino: inode.id.ino,
            ctime: 0,
            fresh: false,
        })
    })
}

impl Pass<'_> {
    /// Whether a guest's file is an inode of the pool.
    fn is_object(&self, index: &Index, inode: &Inode) -> bool {
        self.settings.share == Share::Hardlink && index.holds(inode.id.ino)
    }

    fn file(&self, guest: &Guest, part: &mut Catalog, dir: u32, name: &OsStr, inode: &Inode) {
        let unfit = walk::unfit(inode, guest, self.options.min_size, self.options.allow_setid);
        part.add_file(dir, name, inode, identity::tag(inode, self.settings.mtime), unfit);
    }
}

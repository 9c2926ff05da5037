//! Which files become one inode: those that could be equal are read, those that are become work.

use std::path::PathBuf;
use std::sync::Arc;

use crate::report::Watch;
use crate::unify::pool::identity::{self, Digest};
use crate::unify::pool::object::{Object, ObjectIndex, ObjectName};
use crate::unify::scan::catalog::{Catalog, FileIndex, GuestIndex};
use crate::unify::scan::digest::{Limits, Missed, digest};
use crate::unify::scan::not_unified::NotUnified;

/// Equal files, and the object whose names they are to be.
#[derive(Debug)]
pub struct Work {
    /// The object; its index is that of `existing`, or 0.
    pub object: ObjectName,
    /// What the pool has already.
    pub existing: Option<Object>,
    /// The names; those of one inode side by side.
    pub names: Vec<FileIndex>,
    /// Nothing is known of the files but their metadata: what they are compared by before they are linked.
    pub unread: Option<Limits>,
}

impl Work {
    /// The names of each inode.
    pub fn inodes<'w>(&'w self, catalog: &'w Catalog) -> impl Iterator<Item = &'w [FileIndex]> {
        inodes(catalog, &self.names)
    }

    /// Whether linking these names makes one inode of two, and shares it between guests.
    pub(crate) fn is_worthwhile(&self, catalog: &Catalog) -> bool {
        match self.existing {
            Some(_) => !self.names.is_empty(),
            None => self.inodes(catalog).count() > 1 && are_of_two_guests(catalog, &self.names),
        }
    }

    /// Bytes of disk that linking all names frees: those of every inode, but for those of a new object.
    pub(crate) fn frees(&self, catalog: &Catalog) -> u64 {
        let all: u64 = self.inodes(catalog).map(|names| catalog[names[0]].allocated).sum();
        all - if self.existing.is_none() { self.allocated(catalog) } else { 0 }
    }

    /// Bytes of disk that the smallest of the inodes takes: of equal files, one may have holes.
    pub fn allocated(&self, catalog: &Catalog) -> u64 {
        self.names.iter().map(|&at| catalog[at].allocated).min().unwrap_or(0)
    }
}

/// Files read before their digests are noted.
const FILES_PER_STEP: usize = 1 << 14;

/// How to plan.
pub struct Planner<'a> {
    /// What keeps files as they are.
    pub(crate) limits: Limits,
    /// Files are unified only with those of this guest.
    pub reference: Option<GuestIndex>,
    /// How many threads read.
    pub threads: usize,
    /// Told of what is to be read, and of each file that was.
    pub watch: &'a dyn Watch,
}

impl Planner<'_> {
    /// Reads the files that could be equal to one another, or to an object whose key is `known`.
    pub fn read(&self, catalog: &mut Catalog, known: impl Fn(u64) -> bool) {
        let mut unread: Vec<FileIndex> = Vec::new();
        for group in groups(catalog, &by_key(catalog)) {
            if self.wants(catalog, group, known(catalog[group[0]].key)) {
                let inodes = inodes(catalog, group).map(|names| names[0]);
                unread.extend(inodes.filter(|&at| catalog[at].digest.is_none()));
            }
        }
        // About the order of the disk.
        unread.sort_unstable_by_key(|&at| catalog[at].ino);
        self.watch.begin("reading", unread.len() as u64);
        for step in unread.chunks(FILES_PER_STEP) {
            let read = digest(catalog, step, self.limits, self.threads, self.watch);
            for (&at, read) in step.iter().zip(read) {
                match read {
                    Ok(digest) => {
                        catalog.set_digest(at, digest);
                        let dir = catalog[at].dir;
                        catalog[dir].fresh = true;
                    }
                    Err(Missed::NotUnified(not_unified)) => catalog[at].not_unified = Some(not_unified),
                    Err(Missed::Failed(e)) => {
                        catalog[at].not_unified = Some(NotUnified::Unreadable);
                        catalog.unreadable.push((at, Arc::new(e)));
                    }
                }
            }
        }
        self.watch.end();
    }

    /// The files for which the pool has only one object of their metadata: it is enough to compare them with that.
    pub fn unread_works(&self, catalog: &Catalog, index: &ObjectIndex) -> Vec<Work> {
        let mut works = Vec::new();
        for group in groups(catalog, &by_key(catalog)) {
            let Some(object) = index.only(catalog[group[0]].key) else { continue };
            for names in inodes(catalog, group).filter(|names| !index.holds(catalog[names[0]].ino)) {
                let (names, unread) = (names.to_vec(), Some(self.limits));
                works.push(Work { object: object.name, existing: Some(object), names, unread });
            }
        }
        works.sort_by_cached_key(|work| first_path(catalog, work));
        works
    }

    /// Puts together what is equal, and wants to be one inode.
    pub fn works(&self, catalog: &Catalog, index: &ObjectIndex) -> Vec<Work> {
        let mut works = Vec::new();
        for group in groups(catalog, &by_key(catalog)) {
            self.equal(catalog, index, group, &mut works);
        }
        // Neighbours in a guest are neighbours on the disk, and share directories.
        works.sort_by_cached_key(|work| first_path(catalog, work));
        works
    }

    /// Whether files of one key may come to anything.
    fn wants(&self, catalog: &Catalog, group: &[FileIndex], known: bool) -> bool {
        let guest = |&at: &FileIndex| catalog.dir(&catalog[at]).guest;
        if let Some(reference) = self.reference
            && !known
            && !group.iter().any(|at| guest(at) == reference)
        {
            return false;
        }
        known || are_of_two_guests(catalog, group)
    }

    fn equal(&self, catalog: &Catalog, index: &ObjectIndex, group: &[FileIndex], works: &mut Vec<Work>) {
        let mut equal: Vec<(Digest, &[FileIndex])> = inodes(catalog, group)
            .filter_map(|names| Some((catalog.digest(&catalog[names[0]])?, names)))
            .filter(|(_, names)| {
                let file = &catalog[names[0]];
                let is_object = self.limits.links && index.holds(file.ino);
                file.not_unified.is_none() && !file.shares_blocks && !is_object
            })
            .collect();
        equal.sort_unstable_by_key(|(digest, names)| (*digest, names[0]));
        for same in equal.chunk_by(|a, b| a.0 == b.0) {
            let file = &catalog[same[0].1[0]];
            let salt = identity::salt(self.reference.is_some(), || catalog.path(file));
            let name = ObjectName { tag: file.key ^ salt, digest: same[0].0, salt, index: 0 };
            let existing = index.newest(&name);
            let names: Vec<FileIndex> = same.iter().flat_map(|(_, names)| names.iter().copied()).collect();
            if self.wants(catalog, &names, existing.is_some()) {
                works.push(Work {
                    object: existing.map_or(name, |object| object.name),
                    existing,
                    names,
                    unread: None,
                });
            }
        }
    }
}

/// Whether more than one guest has these files.
///
/// What one guest alone has makes no object: the guest could make the pool grow with files that it removes at once, outside
/// of its own account.
fn are_of_two_guests(catalog: &Catalog, files: &[FileIndex]) -> bool {
    let guest = |at: &FileIndex| catalog.dir(&catalog[*at]).guest;
    files.iter().any(|at| guest(at) != guest(&files[0]))
}

/// The files that nothing keeps as they are, those that may be equal side by side, and names of one inode in these.
fn by_key(catalog: &Catalog) -> Vec<FileIndex> {
    let mut order: Vec<FileIndex> =
        catalog.indices().filter(|&at| catalog[at].not_unified.is_none()).collect();
    order.sort_unstable_by_key(|&at| {
        let file = &catalog[at];
        (file.key, catalog.id(file), at)
    });
    order
}

/// The files of each key among files that are sorted by key.
fn groups<'o>(catalog: &Catalog, order: &'o [FileIndex]) -> impl Iterator<Item = &'o [FileIndex]> {
    order.chunk_by(|&a, &b| catalog[a].key == catalog[b].key)
}

/// The names of each inode among files that are sorted by inode.
fn inodes<'g>(catalog: &Catalog, group: &'g [FileIndex]) -> impl Iterator<Item = &'g [FileIndex]> {
    // Subvolumes number their inodes alike.
    group.chunk_by(|&a, &b| catalog.id(&catalog[a]) == catalog.id(&catalog[b]))
}

fn first_path(catalog: &Catalog, work: &Work) -> PathBuf {
    catalog.path(&catalog[work.names[0]])
}

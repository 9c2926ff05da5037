//! Marks files that stay as they are for a reason that their inodes do not tell: all that was found must be known.

use std::collections::{BTreeSet, HashMap, HashSet};

use super::catalog::{Catalog, FileIndex, GuestIndex, PrivateFile};
use super::not_unified::NotUnified;
use crate::detach::survey::mounts_of_processes;
use crate::report::Shown;
use crate::state::unable::is_unable;
use crate::sys::file::inode::InodeId;

/// Marks the files of guests that have said that they cannot clear the immutable flag.
pub(crate) fn mark_unable(catalog: &mut Catalog) {
    let is_here = |at: &GuestIndex| is_unable(&catalog[*at].root);
    let unable: BTreeSet<GuestIndex> = catalog.guest_indices().filter(is_here).collect();
    for at in &unable {
        log::warn!(
            "{}: left as it is: its hooks may not clear the immutable flag, so its package manager could not \
             replace shared files; `cow-unify detach {0}` makes the files private that it shares",
            Shown(catalog[*at].root.path())
        );
    }
    for at in catalog.indices() {
        if unable.contains(&catalog.dir(&catalog[at]).guest) {
            catalog[at].not_unified.get_or_insert(NotUnified::Unable);
        }
    }
}

/// Marks the files on whose names something is mounted where only some processes see it, under all their names.
pub(crate) fn mark_mount_points(catalog: &mut Catalog) {
    if catalog.files.iter().all(|file| file.not_unified.is_some()) {
        return;
    }
    let mounted = mounts_of_processes();
    let is_mounted = |file: &&PrivateFile| mounted.are_on(catalog.name(file), || Some(catalog.dir_id(file)));
    let ids: HashSet<InodeId> =
        catalog.files.iter().filter(is_mounted).map(|file| catalog.id(file)).collect();
    for at in catalog.indices() {
        if !ids.is_empty() && ids.contains(&catalog.id(&catalog[at])) {
            catalog[at].not_unified.get_or_insert(NotUnified::MountPoint);
        }
    }
}

/// Marks the files whose names are not all of the same path: if these alone may be equal, unifying would cut the
/// names off from one another.
pub(crate) fn mark_several_names(catalog: &mut Catalog) {
    // If paths count, they are part of the keys.
    let mut keys: HashMap<InodeId, u64> = HashMap::new();
    let mut several: HashSet<InodeId> = HashSet::new();
    for file in catalog.files.iter().filter(|file| file.nlink > 1) {
        let id = catalog.id(file);
        if *keys.entry(id).or_insert(file.key) != file.key {
            several.insert(id);
        }
    }
    for at in catalog.indices() {
        let file = &catalog[at];
        if file.not_unified.is_none() && file.nlink > 1 && several.contains(&catalog.id(file)) {
            catalog[at].not_unified = Some(NotUnified::SeveralNames);
        }
    }
}

/// Marks the files whose names were not all found: unifying these would cut them off from the others.
pub(crate) fn mark_linked_elsewhere(catalog: &mut Catalog) {
    let linked = || catalog.files.iter().filter(|file| file.nlink > 1);
    let mut names: HashMap<InodeId, u32> = HashMap::new();
    for file in linked() {
        *names.entry(catalog.id(file)).or_default() += 1;
    }
    let apart: Vec<FileIndex> = catalog
        .indices()
        .filter(|&at| {
            let file = &catalog[at];
            file.nlink > 1 && names[&catalog.id(file)] < file.nlink
        })
        .collect();
    for at in apart {
        let not_unified = &mut catalog[at].not_unified;
        match not_unified {
            None => *not_unified = Some(NotUnified::LinkedElsewhere),
            // The administrator's own has no names that nobody knows of.
            Some(NotUnified::Protected) => *not_unified = Some(NotUnified::OtherPool),
            Some(_) => {}
        }
    }
}

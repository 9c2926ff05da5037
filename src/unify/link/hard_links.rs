//! Tells guests which of their names were hard links of one another before an inode of the pool takes their place.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::path::{Path, PathBuf};

use super::plan::Work;
use crate::report::{Reason, Shown};
use crate::state::hard_links::HardLinks;
use crate::state::store::STATE_DIR;
use crate::sys::file::inode::InodeId;
use crate::sys::path::resolve::is_absent;
use crate::unify::scan::catalog::{Catalog, FileIndex};
use crate::unify::scan::guest::GuestTree;
use crate::unify::scan::names;

/// Tells the guests that have names in this work; the caller keeps their hooks waiting.
pub(in crate::unify) fn note(catalog: &Catalog, step: &[Work]) {
    for at in catalog.guest_indices() {
        let guest = &catalog[at];
        let here = |file: &&FileIndex| catalog.dir(&catalog[**file]).guest == at;
        let path = |at: &FileIndex| catalog.path(&catalog[*at]);
        let (mut several, mut single) = (Vec::new(), Vec::new());
        for names in step.iter().flat_map(|work| work.inodes(catalog)) {
            let names: BTreeSet<PathBuf> = names.iter().filter(here).map(path).collect();
            if names.len() > 1 { several.push(names) } else { single.extend(names) }
        }
        if several.is_empty() && single.is_empty() {
            continue;
        }
        // Without it, equal files are taken for one there.
        let noted = begin(guest, &catalog.guests)
            .and_then(|begun| if begun { HardLinks::note(&guest.root, &several, &single) } else { Ok(()) });
        noted.unwrap_or_else(|e| {
            log::warn!(
                "{}: the guest's list of hard links cannot be updated: {}",
                Shown(guest.root.path()),
                Reason(e)
            )
        });
    }
}

/// Begins to write down hard links in a guest: with the names that share an inode already. Nothing tells any more which of
/// these were one file, so each inode stays one, as it is for whoever knows nothing of hard links.
///
/// `false` if the guest is without our hooks.
fn begin(guest: &GuestTree, guests: &[GuestTree]) -> io::Result<bool> {
    if HardLinks::read(&guest.root)?.are_known() {
        return Ok(true);
    }
    match guest.root.open_dir(Path::new(STATE_DIR)) {
        Err(e) if is_absent(&e) => return Ok(false),
        opened => drop(opened?),
    }
    let borders: Vec<InodeId> = guests.iter().map(|guest| guest.inode.id).collect();
    let mut inodes: HashMap<InodeId, (u32, BTreeSet<PathBuf>)> = HashMap::new();
    let mut failed = Ok(());
    let unseen = names::walk(guest, &borders, &mut |entry| match entry.inode() {
        Ok(inode) if inode.nlink > 1 => {
            let (nlink, names) = inodes.entry(inode.id).or_default();
            *nlink = inode.nlink;
            names.insert(entry.path());
        }
        Err(e) if !is_absent(&e) => failed = Err(e),
        _ => {}
    });
    failed?;
    if let Some(failed) = unseen.into_iter().next() {
        return Err(io::Error::other(failed));
    }
    // What has all its names here is not shared: the filesystem tells which these are.
    let shared = inodes.into_values().filter(|(nlink, names)| *nlink as usize > names.len());
    let shared: Vec<BTreeSet<PathBuf>> = shared.map(|(_, names)| names).collect();
    HardLinks::note(&guest.root, &shared, &[]).map(|()| true)
}

//! A pass over what the guests' own hooks say has changed: as much work as there are such files, however large the trees.

use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};

use super::listed::ListedFiles;
use super::{Pass, Passed};
use crate::report::{Reason, Shown};
use crate::state::spool::{Taken, take_spool};
use crate::sys::path::root::relative;
use crate::unify::pool::object::ObjectName;
use crate::unify::pool::settings::Sharing;
use crate::unify::scan::catalog::{Catalog, FileIndex, GuestIndex, PrivateFile};
use crate::unify::scan::guest::GuestTree;
use crate::unify::scan::marks;
use crate::unify::scan::not_unified::NotUnified;
use crate::unify::{Error, FailedPath};

impl Pass<'_> {
    /// Unifies the files in the guests' spools with the pool, and with one another.
    ///
    /// # Errors
    /// As [`Pass::unify`].
    pub fn changed(&self, guests: Vec<GuestTree>) -> Result<Passed, Error> {
        let Some(pool) = self.pool else { return Ok(Passed::default()) };
        let (mut passed, index) = self.begin(pool, &guests)?;
        let mut listed = ListedFiles::new(self, Some(&index));
        let mut taken: Vec<(PathBuf, Taken)> = Vec::new();
        listed.catalog.guests = guests;
        for guest in listed.catalog.guest_indices() {
            let root = &listed.catalog[guest].root;
            let path = root.path().to_path_buf();
            match take_spool(root) {
                Ok(spool) => {
                    listed.add(guest, spool.paths.iter().map(PathBuf::as_path));
                    for (list, e) in &spool.too_large {
                        let list = path.join(relative(list));
                        passed.linked.failed.push(FailedPath::new(list, ListTooLarge(e.to_string())));
                    }
                    taken.push((path, spool));
                }
                Err(e) => passed.skipped.push(FailedPath::new(path, SpoolError(e))),
            }
        }
        let mut cache = self.cache(pool)?;
        let planner = self.planner();
        planner.read(&mut listed.catalog, |_| true);
        // What nobody has told of may have waited for just these: the private files that an earlier pass has seen.
        let unmatched = |file: &&PrivateFile| {
            let tag = file.key;
            listed
                .catalog
                .digest(file)
                .is_some_and(|digest| index.newest(&ObjectName { tag, digest, salt: 0, index: 0 }).is_none())
        };
        let keys: HashSet<u64> = listed.catalog.files.iter().filter(unmatched).map(|file| file.key).collect();
        for key in keys {
            for (guest, path) in cache.with_key(key).unwrap_or_default() {
                let is_it = |at: &GuestIndex| listed.catalog[*at].root.path() == guest;
                if let Some(at) = listed.catalog.guest_indices().find(is_it) {
                    listed.add(at, std::iter::once(path.as_path()));
                }
            }
        }
        let ListedFiles { mut catalog, unseen, .. } = listed;
        marks::mark_linked_elsewhere(&mut catalog);
        if self.settings.share == Sharing::Hardlink {
            marks::mark_mount_points(&mut catalog);
            if self.options.immutable {
                marks::mark_unable(&mut catalog);
            }
        }
        planner.read(&mut catalog, |_| true);
        passed.looked_at = catalog.files.len() as u64;
        passed.shared_before = catalog.shared;
        passed.damaged = catalog.damaged;
        self.note_left(&catalog, &mut passed);
        let works = planner.works(&catalog, &index);
        self.link(pool, &catalog, works, &mut passed)?;
        let linked: HashSet<FileIndex> = passed.linked.names.iter().copied().collect();
        let mut waiting = unseen;
        for at in to_be_tried_again(&catalog, &passed, &linked) {
            let file = &catalog[at];
            let guest = &catalog[catalog.dir(file).guest];
            waiting.entry(guest.root.path().to_path_buf()).or_default().insert(catalog.path(file));
        }
        // What found no equal waits for one.
        catalog.remove(&linked);
        cache.note(&catalog).unwrap_or_else(|e| log::warn!("the pool's cache cannot be written: {e}"));
        for (path, spool) in taken {
            if !passed.skipped.iter().any(|skipped| skipped.path == path) {
                let released = spool.release(&waiting.remove(&path).unwrap_or_default());
                released.unwrap_or_else(|e| {
                    log::warn!("{}: the list of its hooks cannot be removed: {}", Shown(&path), Reason(e))
                });
            }
        }
        Ok(passed)
    }
}

/// The names that a later run looks at again, by their places in the catalog's files: what could not be done this time
/// for a reason that may go away, and what is equal to files that wait for running programs.
fn to_be_tried_again(catalog: &Catalog, passed: &Passed, linked: &HashSet<FileIndex>) -> Vec<FileIndex> {
    let goes_away = |not_unified: NotUnified| {
        use NotUnified::{Changed, Damaged, InUse, Unprotected, Unreadable, Writer};
        matches!(not_unified, Changed | Damaged | InUse | Unprotected | Unreadable | Writer)
    };
    let failed: HashSet<&Path> = passed.linked.failed.iter().map(|failed| failed.path.as_path()).collect();
    let left: HashSet<FileIndex> = passed
        .linked
        .left
        .iter()
        .filter(|(_, not_unified)| goes_away(*not_unified))
        .map(|(at, _)| *at)
        .collect();
    let awaited: HashSet<u64> = passed.waiting.iter().map(|&at| catalog[at].key).collect();
    let again = |at: &FileIndex| {
        let file = &catalog[*at];
        !linked.contains(at)
            && (left.contains(at)
                || file.not_unified.is_some_and(goes_away)
                || awaited.contains(&file.key)
                || !failed.is_empty() && failed.contains(catalog.outer_path(file).as_path()))
    };
    catalog.indices().filter(again).collect()
}

/// A guest's list of what has changed is not read.
#[derive(Debug, thiserror::Error)]
#[error("{0}; the list is dropped, and its files are unified by the next complete pass")]
struct ListTooLarge(String);

/// A guest's list of what has changed cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("the list of its hooks cannot be read: {}", Reason(.0))]
struct SpoolError(#[source] io::Error);

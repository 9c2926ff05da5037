//! The names of a guest, whatever may be unified of them.

use std::path::{Path, PathBuf};

use super::guest::GuestTree;
use crate::sys::file::inode::{InodeId, Kind};
use crate::sys::path::root::relative;
use crate::sys::path::tree::{self, Descend, TreeEntry};
use crate::unify::FailedPath;
use crate::unify::pool::directory::Pool;

/// Directories that are none of a guest's although they may lie in it: the pool, other guests.
pub fn borders(pool: &Pool, guests: &[GuestTree]) -> Vec<InodeId> {
    let guests = guests.iter().map(|guest| guest.inode.id);
    std::iter::once(pool.inode().id).chain(guests).collect()
}

/// Calls `visit` for each name of a regular file in a guest, on the filesystem of its root; for all of a directory
/// one after the other.
///
/// Returns the directories that could not be read, with the reason.
pub fn walk(
    guest: &GuestTree,
    borders: &[InodeId],
    visit: &mut dyn FnMut(&TreeEntry<'_>),
) -> Vec<FailedPath> {
    let is_border = |entry: &TreeEntry<'_>| {
        // The inode is asked for only if its number says that it may be one.
        let may_be = borders.iter().any(|border| border.ino == entry.ino);
        may_be && entry.inode().is_ok_and(|inode| borders.contains(&inode.id))
    };
    let mut enter = |entry: &TreeEntry<'_>| match entry.kind {
        Kind::Directory if !is_border(entry) => Descend::Into,
        Kind::Regular => {
            visit(entry);
            Descend::Past
        }
        _ => Descend::Past,
    };
    let mut problems = Vec::new();
    let mut skipped = |path: &Path, error: Option<std::io::Error>| {
        if let Some(e) = error {
            problems.push(FailedPath::new(outer_path(guest, path), e));
        }
    };
    tree::walk(&guest.root, Path::new("/"), &mut enter, &mut skipped);
    problems
}

/// A path of a guest from the caller's root, for messages.
pub fn outer_path(guest: &GuestTree, path: &Path) -> PathBuf {
    guest.root.path().join(relative(path))
}

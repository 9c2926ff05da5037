//! Sharing of blocks instead of inodes: each file keeps its own, so nothing has to be protected.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use super::linked::Linked;
use super::linker::Linker;
use super::plan::Work;
use crate::sys::file::extents::{self, Extent};
use crate::sys::file::inode::Inode;
use crate::sys::share::dedupe::share_blocks;
use crate::sys::share::swap::{self, Name};
use crate::unify::SharedError;
use crate::unify::pool::directory::Pool;
use crate::unify::pool::object::ObjectName;
use crate::unify::scan::catalog::{Catalog, FileIndex};
use crate::unify::scan::digest::{OpenDirs, is_gone, is_same};
use crate::unify::scan::not_unified::NotUnified;

/// Which blocks a file has.
enum BlockState {
    /// These of its own, and it is to have the object's.
    Own(Vec<Extent>),
    /// It has the object's blocks already.
    Shared,
    Left(NotUnified),
}

/// Lets every inode of the work share the object's blocks.
pub(super) fn share(
    linker: &Linker<'_>,
    work: &Work,
    object: &ObjectName,
    dirs: &mut OpenDirs<'_>,
    linked: &mut Linked,
) -> Result<(), swap::Error> {
    let shelf = linker.publisher.open_shelf(object)?;
    let object = Name { dir: shelf.as_fd(), name: &object.file() }.open()?;
    let mut kept = extents::of(&object)?;
    let mut before = Vec::new();
    for names in work.inodes(linker.catalog) {
        match share_one(linker, &object, &kept, work, names[0], dirs) {
            Ok(BlockState::Own(blocks)) => {
                before.push(blocks);
                linked.names.extend(names);
            }
            Ok(BlockState::Shared) => linked.known.extend(names),
            Ok(BlockState::Left(not_unified)) => {
                linked.left.extend(names.iter().map(|&at| (at, not_unified)))
            }
            Err(e) => {
                // It keeps what it has.
                kept.extend(dirs.file(&linker.catalog[names[0]]).and_then(extents::of)?);
                linker.fail(names, &(Arc::new(e) as SharedError), linked);
            }
        }
    }
    let before: Vec<&[Extent]> = before.iter().map(Vec::as_slice).collect();
    linked.freed += extents::freed(&before, &kept);
    if work.existing.is_none() {
        linked.taken += extents::taken(&before, &extents::of(&object)?);
    }
    Ok(())
}

fn share_one(
    linker: &Linker<'_>,
    object: &OwnedFd,
    blocks: &[Extent],
    work: &Work,
    at: FileIndex,
    dirs: &mut OpenDirs<'_>,
) -> io::Result<BlockState> {
    let own = match dirs.file(&linker.catalog[at]) {
        Err(e) if is_gone(&e) => return Ok(BlockState::Left(NotUnified::Changed)),
        own => own?,
    };
    let state = state(linker.catalog, &own, blocks, work, at)?;
    if let BlockState::Own(_) = state
        && !share_blocks(object, &own, linker.catalog[at].size)?
    {
        return Ok(BlockState::Left(NotUnified::Changed));
    }
    Ok(state)
}

/// Which blocks a file of the work has, if the object has these.
fn state(
    catalog: &Catalog,
    own: &OwnedFd,
    object: &[Extent],
    work: &Work,
    at: FileIndex,
) -> io::Result<BlockState> {
    if !is_same(&Inode::of(own)?, &catalog[at]) {
        return Ok(BlockState::Left(NotUnified::Changed));
    }
    let blocks = extents::of(own)?;
    Ok(if blocks.is_empty() {
        BlockState::Left(NotUnified::Inline)
    } else if work.existing.is_some() && extents::is_within(&blocks, object) {
        BlockState::Shared
    } else {
        BlockState::Own(blocks)
    })
}

/// What sharing the blocks of some work would free, and the names that it would be done to.
pub(in crate::unify) fn would_free(
    catalog: &Catalog,
    pool: Option<&Pool>,
    work: &Work,
) -> io::Result<(u64, Vec<FileIndex>)> {
    let mut dirs = OpenDirs::new(catalog);
    let object = match (pool, work.existing) {
        (Some(pool), Some(object)) => match pool.shelf(object.name.shelf(), false)? {
            Some(shelf) => Some(extents::of(Name { dir: shelf.as_fd(), name: &object.name.file() }.open()?)?),
            None => None,
        },
        _ => None,
    };
    let (mut before, mut names) = (Vec::new(), Vec::new());
    for inode in work.inodes(catalog) {
        let own = dirs.file(&catalog[inode[0]])?;
        if let BlockState::Own(blocks) =
            state(catalog, &own, object.as_deref().unwrap_or_default(), work, inode[0])?
        {
            before.push(blocks);
            names.extend(inode);
        }
    }
    // A new object has the blocks of one of them.
    let kept = object.or_else(|| before.first().cloned()).unwrap_or_default();
    let before: Vec<&[Extent]> = before.iter().map(Vec::as_slice).collect();
    Ok((extents::freed(&before, &kept), names))
}

//! What would fail half way fails here, before anything is touched.

use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::OFlags;

use super::error::Error;
use super::survey::Found;
use crate::sys::file::filesystem;
use crate::sys::path::root::Root;
use crate::sys::seccomp::filter;
use crate::sys::share::swap;

/// Room an inode, its directory entry and its extended attributes may take beside its data.
const OVERHEAD: u64 = 4096;

/// Refuses what cannot be carried through for all of `unified`. `reserve` is what copies of them must leave free; none
/// where they are not to be copied beforehand.
pub fn check(root: &Root, unified: &[Found], reserve: Option<u64>) -> Result<(), Error> {
    if let (Some(found), Some(call)) = (unified.first(), filter::against_copies()) {
        return Err(Error::Forbidden { path: found.place.path(), call });
    }
    let mut by_mount: HashMap<(u64, u64), Vec<&Found>> = HashMap::new();
    for found in unified {
        by_mount.entry((found.inode.id.dev, found.inode.mount)).or_default().push(found);
    }
    for files in by_mount.values() {
        let path = files[0].place.path();
        let at = |source| Error::Copy { path: path.clone(), source };
        let dir = root.open_dir(&files[0].place.dir).map_err(at)?;
        if filesystem::is_read_only(&dir).map_err(at)? {
            return Err(Error::ReadOnly { path });
        }
        if let Some(reserve) = reserve {
            check_space(root, files, &dir, reserve)?;
        }
        if let Some(immutable) = files.iter().find(|found| found.inode.immutable) {
            may_change_immutable(root, &immutable.place.dir).map_err(|source| {
                let (path, outside) = (immutable.place.path(), !root.is_own());
                Error::Capability { path, source, outside }
            })?;
        }
    }
    Ok(())
}

fn check_space(root: &Root, files: &[&Found], dir: &OwnedFd, reserve: u64) -> Result<(), Error> {
    let path = files[0].place.path();
    let fresh = open_source(root, files[0]).is_ok_and(|source| filesystem::shares_blocks(source, dir));
    let mut seen = HashSet::new();
    let copies = files.iter().filter(|found| seen.insert(found.inode.id));
    let data = |found: &&&Found| if fresh { 0 } else { found.inode.allocated };
    let needed: u64 = copies.map(|found| data(&found) + OVERHEAD).sum::<u64>().saturating_add(reserve);
    let available =
        filesystem::available(dir).map_err(|source| Error::Copy { path: path.clone(), source })?.bytes;
    if needed <= available {
        return Ok(());
    }
    Err(Error::Space { path, files: seen.len() as u64, needed, available })
}

fn open_source(root: &Root, found: &Found) -> io::Result<OwnedFd> {
    root.open_at(&found.place.path(), OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK)
}

fn may_change_immutable(root: &Root, dir: &Path) -> io::Result<()> {
    match swap::may_change_immutable(root.open_dir(dir)?) {
        // A filesystem without the flag says nothing about the capability.
        Err(e) if e.raw_os_error() != Some(libc::EPERM) => Ok(()),
        other => other,
    }
}

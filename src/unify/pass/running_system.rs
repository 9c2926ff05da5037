//! Whether a tree is, or holds, the system that runs here: no guest, for there is nobody outside who could undo it.

use std::path::{Path, PathBuf};

use crate::sys::file::inode::{Inode, InodeId};
use crate::sys::process::mounts::{self, Mount};
use crate::unify::scan::guest::GuestTree;

/// What the programs of a system lie in.
const PROGRAMS: [&str; 6] = ["", "usr", "bin", "sbin", "lib", "lib64"];

/// The part of the running system that is in a guest, or is it, if there is one.
pub fn part_of(guest: &GuestTree) -> Option<PathBuf> {
    let own = ["/", "/proc/1/root"].map(Path::new);
    let parts = own.iter().flat_map(|root| PROGRAMS.iter().map(move |dir| root.join(dir)));
    for part in parts {
        if id(&part) == Some(guest.inode.id) {
            return Some(part);
        }
    }
    mounted_from(guest)
}

fn id(path: &Path) -> Option<InodeId> {
    let here = rustix::fs::open(path, rustix::fs::OFlags::PATH, rustix::fs::Mode::empty()).ok()?;
    Some(Inode::of(here).ok()?.id)
}

/// Where a directory of the system is mounted that lies in the guest, which need not be above it by its path.
fn mounted_from(guest: &GuestTree) -> Option<PathBuf> {
    let here = mounts::of("self").ok()?;
    let (device, inner) = mounts::place(&here, guest.inode.mount, guest.root.path())?;
    let is_part = |mount: &&Mount| {
        let is_system = PROGRAMS.iter().any(|dir| mount.point == Path::new("/").join(dir));
        is_system && mount.device == device && mount.root.starts_with(&inner)
    };
    let first = mounts::of("1").unwrap_or_default();
    here.iter().chain(&first).find(is_part).map(|mount| mount.point.clone())
}

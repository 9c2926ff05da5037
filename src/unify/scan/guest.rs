//! A guest: its root, opened once, and whether it can share with a pool.

use std::path::Path;

use crate::sys::file::inode::Inode;
use crate::sys::path::root::Root;
use crate::sys::process::mounts;
use crate::unify::pool::settings::Sharing;
use crate::unify::{At, Error, GuestError};

/// All of these are in the root directory of every system with packages. Others, such as `/usr/local`, have some of them.
pub const OF_EVERY_ROOT: [&str; 3] = ["usr", "etc", "var"];

/// A guest.
#[derive(Debug)]
pub struct GuestTree {
    pub root: Root,
    /// The root directory as it was opened.
    pub inode: Inode,
}

impl GuestTree {
    /// Opens a guest; its path is canonical then.
    pub fn open(path: &Path) -> Result<GuestTree, Error> {
        let path = std::fs::canonicalize(path).at(path)?;
        let root = Root::open(&path).at(&path)?;
        Ok(GuestTree { inode: Inode::of(&root).at(&path)?, root })
    }

    /// Whether a pool at `path`, canonical and perhaps not there yet, is out of the guest's reach.
    pub fn check_outside(&self, path: &Path) -> Result<(), Error> {
        let guest_path = self.root.path();
        // The running system holds its own pool.
        if self.root.is_own() {
            return Ok(());
        }
        let (near, inode) = nearest(path)?;
        // By where they lie in the filesystem as well: a mount may lead into the guest.
        let mounts = mounts::of("self").unwrap_or_default();
        let place = |mount, path| mounts::place(&mounts, mount, path);
        let inside = match (place(inode.mount, near), place(self.inode.mount, guest_path)) {
            (Some((device, pool)), Some((of_guest, guest))) => device == of_guest && pool.starts_with(guest),
            _ => false,
        };
        if inside || path.starts_with(guest_path) {
            return Err(Error::Guest { path: guest_path.to_path_buf(), source: GuestError::HoldsPool });
        }
        Ok(())
    }

    /// Whether a guest can share with a pool at `path`, which need not be there yet.
    pub fn check_reach(&self, path: &Path, share: Sharing) -> Result<(), Error> {
        let (_, near) = nearest(path)?;
        if share == Sharing::Hardlink && (near.id.dev, near.mount) != (self.inode.id.dev, self.inode.mount) {
            let path = self.root.path().to_path_buf();
            return Err(Error::Guest { path, source: GuestError::OutOfReach });
        }
        Ok(())
    }
}

/// The directory `path`, or the one that it is to be made in.
fn nearest(path: &Path) -> Result<(&Path, Inode), Error> {
    let near = if path.exists() { path } else { path.parent().unwrap_or(path) };
    Ok((near, Inode::of(Root::open(near).at(near)?).at(near)?))
}

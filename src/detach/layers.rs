//! Which files lie in layers (overlayfs).

use std::collections::HashMap;
use std::path::Path;

use crate::sys::file::inode::Inode;
use crate::sys::file::layer;
use crate::sys::path::root::Root;

/// Which mounts have files in layers; each is asked once.
#[derive(Debug, Default)]
pub struct Layers {
    known: HashMap<u64, bool>,
}

impl Layers {
    /// Whether a file, which is in the directory `dir`, is on such a mount.
    pub fn hold(&mut self, root: &Root, dir: &Path, inode: &Inode) -> bool {
        let look = || root.open_dir(dir).and_then(layer::is_layered).unwrap_or(false);
        *self.known.entry(inode.mount).or_insert_with(look)
    }
}

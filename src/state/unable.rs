//! A guest that cannot clear the immutable flag says so: the host shares no more with it.

use std::ffi::OsStr;
use std::io;
use std::path::Path;

use rustix::fs::OFlags;

use super::store::STATE_DIR;
use crate::sys::path::dirfd;
use crate::sys::path::root::Root;

const UNABLE: &str = "unable";

/// Whether a guest has written down that it cannot make shared files private by itself.
pub fn is_unable(root: &Root) -> bool {
    root.open_at(&Path::new(STATE_DIR).join(UNABLE), OFlags::PATH | OFlags::NOFOLLOW).is_ok()
}

/// Writes down in the guest that it cannot, or that it can: the host does not unify what nobody there could change.
pub fn note_unable(root: &Root, unable: bool) -> io::Result<()> {
    if unable == is_unable(root) {
        return Ok(());
    }
    let top = dirfd::make_dir(root, Path::new(STATE_DIR))?;
    if unable {
        dirfd::replace_file(&top, OsStr::new(UNABLE), b"")
    } else {
        dirfd::remove_file(&top, OsStr::new(UNABLE))
    }
}

//! Leaves a guest without hooks as it was found.

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::lock::{Claim, LOCK, claim};
use super::store::{MEMBERS, STASH, STATE_DIR};
use crate::sys::file::inode::{Inode, Time};
use crate::sys::file::times;
use crate::sys::path::dirfd;
use crate::sys::path::resolve::is_absent;
use crate::sys::path::root::Root;

/// What is missing of the way to a guest's state directory, and when what is there was modified: to leave no trace of
/// work from outside in a guest that has no hooks of ours.
#[derive(Debug)]
pub struct Traces {
    missing: Vec<PathBuf>,
    modified: Vec<(PathBuf, Time)>,
}

impl Traces {
    /// Looks before the work begins.
    pub fn before(root: &Root) -> io::Result<Traces> {
        let mut traces = Traces { missing: Vec::new(), modified: Vec::new() };
        for path in Path::new(STATE_DIR).ancestors() {
            match root.open_dir(path) {
                Ok(dir) => traces.modified.push((path.to_path_buf(), Inode::of(dir)?.mtime)),
                Err(e) if is_absent(&e) => traces.missing.push(path.to_path_buf()),
                Err(e) => return Err(e),
            }
        }
        Ok(traces)
    }

    /// Removes what work from outside has made, as far as it is empty: a killed one's, too.
    pub fn remove(self, root: &Root, patience: Duration) -> io::Result<()> {
        let top = Path::new(STATE_DIR);
        let remove = |path: &Path| match (path.parent(), path.file_name()) {
            (Some(parent), Some(name)) => match root.open_dir(parent) {
                Ok(dir) => dirfd::remove_dir(dir, name).map(drop),
                Err(e) if is_absent(&e) => Ok(()),
                Err(e) => Err(e),
            },
            _ => Ok(()),
        };
        for path in [top.join("host").join(STASH), top.join("host").join(MEMBERS), top.join("host")] {
            remove(&path)?;
        }
        // Under the lock: nobody who has it is at work, whoever comes later makes it anew.
        if let Claim::Held(_lock) = claim(root, patience)? {
            let dir = root.open_dir(top)?;
            if dirfd::names_where(&dir, 1, |name| name != LOCK)?.is_empty() {
                dirfd::remove_file(&dir, OsStr::new(LOCK))?;
                remove(top)?;
            }
        }
        // From the inside out: only what was made for this.
        self.missing.iter().try_for_each(|path| remove(path))?;
        for (path, modified) in self.modified {
            match root.open_dir(&path) {
                Ok(dir) => times::set_modified(dir, modified)?,
                Err(e) if is_absent(&e) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}

//! The lock of a guest: its hooks take it one after the other, and so does the host.

use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use rustix::fs::OFlags;

use super::store::{MEMBERS, STATE_DIR, Store};
use crate::sys::path::dirfd;
use crate::sys::path::resolve::is_absent;
use crate::sys::path::root::Root;
use crate::sys::share::lock;

pub(super) const LOCK: &str = "lock";

/// While it lives, no other process of this guest detaches, settles or recovers.
#[derive(Debug)]
pub struct Locked {
    _file: OwnedFd,
}

impl Store {
    /// Takes the lock of the store, waiting at most `patience`.
    pub fn lock(&self, patience: Duration) -> io::Result<Locked> {
        let file = dirfd::open_lock_file(self.top(), OsStr::new(LOCK))?;
        lock::exclusive(&file, patience)?;
        Ok(Locked { _file: file })
    }
}

/// Whether the host may change names in a guest now.
#[derive(Debug)]
pub enum Claim {
    /// No hooks of ours are in it: nobody to agree with.
    Unhooked,
    /// While this lives, no hook in the guest begins or ends anything.
    Held(Locked),
    /// A package manager is at work there, or was killed: its files are detached for it.
    Busy,
}

/// Keeps the hooks of a guest waiting for a moment, from outside.
pub fn claim(root: &Root, patience: Duration) -> io::Result<Claim> {
    let open = |path: &Path| {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW;
        match root.open_at(path, flags) {
            Ok(dir) => Ok(Some(dir)),
            Err(e) if is_absent(&e) => Ok(None),
            Err(e) => Err(e),
        }
    };
    let top = Path::new(STATE_DIR);
    let Some(dir) = open(top)? else { return Ok(Claim::Unhooked) };
    let named = |e: io::Error| io::Error::new(e.kind(), format!("{STATE_DIR}/{LOCK}: {e}"));
    let file = dirfd::open_lock_file(&dir, OsStr::new(LOCK)).map_err(named)?;
    match lock::exclusive(&file, patience) {
        Err(e) if e.kind() == io::ErrorKind::TimedOut => return Ok(Claim::Busy),
        locked => locked?,
    }
    for members in [top.join(MEMBERS), top.join("host").join(MEMBERS)] {
        if let Some(members) = open(&members)?
            && !dirfd::is_empty(members)?
        {
            return Ok(Claim::Busy);
        }
    }
    Ok(Claim::Held(Locked { _file: file }))
}

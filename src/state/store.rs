//! Where ledger, lock, stash and spool lie in a guest.
//!
//! `/var/lib/cow-hooks` holds them all (0700). A host that works on a guest from outside (`--root`) shares the lock
//! and the spool, but has a stash of its own there, in `host/`, and its ledger on its own side: a guest's database is
//! never opened from outside, for nothing a guest says is trusted.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use crate::sys::file::inode::Inode;
use crate::sys::path::dirfd;
use crate::sys::path::resolve::is_absent;
use crate::sys::path::root::Root;

/// The directory of everything that is ours in a guest.
pub const STATE_DIR: &str = "/var/lib/cow-hooks";
const LEDGER: &str = "ledger.db";
pub(super) const STASH: &str = "stash";
pub(super) const MEMBERS: &str = "members";

/// The state directory of a guest, opened or made.
#[derive(Debug)]
pub struct Store {
    top: OwnedFd,
    area: OwnedFd,
    stash: OwnedFd,
    stash_inode: Inode,
    ledger: PathBuf,
}

impl Store {
    /// Opens the guest's store; made if it is missing.
    pub fn open(root: &Root) -> io::Result<Store> {
        let top = dirfd::make_dir(root, Path::new(STATE_DIR))?;
        let area = dirfd::make_dir(root, &area_path(root))?;
        let stash = dirfd::make_dir_at(&area, OsStr::new(STASH))?;
        let stash_inode = Inode::of(&stash)?;
        let ledger = ledger_path(root)?;
        if let Some(dir) = ledger.parent().filter(|_| !root.is_own()) {
            dirfd::make_dir(&Root::open(Path::new("/"))?, dir)?;
        }
        Ok(Store { top, area, stash, stash_inode, ledger })
    }

    /// Opens the guest's store if anything was ever kept in it.
    pub fn existing(root: &Root) -> io::Result<Option<Store>> {
        let exists = |path: &Path| match root.open_at(path, OFlags::PATH) {
            Ok(_) => Ok(true),
            Err(e) if is_absent(&e) => Ok(false),
            Err(e) => Err(e),
        };
        let stash = area_path(root).join(STASH);
        if exists(&stash)? { Store::open(root).map(Some) } else { Ok(None) }
    }

    /// The path of the ledger, for the calling process.
    pub fn ledger_path(&self) -> &Path {
        &self.ledger
    }

    /// The directory of stash and members: the guest's own, or the one for work from outside.
    pub(super) fn area(&self) -> BorrowedFd<'_> {
        self.area.as_fd()
    }

    /// The directory of everything that is ours.
    pub fn top(&self) -> BorrowedFd<'_> {
        self.top.as_fd()
    }

    /// The directory of private copies to be, and of originals that may come back.
    pub fn stash(&self) -> BorrowedFd<'_> {
        self.stash.as_fd()
    }

    /// Whether names can move between the stash and a directory with this inode.
    pub fn reaches(&self, inode: &Inode) -> bool {
        // Where cow-hooks was just removed the stash is gone, too.
        let exists = || Inode::of(&self.stash).is_ok_and(|stash| stash.nlink > 0);
        inode.id.dev == self.stash_inode.id.dev && inode.mount == self.stash_inode.mount && exists()
    }

    /// The directory of the processes that take part in the open transaction.
    pub fn members(&self) -> io::Result<OwnedFd> {
        dirfd::make_dir_at(&self.area, OsStr::new(MEMBERS))
    }

    /// What the directory of members is, without opening it.
    pub fn members_inode(&self) -> io::Result<Inode> {
        Inode::at(&self.area, OsStr::new(MEMBERS))
    }
}

/// Whether the stash of a guest's own hooks holds originals that may come back.
pub fn stashes(root: &Root) -> io::Result<bool> {
    match root.open_dir(&Path::new(STATE_DIR).join(STASH)) {
        Ok(dir) => Ok(!dirfd::is_empty(dir)?),
        Err(e) if is_absent(&e) => Ok(false),
        Err(e) => Err(e),
    }
}

/// The directory of stash and members: the guest's own, or the one for work from outside.
fn area_path(root: &Root) -> PathBuf {
    let top = Path::new(STATE_DIR);
    if root.is_own() { top.to_path_buf() } else { top.join("host") }
}

/// Where the ledger of work on this root lies, as a path of the calling process.
fn ledger_path(root: &Root) -> io::Result<PathBuf> {
    let top = Path::new(STATE_DIR);
    if root.is_own() {
        return Ok(top.join(LEDGER));
    }
    // One directory a root, named after its path.
    let path = std::fs::canonicalize(root.path())?;
    let mut name = Vec::new();
    for &byte in path.as_os_str().as_bytes().iter().skip(1) {
        match byte {
            b'/' => name.extend_from_slice(b"%2f"),
            b'%' => name.extend_from_slice(b"%25"),
            other => name.push(other),
        }
    }
    Ok(top.join("roots").join(OsString::from_vec(name)).join(LEDGER))
}

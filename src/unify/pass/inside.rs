//! Unifying from inside a guest, where the pool is within reach.
//!
//! The host leaves a file handle of its pool in each guest that has our hooks. A guest on the same mount whose root holds
//! `CAP_DAC_READ_SEARCH` (a chroot, a privileged container) can open it, and link what its package manager has just
//! unpacked without waiting for the host. All others cannot, and hand their list over.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};

use super::changed::{Listed, found};
use super::known;
use super::whole::{InUse, Options, Pass, Passed};
use crate::policy::Policy;
use crate::state::store::STATE_DIR;
use crate::sys::file::handle::Handle;
use crate::sys::file::inode::{Inode, InodeId};
use crate::sys::path::dirfd;
use crate::sys::path::resolve::is_absent;
use crate::sys::path::root::{Root, read_at};
use crate::unify::eligible::rules::Rules;
use crate::unify::eligible::scope::Scope;
use crate::unify::link::batch::Fence;
use crate::unify::pool::directory::Pool;
use crate::unify::scan::catalog::{Catalog, Guest};
use crate::unify::scan::walk;
use crate::unify::{Error, Silent};

/// The file in a guest's state directory.
const FILE: &str = "pool.toml";

/// What the host tells a guest of its pool.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Announcement {
    /// Handle of the pool's directory, in hexadecimal.
    handle: String,
    /// Whether shared inodes are immutable.
    immutable: bool,
    /// Whether set-id files and files with capabilities are unified, too.
    allow_setid: bool,
    /// The smallest file, in bytes.
    min_size: u64,
}

/// Tells a guest where the pool is, if it has our hooks.
pub fn announce(pool: &Pool, options: &Options, root: &Root) -> io::Result<()> {
    let Some(state_dir) = state_dir(root)? else { return Ok(()) };
    let handle = Handle::of(pool.root())?;
    let announcement = Announcement {
        handle: handle.as_bytes().iter().map(|byte| format!("{byte:02x}")).collect(),
        immutable: options.fence != Fence::None,
        allow_setid: options.allow_setid,
        min_size: options.min_size,
    };
    if read(&state_dir).ok().flatten().as_ref() == Some(&announcement) {
        return Ok(());
    }
    let text = toml::to_string(&announcement).map_err(io::Error::other)?;
    dirfd::replace_file(&state_dir, OsStr::new(FILE), text.as_bytes())
}

/// Where a guest is told of its pool; none where it has no hooks. The running system is told in any case: from
/// inside it, nothing else says what belongs to its pool.
fn state_dir(root: &Root) -> io::Result<Option<OwnedFd>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW;
    match root.open_at(Path::new(STATE_DIR), flags) {
        Err(e) if is_absent(&e) && root.is_own() => dirfd::make_dir(root, Path::new(STATE_DIR)).map(Some),
        Err(e) if is_absent(&e) => Ok(None),
        opened => opened.map(Some),
    }
}

/// Whether a guest was told of this pool.
pub fn is_told_of(root: &Root, pool: &Pool) -> bool {
    let told = root.open_dir(Path::new(STATE_DIR)).and_then(read);
    let told = told.ok().flatten().and_then(|announcement| bytes(&announcement.handle));
    told.is_some() && told == Handle::of(pool.root()).ok().map(|handle| handle.as_bytes().to_vec())
}

/// A guest has no pool any more.
pub fn retract(root: &Root) -> io::Result<()> {
    match root.open_dir(Path::new(STATE_DIR)) {
        Err(e) if is_absent(&e) => Ok(()),
        dir => dirfd::remove_file(dir?, OsStr::new(FILE)),
    }
}

/// The pool that the running system was told of; none where it lies outside of it, as it does for any guest.
pub fn pool_of_system(root: &Root) -> Option<Pool> {
    let state_dir = root.open_dir(Path::new(STATE_DIR)).ok()?;
    let handle = Handle::from_bytes(&bytes(&read(&state_dir).ok()??.handle)?);
    let dir = handle.open(&state_dir).ok()?;
    let path = std::fs::read_link(format!("/proc/self/fd/{}", dir.as_raw_fd())).ok()?;
    let same = Inode::of(Root::open(&path).ok()?).ok()?.id == Inode::of(&dir).ok()?.id;
    Pool::at(Root::from_fd(dir, &path)).ok().flatten().filter(|_| same)
}

/// Directories that lie in the running system and are none of it: its pool, and all guests that the pool knows.
pub fn neighbours(pool: &Pool) -> Vec<InodeId> {
    let known = known::seen(pool);
    let others = known.iter().filter_map(|path| Root::open(path).ok()).filter(|guest| !guest.is_own());
    let ids = others.filter_map(|guest| Some(Inode::of(guest).ok()?.id));
    ids.chain([pool.inode().id]).collect()
}

fn read(state_dir: impl AsFd) -> io::Result<Option<Announcement>> {
    let text = match read_at(state_dir, OsStr::new(FILE)) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e),
    };
    let text = String::from_utf8(text).map_err(io::Error::other)?;
    toml::from_str(&text).map(Some).map_err(io::Error::other)
}

fn bytes(hex: &str) -> Option<Vec<u8>> {
    let pair = |at| u8::from_str_radix(hex.get(at..at + 2)?, 16).ok();
    (0..hex.len()).step_by(2).map(pair).collect()
}

/// Makes these files of the guest names of objects the pool has. The caller holds the guest's lock.
///
/// Returns the paths that are names of objects now; none where the pool is out of reach.
pub fn unify(
    root: &Root,
    state_dir: impl AsFd,
    policy: &Policy,
    paths: &BTreeSet<PathBuf>,
) -> Result<BTreeSet<PathBuf>, Error> {
    let at = |source| Error::At { path: Path::new(STATE_DIR).join(FILE), source };
    let none = Ok(BTreeSet::new());
    if paths.is_empty() {
        return none;
    }
    let Some(announcement) = read(&state_dir).map_err(at)? else { return none };
    let Some(handle) = bytes(&announcement.handle).map(|bytes| Handle::from_bytes(&bytes)) else {
        return none;
    };
    // Another filesystem, another mount, no capability: the host will do it.
    let Ok(dir) = handle.open(&state_dir) else { return none };
    let inode = Inode::of(root).map_err(at)?;
    let Some(pool) = Pool::at(Root::from_fd(dir, Path::new("the host's pool")))? else { return none };
    if !pool.reaches(&inode) {
        return none;
    }
    let options = Options {
        scope: Scope::Owned,
        rules: Rules::default(),
        never: policy.never_unify.clone(),
        min_size: announcement.min_size,
        allow_setid: announcement.allow_setid,
        reference: None,
        immutable: announcement.immutable,
        fence: if announcement.immutable { Fence::Immutable } else { Fence::None },
        threads: crate::parallel::processors(),
        patience: policy.lock_timeout,
        reserve: policy.reserve,
        list: false,
        in_use: InUse::Replace,
    };
    let pass = Pass {
        pool: Some(&pool),
        settings: pool.settings,
        options: &options,
        watch: &Silent,
        locked: true,
        programs: None,
    };
    let guest = Guest { root: root.try_clone().map_err(at)?, inode };
    let mut listed = Listed {
        pass: &pass,
        catalog: Catalog::default(),
        known: None,
        seen: HashSet::new(),
        unseen: HashMap::new(),
    };
    listed.catalog.guests.push(guest);
    listed.add(0, paths.iter().map(PathBuf::as_path));
    let mut catalog = listed.catalog;
    walk::mark_linked_elsewhere(&mut catalog);
    let planner = pass.planner();
    planner.read(&mut catalog, |_| true);
    let mut works = planner.works(&catalog, &found(&pool, &catalog)?);
    // What the pool does not have yet is the host's to decide: it sees the other guests.
    works.retain(|work| work.existing.is_some());
    let mut passed = Passed::default();
    pass.link(&pool, &catalog, works, &mut passed)?;
    for (path, reason) in &passed.linked.failed {
        log::debug!("{}: {reason}", crate::report::Shown(path));
    }
    Ok(passed.linked.names.iter().map(|&at| catalog.path(&catalog.files[at as usize])).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hexadecimal_is_read_as_it_is_written() {
        assert_eq!(bytes("00ff7a"), Some(vec![0, 255, 0x7a]));
        assert_eq!(bytes(""), Some(Vec::new()));
        assert_eq!(bytes("0"), None);
        assert_eq!(bytes("é0"), None);
    }
}

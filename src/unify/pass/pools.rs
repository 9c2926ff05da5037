//! Which pool guests belong to, for the host to find it again whatever guests it is asked for, and in which order.
//!
//! A pool's cache has the guests that were looked at with it; a guest with hooks says which pool it was told of. The
//! host's own list has the pools that do not lie beside all of their guests: nothing a guest says leads to any other.

use std::ffi::OsStr;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::state::pool_notice::PoolNotice;
use crate::state::store::STATE_DIR;
use crate::sys::budget;
use crate::sys::file::handle::Handle;
use crate::sys::file::inode::{Inode, InodeId};
use crate::sys::path::dirfd;
use crate::sys::path::root::Root;
use crate::sys::share::lock;
use crate::unify::pool::directory::{DEFAULT_NAME, Pool};
use crate::unify::scan::cache::Cache;
use crate::unify::scan::guest::GuestTree;

/// The host's list, in its state directory: paths, each ended by a NUL byte.
const LIST: &str = "pools";

/// How long to wait for another run that adds to the list.
const LIST_LOCK_TIMEOUT: Duration = Duration::from_secs(2);

/// The pool beside a guest, there or not.
pub fn beside(guest: &GuestTree) -> PathBuf {
    let path = guest.root.path();
    path.parent().unwrap_or(path).join(DEFAULT_NAME)
}

/// The pools in the host's list.
pub fn listed() -> Vec<PathBuf> {
    let read = || Root::open(Path::new("/"))?.read(&Path::new(STATE_DIR).join(LIST), budget::OWN);
    // Without a list, what lies beside the guests must do.
    let text = read().unwrap_or_default();
    let paths = text.split(|&byte| byte == 0).filter(|path| !path.is_empty());
    paths.map(|path| PathBuf::from(std::ffi::OsString::from_vec(path.to_vec()))).collect()
}

/// Adds a pool to the host's list if not all of these guests lie beside it; takes out what is no pool any more.
pub fn remember(pool: &Pool, guests: &[GuestTree]) -> io::Result<()> {
    let is_listed = |all: &[PathBuf]| all.iter().any(|path| path == pool.path());
    if guests.iter().all(|guest| beside(guest) == pool.path()) || is_listed(&listed()) {
        return Ok(());
    }
    let dir = dirfd::make_dir(&Root::open(Path::new("/"))?, Path::new(STATE_DIR))?;
    lock::exclusive(&dir, LIST_LOCK_TIMEOUT)?;
    let mut all = listed();
    all.retain(|path| matches!(Pool::open(path), Ok(Some(_))));
    all.push(pool.path().to_path_buf());
    let text = all.iter().flat_map(|path| [path.as_os_str().as_bytes(), &[0]].concat()).collect::<Vec<u8>>();
    dirfd::replace_file(&dir, OsStr::new(LIST), &text)
}

/// How many of these guests belong to a pool.
pub fn members(pool: &Pool, guests: &[GuestTree]) -> usize {
    let seen = seen(pool);
    let told = Handle::of(pool.root()).ok();
    let told_of = |guest: &GuestTree| PoolNotice::of(&guest.root).map(|notice| notice.pool);
    let is_member = |guest: &&GuestTree| {
        seen.iter().any(|path| path == guest.root.path()) || told.is_some() && told == told_of(guest)
    };
    guests.iter().filter(is_member).count()
}

/// The guests that were looked at with a pool; none if it has forgotten.
pub fn seen(pool: &Pool) -> Vec<PathBuf> {
    let path = pool.cache_path();
    if !path.exists() {
        return Vec::new();
    }
    Cache::open_to_read(&path).and_then(|cache| cache.guests()).unwrap_or_else(|e| {
        log::warn!("the pool's cache cannot be read: {e}");
        Vec::new()
    })
}

/// The pool that the running system was told of; none if it lies outside of it, as it does for any guest.
pub fn of_system(root: &Root) -> Option<Pool> {
    let state_dir = root.open_dir(Path::new(STATE_DIR)).ok()?;
    let dir = PoolNotice::read(&state_dir).ok()??.pool.open(&state_dir).ok()?;
    let path = std::fs::read_link(format!("/proc/self/fd/{}", dir.as_raw_fd())).ok()?;
    let same = Inode::of(Root::open(&path).ok()?).ok()?.id == Inode::of(&dir).ok()?.id;
    Pool::at(Root::from_fd(dir, &path)).ok().flatten().filter(|_| same)
}

/// Directories that lie in the running system and are none of it: its pool, and all guests that the pool knows.
pub fn neighbours(pool: &Pool) -> Vec<InodeId> {
    let known = seen(pool);
    let others = known.iter().filter_map(|path| Root::open(path).ok()).filter(|guest| !guest.is_own());
    let ids = others.filter_map(|guest| Some(Inode::of(guest).ok()?.id));
    ids.chain([pool.inode().id]).collect()
}

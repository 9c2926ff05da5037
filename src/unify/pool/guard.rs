//! Whether the guard in the host's kernel protects a pool. It is loaded by the program `cow-guard`, a package of its own;
//! nothing but a trial in the pool itself tells that it protects.

use std::ffi::OsStr;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use super::directory::Pool;
use super::no_guard::NoGuard;
use super::protection::PoolProtection;
use crate::report::Shown;
use crate::sys::file::inode::Inode;
use crate::sys::share::flag_changes::FlagChanges;
use crate::sys::share::mark;
use crate::sys::share::swap::Name;

/// The program, beside ours or installed.
const PROGRAM: &str = "cow-guard";
const INSTALLED: &str = "/usr/sbin/cow-guard";
/// How long to wait for tasks that are about to change flags, which takes microseconds.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long a trial takes at most; it takes microseconds.
const MAX_TRIAL: Duration = Duration::from_secs(60);

/// Whether the guard protects this pool now: tried on a file that is made for it in the pool.
pub fn is_there(pool: &Pool) -> Result<(), NoGuard> {
    match is_guarded(pool) {
        Ok(true) => Ok(()),
        Ok(false) => Err(NoGuard::Open),
        Err(e) => Err(NoGuard::Trial(e)),
    }
}

/// Has the guard loaded for this pool, now and at each boot, and tries it out.
pub fn load(pool: &Pool) -> Result<(), NoGuard> {
    if !pretends() {
        run(pool.path())?;
    }
    is_there(pool)
}

/// The same for a pool that nobody has chosen the guard for.
pub fn load_unasked(pool: &Pool) -> Result<(), NoGuard> {
    // The tests' own machine is not theirs to guard.
    if cfg!(feature = "pretend-guard") && !pretends() { Err(NoGuard::Missing) } else { load(pool) }
}

/// What has to protect a pool's objects at this moment, and why it is not the guard that they should have: `+i` then.
pub fn in_effect(pool: &Pool, protection: PoolProtection) -> (PoolProtection, Option<NoGuard>) {
    match protection {
        PoolProtection::Guard => match is_there(pool) {
            Ok(()) => (protection, None),
            Err(e) => (PoolProtection::Immutable, Some(e)),
        },
        _ => (protection, None),
    }
}

/// The same, after an attempt to load the guard, and told.
pub fn instead(pool: &Pool, protection: PoolProtection) -> PoolProtection {
    let (in_effect, missing) = in_effect(pool, protection);
    let Some(e) = missing.and_then(|_| load(pool).err()) else {
        return protection;
    };
    log::warn!("{}: {e}: objects are made immutable until `cow-guard load` succeeds", Shown(pool.path()));
    in_effect
}

/// Waits until all tasks have ended a change of flags that the guard was asked about before now: it cannot have seen a mark
/// that was set later.
pub(super) fn wait_for_flag_changes() -> Result<(), NoGuard> {
    match FlagChanges::find().ok_or(NoGuard::NoList)?.wait(PATIENCE) {
        Ok(true) => Ok(()),
        Ok(false) => Err(NoGuard::FlagChange),
        Err(e) => Err(NoGuard::Trial(e)),
    }
}

/// Removes a file of a trial whose process was killed.
pub(super) fn remove_probe(pool: &Pool, name: &OsStr) {
    let probe = Name { dir: pool.runs().as_fd(), name };
    let is_left = |inode: Inode| {
        let made = SystemTime::UNIX_EPOCH + Duration::from_secs(inode.mtime.secs.try_into().unwrap_or(0));
        made.elapsed().is_ok_and(|age| age > MAX_TRIAL)
    };
    if probe.inode().ok().flatten().is_some_and(is_left) {
        let _ = probe.unlink();
    }
}

fn is_guarded(pool: &Pool) -> io::Result<bool> {
    if pretends() { Ok(true) } else { mark::is_guarded(pool.runs()) }
}

/// In programs of the tests alone: the mark without the guard, to see and time all but the kernel's part.
fn pretends() -> bool {
    cfg!(feature = "pretend-guard") && std::env::var_os("COW_TESTS_PRETEND_GUARD").is_some()
}

fn run(pool: &Path) -> Result<(), NoGuard> {
    let beside = std::env::current_exe().ok().and_then(|own| own.parent().map(|dir| dir.join(PROGRAM)));
    let programs = beside.into_iter().chain([PathBuf::from(INSTALLED)]);
    let program = programs.into_iter().find(|program| program.is_file()).ok_or(NoGuard::Missing)?;
    let ran = Command::new(&program).arg("load").arg("--pool").arg(pool).stdin(Stdio::null()).output();
    let output = ran.map_err(|source| NoGuard::Run { program, source })?;
    let said = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
    log::debug!("cow-guard load: {}: {said}", output.status);
    if output.status.success() { Ok(()) } else { Err(NoGuard::Refused { said }) }
}

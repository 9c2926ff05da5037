//! What would fail half way fails here, before anything is touched.

use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use super::survey::{Found, Unseen};
use crate::report::{Reason, Shown};
use crate::supervise;
use crate::sys::file::filesystem;
use crate::sys::path::root::Root;
use crate::sys::seccomp::filter;
use crate::sys::share::swap;

/// Room an inode, its directory entry and its extended attributes may take beside its data.
const OVERHEAD: u64 = 4096;

/// Why nothing was detached at all. The first file that needs it is named.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// So little can be opened that a unified file may have been overlooked.
    #[error(transparent)]
    Unseen(#[from] Unseen),
    /// The immutable flag cannot be cleared.
    #[error("{}: the immutable flag cannot be cleared: {}", Shown(path), Reason(source))]
    Capability {
        /// A file that needs it.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
        /// In a guest that is worked on from outside.
        outside: bool,
    },
    /// A filter of the container's or the service's forbids a system call that private copies need.
    #[error("{}: a system call filter forbids {call}, without which there is no private copy", Shown(path))]
    Forbidden {
        /// A file that needs one.
        path: PathBuf,
        /// The name of the call.
        call: &'static str,
    },
    /// The filesystem is read-only.
    #[error("{}: the filesystem is mounted read-only", Shown(path))]
    ReadOnly {
        /// A file on it.
        path: PathBuf,
    },
    /// The copies would not fit.
    #[error(
        "{}: no room for private copies of {files} files: {needed} bytes are needed, {available} are available",
        Shown(path)
    )]
    Space {
        /// A file on the filesystem.
        path: PathBuf,
        /// How many files are to be copied there.
        files: u64,
        /// Bytes needed, with the policy's reserve.
        needed: u64,
        /// Bytes available.
        available: u64,
    },
    /// A file could not be copied; all copies made so far were removed.
    #[error("{}: no private copy could be made: {}", Shown(path), Reason(source))]
    Copy {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// Our own directory or database failed.
    #[error("{}: {}", Shown(path), Reason(source))]
    State {
        /// The file or directory.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The policy wants the run supervised, and it cannot be.
    #[error("the run cannot be supervised: {0}")]
    Unsupervised(supervise::Error),
    /// The intents could not be made durable.
    #[error(transparent)]
    Ledger(#[from] crate::ledger::Error),
}

impl Refusal {
    /// What a person can do about it.
    pub fn remedy(&self) -> String {
        match self {
            Refusal::Capability { outside: true, .. } => {
                "run it as root of the host, with CAP_LINUX_IMMUTABLE in the initial user namespace".into()
            }
            Refusal::Capability { outside: false, .. } => {
                "give the guest CAP_LINUX_IMMUTABLE in the initial user namespace, or run `cow-unify detach DIR` on \
                 the host, where DIR is the guest's root: it then stays as it is"
                    .into()
            }
            Refusal::Unseen(_) => "raise the limit of open files (`ulimit -n`), or free some memory".into(),
            Refusal::Forbidden { call, .. } => {
                format!("let the filter of the container or the service pass {call}")
            }
            Refusal::ReadOnly { .. } => "mount it read-write".into(),
            Refusal::Space { needed, available, .. } => {
                format!(
                    "free {} bytes, or lower `reserve` in cow-hooks.toml",
                    needed.saturating_sub(*available)
                )
            }
            Refusal::Copy { source, .. } | Refusal::State { source, .. } if is_full(source) => {
                "free some space".into()
            }
            Refusal::Copy { .. } => "mend the cause, then try again".into(),
            Refusal::State { path, .. } => format!("make {} writable for root", Shown(path)),
            Refusal::Unsupervised(e @ supervise::Error::Lost(_)) => e.remedy().into(),
            Refusal::Unsupervised(e) => {
                format!("{}, or set `supervise` in cow-hooks.toml to auto", e.remedy())
            }
            Refusal::Ledger(_) => "free some space, or look at the permissions of /var/lib/cow-hooks".into(),
        }
    }
}

fn is_full(e: &io::Error) -> bool {
    matches!(e.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Refuses what cannot be carried through for all of `unified`. `reserve` is what copies of them must leave free; none
/// where they are not to be copied beforehand.
pub fn check(root: &Root, unified: &[Found], reserve: Option<u64>) -> Result<(), Refusal> {
    if let (Some(found), Some(call)) = (unified.first(), filter::against_copies()) {
        return Err(Refusal::Forbidden { path: found.place.path(), call });
    }
    let mut by_mount: HashMap<(u64, u64), Vec<&Found>> = HashMap::new();
    for found in unified {
        by_mount.entry((found.inode.id.dev, found.inode.mount)).or_default().push(found);
    }
    for files in by_mount.values() {
        let path = files[0].place.path();
        let at = |source| Refusal::Copy { path: path.clone(), source };
        let dir = root.open_dir(&files[0].place.dir).map_err(at)?;
        if filesystem::is_read_only(&dir).map_err(at)? {
            return Err(Refusal::ReadOnly { path });
        }
        if let Some(reserve) = reserve {
            check_space(root, files, &dir, reserve)?;
        }
        if let Some(immutable) = files.iter().find(|found| found.inode.immutable) {
            may_change_immutable(root, &immutable.place.dir).map_err(|source| {
                let (path, outside) = (immutable.place.path(), !root.is_own());
                Refusal::Capability { path, source, outside }
            })?;
        }
    }
    Ok(())
}

fn check_space(root: &Root, files: &[&Found], dir: &OwnedFd, reserve: u64) -> Result<(), Refusal> {
    let path = files[0].place.path();
    let fresh = open_source(root, files[0]).is_ok_and(|source| filesystem::shares_blocks(source, dir));
    let mut seen = HashSet::new();
    let copies = files.iter().filter(|found| seen.insert(found.inode.id));
    let data = |found: &&&Found| if fresh { 0 } else { found.inode.allocated };
    let needed: u64 = copies.map(|found| data(&found) + OVERHEAD).sum::<u64>().saturating_add(reserve);
    let available =
        filesystem::available(dir).map_err(|source| Refusal::Copy { path: path.clone(), source })?.bytes;
    if needed <= available {
        return Ok(());
    }
    Err(Refusal::Space { path, files: seen.len() as u64, needed, available })
}

fn open_source(root: &Root, found: &Found) -> io::Result<OwnedFd> {
    root.open_at(&found.place.path(), OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK)
}

fn may_change_immutable(root: &Root, dir: &Path) -> io::Result<()> {
    match swap::may_change_immutable(root.open_dir(dir)?) {
        // A filesystem without the flag says nothing about the capability.
        Err(e) if e.raw_os_error() != Some(libc::EPERM) => Ok(()),
        other => other,
    }
}

//! Why nothing was detached, and what a person can do about it.

use std::io;
use std::path::PathBuf;

use super::survey::Unseen;
use crate::report::{Reason, Shown, count, size};

/// Why nothing was detached at all. The first file that needs it is named.
#[derive(Debug, thiserror::Error)]
pub enum Error {
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
    #[error("{}: a system call filter forbids {call}, which is needed to make a private copy", Shown(path))]
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
        "{}: not enough space for private copies of {}: {} needed, {} available",
        Shown(path),
        count(*files, "file"),
        size(*needed),
        size(*available)
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
    /// The intents could not be made durable.
    #[error(transparent)]
    Ledger(#[from] crate::ledger::Error),
}

impl Error {
    /// What a person can do about it.
    pub fn remedy(&self) -> String {
        match self {
            Error::Capability { outside: true, .. } => {
                "run it as root of the host, with CAP_LINUX_IMMUTABLE in the initial user namespace".into()
            }
            Error::Capability { outside: false, .. } => {
                "give the guest CAP_LINUX_IMMUTABLE in the initial user namespace, or run `cow-unify detach \
                 DIR` on the host, where DIR is the guest's root; cow-unify then leaves the guest as it is"
                    .into()
            }
            Error::Unseen(_) => "raise the limit of open files (`ulimit -n`), or free some memory".into(),
            Error::Forbidden { call, .. } => {
                format!("allow {call} in the system call filter of the container or the service")
            }
            Error::ReadOnly { .. } => "remount it for writing".into(),
            Error::Space { needed, available, .. } => {
                format!(
                    "free {}, or lower `reserve` in cow-hooks.toml",
                    size(needed.saturating_sub(*available))
                )
            }
            Error::Copy { source, .. } | Error::State { source, .. } if is_full(source) => {
                "free some space".into()
            }
            Error::Copy { .. } => "fix the cause, then run the command again".into(),
            Error::State { path, source } if source.kind() == io::ErrorKind::InvalidInput => {
                format!("remove {}, which no program of cow-hooks has put there", Shown(path))
            }
            Error::State { path, .. } => format!("make {} writable for root", Shown(path)),
            Error::Ledger(_) => "free some space, or check the permissions of /var/lib/cow-hooks".into(),
        }
    }
}

fn is_full(e: &io::Error) -> bool {
    matches!(e.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

//! What our own files and database refuse.

use std::io;
use std::path::PathBuf;

use crate::detach::recover;
use crate::report::{Reason, Shown};
use crate::state::store::STATE_DIR;

/// What our own files and database refuse.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The database.
    #[error(transparent)]
    Ledger(#[from] crate::ledger::Error),
    /// The package manager's database.
    #[error("{}", Reason(.0))]
    Packages(io::Error),
    /// A filter of the container's or the service's forbids a system call that private copies need.
    #[error(
        "a system call filter forbids {call}, without which no file can be restored; \
         let the filter of the container or the service allow it"
    )]
    Forbidden {
        /// The name of the call.
        call: &'static str,
    },
    /// A file or directory of ours.
    #[error("{}: {}", Shown(path), Reason(source))]
    State {
        /// The file or directory.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

impl Error {
    pub(super) fn state(name: &str, source: io::Error) -> Error {
        Error::State { path: PathBuf::from(STATE_DIR).join(name), source }
    }

    pub(super) fn stash(source: io::Error) -> Error {
        Error::state("stash", source)
    }

    pub(super) fn spool(source: io::Error) -> Error {
        Error::state("spool", source)
    }
}

impl From<recover::Error> for Error {
    fn from(error: recover::Error) -> Error {
        match error {
            recover::Error::Ledger(e) => Error::Ledger(e),
            recover::Error::Stash(source) => Error::stash(source),
        }
    }
}

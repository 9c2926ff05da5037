//! What a ledger holds: entries, windows, runs.

use std::ffi::OsString;

use crate::sys::file::inode::{InodeId, Time};
use crate::sys::path::resolve::Place;
use crate::sys::process::ProcessId;

/// Where a name stands between its shared inode and its private copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The private copy is being made, or about to take the name.
    Detaching,
    /// The name has its private copy; the stash holds the original.
    Detached,
    /// The original is about to take its name back.
    Restoring,
    /// The original is about to lose its name in the stash.
    Dropping,
}

impl Stage {
    /// The word the database holds.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Stage::Detaching => "detaching",
            Stage::Detached => "detached",
            Stage::Restoring => "restoring",
            Stage::Dropping => "dropping",
        }
    }

    pub(super) fn parse(word: &str) -> Option<Stage> {
        [Stage::Detaching, Stage::Detached, Stage::Restoring, Stage::Dropping]
            .into_iter()
            .find(|state| state.as_str() == word)
    }
}

/// What is recorded before a name is touched.
#[derive(Clone, Debug)]
pub struct Intent {
    /// The name.
    pub place: Place,
    /// The shared inode.
    pub original: InodeId,
    /// Its file handle, if the filesystem has handles.
    pub handle: Option<Vec<u8>>,
    /// It was immutable.
    pub immutable: bool,
    /// Its length in bytes.
    pub size: u64,
    /// The private copy waits in the directory of the place, not in the stash.
    pub beside: bool,
    /// The original stays in the stash.
    pub keep: bool,
}

/// A private copy as it was when the name had just got it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PrivateCopy {
    /// Its inode number.
    pub ino: u64,
    /// When its inode last changed; none if more of its names were to come.
    pub ctime: Option<Time>,
}

/// One name the ledger knows.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Number of the entry, never used again; names the file in the stash.
    pub id: i64,
    /// How far things are.
    pub state: Stage,
    /// What was recorded first.
    pub intent: Intent,
    /// The private copy, once it has the name.
    pub copy: Option<PrivateCopy>,
}

impl Entry {
    /// The name under which the private copy waits, beside the place or in the stash.
    pub fn temporary(&self) -> OsString {
        let id = self.id;
        OsString::from(if self.intent.beside { format!(".cow-{id}") } else { format!("{id}.copy") })
    }

    /// The name of the original in the stash.
    pub fn stashed(&self) -> OsString {
        OsString::from(self.id.to_string())
    }
}

/// A shared inode whose flag a living process may clear at any time, for a moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    /// The process.
    pub owner: ProcessId,
    /// The inode.
    pub inode: InodeId,
    /// Its file handle, if the filesystem has handles.
    pub handle: Option<Vec<u8>>,
    /// A name it had.
    pub place: Place,
}

/// How a run of a package manager began and ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// Number of the run.
    pub id: i64,
    /// Who asked: `apt`, `dpkg`, `cow-prepare`.
    pub front_end: String,
    /// When it began, seconds since 1970.
    pub began: i64,
    /// When it was settled; none while it is open.
    pub settled: Option<i64>,
    /// Names made private.
    pub detached: u64,
    /// Bytes copied for them.
    pub bytes: u64,
    /// Names that share the original again.
    pub restored: u64,
    /// Names whose new content waits for the host.
    pub waiting: u64,
    /// Names that could not be made private.
    pub failed: u64,
}

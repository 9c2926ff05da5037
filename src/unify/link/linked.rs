//! What linking came to.

use std::io;

use crate::unify::FailedPath;
use crate::unify::pool::object::ObjectName;
use crate::unify::scan::catalog::{DirIndex, FileIndex};
use crate::unify::scan::not_unified::NotUnified;

/// What linking came to.
#[derive(Debug, Default)]
pub struct Linked {
    /// Names that are names of an object now.
    pub names: Vec<FileIndex>,
    /// Objects made.
    pub objects: u64,
    /// Guests' own inodes among these.
    pub adopted: u64,
    /// Bytes written to the pool; blocks that are shared do not count.
    pub copied: u64,
    /// Bytes of disk that the files took whose names are an object's now.
    pub freed: u64,
    /// Bytes of disk that the new objects take.
    pub taken: u64,
    /// Names that have the blocks of their object already.
    pub known: Vec<FileIndex>,
    /// Directories in which names have changed, in the order in which they have.
    pub dirs: Vec<ChangedDir>,
    /// Names that stay as they are for now.
    pub left: Vec<(FileIndex, NotUnified)>,
    /// Work that may go better when other work is done.
    pub postponed: Vec<Postponed>,
    /// Names that could not be linked, with the reason.
    pub failed: Vec<FailedPath>,
    /// Windows in which another process tried to write, and could not.
    pub contested: u64,
    /// Objects that another process may have written to, or still may: to be verified.
    pub leaked: Vec<ObjectName>,
    /// Something was left half way: the journal tells recovery what.
    pub unfinished: bool,
}

/// A directory in which names have changed, and its times of change in nanoseconds; 0 if one is not known.
#[derive(Clone, Copy, Debug)]
pub struct ChangedDir {
    pub dir: DirIndex,
    /// Before its names changed.
    pub before: i64,
    /// Afterwards.
    pub after: i64,
}

/// Work that was not begun for want of what there is too little of.
#[derive(Debug)]
pub struct Postponed {
    /// Its place among the work that was given.
    pub work: usize,
    /// What the system says.
    pub reason: io::Error,
}

impl Linked {
    /// Nothing was done of so much work, for the same reason.
    pub(in crate::unify) fn postponed(works: usize, reason: &io::Error) -> Linked {
        let reason = || reason.raw_os_error().map_or(reason.kind().into(), io::Error::from_raw_os_error);
        let postponed = (0..works).map(|work| Postponed { work, reason: reason() }).collect();
        Linked { postponed, ..Linked::default() }
    }

    pub(in crate::unify) fn absorb(&mut self, other: Linked) {
        self.names.extend(other.names);
        self.objects += other.objects;
        self.adopted += other.adopted;
        self.copied += other.copied;
        self.freed += other.freed;
        self.taken += other.taken;
        self.postponed.extend(other.postponed);
        self.known.extend(other.known);
        self.dirs.extend(other.dirs);
        self.left.extend(other.left);
        self.failed.extend(other.failed);
        self.contested += other.contested;
        self.leaked.extend(other.leaked);
        self.unfinished |= other.unfinished;
    }
}

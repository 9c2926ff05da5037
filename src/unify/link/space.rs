//! Room for the pool's copies: what a filesystem has left, and what they take of it.

use std::io;
use std::os::fd::AsFd;

use super::plan::Work;
use crate::report::{count, size};
use crate::sys::file::filesystem;
use crate::unify::scan::catalog::Catalog;

/// Bytes that a copy takes beside its data: its inode, its name, its attributes.
const BYTES_PER_COPY: u64 = 4096;
/// Bytes that the journal takes for one name.
const JOURNAL_BYTES_PER_NAME: u64 = 512;
/// Inodes of a run's own: its directory, the journal and the one that replaces it.
const INODES_PER_RUN: u64 = 4;

/// What some work takes, until the files that it replaces are gone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Bytes of the copies.
    pub copies: u64,
    /// Bytes of the journal.
    pub journal: u64,
    /// Inodes: one for each copy, and one for the directory it may be the first in.
    pub inodes: u64,
}

impl Cost {
    /// What this work takes.
    pub fn of(work: &Work, catalog: &Catalog, clones: bool) -> Cost {
        let journal = work.names.len() as u64 * JOURNAL_BYTES_PER_NAME;
        if work.existing.is_some() {
            return Cost { journal, ..Cost::default() };
        }
        let data = if clones { 0 } else { work.allocated(catalog) };
        Cost { copies: data + BYTES_PER_COPY, journal, inodes: 2 }
    }

    /// What both take.
    pub fn and(self, other: Cost) -> Cost {
        Cost {
            copies: self.copies.saturating_add(other.copies),
            journal: self.journal + other.journal,
            inodes: self.inodes + other.inodes,
        }
    }
}

/// What a filesystem has left.
#[derive(Clone, Copy, Debug)]
pub struct FreeSpace {
    bytes: u64,
    inodes: u64,
    reserve: u64,
}

impl FreeSpace {
    /// The room on the filesystem of `dir`, of which copies must leave `reserve` bytes.
    pub fn on(dir: impl AsFd, reserve: u64) -> io::Result<FreeSpace> {
        let filesystem::Available { bytes, inodes } = filesystem::available(dir)?;
        Ok(FreeSpace { bytes, inodes, reserve })
    }

    /// There is too little for `what`.
    pub(crate) fn too_little_for(self, what: &'static str) -> NoRoom {
        NoRoom { what, free: self }
    }

    /// For messages: how many inodes are free, unless the filesystem makes them as it needs them.
    fn limited_inodes(&self) -> String {
        if self.inodes == u64::MAX { String::new() } else { format!(" and {}", count(self.inodes, "inode")) }
    }

    /// Whether there is room at all.
    pub fn fits(&self, cost: Cost) -> bool {
        self.bytes.saturating_sub(self.reserve) >= cost.copies
            && self.bytes >= cost.copies.saturating_add(cost.journal)
            && self.inodes >= cost.inodes + INODES_PER_RUN
    }

    /// Whether as much is left for others.
    pub(crate) fn fits_twice(&self, cost: Cost) -> bool {
        self.fits(Cost { copies: cost.copies.saturating_mul(2), ..cost.and(cost) })
    }
}

/// There is too little room.
#[derive(Debug, thiserror::Error)]
#[error(
    "not enough space for {what}: {}{} are free, {} must stay free; free some space or lower `reserve` in \
     cow-hooks.toml, then run it again",
    size(free.bytes),
    free.limited_inodes(),
    size(free.reserve)
)]
pub struct NoRoom {
    what: &'static str,
    free: FreeSpace,
}

/// Whether an error speaks of what there is too little of, not of one file: it may go better once others are done.
pub fn is_exhaustion(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENOSPC | libc::EDQUOT | libc::EMFILE | libc::ENFILE | libc::ENOMEM)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reserve_is_kept_from_copies_but_not_from_the_journal() {
        let free = FreeSpace { bytes: 1000, inodes: 10, reserve: 900 };
        let cost = |copies, journal, inodes| Cost { copies, journal, inodes };
        assert!(free.fits(cost(100, 900, 6)) && !free.fits_twice(cost(100, 0, 0)));
        assert!(free.fits(cost(0, 1000, 0)) && free.fits_twice(cost(50, 450, 3)));
        assert!(!free.fits(cost(101, 0, 0)) && !free.fits(cost(100, 901, 0)) && !free.fits(cost(0, 0, 7)));
    }
}

//! Removes what no guest has a link to, or shares blocks with: objects, and what verification has set aside.
//!
//! Killed anywhere, it leaves at most one object unprotected that nobody links. Whoever links it protects it first.

use std::collections::HashMap;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::Duration;

use crate::parallel;
use crate::report::Watch;
use crate::sys::file::inode::InodeId;
use crate::sys::path::resolve::is_absent;
use crate::sys::share::swap::{self, Name, Shared};
use crate::unify::pool::directory::Pool;
use crate::unify::pool::object::PoolFile;
use crate::unify::pool::recover::{self, RecoveredRuns};
use crate::unify::pool::second;
use crate::unify::{At, Error, FailedPath};

/// What collecting came to.
#[derive(Debug, Default)]
pub struct Collected {
    /// What an interrupted run had left.
    pub recovered: RecoveredRuns,
    /// The files removed, or to be removed.
    pub removed: Vec<PathBuf>,
    /// Bytes of disk that they took.
    pub freed: u64,
    /// Objects that guests have links to, or share blocks with.
    pub kept: u64,
    /// What could not be removed, with the reason.
    pub failed: Vec<FailedPath>,
}

/// How many files of a pool no guest would have any more if inodes lost so many of their names, and the bytes of disk that
/// they take. Of files that share blocks alone only those are known that no guest has now.
pub fn unused_without(
    pool: &Pool,
    names: &HashMap<InodeId, u32>,
    threads: usize,
) -> Result<(u64, u64), Error> {
    let mut stored = pool.look(threads)?;
    stored.extend(pool.look_at_quarantine()?);
    let (mut files, mut bytes) = (0, 0);
    for mut stored in stored {
        let going = names.get(&stored.inode.id).copied().unwrap_or(0);
        stored.inode.nlink = stored.inode.nlink.saturating_sub(going);
        if pool.is_unused(&stored).at(&pool.path_of(&stored))? {
            (files, bytes) = (files + 1, bytes + stored.inode.allocated);
        }
    }
    Ok((files, bytes))
}

/// Removes unused objects of a pool.
pub struct Collector<'a> {
    /// The pool, locked by the caller.
    pub pool: &'a Pool,
    /// Find what would be removed, and change nothing.
    pub dry_run: bool,
    /// How long to wait for the lock on one object.
    pub lock_timeout: Duration,
    /// How many threads look and remove.
    pub threads: usize,
    pub watch: &'a dyn Watch,
}

impl Collector<'_> {
    /// Removes every object and every file in quarantine that no guest has, or shares blocks with.
    ///
    /// # Errors
    /// If nothing can be done at all. What fails for one object is in the result.
    pub fn collect(&self) -> Result<Collected, Error> {
        let mut collected = Collected::default();
        if !self.dry_run {
            collected.recovered = recover::recover(self.pool, self.lock_timeout)?;
            collected.failed.append(&mut collected.recovered.failed);
            collected.failed.extend(self.pool.remove_left_seconds(self.lock_timeout)?);
        }
        let mut stored = self.pool.look(self.threads)?;
        let protected = stored.iter().any(|object| object.inode.immutable);
        stored.extend(self.pool.look_at_quarantine()?);
        let looked = parallel::map(self.threads, &stored, |stored| self.pool.is_unused(stored));
        let (mut unused, mut used) = (Vec::new(), Vec::new());
        for (stored, looked) in stored.into_iter().zip(looked) {
            match looked {
                Ok(true) => unused.push(stored),
                Ok(false) => used.push(stored),
                Err(e) => collected.failed.push(FailedPath::new(self.pool.path_of(&stored), e)),
            }
        }
        collected.kept = used.iter().filter(|stored| !stored.quarantined).count() as u64;
        if !self.dry_run && !unused.is_empty() {
            self.pool.may_change(protected)?;
        }
        self.watch.begin("removing", unused.len() as u64);
        let removed = parallel::map(self.threads, &unused, |stored| self.remove(stored));
        self.watch.end();
        for (stored, removed) in unused.iter().zip(removed) {
            let path = self.pool.path_of(stored);
            match removed {
                Ok(true) => {
                    collected.removed.push(path);
                    collected.freed += stored.inode.allocated;
                }
                Ok(false) => collected.kept += u64::from(!stored.quarantined),
                Err(e) => collected.failed.push(FailedPath::new(path, e)),
            }
        }
        Ok(collected)
    }

    /// `false` if somebody has linked it meanwhile.
    fn remove(&self, stored: &PoolFile) -> Result<bool, swap::Error> {
        if self.dry_run {
            return Ok(true);
        }
        let dir = self.pool.dir_of(stored)?;
        let shared = match Shared::try_lock_at(&dir, &stored.file, self.lock_timeout) {
            Err(e) if is_absent(&e) => return Ok(false),
            locked => locked?,
        };
        let now = shared.inode()?;
        if now.id != stored.inode.id || now.nlink != stored.names_in_pool() {
            return Ok(false);
        }
        shared.persist(|| {
            if stored.second {
                return second::remove_both(&dir, &stored.name);
            }
            Name { dir: dir.as_fd(), name: &stored.file }.unlink()
        })?;
        self.watch.add(1, now.allocated);
        Ok(true)
    }
}

//! Gives all files of a pool another kind of protection, and takes the one before off.
//!
//! Whoever is killed leaves each file with the one, the other, or both, and none with neither.

use std::io;
use std::time::Duration;

use super::directory::Pool;
use super::guard;
use super::object::PoolFile;
use super::protection::PoolProtection;
use crate::parallel;
use crate::sys::file::filesystem;
use crate::sys::path::resolve::is_absent;
use crate::sys::share::swap::{self, Shared, SwapReport};
use crate::unify::{At, Error, FailedPath};

/// What a change of all files came to.
#[derive(Debug, Default)]
pub struct Turned {
    /// How many files have changed.
    pub files: u64,
    /// Files that could not be changed, with the reason.
    pub failed: Vec<FailedPath>,
}

/// How to change all files of a pool.
#[derive(Clone, Copy, Debug)]
pub struct Turn<'a> {
    /// The pool, locked by the caller.
    pub pool: &'a Pool,
    /// How long to wait for the lock on one object.
    pub lock_timeout: Duration,
    /// How many threads.
    pub threads: usize,
}

/// What a change of one file came to.
#[derive(Default)]
struct Change {
    has_changed: bool,
    /// Somebody may have changed it meanwhile.
    leaked: bool,
}

impl Turn<'_> {
    /// Gives each file the mark, with a second name, or the immutable flag beside what it has; on the disk when this returns. An object that
    /// somebody may have changed meanwhile is remembered, to be read again.
    ///
    /// # Errors
    /// If the pool cannot be read or flushed. What fails for one file is in the result.
    pub fn give(&self, protection: PoolProtection) -> Result<Turned, Error> {
        self.each(|file, shared| match protection {
            PoolProtection::Guard => {
                let has_changed = !PoolProtection::is_marked(shared)?;
                let marked = if has_changed { shared.mark()? } else { SwapReport::default() };
                // Last: in its window the guard protects what guests have.
                let SwapReport { leaked, contested, .. } = marked.and(self.pool.give_second(file, shared)?);
                Ok(Change { has_changed, leaked: leaked || contested })
            }
            PoolProtection::Immutable if !shared.inode()?.immutable => {
                shared.protect()?;
                Ok(Change { has_changed: true, leaked: false })
            }
            _ => Ok(Change::default()),
        })
    }

    /// Takes the immutable flag off each file, and leaves it to the guard.
    ///
    /// # Errors
    /// As [`Turn::give`]; [`Error::NoGuard`] if a task may be about to clear marks that it has not seen. A file without
    /// the mark stays immutable, and is in the result.
    pub fn leave_to_guard(&self) -> Result<Turned, Error> {
        guard::wait_for_flag_changes()
            .map_err(|source| Error::NoGuard { path: self.pool.path().to_path_buf(), source })?;
        self.each(|_, shared| match shared.leave_to_guard() {
            Err(e) if e.raw_os_error() == Some(libc::EPERM) => {
                Err(io::Error::other("it has not got the mark of the guard, and stays immutable").into())
            }
            left => Ok(Change { has_changed: left?, leaked: false }),
        })
    }

    /// Makes each file immutable, and takes the mark off; on the disk when this returns.
    ///
    /// # Errors
    /// As [`Turn::give`].
    pub fn take_from_guard(&self) -> Result<Turned, Error> {
        self.each(|_, shared| Ok(Change { has_changed: shared.take_from_guard()?, leaked: false }))
    }

    fn each(
        &self,
        change: impl Fn(&PoolFile, &Shared) -> Result<Change, swap::Error> + Sync,
    ) -> Result<Turned, Error> {
        let files = self.pool.look_at_all(self.threads)?;
        let changed = parallel::map(self.threads, &files, |file| self.change(file, &change));
        let mut turned = Turned::default();
        let mut leaked = Vec::new();
        for (file, changed) in files.iter().zip(changed) {
            match changed {
                Ok(changed) => {
                    turned.files += u64::from(changed.has_changed);
                    leaked.extend(changed.leaked.then_some(file));
                }
                Err(e) => turned.failed.push(FailedPath::new(self.pool.path_of(file), e)),
            }
        }
        self.pool.suspect(leaked);
        filesystem::sync(self.pool.runs()).at(self.pool.path())?;
        Ok(turned)
    }

    fn change(
        &self,
        file: &PoolFile,
        change: impl Fn(&PoolFile, &Shared) -> Result<Change, swap::Error>,
    ) -> Result<Change, swap::Error> {
        // Without the lock, too: a guest's user can hold it.
        match Shared::try_lock_at(self.pool.dir_of(file)?, &file.file, self.lock_timeout) {
            Err(e) if is_absent(&e) => Ok(Change::default()),
            shared => change(file, &shared?),
        }
    }
}

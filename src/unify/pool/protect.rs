//! Gives all files of a pool another kind of protection, and takes the one before off.
//!
//! Two steps, so that whoever is killed leaves files with both and none with neither: all files have the new protection,
//! on the disk, before the old one comes off any.

use std::io;
use std::time::Duration;

use super::directory::Pool;
use super::object::PoolFile;
use super::protection::PoolProtection;
use crate::parallel;
use crate::sys::file::filesystem;
use crate::sys::path::resolve::is_absent;
use crate::sys::share::swap::Shared;
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

impl Turn<'_> {
    /// Gives each file this protection beside what it has; on the disk when this returns.
    ///
    /// # Errors
    /// If the pool cannot be read or flushed. What fails for one file is in the result.
    pub fn give(&self, protection: PoolProtection) -> Result<Turned, Error> {
        self.each(|shared| protection.add(shared))
    }

    /// Takes this protection off each file, and leaves any other.
    ///
    /// # Errors
    /// As [`Turn::give`].
    pub fn take_off(&self, protection: PoolProtection) -> Result<Turned, Error> {
        self.each(|shared| protection.remove(shared))
    }

    fn each(&self, change: impl Fn(&Shared) -> io::Result<bool> + Sync) -> Result<Turned, Error> {
        let files = self.pool.look_at_all(self.threads)?;
        let changed = parallel::map(self.threads, &files, |file| self.change(file, &change));
        let mut turned = Turned::default();
        for (file, changed) in files.iter().zip(changed) {
            match changed {
                Ok(changed) => turned.files += u64::from(changed),
                Err(e) => turned.failed.push(FailedPath::new(self.pool.path_of(file), e)),
            }
        }
        filesystem::sync(self.pool.runs()).at(self.pool.path())?;
        Ok(turned)
    }

    fn change(&self, file: &PoolFile, change: impl Fn(&Shared) -> io::Result<bool>) -> io::Result<bool> {
        // Without the lock, too: a guest's user can hold it.
        match Shared::try_lock_at(self.pool.dir_of(file)?, &file.file, self.lock_timeout) {
            Err(e) if is_absent(&e) => Ok(false),
            shared => change(&shared?),
        }
    }
}

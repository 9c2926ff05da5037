//! Whether the files of a pool are protected: looked at, given back, and what may have changed without it remembered.
//!
//! A file that has lost its protection may have been changed by any guest. So it is put on a list of suspects, on the
//! disk, before it is protected again; the list goes when its files have been read. Whoever is killed in between leaves
//! the list for the next run. If there is no room for a list, the run itself keeps it.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::{MutexGuard, PoisonError};
use std::time::Duration;

use super::directory::Pool;
use super::object::PoolFile;
use super::protection::PoolProtection;
use crate::parallel;
use crate::report::{Reason, Shown};
use crate::sys::budget;
use crate::sys::file::filesystem;
use crate::sys::file::times::TICK;
use crate::sys::path::dirfd;
use crate::sys::path::resolve::is_absent;
use crate::sys::path::root::read_at;
use crate::sys::share::swap::Shared;
use crate::unify::{At, Error, FailedPath};

const SUSPECTS: &str = "suspects";

/// How a pool is protected, if it should be: as is written down, or as one of its files shows.
pub fn protection(pool: &Pool, files: &[PoolFile]) -> PoolProtection {
    let shown = || {
        if files.iter().any(|file| file.inode.immutable) {
            PoolProtection::Immutable
        } else {
            PoolProtection::None
        }
    };
    pool.settings.protection.unwrap_or_else(shown)
}

/// What giving protection back came to.
#[derive(Debug, Default)]
pub struct Protected {
    /// Files that had lost it, and have it again.
    pub files: Vec<PathBuf>,
    /// Files that could not be protected, with the reason.
    pub failed: Vec<FailedPath>,
    /// The objects among these.
    pub open: HashSet<OsString>,
}

/// Objects to be read again, and the lists that name them.
#[derive(Debug, Default)]
pub struct Suspects {
    names: HashSet<OsString>,
    lists: Vec<OsString>,
}

impl Suspects {
    /// Whether this is one of them.
    pub fn holds(&self, stored: &PoolFile) -> bool {
        !self.names.is_empty() && !stored.quarantined && self.names.contains(&stored.name.whole())
    }
}

impl Pool {
    /// Those of these files that are not protected.
    ///
    /// One whose names a guest changes just now is not either, for microseconds: hence the second look.
    pub fn unprotected<'s>(&self, files: &'s [PoolFile], protection: PoolProtection) -> Vec<&'s PoolFile> {
        let mut unprotected: Vec<&PoolFile> =
            files.iter().filter(|file| !file.is_protected(protection)).collect();
        if !unprotected.is_empty() {
            std::thread::sleep(TICK);
            unprotected.retain(|file| {
                let now = self.look_again(file);
                now.is_ok_and(|now| now.is_some_and(|now| !now.is_protected(protection)))
            });
        }
        unprotected
    }

    /// Protects those of these files that are not, and remembers the objects among them as suspects.
    pub fn protect(
        &self,
        files: &[PoolFile],
        protection: PoolProtection,
        lock_timeout: Duration,
        threads: usize,
    ) -> Result<Protected, Error> {
        let mut protected = Protected::default();
        let unprotected = self.unprotected(files, protection);
        if unprotected.is_empty() {
            return Ok(protected);
        }
        self.suspect(unprotected.iter().copied());
        let done =
            parallel::map(threads, &unprotected, |file| self.protect_one(file, protection, lock_timeout));
        for (file, done) in unprotected.iter().zip(done) {
            match done {
                Ok(true) => protected.files.push(self.path_of(file)),
                Ok(false) => {}
                Err(e) => {
                    protected.failed.push(FailedPath::new(self.path_of(file), e));
                    protected.open.extend((!file.quarantined).then(|| file.name.whole()));
                }
            }
        }
        Ok(protected)
    }

    /// Protects a file, unless it is, or is another one by now. Returns whether it was not.
    fn protect_one(
        &self,
        stored: &PoolFile,
        protection: PoolProtection,
        lock_timeout: Duration,
    ) -> io::Result<bool> {
        // Without the lock, too: a guest's user can hold it, and that must not keep a file open to changes.
        let shared = match Shared::try_lock_at(self.dir_of(stored)?, &stored.file, lock_timeout) {
            Err(e) if is_absent(&e) => return Ok(false),
            locked => locked?,
        };
        let Some(now) = self.look_again(stored)? else { return Ok(false) };
        if shared.inode()?.id != now.inode.id || now.is_protected(protection) {
            return Ok(false);
        }
        if protection == PoolProtection::Guard {
            self.give_second(stored, &shared).map_err(io::Error::other)?;
        }
        protection.set(&shared).map(|()| true)
    }

    /// Remembers objects that are to be read again; on the disk when this returns, if there is room.
    pub(super) fn suspect<'f>(&self, files: impl IntoIterator<Item = &'f PoolFile>) {
        let objects = files.into_iter().filter(|file| !file.quarantined);
        let names: HashSet<OsString> = objects.map(|file| file.name.whole()).collect();
        if names.is_empty() {
            return;
        }
        // Without a list, too, they are protected: they must not stay open to changes.
        if let Err(e) = self.write_down(&names) {
            log::error!(
                "{}: {}: the list of objects to verify cannot be saved; if this run is interrupted, run \
                 `cow-unify verify`",
                Shown(&self.path().join(SUSPECTS)),
                Reason(e)
            );
            self.unlisted().extend(names);
        }
    }

    fn unlisted(&self) -> MutexGuard<'_, HashSet<OsString>> {
        self.unlisted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_down(&self, names: &HashSet<OsString>) -> io::Result<()> {
        let list = names.iter().map(OsString::as_os_str).collect::<Vec<_>>().join(OsStr::new("\n"));
        let dir = dirfd::make_dir_at(self.root(), OsStr::new(SUSPECTS))?;
        // A process of another PID namespace may have the same number.
        for number in 0.. {
            let name = OsString::from(format!("{}-{number}", std::process::id()));
            match dirfd::create_file(&dir, &name, list.as_bytes()) {
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => continue,
                made => {
                    made?;
                    break;
                }
            }
        }
        filesystem::sync(&dir)
    }

    /// All objects that are to be read again.
    pub fn suspects(&self) -> Result<Suspects, Error> {
        let mut suspects = Suspects { names: self.unlisted().clone(), lists: Vec::new() };
        let path = self.path().join(SUSPECTS);
        let dir = match self.root().open_dir(SUSPECTS.as_ref()) {
            Err(e) if is_absent(&e) => return Ok(suspects),
            opened => opened.at(&path)?,
        };
        suspects.lists = dirfd::names(&dir).at(&path)?;
        for list in &suspects.lists {
            let text = read_at(&dir, list, budget::OWN).at(&path.join(list))?;
            let names = text.split(|&byte| byte == b'\n').filter(|name| !name.is_empty());
            suspects.names.extend(names.map(|name| OsStr::from_bytes(name).to_os_string()));
        }
        Ok(suspects)
    }

    /// These have been read, but for those that `failed`, which are to be read again.
    pub fn forget(&self, suspects: &Suspects, failed: HashSet<OsString>) -> Result<(), Error> {
        let path = self.path().join(SUSPECTS);
        self.unlisted().clear();
        if !failed.is_empty()
            && let Err(e) = self.write_down(&failed)
        {
            log::debug!("{}: {}", Shown(&path), Reason(e));
            self.unlisted().extend(failed);
            // What is written down names too many, perhaps, but not too few.
            return Ok(());
        }
        if suspects.lists.is_empty() {
            return Ok(());
        }
        let dir = self.root().open_dir(SUSPECTS.as_ref()).at(&path)?;
        suspects.lists.iter().try_for_each(|list| dirfd::remove_file(&dir, list)).at(&path)
    }
}

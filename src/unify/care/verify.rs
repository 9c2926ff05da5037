//! Reads the whole pool, and sets aside what is not what its name says, so that nothing new links to it.
//!
//! Bytes that are in the page cache are not read from the disk again: what is checked is what guests see.

use std::collections::HashSet;
use std::ffi::OsString;
use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::Duration;

use crate::parallel;
use crate::report::{Reason, Shown, Watch, count, word};
use crate::sys::file::filesystem;
use crate::sys::file::inode::Inode;
use crate::sys::path::resolve::is_absent;
use crate::sys::process::signal;
use crate::sys::share::swap::{self, Name, Shared};
use crate::unify::pool::directory::Pool;
use crate::unify::pool::guard;
use crate::unify::pool::identity::{self, Digest};
use crate::unify::pool::object::PoolFile;
use crate::unify::pool::protect::{Turn, Turned};
use crate::unify::pool::protection::PoolProtection;
use crate::unify::pool::recover::{self, RecoveredRuns};
use crate::unify::pool::second;
use crate::unify::pool::unprotected;
use crate::unify::scan::digest::take_lease;
use crate::unify::{At, Error, FailedPath};

/// What of an object is not what its name says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Damage {
    /// Its bytes.
    Content,
    /// Size, mode, owner, group or time of modification.
    Metadata,
    /// Its extended attributes.
    Attributes,
    /// The disk does not give it back.
    Unreadable,
}

impl Damage {
    /// What differs, for people.
    pub fn describe(self) -> &'static str {
        match self {
            Damage::Content => "content",
            Damage::Metadata => "metadata",
            Damage::Attributes => "extended attributes",
            Damage::Unreadable => "unreadable",
        }
    }
}

/// What verification came to.
#[derive(Debug, Default)]
pub struct Verified {
    /// What an interrupted run had left.
    pub recovered: RecoveredRuns,
    /// Objects read.
    pub objects: u64,
    /// Bytes read.
    pub bytes: u64,
    /// Objects that have been set aside, by the paths they had, and what differs.
    pub damaged: Vec<(PathBuf, Vec<Damage>)>,
    /// Shared inodes that had lost their protection, and have it again.
    pub protected: Vec<PathBuf>,
    /// What could not be looked at or set aside, with the reason.
    pub failed: Vec<FailedPath>,
}

/// Verifies a pool.
pub struct Verifier<'a> {
    /// The pool, locked by the caller.
    pub pool: &'a Pool,
    /// How long to wait for the lock on one object.
    pub lock_timeout: Duration,
    /// How many threads read.
    pub threads: usize,
    /// Told of each object that was read, and of its bytes.
    pub watch: &'a dyn Watch,
}

impl Verifier<'_> {
    /// Verifies all objects; also says how the pool is fenced. All that should be protected is when this is over.
    ///
    /// # Errors
    /// If nothing can be done at all. What fails for one object is in the result.
    pub fn verify(&self) -> Result<(Verified, PoolProtection), Error> {
        let mut recovered = recover::recover(self.pool, self.lock_timeout)?;
        let files = self.pool.look_at_all(self.threads)?;
        let protection = guard::instead(self.pool, unprotected::protection(self.pool, &files));
        self.pool.may_change(protection.needs_capability())?;
        let mut verified = self.examine(&files, protection, true)?;
        verified.failed.append(&mut recovered.failed);
        Ok((Verified { recovered, ..verified }, protection))
    }

    /// Protects those of all the pool's files that are not, and verifies the objects among them: anybody may have changed
    /// them. So it does with those that an earlier run has protected and not read.
    ///
    /// # Errors
    /// As [`Verifier::verify`].
    pub fn check(&self, files: &[PoolFile], protection: PoolProtection) -> Result<Verified, Error> {
        self.examine(files, protection, false)
    }

    fn examine(&self, files: &[PoolFile], protection: PoolProtection, all: bool) -> Result<Verified, Error> {
        // Before they are read: what changes later has changed in spite of it.
        let protected = self.pool.protect(files, protection, self.lock_timeout, self.threads)?;
        let mut verified =
            Verified { protected: protected.files, failed: protected.failed, ..Verified::default() };
        let suspects = self.pool.suspects()?;
        let wanted = |file: &&PoolFile| !file.quarantined && (all || suspects.holds(file));
        let mut failed = self.read_all(files.iter().filter(wanted).collect(), protection, &mut verified)?;
        failed.extend(protected.open);
        self.pool.forget(&suspects, failed)?;
        if protection == PoolProtection::Guard && files.iter().any(|file| file.inode.immutable) {
            self.leave_to_guard();
        }
        Ok(verified)
    }

    /// Takes the immutable flag off again that objects were given while the guard was not there: guests' package managers
    /// rely on the guard.
    fn leave_to_guard(&self) {
        let Verifier { pool, lock_timeout, threads, .. } = *self;
        let turn = Turn { pool, lock_timeout, threads };
        let left = turn.give(PoolProtection::Guard).and_then(|mut given| {
            let mut left = turn.leave_to_guard()?;
            left.failed.append(&mut given.failed);
            Ok(left)
        });
        match left {
            Ok(Turned { files, failed }) => {
                let objects = count(files, "object");
                let were = word(files, "was", "were");
                log::info!("{}: the guard protects {objects} that {were} immutable", Shown(pool.path()));
                for FailedPath { path, source } in failed {
                    log::warn!("{}: {}", Shown(&path), Reason(source));
                }
            }
            Err(e) => log::warn!("{e}: some objects stay immutable"),
        }
    }

    /// Reads objects, and sets aside those that are not what their names say. Returns those that nobody knows of.
    fn read_all(
        &self,
        mut objects: Vec<&PoolFile>,
        protection: PoolProtection,
        verified: &mut Verified,
    ) -> Result<HashSet<OsString>, Error> {
        let mut failed = HashSet::new();
        // In the order of their inodes, which is about that of the disk.
        objects.sort_unstable_by_key(|object| object.inode.id.ino);
        self.watch.begin("verifying", objects.len() as u64);
        let read = parallel::map(self.threads, &objects, |object| self.read(object, protection));
        self.watch.end();
        let blocked = signal::block();
        for (object, read) in objects.iter().zip(read) {
            let path = self.pool.path_of(object);
            let quarantined = match read {
                Ok(None) => continue,
                Ok(Some(what)) if what.is_empty() => Ok(()),
                Ok(Some(what)) => {
                    self.set_aside(object).map(|()| verified.damaged.push((path.clone(), what)))
                }
                Err(e) => Err(e.into()),
            };
            verified.objects += 1;
            verified.bytes += object.inode.size;
            if let Err(e) = quarantined {
                verified.failed.push(FailedPath::new(path, e));
                failed.insert(object.name.whole());
            }
        }
        if !verified.damaged.is_empty() {
            filesystem::sync(self.pool.runs()).at(self.pool.path())?;
        }
        drop(blocked);
        Ok(failed)
    }

    /// What differs; `None` if the object is gone.
    fn read(&self, stored: &PoolFile, protection: PoolProtection) -> io::Result<Option<Vec<Damage>>> {
        let dir = self.pool.dir_of(stored)?;
        let file = match (Name { dir: dir.as_fd(), name: &stored.file }).open() {
            Err(e) if is_absent(&e) => return Ok(None),
            opened => opened?,
        };
        let mut damage = Vec::new();
        match Digest::of_quiet(&file) {
            Ok((_, digest)) => {
                if digest.content != stored.name.digest.content {
                    damage.push(Damage::Content);
                }
                if !digest.has_attributes_of_object(&file, &stored.name.digest)? {
                    damage.push(Damage::Attributes);
                }
            }
            Err(e) if is_lost(&e) => damage.push(Damage::Unreadable),
            Err(e) => return Err(e),
        }
        let inode = Inode::of(&file)?;
        if identity::tag(&inode, self.pool.settings.mtime) != stored.name.tag {
            damage.push(Damage::Metadata);
        }
        self.watch.add(1, inode.size);
        // Protection keeps nobody out who is in already.
        if protection != PoolProtection::None && damage.is_empty() && take_lease(&file)?.is_none() {
            return Err(io::Error::other(
                "a process has had it open for writing since it lost its protection; run this again when that \
                 process has ended",
            ));
        }
        Ok(Some(damage))
    }

    fn set_aside(&self, stored: &PoolFile) -> Result<(), swap::Error> {
        let (dir, quarantine) =
            (self.pool.dir_of(stored)?, self.pool.quarantine().map_err(io::Error::other)?);
        let shared = Shared::try_lock_at(&dir, &stored.file, self.lock_timeout)?;
        let to = stored.name.quarantine_name(shared.inode()?.id.ino);
        let (name, to) =
            (Name { dir: dir.as_fd(), name: &stored.file }, Name { dir: quarantine.as_fd(), name: &to });
        shared.persist(|| name.replace(to))?;
        // It gets no new names: with those of guests it has enough for the guard, and without them nobody sees it.
        second::remove_left(&dir, &stored.name, self.lock_timeout)
    }
}

/// Whether the filesystem says that what it holds is not whole (`EUCLEAN`: its own checksum failed).
fn is_lost(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EIO | libc::EUCLEAN | libc::EBADMSG))
}

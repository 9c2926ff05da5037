//! Ends what killed runs began. A directory of a run that nobody holds is a killed run's.

use std::cell::OnceCell;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use super::directory::Pool;
use super::guard;
use super::journal::{LinkIntent, decode};
use super::object::PoolFile;
use super::protection::PoolProtection;
use super::run::{JOURNAL, claim, is_adopted, is_held, is_kept, kept, temporary};
use crate::parallel;
use crate::report::{Reason, Shown};
use crate::sys::budget;
use crate::sys::file::filesystem;
use crate::sys::file::inode::{Inode, Kind};
use crate::sys::path::dirfd;
use crate::sys::path::root::read_at;
use crate::sys::share::gate;
use crate::sys::share::lease::Lease;
use crate::sys::share::mark;
use crate::sys::share::swap::{self, Name, Shared};
use crate::unify::{At, Error, FailedPath};

/// What ending killed runs came to.
#[derive(Debug, Default)]
pub struct RecoveredRuns {
    /// Names that became names of their object.
    pub completed: u64,
    /// Names that have their own inode again.
    pub(crate) rolled_back: u64,
    /// Shared inodes that were protected again.
    pub protected: u64,
    /// Temporary names removed.
    pub removed: u64,
    /// What could not be ended, with the reason; the next run tries again.
    pub failed: Vec<FailedPath>,
}

impl RecoveredRuns {
    /// How much there was to do.
    pub fn total(&self) -> u64 {
        self.completed + self.rolled_back + self.protected + self.removed
    }
}

/// Ends what killed runs began: every name has its own inode or the object's, every object is protected, nothing is left.
pub fn recover(pool: &Pool, lock_timeout: Duration) -> Result<RecoveredRuns, Error> {
    let mut recovered = RecoveredRuns::default();
    for name in dirfd::names(pool.runs()).at(pool.path())? {
        if mark::is_probe(&name) {
            guard::remove_probe(pool, &name);
            continue;
        }
        let Some(dir) = claim(pool, &name).at(pool.path())? else { continue };
        let path = pool.path().join("runs").join(&name);
        if let Err(e) = (Ending { pool, dir: &dir, path: &path, lock_timeout }).end(&mut recovered) {
            recovered.failed.push(FailedPath::new(path, e));
            continue;
        }
        match dirfd::remove_dir(pool.runs(), &name) {
            Ok(true) => {}
            Ok(false) => log::warn!("{}: it cannot be removed: it is not empty", Shown(&path)),
            Err(e) => log::warn!("{}: {}", Shown(&path), Reason(e)),
        }
    }
    Ok(recovered)
}

struct Ending<'a> {
    pool: &'a Pool,
    dir: &'a OwnedFd,
    path: &'a Path,
    lock_timeout: Duration,
}

impl Ending<'_> {
    fn end(&self, recovered: &mut RecoveredRuns) -> io::Result<()> {
        let journal = match read_at(self.dir, OsStr::new(JOURNAL), budget::OWN) {
            Ok(journal) => decode(&journal),
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            Err(e) => return Err(e),
        };
        // One name's trouble is that name's: all others are ended, and then the journal stays.
        let mut trouble = None;
        // A journal that was never whole speaks of nothing that was begun.
        if let Some((protect, intents)) = journal {
            let quarantined = self.pool.look_at_quarantine().map_err(io::Error::other)?;
            for family in intents.chunk_by(|a, b| a.object.same_object(&b.object)) {
                let objects = self.pool.inodes_of(&family[0].object).map_err(io::Error::other)?;
                if protect {
                    let damaged =
                        quarantined.iter().filter(|stored| stored.name.same_object(&family[0].object));
                    let files: Vec<PoolFile> = objects.iter().chain(damaged).cloned().collect();
                    let protected =
                        self.pool.protect(&files, PoolProtection::Immutable, self.lock_timeout, 1);
                    let protected = protected.map_err(io::Error::other)?;
                    recovered.protected += protected.files.len() as u64;
                    if let Some(failed) = protected.failed.into_iter().next() {
                        trouble = Some(io::Error::other(failed));
                    }
                }
                for intent in family {
                    if let Err(e) = self.end_one(intent, &objects, recovered) {
                        trouble = Some(io::Error::other(e));
                    }
                }
            }
        }
        if let Some(trouble) = trouble {
            return Err(trouble);
        }
        let objects = OnceCell::new();
        for name in dirfd::names(self.dir)?.into_iter().filter(|name| name != JOURNAL) {
            match self.remove(&name, &objects) {
                Ok(()) => recovered.removed += 1,
                Err(e) => {
                    let path = self.path.join(&name);
                    trouble.get_or_insert_with(|| io::Error::other(FailedPath::new(path, e)));
                }
            }
        }
        if let Some(trouble) = trouble {
            return Err(trouble);
        }
        filesystem::sync(self.dir)?;
        gate::wait_for_late_openers();
        dirfd::remove_file(self.dir, OsStr::new(JOURNAL))
    }

    /// Removes what a killed run has left here. Nothing but regular files is put here; a guest that replaces a name at the
    /// moment in which it is taken can bring about others.
    fn remove(&self, name: &OsStr, objects: &OnceCell<Vec<PoolFile>>) -> io::Result<()> {
        let left = Name { dir: self.dir.as_fd(), name };
        let Some(inode) = left.inode()? else { return Ok(()) };
        match inode.kind {
            Kind::Regular => {}
            Kind::Directory => return Err(io::Error::other(ForeignDirectory)),
            _ => return Ok(left.unlink()?),
        }
        // Only a fault of ours could leave a guest's file here without a journal: its last name is not removed.
        if is_kept(name) && inode.nlink == 1 {
            return Err(io::Error::other("this is the last name of a guest's file"));
        }
        if is_adopted(name) || is_held(name) {
            self.end_adoption(left, is_adopted(name), objects)?;
        }
        swap::unlink_shared(left, self.lock_timeout).map(drop).map_err(io::Error::other)
    }

    /// Takes the mark off a guest's inode that has not become an object, if a run has set it. If it is an object, it gets its
    /// second name before it loses this one.
    fn end_adoption(
        &self,
        name: Name<'_>,
        is_marked_by_us: bool,
        objects: &OnceCell<Vec<PoolFile>>,
    ) -> io::Result<()> {
        let file = name.open()?;
        let inode = Inode::of(&file)?;
        if objects.get().is_none() {
            let looked = self.pool.look_at_all(parallel::processors()).map_err(io::Error::other)?;
            let _ = objects.set(looked);
        }
        let object = objects.get().into_iter().flatten().find(|object| object.inode.id == inode.id);
        match object {
            Some(object) => {
                let shared = Shared::try_lock(file, self.lock_timeout)?;
                self.pool.give_second(object, &shared).map(drop).map_err(io::Error::other)
            }
            None if is_marked_by_us => mark::clear(file),
            None => Ok(()),
        }
    }

    fn end_one(
        &self,
        intent: &LinkIntent,
        objects: &[PoolFile],
        recovered: &mut RecoveredRuns,
    ) -> Result<(), swap::Error> {
        let (temporary, kept) = (temporary(intent.temporary), kept(intent.temporary));
        let temporary = Name { dir: self.dir.as_fd(), name: &temporary };
        let kept = Name { dir: self.dir.as_fd(), name: &kept };
        // A link of an object that has not come to its place.
        let is_waiting = temporary.inode()?.is_some();
        if is_waiting {
            swap::unlink_shared(temporary, self.lock_timeout)?;
        }
        let Some(own) = kept.inode()?.filter(|own| own.kind == Kind::Regular) else {
            // What a guest had put in the name's place, which kept the name.
            self.remove(kept.name, &OnceCell::new())?;
            recovered.rolled_back += u64::from(is_waiting);
            return Ok(());
        };
        let is_done = !is_waiting
            && (self.was_left_alone(intent, kept, &own)? || !self.give_back(intent, kept, objects)?);
        if is_done {
            recovered.completed += 1;
        } else {
            recovered.rolled_back += 1;
        }
        // In a window if need be: its guest may have protected it meanwhile.
        swap::unlink_shared(kept, self.lock_timeout).map(drop)
    }

    /// Whether nobody has changed a guest's own inode since its name was taken.
    fn was_left_alone(&self, intent: &LinkIntent, kept: Name<'_>, own: &Inode) -> io::Result<bool> {
        let file = match kept.open() {
            // Another process has a lease on it: it may write at any time.
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            opened => opened?,
        };
        let quiet = Lease::take(file.as_fd()).map_or(true, |lease| lease.is_some());
        Ok(quiet && (own.size, own.mtime.nanoseconds()) == (intent.size, intent.mtime))
    }

    /// Gives a guest's own inode its name back, if that is the object's still. Tells whether it is.
    fn give_back(
        &self,
        intent: &LinkIntent,
        kept: Name<'_>,
        objects: &[PoolFile],
    ) -> Result<bool, swap::Error> {
        let Ok(dir) = intent.dir.open(self.dir) else { return Ok(false) };
        let name = Name { dir: dir.as_fd(), name: &intent.name };
        let is_object = |inode: &Inode| objects.iter().any(|object| object.inode.id == inode.id);
        let Some(now) = name.inode()?.filter(is_object) else { return Ok(false) };
        let shared = Shared::try_lock_at(name.dir, name.name, self.lock_timeout)?;
        shared.persist(|| kept.displace(name, now.id, None))?;
        Ok(true)
    }
}

/// Why a directory is left in a run's place.
#[derive(Debug, thiserror::Error)]
#[error(
    "this is a directory, which no run makes here: a guest has put it in the place of a file. Move it back to its guest, \
     or remove it"
)]
struct ForeignDirectory;

#[cfg(test)]
mod tests {
    use std::fs::{self, File};

    use super::*;
    use crate::unify::pool::identity::Digest;
    use crate::unify::pool::object::ObjectName;
    use crate::unify::pool::settings::PoolSettings;

    #[test]
    #[ignore = "needs root"]
    fn privileged_the_mark_of_an_adoption_that_was_killed_goes_unless_it_is_an_objects() {
        // Not in /tmp: a tmpfs has no flags.
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let pool = Pool::create(&dir.path().join("pool"), PoolSettings::default()).unwrap();
        let run = pool.path().join("runs/1-0");
        fs::create_dir(&run).unwrap();
        let name = ObjectName { tag: 1, digest: Digest { content: [7; 32], xattrs: 2 }, salt: 0, index: 0 };
        let shelf = pool.path().join("objects/07");
        pool.shelf(7, true).unwrap().unwrap();
        for (number, guest) in ["private", "object", "own"].iter().enumerate() {
            let guest = dir.path().join(guest);
            fs::write(&guest, b"x").unwrap();
            fs::hard_link(&guest, dir.path().join(format!("{number}.again"))).unwrap();
            fs::hard_link(&guest, run.join(number.to_string())).unwrap();
            let keeper = if guest.ends_with("own") { "held" } else { "adopted" };
            fs::hard_link(&guest, run.join(format!("{number}.{keeper}"))).unwrap();
            mark::set(File::open(&guest).unwrap()).unwrap();
        }
        fs::hard_link(dir.path().join("object"), shelf.join(name.file())).unwrap();

        let recovered = recover(&pool, Duration::ZERO).unwrap();
        assert!(recovered.failed.is_empty(), "{:?}", recovered.failed);
        let is_marked = |name: &str| mark::is_set(File::open(dir.path().join(name)).unwrap()).unwrap();
        assert_eq!(["private", "object", "own"].map(is_marked), [false, true, true]);
        let second = Inode::at(File::open(&shelf).unwrap(), &name.second()).unwrap();
        assert_eq!(second.id, Inode::of(File::open(dir.path().join("object")).unwrap()).unwrap().id);
        assert!(!run.exists());
    }
}

//! Removes one guest: asks what speaks against it, sets it aside, takes its names away.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::place::{self, Place, outer};
use super::refusal::{Allowed, Held, Refusal};
use super::survey::{PlacedName, Survey};
use crate::parallel;
use crate::report::{Reason, Shown, Watch, tell_of_prevented_write, warn_of_possible_write};
use crate::state::lock::{Claim, claim};
use crate::sys::file::inode::{Inode, InodeId};
use crate::sys::path::descent::descend;
use crate::sys::process::signal;
use crate::sys::share::gate;
use crate::sys::share::remove::{Gone, Released, Remover, release, unlink_all};
use crate::sys::share::swap::{Name, SHARED_LOCK_TIMEOUT, SwapReport, may_change_immutable};
use crate::unify::care::verify::{Verified, Verifier};
use crate::unify::pass::{pools, running_system};
use crate::unify::pool::directory::Pool;
use crate::unify::pool::protection::PoolProtection;
use crate::unify::pool::{guard, unprotected};
use crate::unify::{Error, FailedPath};

/// How long a guest's hook may keep us waiting before we take its transaction for an open one.
const PATIENCE: Duration = Duration::from_secs(2);

/// As many names go in one window at most, as when they are linked.
const NAMES_PER_WINDOW: usize = 64;

/// Between two moments in which a signal can end this program, as many inodes lose their names.
const INODES_AT_ONCE: usize = 256;

/// After as many names it is tried again to set a guest aside that could not be before.
const NAMES_PER_TRY: u64 = 64;

/// A guest that is to be removed, with all that was found out about it.
#[derive(Debug)]
pub struct Doomed {
    place: Place,
    allowed: Allowed,
    /// What is in it.
    pub survey: Survey,
    _claim: Option<Claim>,
}

/// What removing a guest has come to.
#[derive(Debug, Default)]
pub struct Removed {
    /// Names that are gone, with directories.
    pub names: u64,
    /// Windows that were opened.
    pub windows: u64,
    /// What is still there, and why.
    pub failed: Vec<FailedPath>,
}

impl Doomed {
    /// Asks everything that could speak against removing a guest. While the result lives, its hooks wait, but for a
    /// `dry_run`, which makes no lock file.
    ///
    /// `pools` are those that this host knows.
    ///
    /// # Errors
    /// Nothing was touched.
    pub fn check(
        place: Place,
        pools: &[Pool],
        allowed: Allowed,
        dry_run: bool,
        watch: &dyn Watch,
    ) -> Result<Doomed, Refusal> {
        let path = place.path().to_path_buf();
        if let Some(part) = running_system::part_of(&place.guest) {
            return Err(Refusal::System { path, part });
        }
        let own = place.guest.inode.id;
        if pools.iter().any(|pool| pool.inode().id == own) {
            return Err(Refusal::NoGuest { path, what: "a pool" });
        }
        let seen: Vec<PathBuf> = pools.iter().flat_map(pools::seen).collect();
        place.check_is_guest(&seen)?;
        place.check_parent()?;
        check_use(&place, allowed)?;
        let claim = if dry_run { None } else { claimed(&place, allowed)? };
        let guests = seen.iter().filter_map(|path| Some((place::id(path)?, Held::Guest)));
        let borders = pools.iter().map(|pool| (pool.inode().id, Held::Pool)).chain(guests);
        let survey = Survey::of(&place, borders.filter(|(id, _)| *id != own).collect(), watch)?;
        survey.check(&path, allowed)?;
        if survey.needs_capability() {
            let capable = place.open_directory().and_then(may_change_immutable);
            capable.map_err(|source| Refusal::Capability { path, source })?;
        }
        Ok(Doomed { place, allowed, survey, _claim: claim })
    }

    /// The directory that it lies in, open.
    pub fn parent(&self) -> io::Result<OwnedFd> {
        self.place.parent()
    }

    /// Whether an earlier run has begun to remove it.
    pub fn is_resumed(&self) -> bool {
        self.place.is_aside()
    }

    /// Removes the guest. What cannot be removed is in the result; the next run tries it again.
    ///
    /// # Errors
    /// If it has come into use meanwhile, or cannot get another name. It has the name and all of the files that it had.
    pub fn remove(self, threads: usize, watch: &dyn Watch) -> Result<Removed, Refusal> {
        let Doomed { mut place, allowed, survey, _claim } = self;
        let none = Released::new();
        let released = if allowed.flagged { &survey.flagged_inodes } else { &none };
        let mut removed = Removed::default();
        let directory = begin(&mut place, allowed, released)?;
        watch.begin("removing", survey.names);
        let shared = Shared { place: &place, survey: &survey, released };
        (removed.names, removed.windows) = shared.unlink(threads, watch);
        let mut done = || {
            removed.names += 1;
            watch.add(1, 0);
            if !place.is_aside() && removed.names.is_multiple_of(NAMES_PER_TRY) {
                // There may still be no room for the name.
                let _ = place.set_aside();
            }
        };
        let mut remover = Remover::new(released, &mut done);
        descend(directory, &mut remover);
        let Gone { windows, contested, failed } = remover.end();
        watch.end();
        for (path, report) in contested {
            tell(&outer(place.path(), &path), report);
        }
        removed.windows += windows;
        let failed = failed.into_iter().map(|(path, e)| FailedPath::new(outer(place.path(), &path), e));
        removed.failed.extend(failed);
        if removed.failed.is_empty() {
            match place.remove_directory() {
                Ok(()) => removed.names += 1,
                Err(e) => removed.failed.push(FailedPath::new(place.path().to_path_buf(), e)),
            }
        }
        Ok(removed)
    }
}

/// From here on it is no guest, and nobody who comes by its path finds it. Without room for another name that waits until
/// something is gone.
fn begin(place: &mut Place, allowed: Allowed, released: &Released) -> Result<OwnedFd, Refusal> {
    let path = place.path().to_path_buf();
    let at = |source| Refusal::At { path: path.clone(), source };
    let directory = place.open_directory().map_err(at)?;
    if released.contains_key(&place.guest.inode.id) {
        release(&directory).map_err(at)?;
    }
    let name = match place.set_aside() {
        Err(e) if is_full(&e) => return Ok(directory),
        set_aside => set_aside.map_err(at)?,
    };
    // Who has come since it was looked at last is in it now.
    if let Some(name) = name
        && let Err(refusal) = check_use(place, allowed)
    {
        let aside = place.path().to_path_buf();
        place.rename(name).map_err(at)?;
        return Err(refusal.renamed(&aside, &path));
    }
    Ok(directory)
}

/// Refuses a guest that something is mounted in, and one that is in use.
fn check_use(place: &Place, allowed: Allowed) -> Result<(), Refusal> {
    place.check_mounts()?;
    if allowed.used { Ok(()) } else { place.check_unused() }
}

/// The names of shared inodes that need windows.
struct Shared<'a> {
    place: &'a Place,
    survey: &'a Survey,
    released: &'a Released,
}

impl Shared<'_> {
    /// Removes them. How many are gone, in how many windows; what fails is met again.
    fn unlink(&self, threads: usize, watch: &dyn Watch) -> (u64, u64) {
        let (mut gone, mut windows) = (0, 0);
        for inodes in self.survey.protected.chunks(INODES_AT_ONCE) {
            // A signal does not end the process while a flag is clear. The threads inherit it.
            let _blocked = signal::block();
            let done = parallel::map(threads, inodes, |(inode, names)| {
                let (names, opened) = self.unlink_names(*inode, names);
                watch.add(names, 0);
                (names, opened)
            });
            gone += done.iter().map(|(names, _)| names).sum::<u64>();
            windows += done.iter().map(|(_, opened)| opened).sum::<u64>();
            // Its gates end with this process.
            gate::wait_for_late_openers();
        }
        (gone, windows)
    }

    /// Removes names of one inode.
    fn unlink_names(&self, inode: InodeId, names: &[PlacedName]) -> (u64, u64) {
        let (mut gone, mut windows) = (0, 0);
        for names in names.chunks(NAMES_PER_WINDOW) {
            let opened: Vec<(OwnedFd, &PlacedName)> =
                names.iter().filter_map(|name| Some((self.open_dir(name).ok()?, name))).collect();
            let in_dirs: Vec<Name<'_>> =
                opened.iter().map(|(dir, name)| Name { dir: dir.as_fd(), name: &name.name }).collect();
            match unlink_all(&in_dirs, inode, SHARED_LOCK_TIMEOUT) {
                Ok(report) => {
                    gone += in_dirs.len() as u64;
                    windows += u64::from(report.window);
                    if let Some((_, name)) = opened.first() {
                        tell(&outer(self.place.path(), &self.survey.path_of(name)), report);
                    }
                }
                Err(e) => log::debug!("{}: inode {}: {}", Shown(self.place.path()), inode.ino, Reason(e)),
            }
        }
        (gone, windows)
    }

    /// Opens the directory of a name, whose own flags no longer keep the names in it.
    fn open_dir(&self, name: &PlacedName) -> io::Result<OwnedFd> {
        let dir = self.survey.open_dir(&self.place.guest.root, name)?;
        if !self.released.is_empty() && self.released.contains_key(&Inode::of(&dir)?.id) {
            release(&dir)?;
        }
        Ok(dir)
    }
}

/// Tells of others who were at a shared file in a window.
fn tell(path: &Path, report: SwapReport) {
    if report.leaked {
        warn_of_possible_write(path);
    } else if report.contested {
        tell_of_prevented_write(path);
    }
}

/// Looks at the protection of all that is in a pool, as every pass does, and mends what is amiss: a run that was killed
/// may have left an object without its flag.
pub fn mend(
    pool: &Pool,
    lock_timeout: Duration,
    threads: usize,
    watch: &dyn Watch,
) -> Result<Verified, Error> {
    let files = pool.look_at_all(threads)?;
    let protection = guard::instead(pool, unprotected::protection(pool, &files));
    if protection == PoolProtection::None {
        return Ok(Verified::default());
    }
    Verifier { pool, lock_timeout, threads, watch }.check(&files, protection)
}

/// Keeps the guest's hooks waiting.
fn claimed(place: &Place, allowed: Allowed) -> Result<Option<Claim>, Refusal> {
    match claim(&place.guest.root, PATIENCE) {
        Ok(Claim::Busy) if !allowed.used => Err(Refusal::Busy { path: place.path().to_path_buf() }),
        Ok(claim) => Ok(Some(claim)),
        // There is no room for a lock file that nobody has made yet: no hook has run here.
        Err(e) if is_full(&e) => Ok(None),
        Err(source) => Err(Refusal::At { path: place.path().to_path_buf(), source }),
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

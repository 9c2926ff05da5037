//! Makes the private copies and gives them the names.
//!
//! The order is what makes it safe. Intents are durable before anything else happens; all copies are made and
//! flushed before the first name changes; the originals' flags are flushed before the intents are forgotten. A process
//! that dies anywhere leaves a ledger from which the next one ends every intent as done or undone.

use std::cell::Cell;
use std::collections::hash_map::Entry as Slot;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::io::Errno;

use super::error::Error;
use super::survey::Found;
use crate::inspect::VisibleFence;
use crate::ledger::{Entry, Intent, Ledger, PrivateCopy};
use crate::parallel;
use crate::report::{Reason, Shown, Watch};
use crate::state::hard_links::HardLinks;
use crate::state::store::{STATE_DIR, Store};
use crate::sys::file::handle::Handle;
use crate::sys::file::inode::{Inode, InodeId};
use crate::sys::file::{filesystem, times};
use crate::sys::path::dirfd;
use crate::sys::path::resolve::is_absent;
use crate::sys::path::root::Root;
use crate::sys::process::signal;
use crate::sys::share::copy::Copier;
use crate::sys::share::gate;
use crate::sys::share::swap::{self, Name, Shared};

/// A name that kept its shared inode.
#[derive(Debug, thiserror::Error)]
#[error("{}: {reason}", Shown(path))]
pub struct Failure {
    /// The name.
    pub path: PathBuf,
    /// Why.
    pub reason: String,
    /// Recovery must end this: the shared inode has lost its protection, or other names of it have their copies.
    pub unfinished: bool,
}

/// What detaching came to.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Names that have private copies now.
    pub detached: Vec<PathBuf>,
    /// Bytes written; blocks that are shared do not count.
    pub bytes: u64,
    /// Names that kept the shared inode.
    pub failed: Vec<Failure>,
    /// Names whose shared inode somebody tried to change in the window, in vain.
    pub contested: Vec<PathBuf>,
    /// Names whose shared inode somebody may have changed in the window, or may still change.
    pub leaked: Vec<PathBuf>,
}

impl Outcome {
    /// Notes that recovery has given these names, which had failed, their copies.
    pub fn complete(&mut self, joined: &[PathBuf]) {
        let completed = self.failed.extract_if(.., |failure| joined.contains(&failure.path));
        self.detached.extend(completed.map(|failure| failure.path));
        self.detached.sort_unstable();
    }

    /// Adds what was done otherwise.
    pub fn absorb(&mut self, other: Outcome) {
        self.bytes += other.bytes;
        self.detached.extend(other.detached);
        self.failed.extend(other.failed);
        self.contested.extend(other.contested);
        self.leaked.extend(other.leaked);
        self.detached.sort_unstable();
    }
}

/// How a batch is detached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DetachMode {
    /// Many files, before a run: all filesystems are flushed before the first name changes and after the last.
    Batch,
    /// The names of one file, for a process that waits: its copy's data alone is flushed; the caller keeps the shared inode recorded
    /// until that is. A lock on it may be that process's own, and is not insisted on.
    Single,
}

/// Detaches a batch of unified files.
#[derive(Debug)]
pub struct Detacher<'a> {
    /// The guest.
    pub root: &'a Root,
    /// Its store, locked by the caller.
    pub store: &'a Store,
    /// How long to wait for the lock on one shared inode.
    pub patience: Duration,
    /// Whether the originals stay in the stash.
    pub keep: bool,
    /// How that is done.
    pub mode: DetachMode,
    /// Told of each file as it is copied.
    pub progress: &'a dyn Watch,
}

/// An intent with what its file was when it was surveyed.
struct Job {
    entry: Entry,
    inode: Inode,
    fence: VisibleFence,
}

impl Detacher<'_> {
    /// Gives every file of `unified` a private copy.
    ///
    /// # Errors
    /// A refusal: nothing has changed. What fails later, for one name, is in the outcome.
    pub fn detach(&self, ledger: &mut Ledger, unified: Vec<Found>) -> Result<Outcome, Error> {
        let mut outcome = Outcome::default();
        let crossing = self.batch(ledger, unified, false, &mut outcome)?;
        // A directory the stash cannot be renamed into although it is on the same mount (XFS project quota).
        let paths: Vec<PathBuf> = crossing.iter().map(|found| found.place.path()).collect();
        if !crossing.is_empty()
            && let Err(refusal) = self.batch(ledger, crossing, true, &mut outcome)
        {
            // The others have their copies: too late for a refusal.
            let reason = refusal.to_string();
            let failure = |path| Failure { path, reason: reason.clone(), unfinished: false };
            outcome.failed.extend(paths.into_iter().map(failure));
        }
        outcome.detached.sort_unstable();
        Ok(outcome)
    }

    fn batch(
        &self,
        ledger: &mut Ledger,
        files: Vec<Found>,
        beside: bool,
        outcome: &mut Outcome,
    ) -> Result<Vec<Found>, Error> {
        let intents = self.intents(&files, beside)?;
        let entries = ledger.record(&intents)?;
        let job = |(entry, Found { inode, fence, .. })| Job { entry, inode, fence };
        let jobs: Vec<Job> = entries.into_iter().zip(files).map(job).collect();
        outcome.bytes += match self.copy_all(&jobs).and_then(|bytes| self.sync(&jobs).map(|()| bytes)) {
            Ok(bytes) => bytes,
            Err(refusal) => {
                self.discard(&jobs);
                ledger.forget(&jobs.iter().map(|job| job.entry.id).collect::<Vec<_>>())?;
                return Err(refusal);
            }
        };
        let blocked = signal::block();
        let mut crossing = Vec::new();
        let mut done = Vec::new();
        let mut over = Vec::new();
        let swapped = self.swap_all(&jobs);
        let split = split(&swapped);
        for (job, result) in swapped {
            let path = job.entry.intent.place.path();
            let is_split = split.contains(&job.inode.id);
            match result {
                Ok(Swapped { change, kept, copy }) => {
                    if kept {
                        done.push((job.entry.id, copy))
                    } else if !is_split {
                        over.push(job.entry.id)
                    }
                    if change.leaked {
                        outcome.leaked.push(path.clone());
                    } else if change.contested {
                        outcome.contested.push(path.clone());
                    }
                    outcome.detached.push(path);
                }
                Err(Unswapped::Crossing) => {
                    over.push(job.entry.id);
                    let place = job.entry.intent.place.clone();
                    crossing.push(Found { place, inode: job.inode, fence: job.fence });
                }
                Err(Unswapped::Replaced) => over.push(job.entry.id),
                Err(Unswapped::Failed { reason, unprotected }) => {
                    let unfinished = unprotected || is_split;
                    // Else the entry and the copy stay: recovery has work to do.
                    if !unfinished {
                        self.discard(std::slice::from_ref(job));
                        over.push(job.entry.id);
                    }
                    outcome.failed.push(Failure { path, reason, unfinished });
                }
            }
        }
        // The names have changed: what fails from here on is recovery's to end, not a refusal.
        let durable = self.sync(&jobs).and_then(|()| Ok(ledger.detached(&done, &over)?));
        if self.mode == DetachMode::Batch {
            gate::wait_for_late_openers();
        }
        drop(blocked);
        if let Err(e) = durable {
            log::warn!("{e}; the next run completes this or rolls it back");
        }
        Ok(crossing)
    }

    fn intents(&self, files: &[Found], beside: bool) -> Result<Vec<Intent>, Error> {
        let mut handles: HashMap<InodeId, Option<Vec<u8>>> = HashMap::new();
        let mut dirs = Directories::new(self.root);
        let mut intents = Vec::with_capacity(files.len());
        for Found { place, inode, .. } in files {
            let handle = match handles.get(&inode.id) {
                Some(known) => known.clone(),
                None => {
                    let at = |source| Error::Copy { path: place.path(), source };
                    let dir = dirs.open(&place.dir).map_err(at)?;
                    let handle = Handle::at(dir, &place.name).ok().map(|handle| handle.as_bytes().to_vec());
                    handles.insert(inode.id, handle.clone());
                    handle
                }
            };
            let beside = beside || !self.store.reaches(inode);
            intents.push(Intent {
                place: place.clone(),
                original: inode.id,
                handle,
                immutable: inode.immutable,
                size: inode.size,
                beside,
                keep: self.keep && !beside,
            });
        }
        Ok(intents)
    }

    /// Copies each file once; its further names become links of the copy.
    fn copy_all(&self, jobs: &[Job]) -> Result<u64, Error> {
        let links = match self.mode {
            DetachMode::Batch => HardLinks::read(self.root).inspect_err(|e| {
                log::debug!(
                    "the list of hard links cannot be \
                    updated: {}",
                    Reason(e)
                )
            }),
            DetachMode::Single => Ok(HardLinks::default()),
        };
        let links = links.unwrap_or_default();
        let paths: Vec<PathBuf> = jobs.iter().map(|job| job.entry.intent.place.path()).collect();
        let file = |job: &Job, path| (job.inode.id, links.file(path));
        let mut leaders: HashMap<(InodeId, Option<&Path>), &Job> = HashMap::new();
        let mut by_dir: BTreeMap<&Path, Vec<&Job>> = BTreeMap::new();
        let mut followers = Vec::new();
        for (job, path) in jobs.iter().zip(&paths) {
            match leaders.entry(file(job, path)) {
                Slot::Occupied(_) => followers.push((job, path)),
                Slot::Vacant(slot) => {
                    slot.insert(job);
                    by_dir.entry(&job.entry.intent.place.dir).or_default().push(job);
                }
            }
        }
        let groups: Vec<_> = by_dir.into_iter().collect();
        let mut bytes = 0;
        for copied in parallel::map(parallel::processors(), &groups, |(dir, jobs)| self.copy_in(dir, jobs)) {
            bytes += copied?;
        }
        let mut dirs = Directories::new(self.root);
        for (follower, path) in followers {
            let leader = leaders[&file(follower, path)];
            let at = |source| Error::Copy { path: path.clone(), source };
            let from_dir =
                dirs.open(&leader.entry.intent.place.dir).map_err(at)?.try_clone_to_owned().map_err(at)?;
            let to_dir = dirs.open(&follower.entry.intent.place.dir).map_err(at)?;
            let (from, to) = (leader.entry.temporary(), follower.entry.temporary());
            let from = self.temporary(&leader.entry, from_dir.as_fd(), &from);
            match from.link(self.temporary(&follower.entry, to_dir, &to)) {
                Ok(()) => self.progress.add(1, 0),
                // The leader's name is gone, or a mount or project lies between the two: another copy.
                Err(Errno::NOENT | Errno::XDEV) => {
                    bytes += self.copy_in(&follower.entry.intent.place.dir, &[follower])?;
                    leaders.insert(file(follower, path), follower);
                }
                Err(e) => return Err(at(e.into())),
            }
        }
        Ok(bytes)
    }

    fn copy_in(&self, dir: &Path, jobs: &[&Job]) -> Result<u64, Error> {
        let copier = Copier::default();
        let mut bytes = 0;
        let fail = |name: &Job, source| Error::Copy { path: name.entry.intent.place.path(), source };
        let dir_fd = self.root.open_dir(dir).map_err(|e| fail(jobs[0], e))?;
        let modified = Inode::of(&dir_fd).map(|inode| inode.mtime);
        for job in jobs {
            let copied = self.copy_one(&copier, dir_fd.as_fd(), job).map_err(|e| fail(job, e))?;
            self.progress.add(1, copied);
            bytes += copied;
        }
        if jobs.iter().any(|job| job.entry.intent.beside) {
            let kept = modified.and_then(|modified| times::set_modified(&dir_fd, modified));
            kept.unwrap_or_else(|e| log::debug!("{}: {}", Shown(dir), Reason(e)));
        }
        Ok(bytes)
    }

    fn copy_one(&self, copier: &Copier, dir: BorrowedFd<'_>, job: &Job) -> io::Result<u64> {
        let source = match (Name { dir, name: &job.entry.intent.place.name }).open() {
            // Gone: the swap will see that, too.
            Err(e) if is_absent(&e) => return Ok(0),
            source => source?,
        };
        let now = Inode::of(&source)?;
        if now.id != job.inode.id {
            return Ok(0);
        }
        if !now.same_content_as(&job.inode) {
            return Err(io::Error::other("the file changed while it was examined; try again"));
        }
        let name = job.entry.temporary();
        let to = self.temporary(&job.entry, dir, &name);
        let (copy, bytes) = copier.copy(&source, &now, to.dir, to.name)?;
        // Shared blocks are on disk already.
        if self.mode == DetachMode::Single && bytes > 0 {
            rustix::fs::fdatasync(&copy)?;
        }
        Ok(bytes)
    }

    /// The temporary name of an entry, given the open directory of its place.
    fn temporary<'n>(&'n self, entry: &Entry, dir: BorrowedFd<'n>, name: &'n std::ffi::OsStr) -> Name<'n> {
        Name { dir: if entry.intent.beside { dir } else { self.store.stash() }, name }
    }

    /// Removes the copies of names that keep their inode.
    fn discard(&self, jobs: &[Job]) {
        let mut dirs = Directories::new(self.root);
        for job in jobs {
            let name = job.entry.temporary();
            let removed = if job.entry.intent.beside {
                dirs.open(&job.entry.intent.place.dir).and_then(|dir| dirfd::remove_file(dir, &name))
            } else {
                dirfd::remove_file(self.store.stash(), &name)
            };
            if let Err(e) = removed {
                log::warn!(
                    "{}: the temporary copy could not be removed: {}",
                    Shown(&job.entry.intent.place.path()),
                    Reason(e)
                );
            }
        }
    }

    /// Flushes each filesystem of the batch, in that manner.
    fn sync(&self, jobs: &[Job]) -> Result<(), Error> {
        if self.mode == DetachMode::Single {
            return Ok(());
        }
        let mut done = Vec::new();
        for job in jobs {
            if done.contains(&job.inode.id.dev) {
                continue;
            }
            done.push(job.inode.id.dev);
            let dir = &job.entry.intent.place.dir;
            let at = |source| Error::State { path: dir.clone(), source };
            filesystem::sync(self.root.open_dir(dir).map_err(at)?).map_err(at)?;
        }
        if !done.is_empty() {
            let at = |source| Error::State { path: PathBuf::from(STATE_DIR), source };
            let same = Inode::of(self.store.stash()).map_err(at)?.id.dev;
            if !done.contains(&same) {
                filesystem::sync(self.store.stash()).map_err(at)?;
            }
        }
        Ok(())
    }

    fn swap_all<'j>(&self, jobs: &'j [Job]) -> Vec<(&'j Job, Result<Swapped, Unswapped>)> {
        let mut names: HashMap<InodeId, u32> = HashMap::new();
        let mut by_dir: BTreeMap<&Path, Vec<&Job>> = BTreeMap::new();
        for job in jobs {
            *names.entry(job.inode.id).or_default() += 1;
            by_dir.entry(&job.entry.intent.place.dir).or_default().push(job);
        }
        let groups: Vec<_> = by_dir.into_iter().collect();
        let swapped =
            parallel::map(parallel::processors(), &groups, |(dir, jobs)| match self.root.open_dir(dir) {
                Ok(fd) => {
                    let modified = Inode::of(&fd).map(|inode| inode.mtime);
                    let swap = |job: &&'j Job| (*job, self.swap(fd.as_fd(), job, names[&job.inode.id]));
                    let swapped = jobs.iter().map(swap).collect();
                    // Its names are those it had: so is its time.
                    let kept = modified.and_then(|modified| times::set_modified(&fd, modified));
                    kept.unwrap_or_else(|e| log::debug!("{}: {}", Shown(dir), Reason(e)));
                    swapped
                }
                Err(e) => jobs.iter().map(|job| (*job, Err(Unswapped::from(&e)))).collect::<Vec<_>>(),
            });
        swapped.into_iter().flatten().collect()
    }

    fn swap(&self, dir: BorrowedFd<'_>, job: &Job, names: u32) -> Result<Swapped, Unswapped> {
        let intent = &job.entry.intent;
        let name = Name { dir, name: &intent.place.name };
        let temporary = job.entry.temporary();
        let temporary = self.temporary(&job.entry, dir, &temporary);
        let made = temporary.inode()?.map(|inode| inode.id.ino);
        let result = self.change(name, temporary, job);
        if matches!(result, Err(Unswapped::Replaced | Unswapped::Crossing)) {
            // The copy is of no use.
            let _ = temporary.unlink();
        }
        let (change, kept) = result?;
        // Another process may have given the name away again; then nothing is known of the copy.
        let copy = if kept { name.inode().ok().flatten() } else { None };
        let copy = copy.filter(|inode| Some(inode.id.ino) == made);
        // The inode's ctime is final only when all its names are in place. A process that waits for its copy changes
        // that at once, and the clock of the ctime may not have gone on (`multigrain-ts` in the kernel's documentation).
        let is_final = names == 1 && self.mode == DetachMode::Batch;
        let ctime = |inode: &Inode| is_final.then_some(inode.ctime);
        let copy = copy.map(|inode| PrivateCopy { ino: inode.id.ino, ctime: ctime(&inode) });
        Ok(Swapped { change, kept, copy })
    }

    /// Gives the name its copy. Tells whether the original is kept in the stash.
    fn change(
        &self,
        name: Name<'_>,
        temporary: Name<'_>,
        job: &Job,
    ) -> Result<(swap::SwapReport, bool), Unswapped> {
        let shared = match Shared::try_lock_at(name.dir, name.name, self.patience) {
            Ok(shared) => shared,
            Err(e) if is_absent(&e) => return Err(Unswapped::Replaced),
            Err(e) => return Err(Unswapped::from(&e)),
        };
        // Asked of the name, not only of what was opened by it: the lock may have taken a while to get.
        let now = name.inode()?.filter(|inode| inode.id == job.inode.id);
        let Some(now) = now.filter(|now| shared.inode().is_ok_and(|opened| opened.id == now.id)) else {
            return Err(Unswapped::Replaced);
        };
        if !now.same_content_as(&job.inode) {
            return Err(Unswapped::from(&io::Error::other(
                "another process wrote to the file while it was copied; try again",
            )));
        }
        let stashed = job.entry.stashed();
        let stashed = Name { dir: self.store.stash(), name: &stashed };
        let kept = Cell::new(job.entry.intent.keep);
        let change = shared.persist(|| {
            match temporary.displace(name, job.inode.id, Some(stashed).filter(|_| kept.get())) {
                // An inode that can have no more names: it is not kept, and the host unifies what comes of this name.
                Err(Errno::MLINK) if kept.replace(false) => temporary.displace(name, job.inode.id, None),
                displaced => displaced,
            }
        });
        change.map(|change| (change, kept.get())).map_err(|e| match e {
            swap::Error::Unchanged(e) if matches!(e.raw_os_error(), Some(libc::ESTALE | libc::ENOENT)) => {
                Unswapped::Replaced
            }
            swap::Error::Unchanged(e)
                if e.raw_os_error() == Some(libc::EXDEV) && !job.entry.intent.beside =>
            {
                Unswapped::Crossing
            }
            swap::Error::Unchanged(e) => Unswapped::from(&e),
            swap::Error::Unprotected(_) => {
                Unswapped::Failed { reason: Reason(e).to_string(), unprotected: true }
            }
        })
    }
}

/// The inodes that have names with a copy and names that have failed.
///
/// These may be names of one file, which would be two files then.
fn split(swapped: &[(&Job, Result<Swapped, Unswapped>)]) -> HashSet<InodeId> {
    let of = |wanted: fn(&Result<Swapped, Unswapped>) -> bool| -> HashSet<InodeId> {
        swapped.iter().filter(|(_, result)| wanted(result)).map(|(job, _)| job.inode.id).collect()
    };
    let failed = of(|result| matches!(result, Err(Unswapped::Failed { .. })));
    &of(Result::is_ok) & &failed
}

/// A name that has its private copy.
struct Swapped {
    change: swap::SwapReport,
    /// The stash holds the original.
    kept: bool,
    copy: Option<PrivateCopy>,
}

/// A name that has not.
enum Unswapped {
    /// It names another file by now: not ours to judge.
    Replaced,
    /// The stash is out of reach of a rename.
    Crossing,
    /// It still names the shared inode.
    Failed { reason: String, unprotected: bool },
}

impl From<&io::Error> for Unswapped {
    fn from(e: &io::Error) -> Unswapped {
        Unswapped::Failed { reason: Reason(e).to_string(), unprotected: false }
    }
}

impl From<io::Error> for Unswapped {
    fn from(e: io::Error) -> Unswapped {
        Unswapped::from(&e)
    }
}

/// Keeps the last directory open: neighbours come one after the other.
struct Directories<'a> {
    root: &'a Root,
    last: Option<(PathBuf, OwnedFd)>,
}

impl<'a> Directories<'a> {
    fn new(root: &'a Root) -> Directories<'a> {
        Directories { root, last: None }
    }

    fn open(&mut self, path: &Path) -> io::Result<BorrowedFd<'_>> {
        if self.last.as_ref().is_none_or(|(last, _)| last != path) {
            self.last = Some((path.to_path_buf(), self.root.open_dir(path)?));
        }
        match &self.last {
            Some((_, fd)) => Ok(fd.as_fd()),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }
}

//! Makes equal files names of one inode.
//!
//! A batch at a time: the pool's fresh copies are made and their content compared with what was read; then the journal and the
//! copies are flushed; only then do names change. A link of the object takes the place of each name, so that it
//! names one or the other at every moment; the guest's own inode keeps a name in the run's directory, is looked at again
//! before it is let go, and has its name back if a writer has come.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use rustix::io::Errno;

use super::plan::Work;
use super::room::is_exhaustion;
use super::window::Link;
use crate::parallel;
use crate::report::Reason;
use crate::sys::file::handle::Handle;
use crate::sys::file::inode::Inode;
use crate::sys::file::traits::Traits;
use crate::sys::file::{extents, filesystem, times, xattr};
use crate::sys::process::signal;
use crate::sys::share::copy::Copier;
use crate::sys::share::swap::{self, Name, Shared};
use crate::sys::share::{gate, iunlink};
use crate::unify::pool::directory::{Pool, Share};
use crate::unify::pool::object::ObjectName;
use crate::unify::pool::run::{Intent, Run, temporary};
use crate::unify::scan::catalog::{Catalog, Unfit};
use crate::unify::scan::digest::{Dirs, is_gone, is_same, take_lease};
use crate::unify::{At, Error};

/// Names linked in one window, at most: somebody may wait for its end.
const WINDOW: usize = 64;
/// Names changed before the directories get their times back.
const SLICE: usize = 4096;

/// How shared inodes are fenced on this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fence {
    /// `+i`.
    Immutable,
    /// Linux-VServer's "immutable, but may be unlinked".
    Iunlink,
    /// Nothing.
    None,
}

impl Fence {
    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Fence::Immutable => "immutable",
            Fence::Iunlink => "iunlink",
            Fence::None => "none",
        }
    }

    /// Fences a shared inode.
    pub(crate) fn set(self, shared: &Shared) -> io::Result<()> {
        match self {
            Fence::Immutable => shared.protect(),
            Fence::Iunlink => iunlink::set(shared),
            Fence::None => Ok(()),
        }
    }
}

/// What linking came to.
#[derive(Debug, Default)]
pub struct Linked {
    /// Names that are names of an object now: guest and path, by their places in the catalog's files.
    pub names: Vec<u32>,
    /// Objects made.
    pub objects: u64,
    /// Bytes written to the pool; blocks that are shared do not count.
    pub copied: u64,
    /// Bytes of disk that the files took whose names are an object's now.
    pub freed: u64,
    /// Bytes of disk that the new objects take.
    pub taken: u64,
    /// Names that have the blocks of their object already.
    pub known: Vec<u32>,
    /// Names that stay as they are for now.
    pub left: Vec<(u32, Unfit)>,
    /// Work that may go better when other work is done.
    pub postponed: Vec<Postponed>,
    /// Names that could not be linked, with the reason.
    pub failed: Vec<(PathBuf, String)>,
    /// Windows in which somebody tried in vain to write.
    pub contested: u64,
    /// Objects that somebody may have written to, or still may: they want verification.
    pub leaked: Vec<ObjectName>,
    /// Something was left half way: the journal tells recovery what.
    pub unfinished: bool,
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
    pub(crate) fn postponed(works: usize, reason: &io::Error) -> Linked {
        let reason = || reason.raw_os_error().map_or(reason.kind().into(), io::Error::from_raw_os_error);
        let postponed = (0..works).map(|work| Postponed { work, reason: reason() }).collect();
        Linked { postponed, ..Linked::default() }
    }

    pub(crate) fn absorb(&mut self, other: Linked) {
        self.names.extend(other.names);
        self.objects += other.objects;
        self.copied += other.copied;
        self.freed += other.freed;
        self.taken += other.taken;
        self.postponed.extend(other.postponed);
        self.known.extend(other.known);
        self.left.extend(other.left);
        self.failed.extend(other.failed);
        self.contested += other.contested;
        self.leaked.extend(other.leaked);
        self.unfinished |= other.unfinished;
    }
}

/// A fresh copy.
struct Copied {
    /// Its name in the run's directory.
    name: OsString,
    /// Bytes written for it.
    bytes: u64,
    /// Bytes of disk that it takes, its own or not.
    allocated: u64,
}

/// Links one catalog's files.
pub struct Linker<'a> {
    /// The pool.
    pub pool: &'a Pool,
    /// This run's place in it.
    pub run: &'a Run<'a>,
    /// The files.
    pub catalog: &'a Catalog,
    /// How objects are fenced.
    pub fence: Fence,
    /// How long to wait for the lock on one object.
    pub patience: Duration,
    /// How many threads link.
    pub threads: usize,
    /// Told of each name that is done, and of bytes copied.
    pub done: &'a (dyn Fn(u64, u64) + Sync),
}

/// Work whose fresh object, if it needed one, has been copied.
struct Job<'w> {
    work: &'w Work,
    /// The place of the work among all.
    at: usize,
    /// What is to be its object.
    copy: Option<Copied>,
    /// First number of the temporary names, one for each name of the work.
    first: u64,
}

impl Linker<'_> {
    /// Links a batch.
    ///
    /// # Errors
    /// Where nothing more can be done at all: no room, no journal. What was linked stays so.
    pub fn link(&self, works: &[Work]) -> Result<Linked, Error> {
        let mut linked = Linked::default();
        let mut jobs = Vec::new();
        let made = parallel::map(self.threads, works, |work| self.prepare(work));
        for ((at, work), made) in works.iter().enumerate().zip(made) {
            let copy = match made {
                Ok(Ok(copy)) => copy,
                Ok(Err(unfit)) => {
                    linked.left.extend(work.names.iter().map(|&at| (at, unfit)));
                    continue;
                }
                Err(reason) if is_exhaustion(&reason) => {
                    linked.postponed.push(Postponed { work: at, reason });
                    continue;
                }
                Err(e) => {
                    self.fail(&work.names, &e, &mut linked);
                    continue;
                }
            };
            jobs.push(Job { work, at, copy, first: self.run.numbers(work.names.len()) });
        }
        let hardlinks = self.pool.settings.share == Share::Hardlink;
        let intents = if hardlinks { self.intents(&jobs) } else { Vec::new() };
        self.run.record(self.fence == Fence::Immutable, &intents).at(self.pool.path())?;
        filesystem::sync(self.pool.runs()).at(self.pool.path())?;
        let blocked = signal::block();
        let mut slice: Vec<&Job<'_>> = Vec::new();
        let mut names = 0;
        for job in &jobs {
            names += job.work.names.len();
            slice.push(job);
            if names >= SLICE {
                linked.absorb(self.slice(&slice));
                slice.clear();
                names = 0;
            }
        }
        linked.absorb(self.slice(&slice));
        filesystem::sync(self.pool.runs()).at(self.pool.path())?;
        gate::wait_for_late_openers();
        if !linked.unfinished {
            self.run.forget().at(self.pool.path())?;
        }
        drop(blocked);
        Ok(linked)
    }

    /// Copies a file of the work into the pool, unless the object is there.
    fn prepare(&self, work: &Work) -> io::Result<Result<Option<Copied>, Unfit>> {
        if work.existing.is_some() {
            return Ok(Ok(None));
        }
        let mut reason = Unfit::Changed;
        let mut dirs = Dirs::new(self.catalog);
        let mut inodes: Vec<&[u32]> = work.inodes(self.catalog).collect();
        // Of equal files, one may have holes.
        inodes.sort_by_key(|names| self.catalog.files[names[0] as usize].allocated);
        for names in inodes {
            let file = &self.catalog.files[names[0] as usize];
            let source = match dirs.file(file) {
                Err(e) if is_gone(&e) => continue,
                source => source?,
            };
            let inode = Inode::of(&source)?;
            if !is_same(&inode, file) {
                continue;
            }
            if take_lease(&source)?.is_none() {
                reason = Unfit::Writer;
                continue;
            }
            if self.pool.settings.share == Share::Reflink && extents::of(&source)?.is_empty() {
                reason = Unfit::Inline;
                continue;
            }
            match self.copy(&source, &inode, work) {
                Ok(Ok(copied)) => return Ok(Ok(Some(copied))),
                Ok(Err(unfit)) => reason = unfit,
                Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => {}
                Err(e) => return Err(e),
            }
        }
        Ok(Err(reason))
    }

    /// Copies a file into the run's directory, and compares the copy with what was read.
    fn copy(&self, source: &OwnedFd, inode: &Inode, work: &Work) -> io::Result<Result<Copied, Unfit>> {
        let name = temporary(self.run.numbers(1));
        let (copy, bytes) = Copier::default().copy(source, inode, self.run.dir(), &name)?;
        if work.object.describes(&copy, self.pool.settings.mtime)? {
            (self.done)(0, bytes);
            return Ok(Ok(Copied { name, bytes, allocated: Inode::of(&copy)?.allocated }));
        }
        Name { dir: self.run.dir(), name: &name }.unlink()?;
        let lost = Traits::of(&copy)? != Traits::of(source)?;
        Ok(Err(if lost { Unfit::Flags } else { Unfit::Changed }))
    }

    fn intents(&self, jobs: &[Job<'_>]) -> Vec<Intent> {
        let mut handles: BTreeMap<u32, Option<Handle>> = BTreeMap::new();
        let mut intents = Vec::new();
        for job in jobs {
            let numbers = job.first..;
            for (&at, number) in job.work.names.iter().zip(numbers) {
                let file = &self.catalog.files[at as usize];
                let handle = handles
                    .entry(file.dir)
                    .or_insert_with(|| Handle::of(self.catalog.open_dir(self.catalog.dir(file)).ok()?).ok());
                intents.push(Intent {
                    temporary: number,
                    object: job.work.object,
                    // Without one the guest's own inode cannot be given back to a writer after a kill.
                    dir: handle.clone().unwrap_or_else(|| Handle::from_bytes(&[])),
                    name: self.catalog.name(file).to_os_string(),
                    ino: file.ino,
                    size: file.size,
                    mtime: file.mtime,
                });
            }
        }
        intents
    }

    /// Links some jobs; then their directories have the times they had.
    fn slice(&self, jobs: &[&Job<'_>]) -> Linked {
        // Names change only where inodes are shared.
        let renames = self.pool.settings.share == Share::Hardlink;
        let files = jobs.iter().filter(|_| renames).flat_map(|job| &job.work.names);
        let dirs: BTreeSet<u32> = files.map(|&at| self.catalog.files[at as usize].dir).collect();
        let dirs: Vec<u32> = dirs.into_iter().collect();
        let open = |dir: u32| self.catalog.open_dir(&self.catalog.dirs[dir as usize]);
        let modified =
            parallel::map(self.threads, &dirs, |&dir| Inode::of(open(dir)?).map(|inode| inode.mtime));
        let chunks: Vec<&[&Job<'_>]> = jobs.chunks(32).collect();
        let mut linked = Linked::default();
        for part in parallel::map(self.threads, &chunks, |chunk| {
            let mut dirs = Dirs::new(self.catalog);
            let mut part = Linked::default();
            for job in *chunk {
                self.work(job, &mut dirs, &mut part);
            }
            part
        }) {
            linked.absorb(part);
        }
        let dirs: Vec<_> = dirs.iter().zip(&modified).collect();
        parallel::map(self.threads, &dirs, |(dir, modified)| {
            // A directory that has gone meanwhile needs no time.
            if let (Ok(modified), Ok(fd)) = (modified, open(**dir)) {
                times::set_modified(fd, *modified).unwrap_or_else(|e| log::debug!("{}", Reason(e)));
            }
        });
        linked
    }

    fn work(&self, job: &Job<'_>, dirs: &mut Dirs<'_>, linked: &mut Linked) {
        let inodes: Vec<&[u32]> = job.work.inodes(self.catalog).collect();
        let mut done = 0;
        match self.try_work(job, &inodes, dirs, linked, &mut done) {
            Err(swap::Error::Unchanged(reason)) if done == 0 && is_exhaustion(&reason) => {
                linked.unfinished = true;
                linked.postponed.push(Postponed { work: job.at, reason });
                return;
            }
            Err(e) => {
                linked.unfinished = true;
                inodes[done..].iter().for_each(|names| self.fail(names, &e, linked));
            }
            Ok(()) => {}
        }
        if let Some(Copied { bytes, allocated, .. }) = job.copy {
            linked.objects += 1;
            linked.copied += bytes;
            // Those of a copy that shares blocks are counted with what it shares.
            linked.taken += if self.pool.settings.share == Share::Hardlink { allocated } else { 0 };
        }
        (self.done)(job.work.names.len() as u64, 0);
    }

    /// Notes that names stay as they are, and why.
    pub(super) fn fail(&self, names: &[u32], error: &(dyn std::error::Error + 'static), linked: &mut Linked) {
        let reason = Reason(error).to_string();
        linked.failed.extend(names.iter().map(|&at| (self.outer_path(at), reason.clone())));
    }

    /// `done` counts the inodes whose fate is in `linked`.
    fn try_work(
        &self,
        job: &Job<'_>,
        inodes: &[&[u32]],
        dirs: &mut Dirs<'_>,
        linked: &mut Linked,
        done: &mut usize,
    ) -> Result<(), swap::Error> {
        let (mut object, mut fresh) = match &job.copy {
            Some(copy) => self.publish(job.work.object, &copy.name)?,
            None => (job.work.object, false),
        };
        if self.pool.settings.share == Share::Reflink {
            *done = inodes.len();
            return self.share(job.work, &object, dirs, linked);
        }
        let mut shelf = self.open_shelf(&object)?;
        let mut shared = Shared::try_lock_at(&shelf, &object.file(), self.patience)?;
        if self.fence != Fence::None && !shared.inode()?.immutable {
            if !fresh {
                // Who knows what it is by now: nobody gets it before it has been read again.
                *done = inodes.len();
                linked.left.extend(job.work.names.iter().map(|&at| (at, Unfit::Unprotected)));
                return Ok(());
            }
            self.fence.set(&shared)?;
        }
        // Protection keeps nobody out who has opened it before.
        if self.fence != Fence::None && !fresh && take_lease(&shared)?.is_none() {
            *done = inodes.len();
            linked.left.extend(job.work.names.iter().map(|&at| (at, Unfit::Unprotected)));
            return Ok(());
        }
        let mut number = job.first;
        while *done < inodes.len() {
            let rest = &inodes[*done..];
            let mut names = 0;
            let fits = |inode: &&&[u32]| {
                names += inode.len();
                names <= WINDOW
            };
            let chunk = &rest[..rest.iter().take_while(fits).count().max(1)];
            let own = chunk
                .iter()
                .map(|names| dirs.file(&self.catalog.files[names[0] as usize]))
                .collect::<Vec<_>>();
            let link = Link {
                linker: self,
                object: &object,
                shared: &shared,
                shelf: &shelf,
                inode: shared.inode()?,
                attributes: xattr::read(&shared)?,
                fresh,
                unfinished: Cell::new(false),
            };
            let settled = link.chunk(chunk, &own, number, dirs, linked)?;
            // The object has been compared with a guest's file now.
            fresh = true;
            number += chunk[..settled].iter().map(|names| names.len() as u64).sum::<u64>();
            *done += settled;
            if settled < chunk.len() {
                object = self.successor(&object, &shared)?;
                shelf = self.open_shelf(&object)?;
                shared = Shared::try_lock_at(&shelf, &object.file(), self.patience)?;
                linked.objects += 1;
            }
        }
        Ok(())
    }

    pub(super) fn outer_path(&self, at: u32) -> PathBuf {
        self.catalog.outer_path(&self.catalog.files[at as usize])
    }

    pub(super) fn open_shelf(&self, object: &ObjectName) -> io::Result<OwnedFd> {
        self.pool.shelf(object.shelf(), true)?.ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// Gives a copy its name among the objects, and fences it before any guest sees it. `false` where another run has
    /// been faster.
    fn publish(&self, object: ObjectName, copy: &OsString) -> Result<(ObjectName, bool), swap::Error> {
        let shelf = self.open_shelf(&object)?;
        let file = object.file();
        let (copy, name) =
            (Name { dir: self.run.dir(), name: copy }, Name { dir: shelf.as_fd(), name: &file });
        let fresh = match copy.link(name) {
            Ok(()) => true,
            Err(Errno::EXIST) => false,
            Err(e) => return Err(io::Error::from(e).into()),
        };
        copy.unlink().map_err(io::Error::from)?;
        if fresh && self.fence != Fence::None {
            self.fence.set(&Shared::try_lock_at(name.dir, name.name, self.patience)?)?;
        }
        Ok((object, fresh))
    }

    /// A further inode of an object that can have no more links.
    fn successor(&self, object: &ObjectName, full: &Shared) -> Result<ObjectName, swap::Error> {
        let name = temporary(self.run.numbers(1));
        let source = full.as_fd().try_clone_to_owned()?;
        let (copy, _) = Copier::default().copy(&source, &full.inode()?, self.run.dir(), &name)?;
        if !object.describes(&copy, self.pool.settings.mtime)? {
            Name { dir: self.run.dir(), name: &name }.unlink().map_err(io::Error::from)?;
            return Err(io::Error::other("the pool's object is damaged; `cow-unify verify` tells").into());
        }
        filesystem::sync(self.run.dir())?;
        let next = ObjectName { index: object.index + 1, ..*object };
        self.publish(next, &name).map(|(object, _)| object)
    }
}

//! Makes equal files names of one inode.
//!
//! A batch at a time: the pool's fresh copies are made and their content compared with what was read; then the journal and the
//! copies are flushed; only then do names change. A link of the object takes the place of each name, so that it
//! names one or the other at every moment; the guest's own inode keeps a name in the run's directory, is looked at again
//! before it is let go, and has its name back if a writer has come.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use super::adopt::{Adopted, Adoption};
use super::dedupe::share;
use super::linked::{ChangedDir, Linked, Postponed};
use super::linker::Linker;
use super::plan::Work;
use super::space::is_exhaustion;
use super::window::LinkWindow;
use crate::parallel;
use crate::report::Reason;
use crate::sys::file::handle::Handle;
use crate::sys::file::inode::Inode;
use crate::sys::file::traits::Traits;
use crate::sys::file::{extents, filesystem, times, xattr};
use crate::sys::process::signal;
use crate::sys::share::gate;
use crate::sys::share::swap;
use crate::unify::pool::journal::LinkIntent;
use crate::unify::pool::protection::PoolProtection;
use crate::unify::pool::publish::Copied;
use crate::unify::pool::second;
use crate::unify::pool::settings::Sharing;
use crate::unify::scan::catalog::{Catalog, DirIndex, FileIndex};
use crate::unify::scan::digest::{OpenDirs, is_gone, is_same, take_lease};
use crate::unify::scan::not_unified::NotUnified;
use crate::unify::{At, Error, SharedError};

/// Names linked in one window, at most: somebody may wait for its end.
const NAMES_PER_WINDOW: usize = 64;
/// Names changed before the directories get their times back.
const NAMES_PER_SLICE: usize = 4096;

/// Work whose fresh object, if it needed one, has been copied.
struct Job<'w> {
    work: &'w Work,
    /// The place of the work among all.
    at: usize,
    /// What is to be its object.
    copy: Option<Copied>,
    adoption: Adoption,
    /// First number of the temporary names, one for each name of the work.
    first: u64,
}

impl Job<'_> {
    /// The names of each inode that is to give way to the object.
    fn inodes<'j>(&'j self, catalog: &'j Catalog) -> impl Iterator<Item = &'j [FileIndex]> {
        let adopted = self.adoption.first();
        self.work.inodes(catalog).filter(move |names| Some(names[0]) != adopted)
    }
}

impl Linker<'_> {
    /// Links a batch.
    ///
    /// # Errors
    /// If nothing more can be done at all: no room, no journal. What was linked stays so.
    pub fn link(&self, works: &[Work]) -> Result<Linked, Error> {
        let mut linked = Linked::default();
        let mut jobs = Vec::new();
        let adoptions = self.adopt(works);
        let tried: Vec<(&Work, &Adoption)> = works.iter().zip(&adoptions).collect();
        let made = parallel::map(self.threads, &tried, |(work, adoption)| self.prepare(work, adoption));
        for (((at, work), adoption), made) in works.iter().enumerate().zip(adoptions).zip(made) {
            let copy = match made {
                Ok(Ok(copy)) => copy,
                Ok(Err(not_unified)) => {
                    linked.left.extend(work.names.iter().map(|&at| (at, not_unified)));
                    continue;
                }
                Err(reason) if is_exhaustion(&reason) => {
                    linked.postponed.push(Postponed { work: at, reason });
                    continue;
                }
                Err(e) => {
                    self.fail(&work.names, &(Arc::new(e) as SharedError), &mut linked);
                    continue;
                }
            };
            jobs.push(Job { work, at, copy, adoption, first: self.run().numbers(work.names.len()) });
        }
        let hardlinks = self.pool().settings.share == Sharing::Hardlink;
        let intents = if hardlinks { self.intents(&jobs) } else { Vec::new() };
        self.run()
            .record(self.publisher.protection == PoolProtection::Immutable, &intents)
            .at(self.pool().path())?;
        filesystem::sync(self.pool().runs()).at(self.pool().path())?;
        let blocked = signal::block();
        let mut slice: Vec<&Job<'_>> = Vec::new();
        let mut names = 0;
        for job in &jobs {
            names += job.work.names.len();
            slice.push(job);
            if names >= NAMES_PER_SLICE {
                linked.absorb(self.slice(&slice));
                slice.clear();
                names = 0;
            }
        }
        linked.absorb(self.slice(&slice));
        filesystem::sync(self.pool().runs()).at(self.pool().path())?;
        gate::wait_for_late_openers();
        if !linked.unfinished {
            self.run().forget().at(self.pool().path())?;
        }
        drop(blocked);
        Ok(linked)
    }

    /// Copies a file of the work into the pool, unless the object is there or one of the files is to be it.
    fn prepare(&self, work: &Work, adoption: &Adoption) -> io::Result<Result<Option<Copied>, NotUnified>> {
        if work.existing.is_some() {
            return Ok(Ok(None));
        }
        if let Adoption::Adopted(adopted) = adoption {
            return Ok(Ok(Some(adopted.copied())));
        }
        let mut reason = NotUnified::Changed;
        let mut dirs = OpenDirs::new(self.catalog);
        let mut inodes: Vec<&[FileIndex]> = work.inodes(self.catalog).collect();
        // Of equal files, one may have holes.
        inodes.sort_by_key(|names| self.catalog[names[0]].allocated);
        for names in inodes {
            let file = &self.catalog[names[0]];
            let source = match dirs.file(file) {
                Err(e) if is_gone(&e) => continue,
                source => source?,
            };
            let inode = Inode::of(&source)?;
            if !is_same(&inode, &adoption.expected(self.catalog, names[0])) {
                continue;
            }
            if take_lease(&source)?.is_none() {
                reason = NotUnified::Writer;
                continue;
            }
            if self.pool().settings.share == Sharing::Reflink && extents::of(&source)?.is_empty() {
                reason = NotUnified::Inline;
                continue;
            }
            match self.publisher.copy(&source, &inode, &work.object) {
                Ok(Ok(copied)) => {
                    (self.done)(0, copied.bytes);
                    return Ok(Ok(Some(copied)));
                }
                Ok(Err(copy)) => {
                    let lost = Traits::of(&copy)? != Traits::of(&source)?;
                    reason = if lost { NotUnified::Flags } else { NotUnified::Changed };
                }
                Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => {}
                Err(e) => return Err(e),
            }
        }
        Ok(Err(reason))
    }

    fn intents(&self, jobs: &[Job<'_>]) -> Vec<LinkIntent> {
        let mut handles: BTreeMap<DirIndex, Option<Handle>> = BTreeMap::new();
        let mut intents = Vec::new();
        for job in jobs {
            let numbers = job.first..;
            for (&at, number) in job.inodes(self.catalog).flatten().zip(numbers) {
                let file = &self.catalog[at];
                let handle = handles
                    .entry(file.dir)
                    .or_insert_with(|| Handle::of(self.catalog.open_dir(self.catalog.dir(file)).ok()?).ok());
                intents.push(LinkIntent {
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
        // Names change only if inodes are shared.
        let renames = self.pool().settings.share == Sharing::Hardlink;
        let files = jobs.iter().filter(|_| renames).flat_map(|job| &job.work.names);
        let dirs: BTreeSet<DirIndex> = files.map(|&at| self.catalog[at].dir).collect();
        let dirs: Vec<DirIndex> = dirs.into_iter().collect();
        let open = |dir: DirIndex| self.catalog.open_dir(&self.catalog[dir]);
        let before = parallel::map(self.threads, &dirs, |&dir| Inode::of(open(dir)?));
        let chunks: Vec<&[&Job<'_>]> = jobs.chunks(32).collect();
        let mut linked = Linked::default();
        for part in parallel::map(self.threads, &chunks, |chunk| {
            let mut dirs = OpenDirs::new(self.catalog);
            let mut part = Linked::default();
            for job in *chunk {
                if signal::is_asked_to_end() {
                    part.unfinished = true;
                    part.postponed
                        .push(Postponed { work: job.at, reason: io::ErrorKind::Interrupted.into() });
                } else {
                    self.work(job, &mut dirs, &mut part);
                }
            }
            part
        }) {
            linked.absorb(part);
        }
        let dirs: Vec<_> = dirs.into_iter().zip(before).collect();
        linked.dirs.extend(parallel::map(self.threads, &dirs, |(dir, before)| {
            let Ok(Inode { mtime, ctime, .. }) = before else {
                return ChangedDir { dir: *dir, before: 0, after: 0 };
            };
            // A directory that has gone meanwhile needs no time.
            let after = open(*dir).and_then(|fd| {
                times::set_modified(&fd, *mtime).unwrap_or_else(|e| log::debug!("{}", Reason(e)));
                Ok(Inode::of(&fd)?.ctime.nanoseconds())
            });
            ChangedDir { dir: *dir, before: ctime.nanoseconds(), after: after.unwrap_or(0) }
        }));
        linked
    }

    fn work(&self, job: &Job<'_>, dirs: &mut OpenDirs<'_>, linked: &mut Linked) {
        let inodes: Vec<&[FileIndex]> = job.inodes(self.catalog).collect();
        let mut done = 0;
        match self.try_work(job, &inodes, dirs, linked, &mut done) {
            Err(swap::Error::Unchanged(reason)) if done == 0 && is_exhaustion(&reason) => {
                linked.unfinished = true;
                linked.postponed.push(Postponed { work: job.at, reason });
                return;
            }
            Err(e) => {
                linked.unfinished = true;
                let e: SharedError = Arc::new(e);
                inodes[done..].iter().for_each(|names| self.fail(names, &e, linked));
            }
            Ok(()) => {}
        }
        if let Some(Copied { bytes, allocated, .. }) = job.copy {
            linked.objects += 1;
            linked.copied += bytes;
            // Those of a copy that shares blocks are counted with what it shares.
            linked.taken += if self.pool().settings.share == Sharing::Hardlink { allocated } else { 0 };
        }
        (self.done)(job.work.names.len() as u64, 0);
    }

    /// `done` counts the inodes whose settlement is in `linked`.
    fn try_work(
        &self,
        job: &Job<'_>,
        inodes: &[&[FileIndex]],
        dirs: &mut OpenDirs<'_>,
        linked: &mut Linked,
        done: &mut usize,
    ) -> Result<(), swap::Error> {
        let mut object = job.work.object;
        let mut fresh = match &job.copy {
            Some(copy) => self.publisher.publish(&object, &copy.name)?,
            None => false,
        };
        if self.pool().settings.share == Sharing::Reflink {
            *done = inodes.len();
            return share(self, job.work, &object, dirs, linked);
        }
        if let Adoption::Adopted(adopted) = &job.adoption
            && !self.note_adopted(adopted, fresh, job, linked)
        {
            *done = inodes.len();
            return Ok(());
        }
        let mut shelf = self.publisher.open_shelf(&object)?;
        let mut shared = self.publisher.lock(&shelf, &object)?;
        let mut inode = shared.inode()?;
        let mut held = second::is_there(&shelf, &object, inode.id)?;
        if !self.publisher.protection.protects(&shared, &inode, held)? {
            if !fresh {
                // Who knows what it is by now: nobody gets it before it has been read again.
                *done = inodes.len();
                linked.left.extend(job.work.names.iter().map(|&at| (at, NotUnified::Unprotected)));
                return Ok(());
            }
            self.publisher.protection.set(&shared)?;
        }
        // Protection keeps nobody out who has opened it before.
        if self.publisher.protection != PoolProtection::None && !fresh && take_lease(&shared)?.is_none() {
            *done = inodes.len();
            linked.left.extend(job.work.names.iter().map(|&at| (at, NotUnified::Unprotected)));
            return Ok(());
        }
        let mut number = job.first;
        while *done < inodes.len() {
            // The next run goes on; this one keeps what it has recorded.
            if signal::is_asked_to_end() {
                return Err(io::Error::from(io::ErrorKind::Interrupted).into());
            }
            let rest = &inodes[*done..];
            let mut names = 0;
            let fits = |inode: &&&[FileIndex]| {
                names += inode.len();
                names <= NAMES_PER_WINDOW
            };
            let chunk = &rest[..rest.iter().take_while(fits).count().max(1)];
            let own = chunk
                .iter()
                .map(|names| dirs.file(&self.catalog[names[0]]).map_err(Arc::new))
                .collect::<Vec<_>>();
            let link = LinkWindow {
                linker: self,
                object: &object,
                shared: &shared,
                shelf: &shelf,
                inode,
                held,
                attributes: xattr::read(&shared)?,
                adoption: &job.adoption,
                fresh,
                unread: job.work.unread,
                unfinished: Cell::new(false),
            };
            let settled = link.chunk(chunk, &own, number, dirs, linked)?;
            // The object has been compared with a guest's file now.
            fresh = true;
            number += chunk[..settled].iter().map(|names| names.len() as u64).sum::<u64>();
            *done += settled;
            if *done == inodes.len() {
                break;
            }
            if settled < chunk.len() {
                (object, _) = self.publisher.successor(&object, &shared.as_fd().try_clone_to_owned()?)?;
                shelf = self.publisher.open_shelf(&object)?;
                shared = self.publisher.lock(&shelf, &object)?;
                linked.objects += 1;
            }
            inode = shared.inode()?;
            held = second::is_there(&shelf, &object, inode.id)?;
        }
        if let Adoption::Adopted(adopted) = &job.adoption {
            self.let_be(adopted)?;
        }
        Ok(())
    }

    /// Counts the names of a file that has become an object. `false` if another run has made this object meanwhile.
    fn note_adopted(&self, adopted: &Adopted, fresh: bool, job: &Job<'_>, linked: &mut Linked) -> bool {
        if !fresh {
            self.release(adopted);
            linked.left.extend(job.work.names.iter().map(|&at| (at, NotUnified::Changed)));
            return false;
        }
        let names = job.work.inodes(self.catalog).filter(|names| names[0] == adopted.first);
        linked.names.extend(names.flatten());
        linked.adopted += 1;
        true
    }
}

//! Links all work, in steps for which there is room: each frees room for the next.

use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::{Resource, getrlimit};

use super::{Pass, Passed};
use crate::report::Reason;
use crate::sys::file::filesystem;
use crate::sys::share::swap::Name;
use crate::unify::link::claims::{Claims, claim_all};
use crate::unify::link::hard_links;
use crate::unify::link::linked::{Linked, Postponed};
use crate::unify::link::linker::Linker;
use crate::unify::link::plan::Work;
use crate::unify::link::space::{Cost, FreeSpace, is_exhaustion};
use crate::unify::pool::directory::Pool;
use crate::unify::pool::object::ObjectName;
use crate::unify::pool::protection::PoolProtection;
use crate::unify::pool::publish::Publisher;
use crate::unify::pool::recover;
use crate::unify::pool::run::RunDir;
use crate::unify::scan::catalog::{Catalog, FileIndex, GuestIndex};
use crate::unify::{At, Error, FailedPath, SharedError};

/// Names in one step, at most: one journal, two flushes.
const NAMES_PER_STEP: usize = 1 << 15;

/// How much is done in the first step; then it is as much as takes about [`STEP_TIME`].
const FIRST_STEP: Effort = Effort(1 << 12);

/// How long the hooks of guests wait for a step.
const STEP_TIME: Duration = Duration::from_millis(600);

/// Part of the descriptors that this process may have which the files of a step may take that are to be adopted.
const DESCRIPTORS_PER_STEP: usize = 4;

/// How long something takes, in names to be changed. A copy of so many bytes takes as long as a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Effort(u64);

impl Effort {
    const BYTES_PER_NAME: u64 = 16 << 10;

    fn of(work: &Work, cost: Cost) -> Effort {
        Effort(work.names.len() as u64 + cost.copies / Self::BYTES_PER_NAME)
    }

    /// What the next step may take, if this one took so long.
    fn after(self, elapsed: Duration) -> Effort {
        let next = match elapsed {
            _ if elapsed > STEP_TIME => self.0 / 2,
            _ if elapsed < STEP_TIME / 2 => self.0 * 2,
            _ => self.0,
        };
        Effort(next.clamp(64, NAMES_PER_STEP as u64))
    }
}

/// Work that is not done yet, with what the system says of it; nothing if there is too little room to begin.
type Waiting = (Work, Option<io::Error>);

impl Pass<'_> {
    /// Links all work, in steps; while one is under way, the hooks of its guests wait.
    ///
    /// What finds no room is tried again as long as anything else goes on, and then is among the failures.
    pub(super) fn link(
        &self,
        pool: &Pool,
        catalog: &Catalog,
        works: Vec<Work>,
        passed: &mut Passed,
    ) -> Result<(), Error> {
        let works = self.leave_encrypted(pool, catalog, works, passed)?;
        let works = self.leave_in_use(catalog, works, passed);
        let names: usize = works.iter().map(|work| work.names.len()).sum();
        self.watch.begin("linking", names as u64);
        let clones = filesystem::shares_blocks(pool.settings_file().at(pool.path())?, pool.runs());
        let mut waiting: VecDeque<Work> = self.in_order(pool, catalog, works, clones)?.into();
        loop {
            let before = passed.linked.names.len();
            let left = self.round(pool, catalog, waiting, clones, passed)?;
            if left.is_empty() {
                break;
            }
            if passed.linked.names.len() == before {
                self.give_up(pool, catalog, left, passed)?;
                break;
            }
            waiting = left.into_iter().map(|(work, _)| work).collect();
        }
        self.watch.end();
        Ok(())
    }

    /// If room is short, what frees most for the bytes it takes comes first; else neighbours stay neighbours.
    fn in_order(
        &self,
        pool: &Pool,
        catalog: &Catalog,
        works: Vec<Work>,
        clones: bool,
    ) -> Result<Vec<Work>, Error> {
        let cost = |work: &Work| Cost::of(work, catalog, clones);
        let all = works.iter().fold(Cost::default(), |all, work| all.and(cost(work)));
        if self.room(pool)?.fits_twice(all) {
            return Ok(works);
        }
        let worth = |work: &Work| {
            let freed: u64 = work.inodes(catalog).map(|names| catalog[names[0]].allocated).sum();
            freed as f64 / cost(work).copies.max(1) as f64
        };
        let mut works: Vec<(f64, u64, Work)> =
            works.into_iter().map(|work| (worth(&work), cost(&work).copies, work)).collect();
        works.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        Ok(works.into_iter().map(|(_, _, work)| work).collect())
    }

    /// Tries all that waits, once; what is left for want of room, or of anything else that others may give back.
    fn round(
        &self,
        pool: &Pool,
        catalog: &Catalog,
        mut waiting: VecDeque<Work>,
        clones: bool,
        passed: &mut Passed,
    ) -> Result<Vec<Waiting>, Error> {
        let mut left = Vec::new();
        let most_held = self.most_held();
        let mut most = FIRST_STEP;
        while !waiting.is_empty() {
            let room = self.room(pool)?;
            let (mut step, mut effort, mut held, mut all) = (Vec::new(), 0, 0, Cost::default());
            while let Some(work) = waiting.pop_front() {
                let cost = Cost::of(&work, catalog, clones);
                if !room.fits(cost) {
                    left.push((work, None));
                } else if step.is_empty()
                    || effort < most.0 && held < most_held && room.fits_twice(all.and(cost))
                {
                    effort += Effort::of(&work, cost).0;
                    held += usize::from(work.existing.is_none());
                    all = all.and(cost);
                    step.push(work);
                } else {
                    waiting.push_front(work);
                    break;
                }
            }
            let begun = Instant::now();
            let (step, _claims) = self.claim(catalog, step, passed);
            hard_links::note(catalog, &step);
            let postponed = self.step(pool, catalog, &step, passed)?;
            most = most.after(begun.elapsed());
            let mut step: Vec<Option<Work>> = step.into_iter().map(Some).collect();
            for Postponed { work, reason } in postponed {
                left.extend(step[work].take().map(|work| (work, Some(reason))));
            }
        }
        Ok(left)
    }

    /// How many objects a step may make: a file is held open from its adoption until it is one.
    fn most_held(&self) -> usize {
        if self.options.protection != PoolProtection::Guard {
            return NAMES_PER_STEP;
        }
        let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        usize::try_from(limit).unwrap_or(usize::MAX) / DESCRIPTORS_PER_STEP
    }

    /// Links one step. Returns what may go better later.
    fn step(
        &self,
        pool: &Pool,
        catalog: &Catalog,
        step: &[Work],
        passed: &mut Passed,
    ) -> Result<Vec<Postponed>, Error> {
        let linked = RunDir::begin(pool).and_then(|run| {
            let linker = Linker {
                publisher: Publisher {
                    pool,
                    run: &run,
                    protection: self.options.protection,
                    lock_timeout: self.options.lock_timeout,
                },
                catalog,
                threads: crate::parallel::processors().min(self.options.threads),
                done: &|files, bytes| self.watch.add(files, bytes),
            };
            linker.link(step)
        });
        let unfinished = linked.as_ref().map_or(true, |linked| linked.unfinished);
        if unfinished {
            let recovered = recover::recover(pool, self.options.lock_timeout)?;
            passed.linked.failed.extend(recovered.failed);
        }
        let before = passed.linked.names.len();
        let mut linked = match linked {
            Err(Error::At { source, .. }) if is_exhaustion(&source) => Linked::postponed(step.len(), &source),
            linked => linked?,
        };
        let postponed = std::mem::take(&mut linked.postponed);
        self.leave(catalog, linked.left.drain(..), passed);
        passed.linked.absorb(linked);
        self.note_displaced(catalog, before, passed);
        for object in std::mem::take(&mut passed.linked.leaked) {
            if !self.is_intact(pool, &object).unwrap_or(false) {
                passed.changed_objects += 1;
            }
        }
        if self.options.list {
            let new = passed.linked.names[before..].iter();
            passed.names.extend(new.map(|&at| catalog.outer_path(&catalog[at])));
        }
        Ok(postponed)
    }

    /// Says of each file that is left for want of room what there is too little of.
    fn give_up(
        &self,
        pool: &Pool,
        catalog: &Catalog,
        left: Vec<Waiting>,
        passed: &mut Passed,
    ) -> Result<(), Error> {
        let free = self.room(pool)?;
        for (work, error) in left {
            let reason: SharedError = match error {
                None => {
                    let what = if work.existing.is_some() { "the journal" } else { "the pool's copy" };
                    Arc::new(free.too_little_for(what))
                }
                Some(e) => Arc::new(OutOf(e)),
            };
            let paths = work.names.iter().map(|&at| catalog.outer_path(&catalog[at]));
            passed.linked.failed.extend(paths.map(|path| FailedPath { path, source: Arc::clone(&reason) }));
        }
        Ok(())
    }

    /// Whether an object is what its name says.
    fn is_intact(&self, pool: &Pool, object: &ObjectName) -> io::Result<bool> {
        let Some(shelf) = pool.shelf(object.shelf(), false)? else { return Ok(true) };
        let file = Name { dir: shelf.as_fd(), name: &object.file() }.open()?;
        object.describes(&file, self.settings.mtime)
    }

    fn room(&self, pool: &Pool) -> Result<FreeSpace, Error> {
        FreeSpace::on(pool.runs(), self.options.reserve).at(pool.path())
    }

    /// Takes out what belongs to guests in which a package manager is at work.
    fn claim(&self, catalog: &Catalog, mut step: Vec<Work>, passed: &mut Passed) -> (Vec<Work>, Claims) {
        if self.locked {
            return (step, Claims::default());
        }
        let guest_of = |at: &FileIndex| catalog.dir(&catalog[*at]).guest;
        let concerned: BTreeSet<GuestIndex> =
            step.iter().flat_map(|work| &work.names).map(&guest_of).collect();
        // One that was busy before is not asked again: the others wait meanwhile.
        let claimed = concerned.iter().filter(|at| !passed.busy.contains_key(at));
        let claims = claim_all(claimed.map(|&at| (at, &catalog[at])));
        for (at, reason) in &claims.busy {
            let guest = catalog[*at].root.path();
            passed.busy.insert(*at, guest.to_path_buf());
            passed.skipped.push(FailedPath { path: guest.to_path_buf(), source: Arc::clone(reason) });
        }
        let is_busy = |at: &FileIndex| passed.busy.contains_key(&guest_of(at));
        if !passed.busy.is_empty() {
            for work in &mut step {
                let inodes = work.inodes(catalog);
                let free = inodes.filter(|names| !names.iter().any(is_busy));
                work.names = free.flatten().copied().collect();
            }
            step.retain(|work| work.is_worthwhile(catalog));
        }
        (step, claims)
    }
}

/// Work that was not done for want of something else than room.
#[derive(Debug, thiserror::Error)]
#[error("{}; free some space or raise the limit that was reached, then run it again", Reason(.0))]
struct OutOf(#[source] io::Error);

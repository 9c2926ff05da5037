//! `cow-unify remove GUEST...`: deletes guests, and nothing that others share.

use std::collections::HashMap;
use std::io::{self, Write};
use std::path::PathBuf;

use serde::Serialize;

use super::arguments::Common;
use super::{place, shared};
use crate::cli::bar::Bar;
use crate::cli::{Named, Problem};
use crate::exit::Exit;
use crate::policy::Policy;
use crate::report::{Reason, Shown, Watch, count, json_path, size, word};
use crate::sys::file::filesystem;
use crate::sys::file::inode::InodeId;
use crate::unify;
use crate::unify::care::gc::{Collector, unused_without};
use crate::unify::pass::pools;
use crate::unify::pool::directory::{Pool, PoolLock};
use crate::unify::remove::place::Place;
use crate::unify::remove::refusal::{Allowed, Refusal};
use crate::unify::remove::removal::{Doomed, mend};

/// How guests are to be removed.
#[derive(Clone, Copy, Debug)]
pub struct Removal {
    /// Only say what would be removed.
    pub dry_run: bool,
    /// Remove what no guest has any more from the pools afterwards.
    pub gc: bool,
    /// What may be removed besides.
    pub allowed: Allowed,
}

/// What happened, for machines.
#[derive(Debug, Default, Serialize)]
struct Report {
    dry_run: bool,
    guests: Vec<Gone>,
    /// Guests of which nothing was removed.
    left: Vec<Problem>,
    /// Names that shared inodes lose.
    #[serde(skip)]
    names: HashMap<InodeId, u32>,
    /// Objects that were removed from pools; only with --gc.
    objects: u64,
    /// Bytes freed by that.
    object_bytes_freed: u64,
    /// Pools that keep files which no guest may have any more.
    #[serde(skip)]
    pools: Vec<PathBuf>,
    /// Shared files that had lost their protection, and have it again.
    protected: Vec<Named>,
    /// Objects that had changed without protection, and are set aside.
    set_aside: Vec<Named>,
    failed: Vec<Problem>,
}

/// A guest that was removed, or would be.
#[derive(Debug, Serialize)]
struct Gone {
    #[serde(flatten, serialize_with = "json_path")]
    path: PathBuf,
    /// Names, with directories.
    names: u64,
    /// Those of them that were names of inodes which others have as well.
    shared: u64,
    /// At least.
    bytes_freed: u64,
    /// Windows in which shared inodes were not immutable.
    windows: u64,
    /// An interrupted run had begun it.
    resumed: bool,
}

pub fn run(paths: &[PathBuf], removal: Removal, common: &Common) -> anyhow::Result<Exit> {
    let policy = shared::policy()?;
    let mut report = Report { dry_run: removal.dry_run, ..Report::default() };
    let places = find(paths, &mut report);
    let known = known_pools(common, &places)?;
    let locks: Vec<PoolLock> = if removal.dry_run {
        Vec::new()
    } else {
        known.iter().map(|pool| shared::lock(pool, &policy)).collect::<Result<_, _>>()?
    };
    let work = Work { removal, common, policy: &policy };
    let bar = Bar::new(common.quiet > 0 || common.json);
    for place in places {
        let path = place.path().to_path_buf();
        match Doomed::check(place, &known, removal.allowed, removal.dry_run, &bar) {
            Ok(doomed) => work.one(doomed, path, &bar, &mut report)?,
            Err(refusal) => leave(path, &refusal, &mut report),
        }
    }
    if !report.guests.is_empty() {
        known.iter().for_each(|pool| work.end(pool, &bar, &mut report));
    }
    drop(locks);
    complain(&report, common);
    let is_whole = [report.protected.len(), report.set_aside.len(), report.left.len(), report.failed.len()]
        .iter()
        .all(|number| *number == 0);
    let exit = match (report.guests.is_empty(), is_whole) {
        (true, false) => Exit::Refused,
        (false, false) => Exit::Partial,
        (_, true) => Exit::Done,
    };
    Ok(shared::print(common, &report, text, exit))
}

/// The guests at these paths, each once.
fn find(paths: &[PathBuf], report: &mut Report) -> Vec<Place> {
    let mut places: Vec<Place> = Vec::new();
    for path in paths {
        match Place::find(path) {
            Ok(found) => {
                for place in found {
                    if places.iter().all(|other| other.guest.inode.id != place.guest.inode.id) {
                        places.push(place);
                    }
                }
            }
            Err(refusal) => leave(path.clone(), &refusal, report),
        }
    }
    places
}

fn leave(path: PathBuf, refusal: &Refusal, report: &mut Report) {
    log::error!("refused, nothing was removed: {refusal}");
    if let Some(remedy) = refusal.remedy() {
        log::error!("remedy: {remedy}");
    }
    report.left.push(Problem { path, reason: refusal.to_string() });
}

fn complain(report: &Report, common: &Common) {
    let number = report.protected.len();
    if number > 0 {
        let objects = count(number, "object");
        let had = word(
            number,
            "had lost its protection, and has it again",
            "had lost their protection, and have it again",
        );
        log::warn!("{objects} of the pool {had}");
    }
    if !report.set_aside.is_empty() {
        log::error!(
            "damaged objects are in quarantine; run `cow-unify verify GUEST...` to repair the guests"
        );
    }
    shared::complain(&report.failed, common);
}

/// The pools that may know these guests: that of the command line, those beside the guests, and those of the host's list
/// that are on the same filesystems.
fn known_pools(common: &Common, places: &[Place]) -> anyhow::Result<Vec<Pool>> {
    let mut known: Vec<Pool> = Vec::new();
    let mut add = |pool: Pool| {
        if known.iter().all(|other| other.inode().id != pool.inode().id) {
            known.push(pool);
        }
    };
    if common.pool.is_some() {
        add(place::existing(common, &[])?);
    }
    for place in places {
        if let Some(pool) = Pool::open(&pools::beside(&place.guest))? {
            add(pool);
        }
    }
    for pool in pools::listed().iter().filter_map(|path| Pool::open(path).ok().flatten()) {
        if places.iter().any(|place| place.guest.inode.id.dev == pool.inode().id.dev) {
            add(pool);
        }
    }
    Ok(known)
}

struct Work<'a> {
    removal: Removal,
    common: &'a Common,
    policy: &'a Policy,
}

impl Work<'_> {
    fn one(&self, doomed: Doomed, path: PathBuf, bar: &Bar, report: &mut Report) -> anyhow::Result<()> {
        let (names, shared, freed) = (doomed.survey.names, doomed.survey.shared, doomed.survey.freed);
        let resumed = doomed.is_resumed();
        let mut gone = Gone { path, names, shared, bytes_freed: freed, windows: 0, resumed };
        if self.removal.dry_run {
            for (inode, names) in doomed.survey.shared_inodes {
                *report.names.entry(inode).or_default() += names;
            }
        } else {
            let filesystem = doomed.parent()?;
            let available = || filesystem::available(&filesystem).map_or(0, |available| available.bytes);
            let before = available();
            let removed = match doomed.remove(shared::threads(self.common), bar) {
                Ok(removed) => removed,
                Err(refusal) => {
                    leave(gone.path, &refusal, report);
                    return Ok(());
                }
            };
            (gone.names, gone.windows) = (removed.names, removed.windows);
            if !removed.failed.is_empty() {
                gone.bytes_freed = available().saturating_sub(before).min(freed);
            }
            report.failed.extend(removed.failed.into_iter().map(Problem::from));
        }
        report.guests.push(gone);
        Ok(())
    }

    /// What is to be done with a pool. The guests are gone: what fails now concerns the pool alone.
    fn end(&self, pool: &Pool, watch: &dyn Watch, report: &mut Report) {
        if let Err(e) = self.done_to(pool, watch, report) {
            let reason = Reason(&e).to_string();
            report.failed.push(Problem { path: pool.path().to_path_buf(), reason });
        }
    }

    fn done_to(&self, pool: &Pool, watch: &dyn Watch, report: &mut Report) -> Result<(), unify::Error> {
        if !self.removal.dry_run {
            self.mend(pool, watch, report)?;
            return self.collect(pool, watch, report);
        }
        if self.removal.gc {
            let (objects, bytes) = unused_without(pool, &report.names, shared::threads(self.common))?;
            report.objects += objects;
            report.object_bytes_freed += bytes;
        }
        Ok(())
    }

    fn mend(&self, pool: &Pool, watch: &dyn Watch, report: &mut Report) -> Result<(), unify::Error> {
        let named = |path: PathBuf| Named { path };
        let mended = mend(pool, self.policy.lock_timeout, shared::threads(self.common), watch)?;
        report.protected.extend(mended.protected.into_iter().map(named));
        report.set_aside.extend(mended.damaged.into_iter().map(|(path, _)| named(path)));
        report.failed.extend(mended.failed.into_iter().map(Problem::from));
        Ok(())
    }

    fn collect(&self, pool: &Pool, watch: &dyn Watch, report: &mut Report) -> Result<(), unify::Error> {
        if !self.removal.gc {
            if report.guests.iter().any(|gone| gone.shared > 0) {
                report.pools.push(pool.path().to_path_buf());
            }
            return Ok(());
        }
        let (threads, lock_timeout) = (shared::threads(self.common), self.policy.lock_timeout);
        let collected = Collector { pool, dry_run: false, lock_timeout, threads, watch }.collect()?;
        report.objects += collected.removed.len() as u64;
        report.object_bytes_freed += collected.freed;
        report.failed.extend(collected.failed.into_iter().map(Problem::from));
        Ok(())
    }
}

fn text(out: &mut dyn Write, report: &Report) -> io::Result<()> {
    let (removed, freed) =
        if report.dry_run { ("would be removed", "to be freed") } else { ("removed", "freed") };
    for Gone { path, names, shared, bytes_freed, resumed, .. } in &report.guests {
        write!(out, "{}: {} {removed}, ", Shown(path), count(*names, "name"))?;
        write!(out, "{shared} of them of shared files, ")?;
        write!(out, "{} {freed}", size(*bytes_freed))?;
        writeln!(out, "{}", if *resumed { " (begun by an interrupted run)" } else { "" })?;
    }
    if report.objects > 0 {
        writeln!(
            out,
            "{} {removed} from the pool, {} {freed}",
            count(report.objects, "object"),
            size(report.object_bytes_freed)
        )?;
    }
    for pool in &report.pools {
        writeln!(
            out,
            "{}: files that no guest has any more stay here until `cow-unify gc --pool {}` or the next run with --gc",
            Shown(pool),
            Shown(pool)
        )?;
    }
    Ok(())
}

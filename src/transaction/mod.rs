//! The story of one run of a package manager: begin, then it runs, then settle; and recover, before anything.
//!
//! Whoever starts takes part as a *member*; a nested hook (dpkg's, under apt's) joins what is open. When the last
//! member leaves, the run is settled.

pub mod course;
mod refusal;
pub mod release;
pub mod settle;

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

pub use self::refusal::Refusal;

use self::course::Course;
use self::settle::Settled;
use crate::detach;
use crate::detach::apply::{Detacher, Manner, Outcome};
use crate::detach::lift;
use crate::detach::preflight;
use crate::detach::recover::{self, Recovered};
use crate::detach::survey::{Found, Survey, Surveyor, Unseen};
use crate::ledger::Ledger;
use crate::package::PackageManager;
use crate::policy::{self, Policy};
use crate::report::{Reason, Shown, Watch};
use crate::state::hard_links;
use crate::state::members::{Cover, Member, Members};
use crate::state::store::{Locked, STATE_DIR, Store, is_unable, note_unable};
use crate::supervise;
use crate::sys::file::filesystem;
use crate::sys::path::root::Root;
use crate::sys::process::{ProcessId, Processes};
use crate::sys::seccomp::filter;
use crate::sys::share::swap;

/// How long a hook waits for another one of the same guest; that one may be copying thousands of files.
const PATIENCE: Duration = Duration::from_secs(600);

/// What our own files and database refuse.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The database.
    #[error(transparent)]
    Ledger(#[from] crate::ledger::Error),
    /// The package manager's database.
    #[error("{}", Reason(.0))]
    Packages(io::Error),
    /// A file or directory of ours.
    #[error("{}: {}", Shown(path), Reason(source))]
    State {
        /// The file or directory.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

impl Error {
    fn state(name: &str, source: io::Error) -> Error {
        Error::State { path: PathBuf::from(STATE_DIR).join(name), source }
    }

    pub(crate) fn stash(source: io::Error) -> Error {
        Error::state("stash", source)
    }

    pub(crate) fn spool(source: io::Error) -> Error {
        Error::state("spool", source)
    }
}

impl From<recover::Error> for Error {
    fn from(error: recover::Error) -> Error {
        match error {
            recover::Error::Ledger(e) => Error::Ledger(e),
            recover::Error::Stash(source) => Error::stash(source),
        }
    }
}

/// What beginning came to.
#[derive(Debug, Default)]
pub struct Begun {
    /// What was looked at, and what was left as it is.
    pub survey: Survey,
    /// What was detached.
    pub outcome: Outcome,
    /// What an earlier run had left to recovery.
    pub recovered: Recovered,
    /// Nothing was detached: the run is supervised.
    pub supervised: bool,
}

/// A guest and the policy it is treated by.
#[derive(Clone, Copy, Debug)]
pub struct Guest<'a> {
    /// Its root.
    pub root: &'a Root,
    /// Its policy.
    pub policy: &'a Policy,
}

/// Who wants files detached, and what for.
pub struct Purpose<'a> {
    /// Name of the front end, for the ledger.
    pub front_end: &'a str,
    /// The process whose run this is; none where nothing runs afterwards.
    pub member: Option<Member>,
    /// Tell what would be done, and do nothing.
    pub dry_run: bool,
    /// Where nothing runs afterwards: let the host know what has become private, for it to be unified again.
    pub hand_over: bool,
    /// Told how many files and bytes are to be copied, then of each as it is.
    pub progress: &'a dyn Watch,
    /// Has the run supervised, where that can be.
    pub supervise: Option<Supervise<'a>>,
}

/// How a run is supervised.
#[derive(Clone, Copy)]
pub struct Supervise<'a> {
    /// Whether it could be.
    pub may: &'a dyn Fn() -> Result<(), supervise::Error>,
    /// Whether there is anything to protect, where nothing that the run is known to touch is unified.
    pub needed: &'a dyn Fn() -> bool,
    /// Begins.
    pub start: &'a dyn Fn() -> Result<(), supervise::Error>,
}

impl<'a> Guest<'a> {
    /// Detaches what `collect` finds to be unified.
    ///
    /// With a member, the originals stay in the stash until its run is settled. Where nothing is unified, nothing is
    /// written, but for the note that the member takes part.
    ///
    /// # Errors
    /// A refusal: nothing was touched. Names that could not be detached later on are in the outcome.
    pub fn begin(
        self,
        purpose: &Purpose<'_>,
        collect: impl FnOnce(&mut Surveyor<'a>),
    ) -> Result<Begun, Refusal> {
        let mut begun = Begun::default();
        // Nothing of ours can be written then, and what is unified is refused.
        let writes = filter::against_copies().is_none();
        let open = if purpose.dry_run || !writes { None } else { self.existing()? };
        if let Some((store, _lock)) = &open
            && let Some(mut ledger) = Ledger::existing(store)?
        {
            begun.recovered = self.recover_in(store, &mut ledger)?;
        }
        if !purpose.dry_run && writes {
            self.look_at_ability();
        }
        let mut surveyor = Surveyor::new(self.root, self.policy);
        collect(&mut surveyor);
        begun.survey = surveyor.finish();
        if let Some(at) = begun.survey.unseen.iter().position(Unseen::is_exhaustion) {
            return Err(detach::Error::from(begun.survey.unseen.swap_remove(at)).into());
        }
        begun.supervised = !purpose.dry_run && self.supervise(purpose, &begun.survey.unified)?;
        if begun.survey.unified.is_empty() || purpose.dry_run || begun.supervised {
            if !purpose.dry_run && !begun.supervised && writes {
                self.join(purpose.member, open.is_some());
            }
            return Ok(begun);
        }
        let checked = preflight::check(self.root, &begun.survey.unified, Some(self.policy.reserve));
        checked.map_err(|e| self.noted(e.into()))?;
        let layered = lift::take_layered(self.root, &mut begun.survey.unified);
        if begun.survey.unified.is_empty() {
            begun.outcome = lift::lift_all(self.root, layered, purpose.progress);
            self.join(purpose.member, open.is_some());
            return Ok(begun);
        }
        let (store, _lock) = match open {
            Some(open) => open,
            None => {
                let store = Store::open(self.root).map_err(|e| Error::state("", e))?;
                let lock = self.lock(&store)?;
                (store, lock)
            }
        };
        let mut ledger = Ledger::of(&store)?;
        let unified = std::mem::take(&mut begun.survey.unified);
        begun.outcome = self.detach(&store, &mut ledger, purpose, unified)?;
        // The names have changed: nothing is a refusal any more.
        if begun.outcome.failed.iter().any(|failure| failure.unprotected) {
            match self.recover_in(&store, &mut ledger) {
                Ok(recovered) => begun.recovered = recovered,
                Err(e) => log::warn!("{e}"),
            }
        }
        if purpose.member.is_none() && purpose.hand_over {
            // Nobody settles these later: the host may look at them when it comes by.
            let detached = begun.outcome.detached.iter().cloned().collect();
            store.spool(&detached).map_err(Error::spool).unwrap_or_else(|e| log::warn!("{e}"));
        }
        if purpose.member.is_none() {
            hard_links::prune(self.root, &store);
        }
        let lifted = lift::lift_all(self.root, layered, purpose.progress);
        begun.outcome.absorb(lifted);
        Ok(begun)
    }

    /// A guest that may not clear the immutable flag writes that down: the host is not to share more with it.
    fn noted(self, refusal: Refusal) -> Refusal {
        if matches!(refusal, Refusal::Detach(detach::Error::Capability { outside: false, .. })) {
            note_unable(self.root, true).unwrap_or_else(|e| log::debug!("{STATE_DIR}: {}", Reason(e)));
        }
        refusal
    }

    /// A guest that could not clear the immutable flag may have got the right to.
    fn look_at_ability(self) {
        let may = || swap::may_change_immutable(self.root.open_dir(Path::new(STATE_DIR))?);
        if self.root.is_own() && is_unable(self.root) && may().is_ok() {
            note_unable(self.root, false).unwrap_or_else(|e| log::debug!("{STATE_DIR}: {}", Reason(e)));
        }
    }

    /// Notes that the member takes part, where nothing was kept for it.
    fn join(self, member: Option<Member>, has_store: bool) {
        // A root that is only worked on from outside is left without a trace.
        let Some(member) = member.filter(|_| self.root.is_own() || has_store) else { return };
        let joined = Store::open(self.root).and_then(|store| Members::open(&store)?.join(member));
        // Only a matter of speed: nested hooks look again.
        joined.unwrap_or_else(|e| log::debug!("{STATE_DIR}: {}", Reason(e)));
    }

    /// Has the run supervised, if that is its course.
    fn supervise(self, purpose: &Purpose<'_>, unified: &[Found]) -> Result<bool, Refusal> {
        let Some(supervise) = purpose.supervise else { return Ok(false) };
        match self.course(unified, supervise.needed, supervise.may) {
            Course::Supervised => {}
            Course::Unneeded => return Ok(false),
            Course::Prepared(why) => {
                log::debug!("not supervised: {why}");
                return Ok(false);
            }
            Course::Refused(refusal) => return Err(self.noted(refusal)),
        }
        // First: what comes after is supervised, if this very process is to be.
        let store = Store::open(self.root).map_err(|e| Error::state("", e))?;
        if let Some(member) = purpose.member {
            // What could not be foreseen is planned for by whoever does it, supervised or not.
            let covers = if member.covers == Cover::Nothing { Cover::Nothing } else { Cover::Supervised };
            let member = Member { covers, ..member };
            let joined = Members::open(&store).and_then(|members| members.join(member));
            joined.map_err(|e| Error::state("members", e))?;
        }
        let mut ledger = Ledger::of(&store)?;
        let (run, opened) = ledger.open_run(purpose.front_end, seconds_now())?;
        let planned = unified.iter().map(|found| found.place.path()).collect();
        store.plan(&planned).unwrap_or_else(|e| log::debug!("{STATE_DIR}/planned: {}", Reason(e)));
        let Err(e) = (supervise.start)() else { return Ok(true) };
        store.forget_plan().unwrap_or_else(|e| log::debug!("{STATE_DIR}/planned: {}", Reason(e)));
        self.leave(&store, purpose.member);
        if opened {
            ledger.forget_run(run)?;
        }
        // Where the supervisor is lost what it was to answer fails.
        let lost = matches!(e, supervise::Error::Lost(_));
        if lost || self.policy.supervise == policy::SuperviseMode::Always {
            return Err(Refusal::Unsupervised(e));
        }
        log::debug!("not supervised: {e}");
        Ok(false)
    }

    /// Whether the guest holds a protected file that it shares with others, in the packages that all guests have.
    pub fn has_protected(self, manager: &dyn PackageManager) -> bool {
        let mut surveyor = Surveyor::new(self.root, self.policy);
        surveyor.paths(&manager.essential().unwrap_or_default());
        surveyor.finish().unified.iter().any(|found| found.inode.immutable)
    }

    /// Makes the member take part, detaches, and notes what that came to; all or nothing of the first two.
    fn detach(
        self,
        store: &Store,
        ledger: &mut Ledger,
        purpose: &Purpose<'_>,
        unified: Vec<Found>,
    ) -> Result<Outcome, Refusal> {
        if let Some(member) = purpose.member {
            let joined = Members::open(store).and_then(|members| members.join(member));
            joined.map_err(|e| Error::state("members", e))?;
        }
        let (run, opened) = ledger.open_run(purpose.front_end, seconds_now())?;
        purpose.progress.begin("making private", unified.len() as u64);
        let detacher = Detacher {
            root: self.root,
            store,
            patience: self.policy.lock_timeout,
            keep: purpose.member.is_some(),
            manner: Manner::Batch,
            progress: purpose.progress,
        };
        let detached = detacher.detach(ledger, unified);
        purpose.progress.end();
        let outcome = match detached {
            Ok(outcome) => outcome,
            Err(e) => {
                if opened {
                    ledger.forget_run(run)?;
                }
                self.leave(store, purpose.member);
                return Err(e.into());
            }
        };
        let detached = outcome.detached.len() as u64;
        let noted =
            ledger.add_to_run(run, detached, outcome.bytes, outcome.failed.len() as u64).and_then(|()| {
                let over = purpose.member.is_none() && opened;
                if over { ledger.settle_run(seconds_now(), 0, detached) } else { Ok(()) }
            });
        // Statistics: the files are safe without them.
        noted.unwrap_or_else(|e| log::warn!("{e}"));
        Ok(outcome)
    }

    /// Whether a transaction that touches what `collect` finds could begin; changes nothing.
    ///
    /// # Errors
    /// The refusal it would meet.
    pub fn check(self, collect: impl FnOnce(&mut Surveyor<'a>)) -> Result<(), Refusal> {
        let mut surveyor = Surveyor::new(self.root, self.policy);
        collect(&mut surveyor);
        Ok(preflight::check(self.root, &surveyor.finish().unified, Some(self.policy.reserve))?)
    }

    /// These processes have run, as far as they are members. Settles, unless somebody else still takes part.
    ///
    /// Where the ledger was never needed, only new files are handed over, and only if the host has begun to unify. Where
    /// a filter forbids what settling needs, that is left to a later run.
    pub fn finish(self, done: &[ProcessId], manager: &dyn PackageManager) -> Result<Option<Settled>, Error> {
        if filter::against_copies().is_some() {
            return Ok(None);
        }
        let Some((store, _lock)) = self.existing()? else { return Ok(None) };
        let members = Members::open(&store).map_err(|e| Error::state("members", e))?;
        let (since, alive) =
            members.sweep(done, Processes::open().ok().as_ref()).map_err(|e| Error::state("members", e))?;
        if !alive.is_empty() {
            return Ok(None);
        }
        store.forget_plan().map_err(|e| Error::state("planned", e))?;
        let ledger = Ledger::existing(&store)?;
        if since.is_none() && ledger.is_none() {
            return Ok(None);
        }
        let packages = manager.after_run(since.unwrap_or(i64::MAX)).map_err(Error::Packages)?;
        let Some(mut ledger) = ledger else {
            let begun = !packages.unpacked.is_empty() && self.shares_any(manager)?;
            return if begun { settle::hand_over(self, &store, &packages).map(Some) } else { Ok(None) };
        };
        let recovered = self.recover_in(&store, &mut ledger)?;
        for problem in recovered.failed {
            log::warn!("{problem}");
        }
        let settled = settle::settle(self, &store, &mut ledger, &packages)?;
        ledger.settle_run(seconds_now(), settled.restored, settled.new)?;
        Ok(Some(settled))
    }

    /// Ends what killed processes left behind.
    pub fn recover(self) -> Result<Recovered, Error> {
        let Some((store, _lock)) = self.existing()? else { return Ok(Recovered::default()) };
        let Some(mut ledger) = Ledger::existing(&store)? else { return Ok(Recovered::default()) };
        self.recover_in(&store, &mut ledger)
    }

    /// Lets go of every original: all names stay private. For the removal of cow-hooks itself.
    pub fn retire(self) -> Result<Option<Settled>, Error> {
        let Some((store, _lock)) = self.existing()? else { return Ok(None) };
        // apt runs on, but no hook of ours will see its end.
        Members::open(&store).and_then(|members| members.clear()).map_err(|e| Error::state("members", e))?;
        store.forget_plan().map_err(|e| Error::state("planned", e))?;
        let Some(mut ledger) = Ledger::existing(&store)? else { return Ok(None) };
        self.recover_in(&store, &mut ledger)?;
        let settled = settle::retire(&store, &mut ledger, self.policy)?;
        ledger.settle_run(seconds_now(), 0, settled.new)?;
        Ok(Some(settled))
    }

    fn existing(self) -> Result<Option<(Store, Locked)>, Error> {
        let store = match Store::existing(self.root) {
            Ok(Some(store)) => store,
            Ok(None) => return Ok(None),
            Err(e) if e.raw_os_error() == Some(libc::EROFS) => return Ok(None),
            Err(e) => return Err(Error::state("", e)),
        };
        // Nothing of ours can be begun or ended on a filesystem that takes no writes.
        if filesystem::is_read_only(store.stash()).map_err(|e| Error::state("", e))? {
            return Ok(None);
        }
        let lock = self.lock(&store)?;
        Ok(Some((store, lock)))
    }

    fn lock(self, store: &Store) -> Result<Locked, Error> {
        store.lock(PATIENCE).map_err(|e| Error::state("lock", e))
    }

    fn recover_in(self, store: &Store, ledger: &mut Ledger) -> Result<Recovered, Error> {
        Ok(recover::recover(self.root, store, ledger, self.policy.lock_timeout)?)
    }

    fn leave(self, store: &Store, member: Option<Member>) {
        let Some(member) = member else { return };
        let left = Members::open(store).and_then(|members| members.leave(member.id.pid));
        left.unwrap_or_else(|e| log::debug!("{STATE_DIR}/members: {}", Reason(e)));
    }

    /// Whether the host has begun to unify this guest.
    fn shares_any(self, manager: &dyn PackageManager) -> Result<bool, Error> {
        let mut surveyor = Surveyor::new(self.root, self.policy);
        surveyor.paths(&manager.essential().map_err(Error::Packages)?);
        // Hard links of one another, as equal files are in a guest that was unified once, are shared with nobody.
        surveyor.siblings();
        Ok(!surveyor.finish().unified.is_empty())
    }
}

/// The member that a process becomes which joins now.
pub fn member(id: ProcessId, covers: Cover) -> Member {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Member { id, covers, since: i64::try_from(now.as_nanos()).unwrap_or(i64::MAX) }
}

fn seconds_now() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_secs()).unwrap_or(i64::MAX)
}

//! The beginning of a run: what it is about to touch becomes private, or the run is supervised.

use std::path::Path;

use super::course::Course;
use super::error::Error;
use super::guest::{Guest, seconds_now};
use super::refusal::Refusal;
use crate::detach::apply::{DetachMode, Detacher, Outcome};
use crate::detach::recover::Recovered;
use crate::detach::request::Request;
use crate::detach::survey::{Found, Survey, Unseen};
use crate::detach::{self, lift, preflight, survey};
use crate::inspect::VisibleFence;
use crate::ledger::Ledger;
use crate::policy;
use crate::report::{Reason, Watch, count};
use crate::state::hard_links;
use crate::state::members::{Coverage, Member, Members};
use crate::state::store::{STATE_DIR, Store};
use crate::state::unable::{is_unable, note_unable};
use crate::supervise;
use crate::sys::seccomp::filter;
use crate::sys::share::swap;

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

/// Who wants files detached, and what for.
pub struct RunOptions<'a> {
    /// Name of the front end, for the ledger.
    pub front_end: &'a str,
    /// The process whose run this is; none where nothing runs afterwards.
    pub member: Option<Member>,
    /// Where nothing runs afterwards: let the host know what has become private, for it to be unified again.
    pub hand_over: bool,
    /// Told how many files and bytes are to be copied, then of each as it is.
    pub progress: &'a dyn Watch,
    /// Has the run supervised, where that can be.
    pub supervise: Option<Supervision<'a>>,
}

/// How a run is supervised.
#[derive(Clone, Copy)]
pub struct Supervision<'a> {
    /// Whether it could be.
    pub may: &'a dyn Fn() -> Result<(), supervise::Error>,
    /// Whether there is anything to protect, where nothing that the run is known to touch is unified.
    pub needed: &'a dyn Fn() -> bool,
    /// Begins.
    pub start: &'a dyn Fn() -> Result<(), supervise::Error>,
}

impl Guest<'_> {
    /// Looks at what a run is about to touch; changes nothing.
    ///
    /// # Errors
    /// If so little can be opened that a unified file may have been overlooked.
    pub fn survey(self, request: &Request) -> Result<Survey, Refusal> {
        let mut survey = survey::survey(self.root, self.policy, request);
        match survey.unseen.iter().position(Unseen::is_exhaustion) {
            Some(at) => Err(detach::Error::from(survey.unseen.swap_remove(at)).into()),
            None => Ok(survey),
        }
    }

    /// Detaches what is unified of all that a run is about to touch, or has the run supervised.
    ///
    /// With a member, the originals stay in the stash until its run is settled. Where nothing is unified, nothing is
    /// written, but for the note that the member takes part.
    ///
    /// # Errors
    /// A refusal: nothing was touched. Names that could not be detached later on are in the outcome.
    pub fn begin(self, options: &RunOptions<'_>, request: &Request) -> Result<Begun, Refusal> {
        // Nothing of ours can be written then, and what is unified is refused.
        let writes = filter::against_copies().is_none();
        let open = if writes { self.existing()? } else { None };
        let mut begun = Begun::default();
        if let Some((store, _lock)) = &open
            && let Some(mut ledger) = Ledger::existing(store)?
        {
            begun.recovered = self.recover_in(store, &mut ledger)?;
        }
        begun.survey = self.survey(request)?;
        if writes {
            self.look_at_ability(&begun.survey);
        }
        begun.supervised = self.supervise(options, &begun.survey.unified)?;
        if begun.supervised {
            return Ok(begun);
        }
        if begun.survey.guarded.files > 0 {
            let files = count(begun.survey.guarded.files, "file");
            log::debug!("{files} left shared: the host's guard is there");
        }
        if begun.survey.unified.is_empty() {
            if writes {
                self.join(options.member, open.is_some());
            }
            return Ok(begun);
        }
        let checked = preflight::check(self.root, &begun.survey.unified, Some(self.policy.reserve));
        checked.map_err(|e| self.noted(e.into()))?;
        let layered = lift::take_layered(self.root, &mut begun.survey.unified);
        if begun.survey.unified.is_empty() {
            begun.outcome = lift::lift_all(self.root, layered, options.progress);
            self.join(options.member, open.is_some());
            return Ok(begun);
        }
        let (store, _lock) = match open {
            Some(open) => open,
            None => {
                supervise::pause();
                let store = Store::open(self.root).map_err(|e| Error::state("", e))?;
                let lock = self.lock(&store)?;
                (store, lock)
            }
        };
        let mut ledger = Ledger::of(&store)?;
        let unified = std::mem::take(&mut begun.survey.unified);
        begun.outcome = self.detach(&store, &mut ledger, options, unified)?;
        // The names have changed: nothing is a refusal any more.
        if begun.outcome.failed.iter().any(|failure| failure.unfinished) {
            match self.recover_in(&store, &mut ledger) {
                Ok(recovered) => {
                    begun.outcome.complete(&recovered.joined);
                    begun.recovered = recovered;
                }
                Err(e) => log::warn!("{e}"),
            }
        }
        if options.member.is_none() && options.hand_over {
            // Nobody settles these later: the host may look at them when it comes by.
            let detached = begun.outcome.detached.iter().cloned().collect();
            store.spool(&detached).map_err(Error::spool).unwrap_or_else(|e| log::warn!("{e}"));
        }
        if options.member.is_none() {
            hard_links::prune(self.root, &store);
        }
        let lifted = lift::lift_all(self.root, layered, options.progress);
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

    /// A guest that could not clear the immutable flag may have got the right to, or the host's guard, which asks for none.
    fn look_at_ability(self, survey: &Survey) {
        let guarded = || {
            let is_guarded = |found: &Found| found.fence == VisibleFence::Guard;
            survey.guarded.files > 0 || survey.unified.iter().any(is_guarded)
        };
        let may = || swap::may_change_immutable(self.root.open_dir(Path::new(STATE_DIR))?);
        if self.root.is_own() && is_unable(self.root) && (guarded() || may().is_ok()) {
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
    fn supervise(self, options: &RunOptions<'_>, unified: &[Found]) -> Result<bool, Refusal> {
        let Some(supervise) = options.supervise else { return Ok(false) };
        match self.course(unified, supervise.needed, supervise.may) {
            Course::Supervised => {}
            Course::Unneeded | Course::Guarded => return Ok(false),
            Course::Prepared(why) => {
                log::debug!("not supervised: {why}");
                return Ok(false);
            }
            Course::Refused(refusal) => return Err(self.noted(refusal)),
        }
        // First: what comes after is supervised, if this very process is to be.
        let store = Store::open(self.root).map_err(|e| Error::state("", e))?;
        if let Some(member) = options.member {
            // What could not be foreseen is planned for by whoever does it, supervised or not.
            let covers =
                if member.covers == Coverage::Nothing { Coverage::Nothing } else { Coverage::Supervised };
            let member = Member { covers, ..member };
            let joined = Members::open(&store).and_then(|members| members.join(member));
            joined.map_err(|e| Error::state("members", e))?;
        }
        let mut ledger = Ledger::of(&store)?;
        let (run, opened) = ledger.open_run(options.front_end, seconds_now())?;
        let planned = unified.iter().map(|found| found.place.path()).collect();
        store.plan(&planned).unwrap_or_else(|e| log::debug!("{STATE_DIR}/planned: {}", Reason(e)));
        let Err(e) = (supervise.start)() else { return Ok(true) };
        store.forget_plan().unwrap_or_else(|e| log::debug!("{STATE_DIR}/planned: {}", Reason(e)));
        self.leave(&store, options.member);
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

    /// Makes the member take part, detaches, and notes what that came to; all or nothing of the first two.
    fn detach(
        self,
        store: &Store,
        ledger: &mut Ledger,
        options: &RunOptions<'_>,
        unified: Vec<Found>,
    ) -> Result<Outcome, Refusal> {
        if let Some(member) = options.member {
            let joined = Members::open(store).and_then(|members| members.join(member));
            joined.map_err(|e| Error::state("members", e))?;
        }
        let (run, opened) = ledger.open_run(options.front_end, seconds_now())?;
        options.progress.begin("making private", unified.len() as u64);
        let detacher = Detacher {
            root: self.root,
            store,
            patience: self.policy.lock_timeout,
            keep: options.member.is_some(),
            mode: DetachMode::Batch,
            progress: options.progress,
        };
        let detached = detacher.detach(ledger, unified);
        options.progress.end();
        let outcome = match detached {
            Ok(outcome) => outcome,
            Err(e) => {
                if opened {
                    ledger.forget_run(run)?;
                }
                self.leave(store, options.member);
                return Err(e.into());
            }
        };
        let detached = outcome.detached.len() as u64;
        let noted =
            ledger.add_to_run(run, detached, outcome.bytes, outcome.failed.len() as u64).and_then(|()| {
                let over = options.member.is_none() && opened;
                if over { ledger.settle_run(seconds_now(), 0, detached) } else { Ok(()) }
            });
        // Statistics: the files are safe without them.
        noted.unwrap_or_else(|e| log::warn!("{e}"));
        Ok(outcome)
    }

    /// Whether a run that touches this could begin; changes nothing.
    ///
    /// # Errors
    /// The refusal it would meet.
    pub fn check(self, request: &Request) -> Result<(), Refusal> {
        let survey = survey::survey(self.root, self.policy, request);
        Ok(preflight::check(self.root, &survey.unified, Some(self.policy.reserve))?)
    }
}

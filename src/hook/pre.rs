//! Before a package manager touches anything: inspect, detach. The one place where a hook may refuse.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use super::SWITCH;
use crate::detach::request::Request;
use crate::detach::survey::{Left, survey};
use crate::inspect::Verdict;
use crate::package::PackageManager;
use crate::policy::{Mode, Policy};
use crate::report::{
    Reason, Shown, Silent, count, size, tell_of_prevented_write, warn_of_missing_guard,
    warn_of_possible_write, word,
};
use crate::state::members::Member;
use crate::supervise;
use crate::sys::path::root::Root;
use crate::transaction::{Begun, Guest, Refusal, RunOptions, Supervision};

/// How many files are named for one reason.
const SHOWN: usize = 10;

/// Whether the package manager may go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Decision {
    /// It may.
    GoOn,
    /// It may not: nothing has been touched yet, and damage would be done.
    Refuse,
}

impl From<Decision> for ExitCode {
    fn from(decision: Decision) -> ExitCode {
        match decision {
            Decision::GoOn => ExitCode::SUCCESS,
            Decision::Refuse => ExitCode::FAILURE,
        }
    }
}

/// How a run is supervised.
#[derive(Clone, Copy)]
pub struct Start<'a> {
    /// Whether it could be.
    pub may: &'a dyn Fn() -> Result<(), supervise::Error>,
    /// Begins.
    pub begin: &'a dyn Fn() -> Result<(), supervise::Error>,
}

/// A run of a package manager that is about to begin.
#[derive(Clone, Copy, Debug)]
pub struct HookRun<'a> {
    /// The guest it works in.
    pub guest: Guest<'a>,
    /// The front end, for the ledger: `apt`.
    pub front_end: &'a str,
    /// The program that changes files, for messages: `dpkg`.
    pub program: &'a str,
    /// The process whose end is the end of the run.
    pub member: Option<Member>,
}

impl HookRun<'_> {
    /// Detaches what is unified of what the run touches, says what that came to, and decides.
    ///
    /// `supervise` has the run supervised instead, where there is something to protect.
    pub fn prepare(
        &self,
        manager: &dyn PackageManager,
        supervise: Option<Start<'_>>,
        request: &Request,
    ) -> Decision {
        let needed = || self.guest.has_protected(manager);
        match self.begin_with(
            supervise.map(|Start { may, begin }| Supervision { may, needed: &needed, start: begin }),
            request,
        ) {
            Err(refusal) => self.refuse(&[refusal.to_string()], &refusal.remedy()),
            Ok(begun) => {
                self.report(&begun);
                if begun.outcome.failed.is_empty() {
                    return Decision::GoOn;
                }
                let decision = self.stayed_unified(&begun);
                if decision == Decision::Refuse {
                    self.give_back(manager);
                }
                decision
            }
        }
    }

    /// Detaches what is unified of what the run touches, and says nothing.
    ///
    /// # Errors
    /// As [`Guest::begin`].
    pub fn begin(&self, request: &Request) -> Result<Begun, Refusal> {
        self.begin_with(None, request)
    }

    fn begin_with(&self, supervise: Option<Supervision<'_>>, request: &Request) -> Result<Begun, Refusal> {
        let HookRun { guest, front_end, member, .. } = *self;
        let options = RunOptions { front_end, member, hand_over: true, progress: &Silent, supervise };
        guest.begin(&options, request)
    }

    /// Nothing will run: what was detached for it is shared again, as far as its original was kept.
    fn give_back(&self, manager: &dyn PackageManager) {
        let done: Vec<_> = self.member.iter().map(|member| member.id).collect();
        match self.guest.finish(&done, manager) {
            Ok(settled) => {
                let restored = settled.map_or(0, |settled| settled.restored);
                let are = word(restored, "is", "are");
                log::info!("{restored} of the files made private {are} shared again");
            }
            Err(e) => log::warn!("{e}"),
        }
    }

    fn stayed_unified(&self, begun: &Begun) -> Decision {
        let reasons: Vec<String> =
            begun.outcome.failed.iter().map(|f| format!("{}: {}", Shown(&f.path), f.reason)).collect();
        self.refuse(
            &reasons,
            "free some space if none is left, else end the processes that use these files; then run the command \
            again; `cow-status FILE` explains each file",
        )
    }

    fn refuse(&self, reasons: &[String], remedy: &str) -> Decision {
        refuse(self.guest.policy, self.program, reasons, remedy)
    }

    fn report(&self, begun: &Begun) {
        let program = self.program;
        for problem in &begun.recovered.failed {
            log::warn!("left by an interrupted run: {problem}");
        }
        let restored = begun.recovered.done + begun.recovered.undone;
        if restored > 0 {
            log::info!("{} of an interrupted run completed or rolled back", count(restored, "file"));
        }
        begun.survey.unguarded.iter().for_each(|path| warn_of_missing_guard(path));
        for unseen in &begun.survey.unseen {
            log::warn!("{}: {}", Shown(&unseen.path), Reason(&unseen.source));
        }
        let mut left: BTreeMap<String, Vec<&Path>> = BTreeMap::new();
        for Left { path, verdict, .. } in begun.survey.left.iter().filter(|left| left.named) {
            if stops_a_package_manager(*verdict) {
                left.entry(verdict.describe()).or_default().push(path);
            }
        }
        for (what, paths) in left {
            for path in paths.iter().take(SHOWN) {
                log::warn!("{}: left as it is: {what}; {program} may fail on it", Shown(path));
            }
            if paths.len() > SHOWN {
                log::warn!("and {} more: left as they are: {what}", paths.len() - SHOWN);
            }
        }
        for path in &begun.outcome.contested {
            tell_of_prevented_write(path);
        }
        for path in &begun.outcome.leaked {
            warn_of_possible_write(path);
        }
        let detached = begun.outcome.detached.len();
        if detached > 0 {
            let (files, bytes) = (count(detached, "file"), size(begun.outcome.bytes));
            log::info!("{files} made private ({bytes}) before {program} runs");
        }
    }
}

/// Whether a file that is left may keep a package manager from replacing it.
fn stops_a_package_manager(verdict: Verdict) -> bool {
    matches!(
        verdict,
        Verdict::AdministratorsOwn
            | Verdict::AppendOnly
            | Verdict::NeverTouch
            | Verdict::MountPoint
            | Verdict::ReadOnlyMount
    )
}

/// Files would stay unified: refuses, or only warns, as the policy says. `program` is what would change them.
pub fn refuse(policy: &Policy, program: &str, reasons: &[String], remedy: &str) -> Decision {
    let enforce = policy.mode == Mode::Enforce;
    let level = if enforce { log::Level::Error } else { log::Level::Warn };
    let action = if enforce {
        format!("refused, before {program} has touched anything")
    } else {
        format!("{program} may fail, or change files of other guests")
    };
    log::log!(level, "{action}: files would stay unified");
    for reason in reasons.iter().take(SHOWN) {
        log::log!(level, "  {reason}");
    }
    if reasons.len() > SHOWN {
        log::log!(level, "  and {} more", reasons.len() - SHOWN);
    }
    log::log!(level, "remedy: {remedy}");
    if !enforce {
        return Decision::GoOn;
    }
    log::error!("to run without cow-hooks once: set {SWITCH}=off in the environment");
    Decision::Refuse
}

/// It cannot be known what `program` is about to change: refuses, whatever guest that may be in.
pub fn unknown(program: &str, reason: &str) -> Decision {
    match Policy::builtin() {
        Ok(policy) => refuse(
            &policy,
            program,
            &[reason.to_owned()],
            "fix the cause, then run the command \
            again",
        ),
        Err(_) => Decision::Refuse,
    }
}

/// A unified file below the directory `dir` of this root.
pub fn shared_below(root: &Root, policy: &Policy, dir: &Path) -> Option<PathBuf> {
    survey(root, policy, &Request::of_tree(dir)).unified.first().map(|found| found.place.path())
}

/// The hook cannot do its work at all, for a reason that keeps the package manager from its own, too.
pub fn skipped(reason: &str) -> Decision {
    log::warn!("{reason}; no file was prepared");
    Decision::GoOn
}

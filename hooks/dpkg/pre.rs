//! Before dpkg runs: plan, inspect, detach. The one place where a hook may refuse.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use cow_hooks::detach::Unwatched;
use cow_hooks::detach::preflight::Refusal;
use cow_hooks::detach::survey::Surveyor;
use cow_hooks::inspect::Verdict;
use cow_hooks::package::PackageSpec;
use cow_hooks::package::apt::Stream;
use cow_hooks::package::dpkg::{Change, Database, Invocation, Plan};
use cow_hooks::policy::{Mode, Policy};
use cow_hooks::report::{Reason, Shown, size};
use cow_hooks::transaction::members::Member;
use cow_hooks::transaction::{Begun, Guest, Purpose, member};

use crate::caller::Caller;

/// apt's `DPkg::Pre-Install-Pkgs`: the whole run, from the stream on standard input.
pub fn apt() -> ExitCode {
    let stream = match Stream::read(io::stdin().lock()) {
        Ok(stream) => stream,
        Err(e) => {
            // dpkg's own hook will plan for each of its runs.
            log::warn!("apt's list of packages cannot be read: {}", Reason(e));
            return ExitCode::SUCCESS;
        }
    };
    if has_other_root(&stream) {
        // The hook of each dpkg is told which; apt's own hook after the run is not.
        return ExitCode::SUCCESS;
    }
    let caller = match Caller::of(Path::new("/"), None) {
        Ok(caller) => caller,
        Err(e) => return skipped(&Reason(e).to_string()),
    };
    // Older streams name no removals and no configuration.
    let covers = stream.version >= 2;
    let apt = caller.front_end().map(|process| member(process.id, covers));
    prepare(&caller, "apt", apt, |_| (Change::of_stream(&stream), Vec::new()))
}

/// dpkg's `pre-invoke`: what its command line says, unless apt's hook has planned for it.
pub fn dpkg() -> ExitCode {
    let caller = match Caller::of_dpkg() {
        Ok(caller) => caller,
        Err(e) => return skipped(&Reason(e).to_string()),
    };
    if caller.covered_by().is_some() {
        return ExitCode::SUCCESS;
    }
    let dpkg = caller.dpkg().map(|process| process.id);
    let invocation = dpkg.and_then(|id| {
        let line = caller.processes.as_ref()?.command_line(id.pid).ok()?;
        Some(Invocation::parse(&line))
    });
    if invocation.as_ref().is_some_and(|invocation| invocation.no_act) {
        return ExitCode::SUCCESS;
    }
    // Relative archives begin where dpkg is, and so do we.
    let base = std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/"));
    prepare(&caller, "dpkg", dpkg.map(|id| member(id, true)), |database| match &invocation {
        Some(invocation) => Change::of_invocation(invocation, database, &base),
        None => (
            everything(database),
            vec!["dpkg's command line cannot be seen; all its files are prepared".into()],
        ),
    })
}

/// Whether apt passes dpkg another root or another database than the usual ones.
fn has_other_root(stream: &Stream) -> bool {
    let mut options = vec![OsString::from("dpkg")];
    options.extend(stream.config("DPkg::Options::").map(ToOwned::to_owned));
    let invocation = Invocation::parse(&options);
    invocation.instdir.is_some() || invocation.admindir.is_some()
}

fn everything(database: &Database<'_>) -> Vec<Change> {
    let spec = |id: &cow_hooks::package::PackageId| PackageSpec {
        name: id.name.clone(),
        arch: Some(id.arch.clone()),
    };
    database.packages().iter().map(|package| Change::Configure(spec(&package.id))).collect()
}

fn skipped(reason: &str) -> ExitCode {
    log::warn!("{reason}; nothing was prepared");
    ExitCode::SUCCESS
}

fn prepare(
    caller: &Caller,
    front_end: &str,
    member: Option<Member>,
    changes: impl FnOnce(&Database<'_>) -> (Vec<Change>, Vec<String>),
) -> ExitCode {
    let Some(policy) = caller.policy().filter(|policy| policy.mode != Mode::Off) else {
        return ExitCode::SUCCESS;
    };
    let manager = caller.manager();
    let plan = manager.database().and_then(|database| {
        let (changes, warnings) = changes(&database);
        if changes.is_empty() && warnings.is_empty() {
            return Ok(None);
        }
        let mut plan = Plan::new(&database, &changes)?;
        plan.warnings.extend(warnings);
        Ok(Some(plan))
    });
    let plan = match plan {
        Ok(Some(plan)) => plan,
        Ok(None) => return ExitCode::SUCCESS,
        // Without its database dpkg itself does nothing.
        Err(e) if e.source.kind() == io::ErrorKind::NotFound => return skipped(&e.to_string()),
        Err(e) => return verdict(&policy, &[e.to_string()], "mend the cause, then try again"),
    };
    for warning in &plan.warnings {
        log::warn!("{warning}");
    }
    let guest = Guest { root: &caller.root, policy: &policy };
    let purpose = Purpose { front_end, member, dry_run: false, hand_over: true, progress: &Unwatched };
    match guest.begin(&purpose, |surveyor| collect(surveyor, &plan, &policy)) {
        Err(refusal) => refused(&policy, &refusal),
        Ok(begun) if begun.outcome.failed.is_empty() => {
            report(&begun);
            ExitCode::SUCCESS
        }
        Ok(begun) => {
            report(&begun);
            let code = stayed_unified(&policy, &begun);
            if code != ExitCode::SUCCESS {
                // Nothing will run: give back what was detached for it.
                let done: Vec<_> = member.iter().map(|member| member.id).collect();
                let settled = guest.finish(&done, &manager);
                settled.map(drop).unwrap_or_else(|e| log::warn!("{e}"));
            }
            code
        }
    }
}

/// Looks at all that the plan and the policy name.
fn collect(surveyor: &mut Surveyor<'_>, plan: &Plan, policy: &Policy) {
    let new: BTreeSet<&PathBuf> = plan.non_directories.iter().collect();
    // dpkg removes a directory that a file takes the place of, with all that is in it.
    for directory in surveyor.paths(plan.non_directories.iter()) {
        surveyor.tree(&directory);
    }
    surveyor.paths(plan.paths.iter().filter(|path| !new.contains(path)));
    for tree in &plan.trees {
        surveyor.tree(tree);
    }
    surveyor.patterns(&policy.prepare);
}

fn report(begun: &Begun) {
    for problem in &begun.recovered.failed {
        log::warn!("left by an interrupted run: {problem}");
    }
    let restored = begun.recovered.done + begun.recovered.undone;
    if restored > 0 {
        log::info!("{restored} files of an interrupted run put in order");
    }
    for unseen in &begun.survey.unseen {
        log::warn!("{}: {}", Shown(&unseen.path), Reason(&unseen.source));
    }
    for left in begun.survey.left.iter().filter(|left| left.named) {
        if matches!(left.verdict, Verdict::AdministratorsOwn | Verdict::AppendOnly | Verdict::NeverTouch) {
            log::warn!("{}: left: {}; dpkg may fail on it", Shown(&left.path), left.verdict.describe());
        }
    }
    for path in &begun.outcome.contested {
        log::info!("{}: somebody tried to change the shared file, in vain", Shown(path));
    }
    for path in &begun.outcome.leaked {
        log::warn!("{}: somebody may have changed the shared file; let the host verify it", Shown(path));
    }
    let count = begun.outcome.detached.len();
    if count > 0 {
        log::info!("{count} {} made private ({}) before dpkg runs", files(count), size(begun.outcome.bytes));
    }
}

pub fn files(count: usize) -> &'static str {
    if count == 1 { "file" } else { "files" }
}

fn refused(policy: &Policy, refusal: &Refusal) -> ExitCode {
    verdict(policy, &[refusal.to_string()], &refusal.remedy())
}

fn stayed_unified(policy: &Policy, begun: &Begun) -> ExitCode {
    let reasons: Vec<String> =
        begun.outcome.failed.iter().map(|f| format!("{}: {}", Shown(&f.path), f.reason)).collect();
    verdict(policy, &reasons, "end what holds these files, then try again; `cow-status FILE` explains each")
}

/// Refuses, or only warns, as the policy says.
fn verdict(policy: &Policy, reasons: &[String], remedy: &str) -> ExitCode {
    const SHOWN: usize = 10;
    let enforce = policy.mode == Mode::Enforce;
    let level = if enforce { log::Level::Error } else { log::Level::Warn };
    let action = if enforce {
        "refused, before dpkg has touched anything"
    } else {
        "dpkg may fail, or change other guests"
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
        return ExitCode::SUCCESS;
    }
    log::error!("to run without cow-hooks once: set COW_HOOKS=off in the environment");
    ExitCode::FAILURE
}

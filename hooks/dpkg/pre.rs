//! Before dpkg runs: plan, inspect, detach. The one place where a hook may refuse.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io;
use std::path::PathBuf;

use cow_hooks::detach::survey::Surveyor;
use cow_hooks::hook;
use cow_hooks::hook::pre::{Decision, Run, refuse, skipped};
use cow_hooks::package::PackageSpec;
use cow_hooks::package::apt::Stream;
use cow_hooks::package::dpkg::{Change, Database, Invocation, Plan};
use cow_hooks::policy::Policy;
use cow_hooks::report::Reason;
use cow_hooks::supervise;
use cow_hooks::sys::process::ProcessId;
use cow_hooks::transaction::members::{Cover, Member};
use cow_hooks::transaction::{Guest, member};

use crate::caller::DpkgCaller;

/// What supervises dpkg.
const SUPERVISOR: &str = "/usr/libexec/cow-hooks/cow-dpkg";

/// apt's `DPkg::Pre-Install-Pkgs`: the whole run, from the stream on standard input.
pub fn apt() -> Decision {
    let stream = match Stream::read(io::stdin().lock()) {
        Ok(stream) => stream,
        Err(e) => {
            // dpkg's own hook will plan for each of its runs.
            log::warn!("apt's list of packages cannot be read: {}", Reason(e));
            return Decision::GoOn;
        }
    };
    if has_other_root(&stream) {
        // The hook of each dpkg is told which; apt's own hook after the run is not.
        return Decision::GoOn;
    }
    let caller = match DpkgCaller::of_apt() {
        Ok(caller) => caller,
        Err(e) => return skipped(&Reason(e).to_string()),
    };
    // Older streams name no removals and no configuration.
    let covers = stream.version >= 2;
    let apt = caller
        .caller
        .front_end()
        .map(|process| member(process.id, if covers { Cover::Planned } else { Cover::Nothing }));
    // Each dpkg is supervised by its own hook, which has the rights over it that this one has over its shell.
    let shell = caller.caller.ancestors.first().map(|process| process.id);
    let supervise = |apt: ProcessId| supervise::may_supervise(shell.unwrap_or(apt).pid);
    prepare(&caller, "apt", apt, &supervise, |_| (Change::of_stream(&stream), Vec::new()))
}

/// dpkg's `pre-invoke`: what its command line says, unless apt's hook has planned for it.
pub fn dpkg() -> Decision {
    let caller = match DpkgCaller::of_dpkg() {
        Ok(caller) => caller,
        Err(e) => return skipped(&Reason(e).to_string()),
    };
    // Under another dpkg's supervision, in a maintainer script.
    if supervise::is_supervised() {
        return Decision::GoOn;
    }
    let dpkg = caller.dpkg().map(|process| process.id);
    match caller.caller.covered_by().map(|member| member.covers) {
        None => {}
        Some(Cover::Supervised) => match dpkg {
            Some(dpkg) if begin(dpkg).is_ok() => return Decision::GoOn,
            // What apt's hook could not foresee: this dpkg is prepared like one that was called without apt.
            _ => {}
        },
        Some(_) => return Decision::GoOn,
    }
    let invocation = dpkg.and_then(|id| {
        let line = caller.caller.processes.as_ref()?.command_line(id.pid).ok()?;
        Some(Invocation::parse(&line))
    });
    if invocation.as_ref().is_some_and(|invocation| invocation.no_act) {
        return Decision::GoOn;
    }
    // Relative archives begin where dpkg is, and so do we.
    let base = std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/"));
    prepare(
        &caller,
        "dpkg",
        dpkg.map(|id| member(id, Cover::Planned)),
        &begin,
        |database| match &invocation {
            Some(invocation) => Change::of_invocation(invocation, database, &base),
            None => (
                everything(database),
                vec!["dpkg's command line cannot be seen; all its files are prepared".into()],
            ),
        },
    )
}

/// Has dpkg supervised: it, and what it starts.
fn begin(dpkg: ProcessId) -> Result<(), supervise::Error> {
    supervise::process(dpkg.pid, hook::supervisor(SUPERVISOR, ""))
        .map(drop)
        .inspect_err(|e| log::debug!("dpkg is not supervised: {e}"))
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

fn prepare(
    caller: &DpkgCaller,
    front_end: &str,
    member: Option<Member>,
    supervise: &dyn Fn(ProcessId) -> Result<(), supervise::Error>,
    changes: impl FnOnce(&Database<'_>) -> (Vec<Change>, Vec<String>),
) -> Decision {
    let root = &caller.caller.root;
    let Some(policy) = hook::policy(root) else { return Decision::GoOn };
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
        Ok(None) => return Decision::GoOn,
        // Without its database dpkg itself does nothing.
        Err(e) if e.source.kind() == io::ErrorKind::NotFound => return skipped(&e.to_string()),
        Err(e) => return refuse(&policy, "dpkg", &[e.to_string()], "mend the cause, then try again"),
    };
    for warning in &plan.warnings {
        log::warn!("{warning}");
    }
    let guest = Guest { root, policy: &policy };
    let run = Run { guest, front_end, program: "dpkg", member };
    let supervise = member.map(|member| move || supervise(member.id));
    let supervise =
        supervise.as_ref().map(|supervise| supervise as &dyn Fn() -> Result<(), supervise::Error>);
    run.prepare(&manager, supervise, |surveyor| collect(surveyor, &plan, &policy))
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

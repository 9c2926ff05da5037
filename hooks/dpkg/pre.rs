//! Before dpkg runs: plan, inspect, detach. The one place where a hook may refuse.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};

use cow_hooks::detach::request::Request;
use cow_hooks::hook;
use cow_hooks::hook::pre::{Decision, HookRun, Start, refuse, shared_below, unknown};
use cow_hooks::package::PackageSpec;
use cow_hooks::package::dpkg::apt::Stream;
use cow_hooks::package::dpkg::{Change, Database, Invocation, Plan};
use cow_hooks::package::touched::Touched;
use cow_hooks::policy::{Policy, SuperviseMode};
use cow_hooks::report::{Reason, Shown};
use cow_hooks::state::members::{Coverage, Member};
use cow_hooks::supervise;
use cow_hooks::sys::file::inode::{Inode, Kind};
use cow_hooks::sys::path::root::{Root, relative};
use cow_hooks::sys::process::{Process, ProcessId};
use cow_hooks::transaction::{Guest, member};

use super::caller::{DpkgCaller, NAME, chroot_of, has_other_root};

/// apt's `DPkg::Pre-Install-Pkgs`: the whole run, from the stream on standard input.
pub fn apt() -> Decision {
    let stream = match Stream::read(io::stdin().lock()) {
        Ok(stream) => stream,
        Err(e) => {
            // dpkg's own hook will plan for each of its runs.
            log::warn!("{}; the hook of dpkg prepares each of its runs instead", Reason(e));
            return Decision::GoOn;
        }
    };
    if has_other_root(&stream) {
        // The hook of each dpkg is told which; apt's own hook after the run is not.
        return Decision::GoOn;
    }
    let caller = match DpkgCaller::of_apt() {
        Ok(caller) => caller,
        Err(e) => return unknown("dpkg", &Reason(e).to_string()),
    };
    // Older streams name no removals and no configuration.
    let covers = stream.version >= 2;
    let apt = caller
        .caller
        .front_end()
        .map(|process| member(process.id, if covers { Coverage::Planned } else { Coverage::Nothing }));
    // It may be one dpkg after the other: its hook has the rights over it that this one has over its shell.
    let shell = caller.caller.ancestors.first().map(|process| process.id);
    let may = |apt: ProcessId| supervise::may_supervise(shell.unwrap_or(apt).pid);
    let begin = |_: ProcessId| begin_with_apt(&caller);
    let chroot = chroot_of(&stream);
    prepare(&caller, "apt", apt, Watch { may: &may, begin: &begin }, |_| {
        (Change::of_stream(&stream, chroot.as_deref()), Vec::new())
    })
}

/// dpkg's `pre-invoke`: what its command line says, unless apt's hook has planned for it.
pub fn dpkg() -> Decision {
    let caller = match DpkgCaller::of_dpkg() {
        Ok(caller) => caller,
        Err(e) => return unknown("dpkg", &Reason(e).to_string()),
    };
    let dpkg = caller.dpkg().map(|process| process.id);
    match caller.covered_by().map(|member| member.covers) {
        None => {}
        Some(Coverage::Supervised) => match dpkg {
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
        dpkg.map(|id| member(id, Coverage::Planned)),
        Watch { may: &|dpkg| supervise::may_supervise(dpkg.pid), begin: &begin },
        |database| match &invocation {
            Some(invocation) => Change::of_invocation(invocation, database, &base),
            None => (
                everything(database),
                vec!["dpkg's command line cannot be read; the files of all packages are prepared".into()],
            ),
        },
    )
}

/// apt's hooks that are told nothing, `DPkg::Pre-Invoke` and its like: has the hooks of others supervised that come
/// after this one, and all that apt runs later.
pub fn around() {
    let Ok(caller) = DpkgCaller::of_apt() else { return };
    let root = &caller.caller.root;
    if supervise::is_supervised() {
        return;
    }
    let Some(policy) = hook::policy(root).filter(|policy| policy.supervise != SuperviseMode::Never) else {
        return;
    };
    if !(Guest { root, policy: &policy }).has_protected(&caller.manager()) {
        return;
    }
    for process in caller.caller.front_end_and_child() {
        // Of the two the child is the last: what is begun for apt is not inherited by what runs already.
        begin_with(&caller, process).unwrap_or_else(|e| log::debug!("{}: {e}", process.id.pid));
    }
}

/// Has apt supervised, and all that it runs from now on. If it cannot be, each dpkg is by its own hook.
fn begin_with_apt(caller: &DpkgCaller) -> Result<(), supervise::Error> {
    match caller.caller.front_end().map(|apt| begin_with(caller, apt)) {
        // What it does from now on fails.
        Some(Err(e @ supervise::Error::Lost(_))) => Err(e),
        Some(Err(e)) => {
            log::debug!("{e}");
            Ok(())
        }
        _ => Ok(()),
    }
}

/// Has a process supervised, if its paths mean what they mean to us.
fn begin_with(caller: &DpkgCaller, process: &Process) -> Result<(), supervise::Error> {
    if !caller.caller.shares_root(process) {
        return Err(supervise::Error::Elsewhere);
    }
    supervise::may_supervise(process.id.pid)?;
    begin(process.id)
}

/// Has a process supervised: it, and what it starts.
fn begin(process: ProcessId) -> Result<(), supervise::Error> {
    supervise::process(process.pid, hook::supervisor(hook::this_program(NAME), ""))
        .map(drop)
        .inspect_err(|e| log::debug!("process {} is not supervised: {e}", process.pid))
}

fn everything(database: &Database<'_>) -> Vec<Change> {
    let spec = |id: &cow_hooks::package::PackageId| PackageSpec {
        name: id.name.clone(),
        arch: Some(id.arch.clone()),
    };
    database.packages().iter().map(|package| Change::Configure(spec(&package.id))).collect()
}

/// Whether the process that this is about can be supervised, and what begins it.
struct Watch<'a> {
    may: &'a dyn Fn(ProcessId) -> Result<(), supervise::Error>,
    begin: &'a dyn Fn(ProcessId) -> Result<(), supervise::Error>,
}

fn prepare(
    caller: &DpkgCaller,
    front_end: &str,
    member: Option<Member>,
    supervise: Watch<'_>,
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
        Err(e) => {
            return refuse(&policy, "dpkg", &[e.to_string()], "fix the cause, then run the command again");
        }
    };
    if let Some(problem) = beyond_reach(caller, &policy, &plan) {
        let remedy = "run `cow-prepare` on this file in the root that it belongs to, then run the command \
            again";
        if refuse(&policy, "dpkg", &[problem], remedy) == Decision::Refuse {
            return Decision::Refuse;
        }
    }
    // What is not all known is planned for again by each dpkg.
    let covers = |member: Member| if plan.warnings.is_empty() { member.covers } else { Coverage::Nothing };
    let member = member.map(|member| Member { covers: covers(member), ..member });
    for warning in &plan.warnings {
        log::warn!("{warning}");
    }
    let guest = Guest { root, policy: &policy };
    let run = HookRun { guest, front_end, program: "dpkg", member };
    let request = request(plan, &policy);
    let Some(member) = member else { return run.prepare(&manager, None, &request) };
    let (may, begin) = (|| (supervise.may)(member.id), || (supervise.begin)(member.id));
    run.prepare(&manager, Some(Start { may: &may, begin: &begin }), &request)
}

/// A unified file that dpkg would change outside of the root it installs into, where nothing is made private: its
/// database is there, or a symlink leads there, which dpkg follows like any program.
fn beyond_reach(caller: &DpkgCaller, policy: &Policy, plan: &Plan) -> Option<String> {
    let root = &caller.caller.root;
    let database = caller.admindir().outside().and_then(|(outside, dir)| shared_below(outside, policy, dir));
    let database = database.map(|path| {
        format!(
            "{}: this file of dpkg's database is outside of dpkg's root and still shared with other \
            guests",
            Shown(&path)
        )
    });
    database.or_else(|| {
        let path = if root.is_own() { None } else { astray(root, &plan.paths) };
        path.map(|path| {
            format!("{}: a symbolic link leads dpkg out of its root to a unified file", Shown(&path))
        })
    })
}

/// The first of these paths that leads a program which does not change its root out of this one, to a file that may be
/// unified.
fn astray(root: &Root, paths: &[PathBuf]) -> Option<PathBuf> {
    let mut by_dir: BTreeMap<&Path, Vec<&OsStr>> = BTreeMap::new();
    for path in paths {
        if let (Some(dir), Some(name)) = (path.parent(), path.file_name()) {
            by_dir.entry(dir).or_default().push(name);
        }
    }
    by_dir.into_iter().find_map(|(dir, names)| {
        let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC;
        let there = rustix::fs::openat(root, relative(dir), flags, rustix::fs::Mode::empty()).ok()?;
        let here = root.open_at(dir, flags).ok().and_then(|here| Inode::of(here).ok());
        if here.is_some_and(|here| Inode::of(&there).is_ok_and(|there| there.id == here.id)) {
            return None;
        }
        let is_unified = |name: &&&OsStr| {
            let inode = Inode::at(&there, name);
            inode.is_ok_and(|inode| inode.kind == Kind::Regular && (inode.immutable || inode.nlink > 1))
        };
        names.iter().find(is_unified).map(|name| dir.join(name))
    })
}

/// What a run touches that dpkg carries out by this plan.
fn request(plan: Plan, policy: &Policy) -> Request {
    let Plan { paths, non_directories, trees, mut in_place, configured, .. } = plan;
    // Of a package that is unpacked they are private when its scripts run.
    in_place.extend(configured.into_iter().filter(|path| policy.prepare.matches(path)));
    let touched = Touched { paths, non_directories, trees, in_place, followed: Vec::new() };
    Request { touched, patterns: policy.prepare.clone(), by_name: true, ..Request::default() }
}

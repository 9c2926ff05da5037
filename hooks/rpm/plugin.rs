//! rpm's plugin: the whole transaction is planned, inspected and detached before rpm touches anything.
//!
//! `ffi` speaks with rpm, `elements` knows what a transaction touches. All that may fail does so in
//! `transaction_begins`; a file that has come later is detached on the way, or left with a warning.

mod elements;
pub mod ffi;

use std::cell::Cell;
use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use rustix::fs::OFlags;

use self::elements::Elements;
use self::ffi::{Action, Plugin, Transaction};
use crate::detach::request::Request;
use crate::hook::pre::{Decision, HookRun, Start, refuse, shared_below};
use crate::hook::{self, post};
use crate::logging;
use crate::package::touched::Touched;
use crate::policy::{Mode, Policy};
use crate::report::{Reason, Shown};
use crate::state::members::{Coverage, Member};
use crate::supervise;
use crate::sys::file::inode::{Inode, Kind};
use crate::sys::path::resolve::Resolver;
use crate::sys::path::root::Root;
use crate::sys::process::unconfined::UnconfinedThread;
use crate::sys::process::{ProcessId, Processes};
use crate::transaction::{Guest, member};

/// What rpm looks up: the name of the file, and `_hooks`.
#[allow(unsafe_code, non_upper_case_globals)]
#[unsafe(no_mangle)]
pub static cowhooks_hooks: ffi::Hooks = ffi::hooks::<CowHooks>();

/// What supervises rpm.
const SUPERVISOR: &str = "/usr/libexec/cow-hooks/cow-rpm";

/// The guest of a transaction set.
#[derive(Debug)]
struct Target {
    root: Root,
    policy: Policy,
}

impl Target {
    fn guest(&self) -> Guest<'_> {
        Guest { root: &self.root, policy: &self.policy }
    }

    fn run(&self, member: Member) -> HookRun<'_> {
        HookRun { guest: self.guest(), front_end: "rpm", program: "rpm", member: Some(member) }
    }
}

/// The plugin.
#[derive(Debug)]
pub struct CowHooks {
    target: Arc<Target>,
    /// What rpm's configuration says beyond the policy's files.
    options: String,
    open: Option<Open>,
}

/// A transaction between its first hook and its last.
#[derive(Debug)]
struct Open {
    member: Member,
    elements: Elements,
    planned: HashSet<PathBuf>,
    package: OsString,
    /// This process is not rpm's own command but one that uses its library.
    in_front_end: bool,
    /// rpm and its scriptlets run with copy on write: nothing is left to detach.
    supervised: bool,
    /// rpm does not go into another root by `chroot(2)`.
    stays: bool,
    /// A thread that no chroot or filter of rpm applies to, if one could be started.
    unconfined: Option<UnconfinedThread>,
}

impl Plugin for CowHooks {
    fn new(root: &Path, options: &str) -> Option<CowHooks> {
        hook::log();
        if hook::is_off() {
            return None;
        }
        let root = Root::open(root).inspect_err(|e| log::warn!("{}: {}", Shown(root), Reason(e))).ok()?;
        let mut policy = hook::any_policy(&root)?;
        if let Err(e) = policy.adjust(options) {
            log::warn!("options of rpm's plugin: {e}; these options are ignored");
        }
        let options = options.to_owned();
        (policy.mode != Mode::Off).then(|| CowHooks {
            target: Arc::new(Target { root, policy }),
            options,
            open: None,
        })
    }

    fn transaction_begins(&mut self, transaction: &Transaction<'_>) -> bool {
        if !transaction.touches_files() {
            return true;
        }
        match self.begin(transaction) {
            Ok(decision) => decision == Decision::GoOn,
            Err(e) => {
                let reasons = [e.to_string()];
                refuse(&self.target.policy, "rpm", &reasons, "fix the cause, then run the command again")
                    == Decision::GoOn
            }
        }
    }

    fn transaction_ended(&mut self, failed: &[OsString]) {
        let Some(mut open) = self.open.take() else { return };
        open.elements.set_failed(failed);
        if open.in_front_end {
            // dnf leaves its line of progress open.
            logging::break_line();
        }
        let Open { member, elements, unconfined, .. } = open;
        let target = Arc::clone(&self.target);
        let finish = move || post::report(target.guest().finish(&[member.id], &elements));
        match unconfined.filter(|_| open.supervised) {
            Some(unconfined) => unconfined.run(finish),
            None => finish(),
        }
        // A supervisor that was there before has let the calls of this process pass meanwhile.
        if open.supervised {
            supervise::resume();
        }
    }

    fn package_begins(&mut self, nevra: &OsStr) {
        if let Some(open) = &mut self.open {
            open.package = nevra.to_os_string();
        }
    }

    fn file_begins(&mut self, path: &Path, action: Action) {
        if let Some(open) = &self.open {
            open.file(&self.target, path, action);
        }
    }
}

impl CowHooks {
    fn begin(&mut self, transaction: &Transaction<'_>) -> std::io::Result<Decision> {
        let Target { root, policy } = &*self.target;
        let database = transaction.database();
        let canonical = Resolver::new(root).directory(&database)?.unwrap_or_else(|| database.clone());
        if let Some(shared) = shared_below(root, policy, &canonical) {
            let reason = format!("{}: rpm's own database is still shared with other guests", Shown(&shared));
            let remedy = format!("run `cow-prepare {}`, then run the command again", Shown(&database));
            if refuse(policy, "rpm", &[reason], &remedy) == Decision::Refuse {
                return Ok(Decision::Refuse);
            }
        }
        let elements = Elements::new(transaction.elements(), root.try_clone()?);
        // rpm has its database open: another inode under its name would split it.
        let planned = elements.touched(&[&database, &canonical]);
        let own = Processes::open().and_then(|processes| processes.own()).ok();
        let unknown = ProcessId { pid: std::process::id() as i32, start: 0 };
        let member = member(own.as_ref().map_or(unknown, |process| process.id), Coverage::Planned);
        // Before there is a filter: it is for the threads that come after it.
        let unconfined = UnconfinedThread::start().inspect_err(|e| log::debug!("{e}")).ok();
        let supervised = Cell::new(false);
        let begin = || self.supervise().map(|()| supervised.set(true));
        let supervise = Start { may: &supervise::may_supervise_this_thread, begin: &begin };
        let run = self.target.run(member);
        let decision = run.prepare(&elements, Some(supervise), &request(&planned, &elements, policy));
        if decision == Decision::Refuse {
            return Ok(decision);
        }
        self.open = Some(Open {
            member,
            elements,
            planned,
            package: OsString::new(),
            in_front_end: own.is_some_and(|process| process.command != "rpm"),
            supervised: supervised.get(),
            stays: root.is_own(),
            unconfined,
        });
        Ok(decision)
    }

    /// Has the calling thread supervised, and so rpm itself and all its scriptlets.
    fn supervise(&self) -> Result<(), supervise::Error> {
        supervise::this_thread_by(hook::supervisor(Command::new(SUPERVISOR), &self.options)).map(drop)
    }
}

impl Open {
    /// Detaches what the plan did not know of; whatever happens, rpm goes on.
    fn file(&self, target: &Arc<Target>, path: &Path, action: Action) {
        // What the host's guard protects is still shared, and in the way only of what changes the file itself.
        let in_place = action == Action::Touch;
        if self.supervised || self.planned.contains(path) && !in_place {
            return;
        }
        let mut names = elements::names(path, action);
        names.retain(|name| in_place || !self.planned.contains(name));
        if action == Action::Touch {
            names.extend(Resolver::new(&target.root).followed(path).ok().flatten().map(|place| place.path()));
        }
        names.retain(|name| may_be_shared(&target.root, name));
        if names.is_empty() {
            return;
        }
        log::debug!("{}: {} is not private yet", Shown(Path::new(&self.package)), Shown(path));
        let (target, member) = (Arc::clone(target), self.member);
        let detach = move || detach(&target, member, &names, in_place);
        match &self.unconfined {
            _ if self.stays => detach(),
            Some(unconfined) => unconfined.run(detach),
            None => log::warn!(
                "{}: still shared with other guests; rpm may fail on this file, or change it \
                in other guests",
                Shown(path)
            ),
        }
    }
}

/// What rpm touches that was planned for: a symlink in the place of a regular file may be followed.
fn request(planned: &HashSet<PathBuf>, elements: &Elements, policy: &Policy) -> Request {
    let touched = Touched {
        paths: planned.iter().cloned().collect(),
        followed: elements.regular().cloned().collect(),
        ..Touched::default()
    };
    Request { touched, patterns: policy.prepare.clone(), by_name: true, ..Request::default() }
}

/// In the middle of the transaction: it goes on whatever this comes to.
fn detach(target: &Target, member: Member, names: &[PathBuf], in_place: bool) {
    let stays = |problem: String| {
        log::warn!(
            "{problem}; rpm may fail on this file, or change it in other \
        guests"
        )
    };
    match target
        .run(member)
        .begin(&Request { by_name: !in_place, ..Request::of_paths(names.iter().cloned()) })
    {
        Ok(begun) => begun.outcome.failed.iter().map(ToString::to_string).for_each(stays),
        Err(refusal) => stays(refusal.to_string()),
    }
}

/// Whether a file has other names or is protected: all that can be unified.
fn may_be_shared(root: &Root, path: &Path) -> bool {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else { return false };
    let inode = root.open_at(dir, OFlags::PATH | OFlags::DIRECTORY).and_then(|dir| Inode::at(dir, name));
    inode.is_ok_and(|inode| inode.kind == Kind::Regular && (inode.nlink > 1 || inode.immutable))
}

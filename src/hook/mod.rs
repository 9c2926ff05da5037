//! What the hooks of all package managers share: who called, when to refuse, what is printed.
//!
//! A hook prints nothing when there was nothing to do, and one line otherwise.

pub mod caller;
pub mod paths;
pub mod post;
pub mod pre;
pub mod rpm_files;
pub mod series;
mod told;

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};

use crate::policy::{Mode, Policy};
use crate::report::Reason;
use crate::supervise::{self, Options};
use crate::sys::path::root::Root;

/// The environment variable that switches everything off for one run, by the value `off`.
pub const SWITCH: &str = "COW_HOOKS";

/// Whether the switch says so.
pub fn is_off() -> bool {
    is_set_to("off")
}

/// Sends what the hooks say to standard error.
pub fn log() {
    crate::logging::init("cow-hooks", 0, u8::from(is_set_to("debug")));
}

fn is_set_to(value: &str) -> bool {
    std::env::var_os(SWITCH).is_some_and(|set| set == value)
}

/// The kernel's link to the program that runs (proc_pid_exe(5)).
const THIS_PROGRAM: &str = "/proc/self/exe";
/// Where the packages have this program.
const INSTALLED: &str = "/usr/libexec/cow-hooks/cow-hooks";

/// The program that runs, called by the name `name`: the very file it was started from, though an upgrade may have put
/// another in its place by now. In a root without `/proc`, the one that is installed.
pub fn this_program(name: &str) -> Command {
    let has_proc = Path::new(THIS_PROGRAM).exists();
    let mut command = Command::new(if has_proc { THIS_PROGRAM } else { INSTALLED });
    command.arg0(name);
    command
}

/// Has `program`, which is to call [`supervise()`], supervise a package manager, with `options` over the policy of the
/// guest.
///
/// A process of its own: the hook has threads, or a database open, that a mere fork would not take along.
pub fn supervisor(mut program: Command, options: &str) -> Command {
    program.arg("supervise").arg(options);
    program
}

/// What that program does: returns when the supervisor goes on by itself.
pub fn supervise(options: &str) -> ExitCode {
    let policy = Root::open(Path::new("/")).ok().and_then(|root| any_policy(&root));
    let Some(mut policy) = policy else { return ExitCode::FAILURE };
    // Whoever was given them has said what is wrong with them.
    let _ = policy.adjust(options);
    match supervise::serve(Options { policy, unprotected: false, guarded: false, talk: None }) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            log::debug!("{}", Reason(e));
            ExitCode::FAILURE
        }
    }
}

/// The guest's policy; none where it switches the hooks off.
pub fn policy(root: &Root) -> Option<Policy> {
    any_policy(root).filter(|policy| policy.mode != Mode::Off)
}

/// The guest's policy, whatever its mode; the built-in one if its files make no sense, with a warning from the first hook
/// of a run that finds it.
pub fn any_policy(root: &Root) -> Option<Policy> {
    load(root, |said| {
        let level = if told::is_new(said) { log::Level::Warn } else { log::Level::Debug };
        log::log!(level, "{said}");
    })
}

/// As [`policy`], for a hook whose messages only reach a log: others of the same run have to say them again.
pub fn policy_for_log(root: &Root) -> Option<Policy> {
    load(root, |said| log::warn!("{said}")).filter(|policy| policy.mode != Mode::Off)
}

fn load(root: &Root, tell: impl FnOnce(&str)) -> Option<Policy> {
    let policy = Policy::load(root).or_else(|e| {
        tell(&format!("{e}; the built-in policy is used"));
        Policy::builtin()
    });
    policy.inspect_err(|e| log::error!("{e}")).ok()
}

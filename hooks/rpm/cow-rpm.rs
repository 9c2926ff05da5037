//! What rpm's file triggers call where the plugin is not there, and what its front ends ask before they download.
//!
//! A file trigger cannot stop rpm: nothing but `check` ever fails. Its refusal is an exit code that no program has which
//! cannot even be started.

use std::path::PathBuf;
use std::process::ExitCode;

use cow_hooks::exit::Exit;
use cow_hooks::hook::caller::Caller;
use cow_hooks::hook::paths::{self, Called};
use cow_hooks::hook::pre::Decision;
use cow_hooks::hook::{self, post, rpm_files};
use cow_hooks::package::Managers;
use cow_hooks::package::rpm::command_line::PackageArguments;
use cow_hooks::package::rpm::plan;
use cow_hooks::policy::{Mode, Policy};
use cow_hooks::report::Reason;

/// Does what the arguments of this process say.
pub fn main() -> ExitCode {
    hook::log();
    let mut arguments = std::env::args().skip(1);
    let (Some(called), options, None) = (arguments.next(), arguments.next(), arguments.next()) else {
        return usage();
    };
    match (called.as_str(), options) {
        ("supervise", Some(options)) => hook::supervise(&options),
        (_, Some(_)) => usage(),
        (called, None) => by_paths(called),
    }
}

fn by_paths(called: &str) -> ExitCode {
    match called {
        "pre" | "post" | "check" if hook::is_off() => ExitCode::SUCCESS,
        "pre" | "post" | "check" | "retire" => match run(called) {
            Decision::Refuse => Exit::Refused.into(),
            Decision::GoOn => ExitCode::SUCCESS,
        },
        _ => usage(),
    }
}

fn usage() -> ExitCode {
    eprintln!("usage: cow-rpm pre|post|check|retire (called by rpm and its front ends, with paths as input)");
    eprintln!("       cow-rpm supervise OPTIONS (called by rpm's plugin, with a socket as input)");
    ExitCode::from(2)
}

fn run(hook: &str) -> Decision {
    match paths::called("rpm", hook::any_policy, |called, manager| work(hook, called, manager)) {
        Ok(decision) => decision.unwrap_or(Decision::GoOn),
        Err(e) => hook::pre::skipped(&Reason(e).to_string()),
    }
}

fn work(hook: &str, called: Called<'_>, manager: &Managers<'_>) -> Decision {
    match hook {
        "retire" => {
            post::report(called.guest().retire());
            post::tell_of_shared(called.guest());
        }
        _ if called.policy.mode == Mode::Off => {}
        "pre" => {
            // rpm goes on whatever a trigger says: what is said must be true.
            let policy = Policy { mode: Mode::Warn, ..called.policy.clone() };
            return Called { policy: &policy, ..called }.pre(manager, brought);
        }
        "check" => return called.check(),
        _ => called.post(manager),
    }
    Decision::GoOn
}

/// What the packages on rpm's command line bring: its triggers are told of nothing but what the old ones have.
fn brought(caller: &Caller) -> Vec<PathBuf> {
    let PackageArguments { packages, warnings } = rpm_files::of(caller);
    for warning in warnings {
        log::warn!("{warning}; what this package replaces may stay unified");
    }
    plan::brought(&packages).paths
}

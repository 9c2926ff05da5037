//! What rpm's file triggers call where the plugin is not there, and what its front ends ask before they download.
//!
//! A file trigger cannot stop rpm: nothing but `check` ever fails. Its refusal is an exit code that no program has which
//! cannot even be started.

use std::path::Path;
use std::process::ExitCode;

use cow_hooks::exit::Exit;
use cow_hooks::hook::caller::Caller;
use cow_hooks::hook::paths::Called;
use cow_hooks::hook::pre::Decision;
use cow_hooks::hook::{self, post};
use cow_hooks::package::Managers;
use cow_hooks::policy::Mode;
use cow_hooks::report::Reason;
use cow_hooks::transaction::Guest;

fn main() -> ExitCode {
    hook::log();
    let mut arguments = std::env::args().skip(1);
    let (Some(called), None) = (arguments.next(), arguments.next()) else { return usage() };
    match called.as_str() {
        "pre" | "post" | "check" if hook::is_off() => ExitCode::SUCCESS,
        "pre" | "post" | "check" | "retire" => match run(&called) {
            Decision::Refuse => Exit::Refused.into(),
            Decision::GoOn => ExitCode::SUCCESS,
        },
        _ => usage(),
    }
}

fn usage() -> ExitCode {
    eprintln!("usage: cow-rpm pre|post|check|retire (called by rpm and its front ends, with paths as input)");
    ExitCode::from(2)
}

fn run(hook: &str) -> Decision {
    let caller = match Caller::of(Path::new("/")) {
        Ok(caller) => caller,
        Err(e) => return hook::pre::skipped(&Reason(e).to_string()),
    };
    let Some(mut policy) = hook::any_policy(&caller.root) else { return Decision::GoOn };
    let manager = Managers::new(&caller.root);
    if hook == "retire" {
        post::report(Guest { root: &caller.root, policy: &policy }.retire());
        return Decision::GoOn;
    }
    if policy.mode == Mode::Off {
        return Decision::GoOn;
    }
    if hook == "pre" {
        // rpm goes on whatever a trigger says: what is said must be true.
        policy.mode = Mode::Warn;
    }
    let called = Called { caller: &caller, policy: &policy, program: "rpm" };
    match hook {
        "pre" => called.pre(&manager),
        "check" => called.check(),
        _ => {
            called.post(&manager);
            Decision::GoOn
        }
    }
}

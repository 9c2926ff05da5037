//! What pacman's hooks call (alpm-hooks(5)): before it touches anything, and when it has run.

use std::process::ExitCode;

use cow_hooks::hook::paths::{self, Called};
use cow_hooks::hook::pre::Decision;
use cow_hooks::hook::{self, pre};
use cow_hooks::package::Managers;
use cow_hooks::report::Reason;

/// Does what the arguments of this process say.
pub fn main() -> ExitCode {
    hook::log();
    let mut arguments = std::env::args().skip(1);
    match (arguments.next().as_deref(), arguments.next()) {
        (Some("pre" | "post"), None) if hook::is_off() => ExitCode::SUCCESS,
        (Some("pre"), None) => called(|called, manager| called.pre(manager, |_| Vec::new())).into(),
        (Some("post"), None) => called(|called, manager| {
            called.post(manager);
            Decision::GoOn
        })
        .into(),
        _ => {
            eprintln!("usage: cow-pacman pre|post (called by pacman, with paths as input)");
            ExitCode::from(2)
        }
    }
}

fn called(work: impl FnOnce(Called<'_>, &Managers<'_>) -> Decision) -> Decision {
    // pacman changes its root to the guest's before it runs a hook.
    match paths::called("pacman", hook::policy, work) {
        Ok(decision) => decision.unwrap_or(Decision::GoOn),
        Err(e) => pre::skipped(&Reason(e).to_string()),
    }
}

//! What pacman's hooks call (alpm-hooks(5)): before it touches anything, and when it has run.

use std::path::Path;
use std::process::ExitCode;

use cow_hooks::hook::caller::Caller;
use cow_hooks::hook::paths::Called;
use cow_hooks::hook::pre::Decision;
use cow_hooks::hook::{self, pre};
use cow_hooks::package::Managers;
use cow_hooks::report::Reason;

fn main() -> ExitCode {
    hook::log();
    let mut arguments = std::env::args().skip(1);
    match (arguments.next().as_deref(), arguments.next()) {
        (Some("pre" | "post"), None) if hook::is_off() => ExitCode::SUCCESS,
        (Some("pre"), None) => called(|called, manager| called.pre(manager)).into(),
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
    let caller = match Caller::of(Path::new("/")) {
        Ok(caller) => caller,
        Err(e) => return pre::skipped(&Reason(e).to_string()),
    };
    let Some(policy) = hook::policy(&caller.root) else { return Decision::GoOn };
    work(Called { caller: &caller, policy: &policy, program: "pacman" }, &Managers::new(&caller.root))
}

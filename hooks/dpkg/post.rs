//! When dpkg has run: settle. Nothing here ever fails the run.

use std::path::Path;
use std::process::ExitCode;

use cow_hooks::hook::{self, post, series};
use cow_hooks::sys::path::root::Root;
use cow_hooks::sys::process::ProcessId;
use cow_hooks::transaction::settle::Settled;
use cow_hooks::transaction::{Error, Guest};

use super::caller::{DpkgCaller, NAME};

/// apt's `DPkg::Post-Invoke`: the whole run is over, or has failed.
pub fn apt() -> ExitCode {
    // apt runs this hook from a child of its own: the member is further up.
    with(DpkgCaller::of_apt(), |guest, apt| {
        let ancestors: Vec<_> = apt.caller.ancestors.iter().map(|process| process.id).collect();
        let settled = guest.finish(&ancestors, &apt.manager());
        let Some(front_end) = series::of(&apt.caller) else { return settled };
        let mut tell = hook::this_program(NAME);
        tell.arg("tell").arg(format!("{} {}", front_end.pid, front_end.start));
        series::add(guest.root, front_end, settled, tell);
        Ok(None)
    })
}

/// Left behind by the first of many runs: says what all of them came to.
pub fn tell(front_end: &str) -> ExitCode {
    let mut numbers = front_end.split(' ');
    let pid = numbers.next().and_then(|pid| pid.parse().ok());
    let start = numbers.next().and_then(|start| start.parse().ok());
    let (Some(pid), Some(start)) = (pid, start) else { return ExitCode::from(2) };
    let waits = Root::open(Path::new("/")).and_then(|root| series::tell(&root, ProcessId { pid, start }));
    if waits.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// dpkg's `post-invoke`; under apt there is more to come.
pub fn dpkg() -> ExitCode {
    let is_covered = |caller: &DpkgCaller| {
        let by = caller.covered_by();
        by.is_some_and(|by| Some(by.id) != caller.dpkg().map(|dpkg| dpkg.id))
    };
    match DpkgCaller::of_dpkg() {
        Ok(caller) if is_covered(&caller) => ExitCode::SUCCESS,
        caller => leave(caller, |caller| caller.dpkg().map(|process| process.id).into_iter().collect()),
    }
}

/// The package's dpkg trigger: dpkg is in the middle of its run, so only what a killed hook left is put in order.
pub fn triggered() -> ExitCode {
    with(DpkgCaller::of_dpkg(), |guest, _| {
        for problem in guest.recover()?.failed {
            log::warn!("{problem}");
        }
        Ok(None)
    })
}

/// cow-hooks is about to be removed: lets go of every original.
pub fn retire() -> ExitCode {
    with(DpkgCaller::of_dpkg(), |guest, _| {
        let settled = guest.retire();
        post::tell_of_shared(guest);
        settled
    })
}

fn leave(caller: std::io::Result<DpkgCaller>, who: impl Fn(&DpkgCaller) -> Vec<ProcessId>) -> ExitCode {
    with(caller, |guest, caller| guest.finish(&who(caller), &caller.manager()))
}

fn with(
    caller: std::io::Result<DpkgCaller>,
    work: impl FnOnce(Guest<'_>, &DpkgCaller) -> Result<Option<Settled>, Error>,
) -> ExitCode {
    match caller {
        Ok(caller) => {
            let root = &caller.caller.root;
            if let Some(policy) = hook::any_policy(root) {
                post::report(work(Guest { root, policy: &policy }, &caller));
            }
        }
        Err(e) => log::warn!(
            "{}; the next run, or `cow-prepare --recover`, completes it",
            cow_hooks::report::Reason(e)
        ),
    }
    ExitCode::SUCCESS
}

//! When dpkg has run: settle. Nothing here ever fails the run.

use std::process::ExitCode;

use cow_hooks::report::Reason;
use cow_hooks::sys::process::ProcessId;
use cow_hooks::transaction::settle::Settled;
use cow_hooks::transaction::{Error, Guest};

use crate::caller::Caller;

/// apt's `DPkg::Post-Invoke`: the whole run is over, or has failed.
pub fn apt() -> ExitCode {
    let caller = Caller::of(std::path::Path::new("/"), None);
    // apt runs this hook from a child of its own: the member is further up.
    leave(caller, |caller| caller.ancestors.iter().map(|process| process.id).collect())
}

/// dpkg's `post-invoke`; under apt there is more to come.
pub fn dpkg() -> ExitCode {
    match Caller::of_dpkg() {
        Ok(caller)
            if caller.covered_by().is_some_and(|by| Some(by.id) != caller.dpkg().map(|dpkg| dpkg.id)) =>
        {
            ExitCode::SUCCESS
        }
        caller => leave(caller, |caller| caller.dpkg().map(|process| process.id).into_iter().collect()),
    }
}

/// The package's dpkg trigger: dpkg is in the middle of its run, so only what a killed hook left is put in order.
pub fn triggered() -> ExitCode {
    let caller = Caller::of_dpkg();
    with(caller, |guest, _| {
        for problem in guest.recover()?.failed {
            log::warn!("{problem}");
        }
        Ok(None)
    })
}

/// cow-hooks is about to be removed: lets go of every original.
pub fn retire() -> ExitCode {
    with(Caller::of_dpkg(), |guest, _| guest.retire())
}

fn leave(caller: std::io::Result<Caller>, who: impl Fn(&Caller) -> Vec<ProcessId>) -> ExitCode {
    with(caller, |guest, caller| guest.finish(&who(caller), &caller.manager()))
}

fn with(
    caller: std::io::Result<Caller>,
    work: impl FnOnce(Guest<'_>, &Caller) -> Result<Option<Settled>, Error>,
) -> ExitCode {
    let done = caller.map_err(anyhow::Error::from).and_then(|caller| {
        let Some(policy) = caller.policy() else { return Ok(None) };
        Ok(work(Guest { root: &caller.root, policy: &policy }, &caller)?)
    });
    match done {
        Ok(settled) => report(&settled.unwrap_or_default()),
        Err(e) => log::warn!("{}; the next run puts this in order", Reason(e)),
    }
    ExitCode::SUCCESS
}

fn report(settled: &Settled) {
    for problem in &settled.failed {
        log::warn!("{problem}");
    }
    let mut parts = Vec::new();
    if settled.restored > 0 {
        parts.push(format!("{} shared again", settled.restored));
    }
    if settled.unified > 0 {
        parts.push(format!("{} unified with the pool", settled.unified));
    }
    if settled.new > 0 {
        parts.push(format!("{} new wait for the host", settled.new));
    }
    if settled.postponed > 0 {
        parts.push(format!("{} wait until their packages are configured", settled.postponed));
    }
    if !parts.is_empty() {
        log::info!("{}", parts.join(", "));
    }
}

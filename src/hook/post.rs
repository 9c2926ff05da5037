//! When a package manager has run: settle. Nothing here ever fails the run.

use crate::detach::request::Request;
use crate::detach::survey::Found;
use crate::inspect::VisibleFence;
use crate::report::{Reason, count, word};
use crate::transaction::settle::Settled;
use crate::transaction::{Error, Guest};

/// How many files are named that stay as they are.
const SHOWN: usize = 10;

/// Says what settling came to.
pub fn report(done: Result<Option<Settled>, Error>) {
    match done {
        Ok(settled) => tell(&settled.unwrap_or_default()),
        Err(e) => log::warn!("{}; the next run, or `cow-prepare --recover`, completes it", Reason(e)),
    }
}

/// Says what stays shared in a guest that cow-hooks is removed from, and what to do about it.
///
/// Only of what lies below `/usr`, which is most of it and quickly looked at.
pub fn tell_of_shared(guest: Guest<'_>) {
    // Whatever the guest has excluded: it is shared.
    let Ok(survey) = guest.survey(&Request::of_tree("/usr")) else { return };
    let is_immutable = |found: &&Found| found.fence == VisibleFence::Immutable;
    let immutable = survey.unified.iter().filter(is_immutable).count();
    let others = survey.unified.len() - immutable;
    if immutable > 0 {
        log::warn!(
            "{} below /usr {} shared with other guests, and immutable: without cow-hooks no package manager can replace \
             or remove {}; remedy: run `cow-unify detach` on the host with the directory of this guest",
            count(immutable, "file"),
            word(immutable, "stays", "stay"),
            word(immutable, "it", "them")
        );
    }
    if others > 0 {
        log::info!(
            "{} below /usr {} shared with other guests, and can be replaced and removed; to make {} private, run \
             `cow-unify detach` on the host with the directory of this guest",
            count(others, "file"),
            word(others, "stays", "stay"),
            word(others, "it", "them")
        );
    }
}

fn tell(settled: &Settled) {
    for problem in settled.let_go.iter().take(SHOWN).chain(&settled.failed) {
        log::warn!("{problem}");
    }
    if settled.let_go.len() > SHOWN {
        let more = settled.let_go.len() - SHOWN;
        log::warn!("and {more} more that {}", word(more, "stays as it is", "stay as they are"));
    }
    let mut parts = Vec::new();
    if settled.restored > 0 {
        parts.push(format!("{} shared again", settled.restored));
    }
    if settled.unified > 0 {
        parts.push(format!("{} unified with the pool", settled.unified));
    }
    if settled.new > 0 {
        let wait = word(settled.new, "waits", "wait");
        parts.push(format!("{} {wait} for the host", count(settled.new, "new file")));
    }
    if settled.postponed > 0 {
        let wait = word(settled.postponed, "waits until its package is", "wait until their packages are");
        parts.push(format!("{} {wait} configured", settled.postponed));
    }
    if !parts.is_empty() {
        log::info!("{}", parts.join(", "));
    }
}

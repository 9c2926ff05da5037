//! When a package manager has run: settle. Nothing here ever fails the run.

use crate::report::{Reason, count, word};
use crate::transaction::Error;
use crate::transaction::settle::Settled;

/// How many files are named that stay as they are.
const SHOWN: usize = 10;

/// Says what settling came to.
pub fn report(done: Result<Option<Settled>, Error>) {
    match done {
        Ok(settled) => tell(&settled.unwrap_or_default()),
        Err(e) => log::warn!("{}; the next run, or `cow-prepare --recover`, completes it", Reason(e)),
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

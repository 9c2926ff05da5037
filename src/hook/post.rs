//! When a package manager has run: settle. Nothing here ever fails the run.

use crate::report::Reason;
use crate::transaction::Error;
use crate::transaction::settle::Settled;

/// Says what settling came to.
pub fn report(done: Result<Option<Settled>, Error>) {
    match done {
        Ok(settled) => tell(&settled.unwrap_or_default()),
        Err(e) => log::warn!("{}; the next run puts this in order", Reason(e)),
    }
}

fn tell(settled: &Settled) {
    for problem in settled.let_go.iter().chain(&settled.failed) {
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

//! `cow-unify detach GUEST`: gives a guest private copies of all it shares.

use std::io::{self, Write};
use std::path::Path;

use serde::Serialize;

use super::arguments::Common;
use super::{place, shared};
use crate::cli::bar::Bar;
use crate::cli::{Named, Problem};
use crate::exit::Exit;
use crate::inspect::Verdict;
use crate::policy::Policy;
use crate::report::{Reason, Shown, count, size, tell_of_prevented_write, warn_of_possible_write};
use crate::transaction::Begun;
use crate::transaction::release::detach;
use crate::unify::pass::pools;
use crate::unify::pool::directory::Pool;
use crate::unify::scan::guest::GuestTree;
use crate::unify::scan::names::outer_path;

/// What happened, for machines.
#[derive(Debug, Serialize)]
struct Report {
    guest: Named,
    looked_at: u64,
    /// Names made private.
    detached: u64,
    bytes_copied: u64,
    recovered: u64,
    /// Names made private; only with --verbose.
    names: Vec<Named>,
    failed: Vec<Problem>,
}

pub fn run(path: &Path, common: &Common) -> anyhow::Result<Exit> {
    let host = shared::policy()?;
    // What the host's own files say is about the host's files; only these two are about the machine.
    let policy = Policy { reserve: host.reserve, lock_timeout: host.lock_timeout, ..Policy::builtin()? };
    let guest = GuestTree::open(path)?;
    // A pool is not needed; but nobody is to unify meanwhile.
    let pool = place::of(common, std::slice::from_ref(&guest))
        .ok()
        .and_then(|path| Pool::open(&path).ok().flatten())
        .or_else(|| pools::of_system(&guest.root).filter(|_| guest.root.is_own()));
    let _lock = pool.as_ref().map(|pool| shared::lock(pool, &host)).transpose()?;
    let bar = Bar::new(common.quiet > 0 || common.json);
    let begun = match detach(&guest.root, pool.as_ref(), &policy, &bar) {
        Ok(begun) => begun,
        Err(refusal) => {
            log::error!("refused, nothing was made private: {refusal}");
            if let Some(remedy) = refusal.remedy() {
                log::error!("remedy: {remedy}");
            }
            return Ok(Exit::Refused);
        }
    };
    let report = report(&guest, begun, common.verbose > 0);
    shared::complain(&report.failed, common);
    let exit = if report.failed.is_empty() { Exit::Done } else { Exit::Partial };
    Ok(shared::print(common, &report, text, exit))
}

fn report(guest: &GuestTree, begun: Begun, named: bool) -> Report {
    let Begun { survey, outcome, recovered, .. } = begun;
    let outer = |path: &Path| outer_path(guest, path);
    let problem = |path: &Path, reason: String| Problem { path: outer(path), reason };
    let unseen = survey.unseen.iter().map(|unseen| problem(&unseen.path, Reason(&unseen.source).to_string()));
    let failed = outcome.failed.iter().map(|failure| problem(&failure.path, failure.reason.clone()));
    let stays =
        |verdict| matches!(verdict, Verdict::NeverTouch | Verdict::MountedElsewhere | Verdict::ReadOnlyMount);
    let shared = survey.left.iter().filter(|left| stays(left.verdict));
    let shared = shared.map(|left| {
        problem(&left.path, format!("still shared with other guests: {}", left.verdict.describe()))
    });
    let recovery = recovered
        .failed
        .iter()
        .map(|reason| Problem { path: guest.root.path().to_path_buf(), reason: reason.clone() });
    for path in &outcome.contested {
        tell_of_prevented_write(&outer(path));
    }
    for path in &outcome.leaked {
        warn_of_possible_write(&outer(path));
    }
    let names = outcome.detached.iter().filter(|_| named);
    Report {
        guest: Named { path: guest.root.path().to_path_buf() },
        looked_at: survey.looked_at,
        detached: outcome.detached.len() as u64,
        bytes_copied: outcome.bytes,
        recovered: recovered.done + recovered.undone + recovered.orphans,
        names: names.map(|path| Named { path: outer(path) }).collect(),
        failed: unseen.chain(failed).chain(shared).chain(recovery).collect(),
    }
}

fn text(out: &mut dyn Write, report: &Report) -> io::Result<()> {
    for Named { path } in &report.names {
        writeln!(out, "{}", Shown(path))?;
    }
    let Report { looked_at, detached, bytes_copied, .. } = report;
    let looked_at = count(*looked_at, "file");
    write!(out, "{looked_at} looked at, {detached} made private ({} copied)", size(*bytes_copied))?;
    if !report.failed.is_empty() {
        write!(out, ", {} failed", report.failed.len())?;
    }
    writeln!(out)
}

//! What the commands of `cow-unify` share: the policy, the lock, and how results and problems are printed.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::Path;

use serde::Serialize;

use super::arguments::Common;
use crate::cli::{Problem, outcome};
use crate::exit::Exit;
use crate::policy::Policy;
use crate::report::{Reason, Shown, count, word};
use crate::sys::path::root::Root;
use crate::unify::pool::directory::{self, Pool};
use crate::unify::{self, FailedPath};

/// The host's policy: what is never unified, how long to wait, how much room to leave.
pub fn policy() -> anyhow::Result<Policy> {
    let root = Root::open(Path::new("/"))?;
    Ok(Policy::load(&root)?)
}

/// Prints a result: as one JSON object, or as `text` prints it.
pub fn print<R: Serialize>(
    common: &Common,
    report: &R,
    text: impl Fn(&mut dyn Write, &R) -> io::Result<()>,
    exit: Exit,
) -> Exit {
    outcome::print(exit, |out| {
        if common.json {
            outcome::json(out, report)
        } else if common.quiet > 0 {
            Ok(())
        } else {
            text(out, report)
        }
    })
}

impl From<FailedPath> for Problem {
    fn from(failed: FailedPath) -> Problem {
        Problem { reason: Reason(&failed.source).to_string(), path: failed.path }
    }
}

/// Tells of guests that were left out.
pub(crate) fn tell_of_left(guests: &[Problem]) {
    for guest in guests {
        log::warn!("{}: left out: {}", Shown(&guest.path), guest.reason);
    }
}

/// Says what is no guest: each with -v, else how many.
pub(crate) fn print_others(out: &mut dyn Write, others: &[Problem], verbose: bool) -> io::Result<()> {
    if verbose {
        others
            .iter()
            .try_for_each(|other| writeln!(out, "{}: not a guest: {}", Shown(&other.path), other.reason))
    } else if others.is_empty() {
        Ok(())
    } else {
        let number = others.len();
        writeln!(
            out,
            "{} skipped that {}",
            count(number, "path"),
            word(number, "is not a guest", "are not guests")
        )
    }
}

/// Tells of files that something is wrong with: one line for each reason, or for each file if each is to be named.
pub(crate) fn complain(problems: &[Problem], common: &Common) {
    let mut by_reason: BTreeMap<&str, Vec<&Path>> = BTreeMap::new();
    for problem in problems {
        by_reason.entry(&problem.reason).or_default().push(&problem.path);
    }
    for (reason, paths) in by_reason {
        match *paths {
            [first, _, ..] if common.verbose == 0 => {
                log::error!(
                    "{}, such as {}: {reason}; use -v to see each file",
                    count(paths.len(), "file"),
                    Shown(first)
                );
            }
            _ => paths.iter().for_each(|path| log::error!("{}: {reason}", Shown(path))),
        }
    }
}

/// Tells of files of the pool that anybody can change.
pub(crate) fn warn_of_unprotected(number: u64, example: &Path) {
    log::error!(
        "{} of the pool {} protection, such as {}; the next run of `cow-unify GUEST...` protects and verifies {}",
        count(number, "object"),
        word(number, "has lost its", "have lost their"),
        Shown(example),
        word(number, "it", "them")
    );
}

/// Threads to look and read with, unless the command line says otherwise: a cold disk is quickest with many requests in flight.
pub fn threads(common: &Common) -> usize {
    common.jobs.map_or_else(|| (crate::parallel::processors() * 8).min(16), |jobs| usize::from(jobs.get()))
}

/// The pool's lock, or a refusal.
pub fn lock(pool: &Pool, policy: &Policy) -> Result<directory::PoolLock, unify::Error> {
    pool.lock(policy.lock_timeout)
}

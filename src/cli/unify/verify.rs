//! `cow-unify verify [GUEST...]`: reads the pool, sets aside what is damaged, and repairs guests.

use std::io::{self, Write};
use std::path::PathBuf;

use serde::Serialize;

use super::arguments::Common;
use super::guests::Guests;
use super::{place, shared};
use crate::cli::bar::Bar;
use crate::cli::{Named, Problem};
use crate::exit::Exit;
use crate::report::{Reason, Shown, count, json_path, size};
use crate::unify::care::repair::{FoundName, Repaired, Repairer};
use crate::unify::care::verify::{Damage, Verified, Verifier};
use crate::unify::eligible::scope::Scope;
use crate::unify::pool::directory::Pool;
use crate::unify::pool::settings::Sharing;

/// What is left to a person if there is no intact copy.
pub(crate) const WANTS_COPY: &str = "remedy: reinstall the packages these files belong to in one of the guests, then run \
                              `cow-unify verify` with all guests again";

/// What was found and done, for machines.
#[derive(Debug, Serialize)]
struct Report {
    pool: Named,
    /// Objects read.
    objects: u64,
    bytes_read: u64,
    /// Objects that were set aside in this run.
    damaged: Vec<Differing>,
    /// Shared inodes that had lost their protection, and have it again.
    protected: Vec<Named>,
    /// Names of damaged inodes in the guests.
    names: Vec<Seen>,
    /// Objects made anew from guests' private files.
    objects_made: u64,
    bytes_copied: u64,
    /// Files in quarantine that guests still have names of.
    still_seen: u64,
    recovered: u64,
    failed: Vec<Problem>,
    /// Intact objects that somebody tried to write to meanwhile.
    contested: Vec<Named>,
    /// Paths that are no guests, and what they are.
    no_guests: Vec<Problem>,
    #[serde(skip)]
    verbose: bool,
    #[serde(skip)]
    guests: usize,
    #[serde(skip)]
    wants_copy: bool,
}

#[derive(Debug, Serialize)]
struct Differing {
    #[serde(flatten, serialize_with = "json_path")]
    path: PathBuf,
    differs: Vec<Damage>,
}

#[derive(Debug, Serialize)]
struct Seen {
    #[serde(flatten, serialize_with = "json_path")]
    path: PathBuf,
    /// The damaged file's name in the quarantine.
    damaged: String,
    repaired: bool,
    /// Why not.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

pub fn run(paths: &[PathBuf], common: &Common) -> anyhow::Result<Exit> {
    let policy = shared::policy()?;
    let guests = Guests::open(paths, Scope::All)?;
    let pool = place::existing(common, &guests.open)?;
    if pool.settings.share == Sharing::Reflink && !guests.open.is_empty() {
        anyhow::bail!(
            "{}: with this pool guests share blocks, not inodes, so their files cannot be checked; run \
             `cow-unify verify` without guests to check the pool",
            Shown(pool.path())
        );
    }
    let Guests { open: guests, left, others } = guests.in_reach(pool.path(), pool.settings.share)?;
    let _lock = shared::lock(&pool, &policy)?;
    let bar = Bar::new(common.quiet > 0 || common.json);
    let threads = shared::threads(common);
    let lock_timeout = policy.lock_timeout;
    let (verified, protection) = Verifier { pool: &pool, lock_timeout, threads, watch: &bar }.verify()?;
    let repairer = Repairer {
        pool: &pool,
        guests: &guests,
        protection,
        lock_timeout,
        reserve: policy.reserve,
        threads,
        watch: &bar,
    };
    let repaired = repairer.repair()?;
    let mut report = report(&pool, guests.len(), verified, repaired)?;
    report.failed.extend(left);
    let other = |(path, reason)| Problem { path, reason };
    report.no_guests = others.into_iter().map(other).collect();
    report.verbose = common.verbose > 0;
    shared::complain(&report.failed, common);
    for Named { path } in &report.contested {
        log::warn!(
            "{}: another process tried to write to this object while it was linked; run `cow-unify \
            verify` again",
            Shown(path)
        );
    }
    let intact = report.damaged.is_empty() && report.protected.is_empty() && report.names.is_empty();
    let whole = intact && report.failed.is_empty() && report.still_seen == 0;
    let exit = shared::print(common, &report, text, if whole { Exit::Done } else { Exit::Partial });
    remedies(&report);
    Ok(exit)
}

fn report(pool: &Pool, guests: usize, verified: Verified, repaired: Repaired) -> anyhow::Result<Report> {
    let named = |path: PathBuf| Named { path };
    let still_seen = pool.still_seen()?;
    let seen = |FoundName { path, damaged, left }: FoundName| Seen {
        path,
        damaged: damaged.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        repaired: left.is_none(),
        reason: left.map(|left| Reason(left).to_string()),
    };
    let failed = verified.failed.into_iter().chain(repaired.failed);
    Ok(Report {
        pool: named(pool.path().to_path_buf()),
        objects: verified.objects,
        bytes_read: verified.bytes,
        damaged: verified.damaged.into_iter().map(|(path, differs)| Differing { path, differs }).collect(),
        protected: verified.protected.into_iter().map(named).collect(),
        names: repaired.names.into_iter().map(seen).collect(),
        objects_made: repaired.objects,
        bytes_copied: repaired.copied,
        still_seen,
        recovered: verified.recovered.total(),
        failed: failed.map(Problem::from).collect(),
        contested: repaired.contested.into_iter().map(named).collect(),
        guests,
        wants_copy: repaired.wants_copy,
        no_guests: Vec::new(),
        verbose: false,
    })
}

/// What is left to a person.
fn remedies(report: &Report) {
    if report.wants_copy {
        log::warn!("{WANTS_COPY}");
    } else if report.still_seen > 0 && report.guests == 0 {
        log::warn!("remedy: run `cow-unify verify GUEST...` to find and repair the damaged files in guests");
    } else if report.still_seen > 0 {
        log::warn!(
            "remedy: name all guests; the guests that were not named may have names of the damaged \
            files"
        );
    }
}

fn text(out: &mut dyn Write, report: &Report) -> io::Result<()> {
    for Differing { path, differs } in &report.damaged {
        let differs: Vec<&str> = differs.iter().map(|damage| damage.describe()).collect();
        writeln!(out, "{}: damaged, quarantined: {}", Shown(path), differs.join(", "))?;
    }
    for Named { path } in &report.protected {
        writeln!(out, "{}: had lost its protection, protected again", Shown(path))?;
    }
    for Seen { path, reason, .. } in &report.names {
        match reason {
            None => writeln!(out, "{}: damaged, repaired", Shown(path))?,
            Some(reason) => writeln!(out, "{}: damaged, not repaired: {reason}", Shown(path))?,
        }
    }
    let repaired = report.names.iter().filter(|name| name.repaired).count();
    write!(out, "{} read ({})", count(report.objects, "object"), size(report.bytes_read))?;
    let intact = report.damaged.is_empty() && report.names.is_empty() && report.still_seen == 0;
    if intact && report.protected.is_empty() {
        write!(out, ", all intact")?;
    } else {
        write!(out, ", {} damaged", report.damaged.len())?;
    }
    if !report.protected.is_empty() {
        write!(out, ", {} protected again", report.protected.len())?;
    }
    if !report.names.is_empty() {
        write!(out, ", {} in guests, {repaired} repaired", count(report.names.len(), "damaged file"))?;
    }
    if report.still_seen > 0 {
        write!(out, ", {} still in use", count(report.still_seen, "damaged inode"))?;
    }
    if !report.failed.is_empty() {
        write!(out, ", {} failed", report.failed.len())?;
    }
    writeln!(out)?;
    shared::print_others(out, &report.no_guests, report.verbose)
}

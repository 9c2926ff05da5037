//! `cow-unify gc`: removes what no guest has a link to.

use std::io::{self, Write};
use std::path::PathBuf;

use serde::Serialize;

use super::arguments::Common;
use super::{place, shared};
use crate::cli::bar::Bar;
use crate::cli::{Named, Problem};
use crate::exit::Exit;
use crate::report::{Shown, count, size};
use crate::unify::care::gc::Collector;

/// What happened, for machines.
#[derive(Debug, Serialize)]
struct Report {
    dry_run: bool,
    pool: Named,
    removed: u64,
    bytes_freed: u64,
    /// Objects that guests have links to, or share blocks with.
    kept: u64,
    recovered: u64,
    /// Files removed; only with --verbose and --dry-run.
    names: Vec<Named>,
    failed: Vec<Problem>,
}

pub fn run(dry_run: bool, common: &Common) -> anyhow::Result<Exit> {
    let policy = shared::policy()?;
    let pool = place::existing(common, &[])?;
    let _lock = shared::lock(&pool, &policy)?;
    let bar = Bar::new(common.quiet > 0 || common.json);
    let collector = Collector {
        pool: &pool,
        dry_run,
        lock_timeout: policy.lock_timeout,
        threads: shared::threads(common),
        watch: &bar,
    };
    let collected = collector.collect()?;
    let named = |path: PathBuf| Named { path };
    let removed = collected.removed.len() as u64;
    let names = if dry_run || common.verbose > 0 { collected.removed } else { Vec::new() };
    let report = Report {
        dry_run,
        pool: named(pool.path().to_path_buf()),
        removed,
        bytes_freed: collected.freed,
        kept: collected.kept,
        recovered: collected.recovered.total(),
        names: names.into_iter().map(named).collect(),
        failed: collected.failed.into_iter().map(Problem::from).collect(),
    };
    shared::complain(&report.failed, common);
    let exit = if report.failed.is_empty() { Exit::Done } else { Exit::Partial };
    Ok(shared::print(common, &report, text, exit))
}

fn text(out: &mut dyn Write, report: &Report) -> io::Result<()> {
    for Named { path } in &report.names {
        writeln!(out, "{}", Shown(path))?;
    }
    let (removed, freed) =
        if report.dry_run { ("would be removed", "to be freed") } else { ("removed", "freed") };
    let Report { removed: number, bytes_freed, kept, .. } = report;
    write!(out, "{} {removed}, {} {freed}, {kept} kept", count(*number, "object"), size(*bytes_freed))?;
    if !report.failed.is_empty() {
        write!(out, ", {} failed", report.failed.len())?;
    }
    writeln!(out)
}

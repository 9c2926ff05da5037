//! `cow-unify status GUEST...`: what guests share, and what that saves.

use std::io::{self, Write};
use std::path::PathBuf;

use serde::Serialize;

use super::arguments::Common;
use super::guests::Guests;
use super::{place, shared};
use crate::cli::bar::Bar;
use crate::cli::{Named, Problem};
use crate::detach::survey::Tally;
use crate::exit::Exit;
use crate::report::{Shown, count, json_path, size, word};
use crate::unify::care::status::{GuestStatus, StatusReader};
use crate::unify::eligible::scope::Scope;
use crate::unify::pool::protection::PoolProtection;
use crate::unify::pool::settings::Sharing;

/// What there is, for machines. What is not known is null: if guests share blocks, inodes do not tell.
#[derive(Debug, Serialize)]
struct Report {
    pool: Named,
    share: Sharing,
    guests: Vec<Row>,
    bytes_of_disk_saved: Option<u64>,
    /// As long as all guests use all these files.
    bytes_of_page_cache_saved: Option<u64>,
    objects: Tally,
    /// Objects that no guest at all has a link to.
    unused_objects: Tally,
    /// Files in quarantine.
    set_aside: u64,
    /// How objects should be protected.
    protection: PoolProtection,
    /// Why the guard that should protect them does not.
    no_guard: Option<String>,
    /// Files of the pool that should be protected, and are not.
    unprotected_objects: u64,
    failed: Vec<Problem>,
    /// Paths that are no guests, and what they are.
    no_guests: Vec<Problem>,
    #[serde(skip)]
    verbose: bool,
}

#[derive(Debug, Serialize)]
struct Row {
    #[serde(flatten, serialize_with = "json_path")]
    path: PathBuf,
    shared: Option<Tally>,
    shared_inodes: Option<u64>,
    eligible: Tally,
    other: Tally,
    damaged: u64,
    waiting: u64,
    /// It may not clear the immutable flag, so nothing of it is unified.
    unable: bool,
}

pub fn run(paths: &[PathBuf], common: &Common) -> anyhow::Result<Exit> {
    let policy = shared::policy()?;
    let guests = Guests::open(paths, Scope::All)?;
    let pool = place::existing(common, &guests.open)?;
    let Guests { open: guests, left, others } = guests.in_reach(pool.path(), pool.settings.share)?;
    let bar = Bar::new(common.quiet > 0 || common.json);
    let looker = StatusReader {
        pool: &pool,
        scope: Scope::default(),
        never: &policy.never_unify,
        threads: shared::threads(common),
        watch: &bar,
    };
    let status = looker.look(&guests)?;
    let problem = |(path, reason)| Problem { path, reason };
    let mut rows = Vec::new();
    let mut failed = left;
    for guest in status.guests {
        let GuestStatus { path, shared, shared_inodes, eligible, other, damaged, waiting, unable, problems } =
            guest;
        rows.push(Row { path, shared, shared_inodes, eligible, other, damaged, waiting, unable });
        failed.extend(problems.into_iter().map(Problem::from));
    }
    let report = Report {
        pool: Named { path: pool.path().to_path_buf() },
        share: pool.settings.share,
        guests: rows,
        bytes_of_disk_saved: status.disk_saved,
        bytes_of_page_cache_saved: status.cache_saved,
        objects: status.objects,
        unused_objects: status.unused,
        set_aside: status.quarantined,
        protection: status.protection,
        no_guard: status.no_guard.map(|e| e.to_string()),
        unprotected_objects: status.unprotected.len() as u64,
        failed,
        no_guests: others.into_iter().map(problem).collect(),
        verbose: common.verbose > 0,
    };
    shared::complain(&report.failed, common);
    if let Some(example) = status.unprotected.first() {
        shared::warn_of_unprotected(report.unprotected_objects, example);
    }
    let whole = report.failed.is_empty() && status.unprotected.is_empty();
    let exit = if whole { Exit::Done } else { Exit::Partial };
    Ok(shared::print(common, &report, text, exit))
}

/// What the columns after the guest's path say.
const COLUMNS: [&str; 9] =
    ["shared", "inodes", "size", "eligible", "size", "other", "size", "damaged", "waiting"];

fn text(out: &mut dyn Write, report: &Report) -> io::Result<()> {
    let mut table = vec![cells("guest", COLUMNS.map(str::to_owned))];
    table.extend(report.guests.iter().map(row));
    print_table(out, &table)?;
    shared::print_others(out, &report.no_guests, report.verbose)?;
    for Row { path, .. } in report.guests.iter().filter(|guest| guest.unable) {
        writeln!(out, "{}: left as it is: its hooks may not clear the immutable flag", Shown(path))?;
    }
    match (report.bytes_of_disk_saved, report.bytes_of_page_cache_saved) {
        (Some(disk), Some(cache)) => {
            writeln!(out, "saved: {} of disk, up to {} of page cache", size(disk), size(cache))?;
        }
        _ => writeln!(
            out,
            "the guests share blocks with the pool, so their inodes do not show which files \
            are shared"
        )?,
    }
    let Report { objects, unused_objects: unused, .. } = report;
    write!(out, "pool: {} ({})", count(objects.files, "object"), size(objects.bytes))?;
    if unused.files > 0 {
        write!(
            out,
            ", {} without a link in any guest ({}); `cow-unify gc` removes {}",
            unused.files,
            size(unused.bytes),
            word(unused.files, "it", "them")
        )?;
    }
    if report.set_aside > 0 {
        write!(out, ", {} in quarantine", count(report.set_aside, "damaged object"))?;
    }
    if report.unprotected_objects > 0 {
        write!(out, ", {} not protected", report.unprotected_objects)?;
    }
    writeln!(out)?;
    match (&report.no_guard, report.protection) {
        (Some(reason), _) => writeln!(
            out,
            "protection: guard, but it does not protect this pool: {reason}; objects must be immutable until `cow-guard \
             load` succeeds"
        ),
        (None, PoolProtection::Guard) => writeln!(out, "protection: guard, loaded"),
        (None, protection) => {
            let limit = protection.limit().map(|limit| format!("; {limit}")).unwrap_or_default();
            writeln!(out, "protection: {}{limit}", protection.name())
        }
    }
}

fn row(row: &Row) -> Vec<String> {
    let known = |number: Option<u64>| number.map_or("-".to_owned(), |number| number.to_string());
    let Row { shared, shared_inodes, eligible, other, damaged, waiting, .. } = row;
    let columns = [
        known(shared.map(|shared| shared.files)),
        known(*shared_inodes),
        shared.map_or("-".to_owned(), |shared| size(shared.bytes)),
        eligible.files.to_string(),
        size(eligible.bytes),
        other.files.to_string(),
        size(other.bytes),
        damaged.to_string(),
        waiting.to_string(),
    ];
    cells(&Shown(&row.path).to_string(), columns)
}

fn cells(first: &str, others: [String; 9]) -> Vec<String> {
    std::iter::once(first.to_owned()).chain(others).collect()
}

/// The first column to the left, all others to the right.
fn print_table(out: &mut dyn Write, table: &[Vec<String>]) -> io::Result<()> {
    let mut widths = vec![0; COLUMNS.len() + 1];
    for row in table {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    for row in table {
        for (at, (cell, width)) in row.iter().zip(&widths).enumerate() {
            if at == 0 { write!(out, "{cell:<width$}")? } else { write!(out, "  {cell:>width$}")? }
        }
        writeln!(out)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let tally = |files, bytes| Tally { files, bytes };
        let rows = [
            Row {
                path: "/guests/größe".into(),
                shared: Some(tally(12_345, 1 << 30)),
                shared_inodes: Some(12_000),
                eligible: tally(3, 100),
                other: tally(99, 5 << 20),
                damaged: 0,
                waiting: 7,
                unable: false,
            },
            Row {
                path: "/g".into(),
                shared: None,
                shared_inodes: None,
                eligible: tally(0, 0),
                other: tally(0, 0),
                damaged: 1,
                waiting: 0,
                unable: false,
            },
        ];
        let mut table = vec![cells("guest", COLUMNS.map(str::to_owned))];
        table.extend(rows.iter().map(row));
        let mut out = Vec::new();
        print_table(&mut out, &table).unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "guest          shared  inodes     size  eligible   size  other     size  damaged  waiting\n\
             /guests/größe   12345   12000  1.0 GiB         3  100 B     99  5.0 MiB        0        7\n\
             /g                  -       -        -         0    0 B      0      0 B        1        0\n"
        );
    }
}

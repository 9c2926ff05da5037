//! `cow-prepare`: gives unified files private copies, by hand.

use std::ffi::OsString;
use std::io::{self, BufRead, Write};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use clap::{ArgAction, Parser, ValueHint};
use serde::Serialize;

use super::bar::Bar;
use super::outcome::{self, failed, require_root};
use super::{Named, Problem, guest, guest_path};
use crate::detach::recover::Recovered;
use crate::detach::request::Request;
use crate::detach::survey::Left;
use crate::exit::Exit;
use crate::inspect::Verdict;
use crate::package::touched::Touched;
use crate::package::{Managers, files};
use crate::policy::{PatternSet, Policy};
use crate::report::{
    Reason, Shown, count, size, tell_of_prevented_write, warn_of_missing_guard, warn_of_possible_write, word,
};
use crate::sys::path::root::Root;
use crate::transaction::{Begun, Guest, RunOptions};

/// Give unified files private copies, so that they can be changed.
#[derive(Debug, Parser)]
#[command(name = "cow-prepare", version, after_help = EXIT_STATUS)]
pub(super) struct Arguments {
    /// Print what would be done, and change nothing
    #[arg(short = 'n', long)]
    dry_run: bool,
    /// Print only warnings and errors; given twice: only errors
    #[arg(short, long, action = ArgAction::Count, conflicts_with = "verbose")]
    quiet: u8,
    /// Print the name of each file; given twice: every step
    #[arg(short, long, action = ArgAction::Count)]
    verbose: u8,
    /// Print the result as one JSON object on standard output
    #[arg(long)]
    json: bool,
    /// Work in the guest whose root directory is DIR
    #[arg(long, value_name = "DIR", default_value = "/", value_hint = ValueHint::DirPath)]
    root: PathBuf,
    /// Also read paths from FILE, one per line; if FILE is -, from standard input
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    files_from: Option<PathBuf>,
    /// Paths in FILE end with a NUL byte instead of a newline
    #[arg(short = '0', requires = "files_from")]
    null: bool,
    /// Prepare for the installation of these package files, .deb or .rpm
    #[arg(long, value_name = "FILE", num_args = 1.., value_hint = ValueHint::FilePath)]
    package: Vec<PathBuf>,
    /// Only finish or roll back what an interrupted run has left
    #[arg(long, conflicts_with_all = ["dry_run", "files_from", "package", "paths"])]
    recover: bool,
    /// Files, and directories with everything below them
    #[arg(value_name = "PATH", value_hint = ValueHint::AnyPath, required_unless_present_any = ["files_from", "package", "recover"])]
    paths: Vec<PathBuf>,
}

const EXIT_STATUS: &str = "\
Exit status:
  0  everything was done, or there was nothing to do
  1  some files could not be made private; each is named
  2  invalid command line or configuration
  3  refused before anything was changed, for example because it needs root

Manual page: cow-prepare(8)";

/// What happened, for machines.
#[derive(Debug, Serialize)]
struct Report {
    dry_run: bool,
    looked_at: u64,
    detached: Vec<Named>,
    /// How many of these were not asked for: hard links of such as were.
    hard_links: u64,
    bytes_copied: u64,
    left: Vec<Left>,
    failed: Vec<Problem>,
    recovered: u64,
}

/// Runs the command with the arguments of this process.
pub fn main() -> Exit {
    let arguments: Arguments = match super::parse() {
        Ok(arguments) => arguments,
        Err(exit) => return exit,
    };
    crate::logging::init("cow-prepare", arguments.quiet, arguments.verbose);
    run(&arguments).unwrap_or_else(|e| failed(&e))
}

fn run(arguments: &Arguments) -> anyhow::Result<Exit> {
    require_root()?;
    let (root, policy) = guest(&arguments.root)?;
    let paths = paths(arguments, &root)?;
    let guest = Guest { root: &root, policy: &policy };
    if arguments.recover {
        return recover(guest, arguments);
    }
    let touched = match files::touched(&root, &arguments.package) {
        Ok(touched) => touched,
        Err(e) => return Ok(refused(&e.to_string(), e.remedy())),
    };
    let bar = Bar::new(arguments.quiet > 0 || arguments.json);
    let options = RunOptions {
        front_end: "cow-prepare",
        member: None,
        hand_over: true,
        progress: &bar,
        supervise: None,
    };
    let request = request(paths, touched, arguments, &policy);
    let begun = if arguments.dry_run {
        guest.survey(&request).map(|survey| Begun { survey, ..Begun::default() })
    } else {
        guest.begin(&options, &request)
    };
    Ok(match begun {
        Ok(begun) => report(arguments, begun),
        Err(refusal) => refused(&refusal.to_string(), &refusal.remedy()),
    })
}

fn paths(arguments: &Arguments, root: &Root) -> anyhow::Result<Vec<PathBuf>> {
    let mut paths = arguments.paths.clone();
    if let Some(file) = &arguments.files_from {
        let lines: Box<dyn BufRead> = if file.as_os_str() == "-" {
            Box::new(io::stdin().lock())
        } else {
            let opened = std::fs::File::open(file);
            Box::new(io::BufReader::new(
                opened.map_err(|e| anyhow::anyhow!("{}: {}", Shown(file), Reason(e)))?,
            ))
        };
        for line in lines.split(if arguments.null { 0 } else { b'\n' }) {
            let line = line.map_err(|e| anyhow::anyhow!("{}: {}", Shown(file), Reason(e)))?;
            if !line.is_empty() {
                paths.push(PathBuf::from(OsString::from_vec(line)));
            }
        }
    }
    paths.iter().map(|path| guest_path(root, path)).collect()
}

/// What a person wants prepared: paths, and what packages touch with the places where their scripts write.
fn request(paths: Vec<PathBuf>, touched: Touched, arguments: &Arguments, policy: &Policy) -> Request {
    let patterns = if arguments.package.is_empty() { PatternSet::default() } else { policy.prepare.clone() };
    Request { given: paths, touched, patterns, other_names: false, by_name: false }
}

/// What recovery came to, for machines.
#[derive(Debug, Serialize)]
struct RecoveryReport {
    done: u64,
    undone: u64,
    protected: u64,
    orphans: u64,
    shared_again: u64,
    handed_over: u64,
    let_go: Vec<String>,
    failed: Vec<String>,
}

fn recover(guest: Guest<'_>, arguments: &Arguments) -> anyhow::Result<Exit> {
    let recovered = guest.recover()?;
    let settled = guest.finish(&[], &Managers::new(guest.root))?.unwrap_or_default();
    let nothing = recovered.is_nothing() && settled == Default::default();
    let Recovered { done, undone, protected, orphans, mut failed, .. } = recovered;
    failed.extend(settled.failed);
    let let_go = settled.let_go;
    for name in &let_go {
        log::warn!("{name}");
    }
    for problem in &failed {
        log::error!("{problem}");
    }
    let exit = if failed.is_empty() { Exit::Done } else { Exit::Partial };
    let (shared_again, handed_over) = (settled.restored, settled.new);
    let report =
        RecoveryReport { done, undone, protected, orphans, shared_again, handed_over, let_go, failed };
    Ok(outcome::print(exit, |out| {
        if arguments.json {
            outcome::json(out, &report)
        } else if arguments.quiet > 0 {
            Ok(())
        } else if nothing {
            writeln!(out, "nothing to recover")
        } else {
            print_recovery(out, &report)
        }
    }))
}

fn print_recovery(out: &mut dyn Write, report: &RecoveryReport) -> io::Result<()> {
    let RecoveryReport { done, undone, protected, orphans, shared_again, handed_over, .. } = *report;
    writeln!(
        out,
        "{} completed, {undone} rolled back, {protected} protected again, {shared_again} shared again; \
         {handed_over} {} for the host; {} removed",
        count(done, "file"),
        word(handed_over, "waits", "wait"),
        count(orphans, "temporary file")
    )
}

fn refused(reason: &str, remedy: &str) -> Exit {
    log::error!("refused, nothing was made private: {reason}");
    log::error!("remedy: {remedy}");
    Exit::Refused
}

fn report(arguments: &Arguments, begun: Begun) -> Exit {
    let Begun { mut survey, outcome, recovered, .. } = begun;
    survey.unguarded.iter().for_each(|path| warn_of_missing_guard(path));
    // Packages have symlinks, which nobody has asked for by name.
    if !arguments.package.is_empty() {
        survey.left.retain(|left| !matches!(left.verdict, Verdict::NotRegular { .. }));
    }
    let unseen = survey.unseen.into_iter();
    let mut problems: Vec<Problem> =
        unseen.map(|e| Problem { path: e.path, reason: Reason(e.source).to_string() }).collect();
    problems.extend(outcome.failed.into_iter().map(|e| Problem { path: e.path, reason: e.reason }));
    for problem in &problems {
        log::error!("{}: {}", Shown(&problem.path), problem.reason);
    }
    for path in &outcome.contested {
        tell_of_prevented_write(path);
    }
    for path in &outcome.leaked {
        warn_of_possible_write(path);
    }
    let detached = if arguments.dry_run {
        survey.unified.iter().map(|found| Named { path: found.place.path() }).collect()
    } else {
        outcome.detached.into_iter().map(|path| Named { path }).collect::<Vec<_>>()
    };
    let bytes_copied =
        if arguments.dry_run { survey.unified.iter().map(|f| f.inode.size).sum() } else { outcome.bytes };
    let report = Report {
        dry_run: arguments.dry_run,
        looked_at: survey.looked_at,
        detached,
        hard_links: survey.hard_links,
        bytes_copied,
        left: survey.left,
        failed: problems,
        recovered: recovered.done + recovered.undone + recovered.orphans,
    };
    let exit = if report.failed.is_empty() { Exit::Done } else { Exit::Partial };
    outcome::print(exit, |out| {
        if arguments.json { outcome::json(out, &report) } else { print(out, arguments, &report) }
    })
}

fn print(out: &mut dyn Write, arguments: &Arguments, report: &Report) -> io::Result<()> {
    if arguments.quiet > 0 {
        return Ok(());
    }
    if arguments.verbose > 0 || arguments.dry_run {
        for Named { path } in &report.detached {
            writeln!(out, "{}", Shown(path))?;
        }
    }
    for left in report.left.iter().filter(|left| left.named || arguments.verbose > 0) {
        writeln!(out, "{}: left as it is: {}", Shown(&left.path), left.verdict.describe())?;
    }
    let (made, copied) = if report.dry_run { ("would be made", "to copy") } else { ("made", "copied") };
    write!(
        out,
        "{} looked at, {} {made} private ({} {copied})",
        count(report.looked_at, "file"),
        report.detached.len(),
        size(report.bytes_copied)
    )?;
    if report.hard_links > 0 {
        let links = word(report.hard_links, "another hard link", "other hard links");
        write!(out, ", {} of them {links} of the files given", report.hard_links)?;
    }
    if !report.left.is_empty() {
        let left = report.left.len();
        write!(out, ", {left} left as {}", word(left, "it is", "they are"))?;
    }
    if !report.failed.is_empty() {
        write!(out, ", {} failed", report.failed.len())?;
    }
    writeln!(out)
}

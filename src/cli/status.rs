//! `cow-status`: which files are unified, what waits, and what one file is.

mod check;
mod file;
mod summary;
mod supervision;

use std::io::{self, Write};
use std::path::PathBuf;

use clap::{ArgAction, Parser, ValueHint};
use serde::Serialize;

use self::check::Check;
use self::supervision::Supervision;
use super::outcome::{self, failed, require_root};
use super::{guest, guest_path, guest_root};
use crate::exit::Exit;
use crate::report::{Reason, Shown, warn_of_missing_guard};
use crate::sys::file::inode::{Inode, Kind};
use crate::sys::path::resolve::Resolver;
use crate::sys::path::root::Root;
use crate::transaction::Guest;

/// Show which files are unified, and explain a single file.
#[derive(Debug, Parser)]
#[command(name = "cow-status", version, after_help = EXIT_STATUS)]
pub(super) struct Arguments {
    /// Print the result as one JSON object on standard output
    #[arg(long)]
    json: bool,
    /// Show the guest whose root directory is DIR
    #[arg(long, value_name = "DIR", default_value = "/", value_hint = ValueHint::DirPath)]
    root: PathBuf,
    /// Say whether the next run of a package manager will work, and what should be seen to before
    #[arg(long, conflicts_with = "paths")]
    check: bool,
    /// Print more about what is looked at
    #[arg(short, long, action = ArgAction::Count)]
    verbose: u8,
    /// Files to explain, and directories to summarise
    #[arg(value_name = "PATH", value_hint = ValueHint::AnyPath)]
    paths: Vec<PathBuf>,
}

const EXIT_STATUS: &str = "\
Exit status:
  0  everything was shown; --check: package managers run
  1  some paths could not be examined; --check: package managers run, and something should be seen to
  2  invalid command line or configuration
  3  nothing could be shown, for example because it needs root; --check: the next run is refused, or fails

Manual page: cow-status(8)";

/// Everything there is to show.
#[derive(Debug, Default, Serialize)]
struct Report {
    /// The guest's transactions; with paths, they were not asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    guest: Option<summary::TransactionState>,
    #[serde(skip_serializing_if = "Option::is_none")]
    supervision: Option<Supervision>,
    trees: Vec<summary::Tree>,
    files: Vec<file::FileReport>,
}

/// Runs the command with the arguments of this process.
pub fn main() -> Exit {
    let arguments: Arguments = match super::parse() {
        Ok(arguments) => arguments,
        Err(exit) => return exit,
    };
    crate::logging::init("cow-status", 0, arguments.verbose);
    run(&arguments).unwrap_or_else(|e| failed(&e))
}

fn run(arguments: &Arguments) -> anyhow::Result<Exit> {
    require_root()?;
    if arguments.check {
        let check = Check::of(&guest_root(&arguments.root)?)?;
        return Ok(outcome::print(check.exit(), |out| {
            if arguments.json { outcome::json(out, &check) } else { check.print(out) }
        }));
    }
    let (root, policy) = guest(&arguments.root)?;
    let (report, exit) = collect(Guest { root: &root, policy: &policy }, arguments)?;
    Ok(outcome::print(
        exit,
        |out| {
            if arguments.json { outcome::json(out, &report) } else { print(out, &report) }
        },
    ))
}

fn collect(guest: Guest<'_>, arguments: &Arguments) -> anyhow::Result<(Report, Exit)> {
    let mut report = Report::default();
    let mut exit = Exit::Done;
    let mut files = Vec::new();
    let mut resolver = Resolver::new(guest.root);
    let walk = |path, exit: &mut Exit| {
        let tree = summary::Tree::walk(guest, path, exit);
        tree.unguarded.iter().for_each(|path| warn_of_missing_guard(path));
        tree
    };
    if arguments.paths.is_empty() {
        report.guest = Some(summary::TransactionState::read(guest)?);
        let tree = walk(PathBuf::from("/"), &mut exit);
        report.supervision = Some(Supervision::of(guest, &tree.examples));
        report.trees.push(tree);
    }
    for path in &arguments.paths {
        let path = guest_path(guest.root, path)?;
        match kind(guest.root, &mut resolver, &path) {
            Ok((path, Kind::Directory)) => report.trees.push(walk(path, &mut exit)),
            Ok((path, _)) => files.push(path),
            Err(e) => {
                log::error!("{}: {}", Shown(&path), Reason(e));
                exit = Exit::Partial;
            }
        }
    }
    if !files.is_empty() {
        report.files = file::explain(guest, &files)?;
    }
    Ok((report, exit))
}

/// The canonical place of a path, and what is there; a final symlink is shown itself.
fn kind(root: &Root, resolver: &mut Resolver<'_>, path: &std::path::Path) -> io::Result<(PathBuf, Kind)> {
    match resolver.place(path)? {
        Some(place) => {
            let dir = root.open_dir(&place.dir)?;
            Ok((place.path(), Inode::at(dir, &place.name)?.kind))
        }
        // `/` and what ends in `..` have no last component.
        None => match resolver.directory(path)? {
            Some(dir) => Ok((dir, Kind::Directory)),
            None => Err(io::Error::from_raw_os_error(libc::ENOENT)),
        },
    }
}

fn print(out: &mut dyn Write, report: &Report) -> io::Result<()> {
    for tree in &report.trees {
        tree.print(out)?;
    }
    if let Some(state) = &report.guest {
        state.print(out)?;
    }
    if let Some(supervision) = &report.supervision {
        supervision.print(out)?;
    }
    report.files.iter().try_for_each(|file| file.print(out))
}

//! `cow-unify`: makes equal files of many guests one inode, keeps them so, checks and undoes it. The host's side.

pub(in crate::cli) mod arguments;
mod detach;
mod gc;
mod guests;
mod pass;
mod place;
mod protect;
mod remove;
mod shared;
mod status;
mod verify;

use clap::ArgMatches;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use self::arguments::{Arguments, Command};
use self::remove::Removal;
use super::outcome::{failed, require_root};
use crate::exit::Exit;
use crate::unify::remove::refusal::Allowed;

/// Runs the command with the arguments of this process.
pub fn main() -> Exit {
    let (arguments, matches): (Arguments, _) = match super::parse_in_order() {
        Ok(arguments) => arguments,
        Err(exit) => return exit,
    };
    if let Err(said) = arguments::check(&arguments, &matches) {
        return super::show("cow-unify", &said);
    }
    let common = &arguments.common;
    crate::logging::init("cow-unify", common.quiet, common.verbose);
    // Threads keep directories open, of many guests.
    raise_limit(Resource::Nofile);
    // Copies are as large as what is copied; beyond what is allowed the call fails.
    raise_limit(Resource::Fsize);
    crate::sys::process::signal::ignore_file_size_limit();
    run(&arguments, &matches).unwrap_or_else(|e| failed(&e))
}

fn run(arguments: &Arguments, matches: &ArgMatches) -> anyhow::Result<Exit> {
    require_root()?;
    let common = &arguments.common;
    match &arguments.command {
        None => pass::run(&arguments.pass, matches, common),
        Some(Command::Status { guests }) => status::run(guests, common),
        Some(Command::Verify { guests }) => verify::run(guests, common),
        Some(Command::Gc { dry_run }) => gc::run(*dry_run, common),
        Some(Command::Protect { to, guests }) => protect::run(*to, guests, common),
        Some(Command::Remove { dry_run, gc, clear_flags, force, guests }) => {
            let allowed = Allowed { flagged: *clear_flags, used: *force };
            remove::run(guests, Removal { dry_run: *dry_run, gc: *gc, allowed }, common)
        }
        Some(Command::Detach { guest }) => detach::run(guest, common),
    }
}

/// Allows as much of a resource as this process may have; with less it does what it can.
fn raise_limit(resource: Resource) {
    let limit = getrlimit(resource);
    let _ = setrlimit(resource, Rlimit { current: limit.maximum, ..limit });
}

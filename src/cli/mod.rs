//! The commands a person calls: their arguments, and what they print.

mod bar;
#[cfg(test)]
mod completions;
#[cfg(feature = "guard")]
pub mod guard;
#[cfg(test)]
mod manual;
mod outcome;
pub mod prepare;
pub mod run;
pub mod status;
pub mod unify;

use std::io::Write;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::exit::Exit;
use crate::policy::Policy;
use crate::report::{Reason, Shown, json_path};
use crate::sys::path::root::Root;
use crate::unify::pass::pools;

/// A file in the result, for machines.
#[derive(Debug, Serialize)]
struct Named {
    #[serde(flatten, serialize_with = "json_path")]
    path: PathBuf,
}

/// A file or guest that something is wrong with.
#[derive(Debug, Serialize)]
struct Problem {
    #[serde(flatten, serialize_with = "json_path")]
    path: PathBuf,
    reason: String,
}

/// The arguments of this process; if there is nothing to run, help or an error has been printed.
fn parse<A: clap::Parser>() -> Result<A, Exit> {
    parse_in_order().map(|(arguments, _)| arguments)
}

/// The arguments of this process, and in which order they stood.
fn parse_in_order<A: clap::Parser>() -> Result<(A, clap::ArgMatches), Exit> {
    let parsed =
        A::command().try_get_matches().and_then(|matches| Ok((A::from_arg_matches(&matches)?, matches)));
    parsed.map_err(|e| show(A::command().get_name(), &e))
}

/// Prints what clap has to say of a command line: an error, or the help that was asked for.
fn show(program: &str, said: &clap::Error) -> Exit {
    let printed = said.print().and_then(|()| std::io::stdout().flush());
    match printed {
        // With standard error closed there is nobody to tell.
        _ if said.use_stderr() => Exit::Usage,
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => {
            let _ = writeln!(std::io::stderr(), "{program}: error: standard output: {}", Reason(e));
            Exit::Partial
        }
        _ => Exit::Done,
    }
}

/// Opens a guest's root and loads its policy.
fn guest(root: &Path) -> anyhow::Result<(Root, Policy)> {
    let root = guest_root(root)?;
    let policy = Policy::load(&root)?;
    Ok((root, policy))
}

/// Opens a guest's root.
fn guest_root(root: &Path) -> anyhow::Result<Root> {
    let root = Root::open(root).map_err(|e| anyhow::anyhow!("{}: {}", Shown(root), Reason(e)))?;
    // The running system may hold its own pool, and other guests: their names are not its own.
    let pool = if root.is_own() { pools::of_system(&root) } else { None };
    Ok(match pool {
        Some(pool) => root.bounded(pools::neighbours(&pool)),
        None => root,
    })
}

/// A path from the command line as a path of the guest: relative ones begin where the caller is, or at the root of
/// another guest.
fn guest_path(root: &Root, path: &Path) -> anyhow::Result<PathBuf> {
    if path.is_absolute() {
        return Ok(path.to_path_buf());
    }
    let base = if root.is_own() { std::env::current_dir()? } else { PathBuf::from("/") };
    Ok(base.join(path))
}

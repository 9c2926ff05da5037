//! `cow-guard`: loads the guard into the kernel, and says what it protects. The host's side.

pub(in crate::cli) mod arguments;
mod fence;
mod load;
mod pools;
mod status;
mod unload;

use self::arguments::{Arguments, Command};
use super::outcome::{failed, require_root};
use crate::exit::Exit;
use crate::guard;

/// Runs the command with the arguments of this process.
pub fn main() -> Exit {
    let arguments: Arguments = match super::parse() {
        Ok(arguments) => arguments,
        Err(exit) => return exit,
    };
    crate::logging::init("cow-guard", arguments.common.quiet, arguments.common.verbose);
    let done = require_root().and_then(|()| match &arguments.command {
        Command::Load { pool, forget } => load::run(pool, forget),
        Command::Unload { protect } => unload::run(*protect),
        Command::Status { json } => status::run(*json, &arguments.common),
    });
    done.unwrap_or_else(|e| match e.downcast_ref::<guard::Error>() {
        Some(refusal) => refused(refusal),
        None => failed(&e),
    })
}

/// Logs why the guard cannot be loaded, or taken out, and what to do.
fn refused(error: &guard::Error) -> Exit {
    log::error!("{error}");
    if let Some(remedy) = error.remedy() {
        log::error!("remedy: {remedy}");
    }
    Exit::Refused
}

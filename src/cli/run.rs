//! `cow-run`: runs a command with copy on write.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};

use clap::{ArgAction, Parser};

use super::guest;
use crate::exit::Exit;
use crate::policy::Protection;
use crate::report::{Reason, Shown};
use crate::supervise::{self, Options};

/// The command was not run: we failed. As `env(1)` and its like.
const FAILED: u8 = 125;
/// The command was found, and cannot be run.
const NOT_RUN: u8 = 126;
/// The command was not found.
const NOT_FOUND: u8 = 127;

/// Run a command; every unified file it changes gets a private copy first.
#[derive(Debug, Parser)]
#[command(name = "cow-run", version)]
struct Arguments {
    /// Print errors only
    #[arg(short, long, action = ArgAction::Count, conflicts_with = "verbose")]
    quiet: u8,
    /// Name each file that is made private, and at the end how many
    #[arg(short, long, action = ArgAction::Count)]
    verbose: u8,
    /// Make files private, too, that share their inode without protection
    #[arg(long)]
    unprotected: bool,
    /// The command and its arguments
    #[arg(value_name = "COMMAND", required = true, trailing_var_arg = true)]
    command: Vec<OsString>,
}

/// Runs the command with the arguments of this process; returns only where it could not be run.
pub fn main() -> ExitCode {
    let arguments: Arguments = match super::parse() {
        Ok(arguments) => arguments,
        Err(Exit::Done) => return ExitCode::SUCCESS,
        Err(_) => return ExitCode::from(FAILED),
    };
    crate::logging::init("cow-run", arguments.quiet, arguments.verbose);
    match run(&arguments) {
        Ok(()) => {}
        Err(e) => {
            log::error!("{}", Reason(&e));
            return ExitCode::from(FAILED);
        }
    }
    let Some((program, rest)) = arguments.command.split_first() else { return ExitCode::from(FAILED) };
    let error = Command::new(program).args(rest).exec();
    log::error!("{}: {}", Shown(Path::new(program)), Reason(&error));
    ExitCode::from(if error.kind() == io::ErrorKind::NotFound { NOT_FOUND } else { NOT_RUN })
}

/// Supervises this process from now on.
fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let (_, policy) = guest(Path::new("/"))?;
    if policy.protection == Protection::None && !arguments.unprotected {
        anyhow::bail!(
            "the policy says that shared files are not protected (`protection = \"none\"`): what escapes would \
             change them for other guests; protect them, or say --unprotected"
        );
    }
    let options =
        Options { policy, unprotected: arguments.unprotected, talk: Some(std::process::id() as i32) };
    match supervise::this_thread(options) {
        Ok(supervise::Supervised::Already) => log::debug!("already supervised"),
        Ok(supervise::Supervised::Now) => {}
        Err(e) => anyhow::bail!("{e}; {}", e.remedy()),
    }
    Ok(())
}

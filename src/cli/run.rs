//! `cow-run`: runs a command with copy on write.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};

use clap::{ArgAction, Parser, ValueHint};

use super::guest;
use super::outcome::require_root;
use crate::exit::Exit;
use crate::package::Managers;
use crate::policy::Protection;
use crate::report::{Reason, Shown};
use crate::supervise::{self, Options};
use crate::transaction::Guest;

/// The command was not run: we failed. As `env(1)` and its like.
pub(super) const FAILED: u8 = 125;
/// The command was found, and cannot be run.
pub(super) const NOT_RUN: u8 = 126;
/// The command was not found.
pub(super) const NOT_FOUND: u8 = 127;

/// Run a command with copy on write: each unified file gets a private copy before the command changes it.
#[derive(Debug, Parser)]
#[command(name = "cow-run", version, after_help = EXIT_STATUS)]
pub(super) struct Arguments {
    /// Print only errors
    #[arg(short, long, action = ArgAction::Count, conflicts_with = "verbose")]
    quiet: u8,
    /// Print the name of each file that is made private, and at the end their number
    #[arg(short, long, action = ArgAction::Count)]
    verbose: u8,
    /// Also make files private that share their inode without being immutable
    #[arg(long)]
    unprotected: bool,
    /// The command and its arguments
    #[arg(value_name = "COMMAND", required = true, trailing_var_arg = true, value_hint = ValueHint::CommandWithArguments)]
    command: Vec<OsString>,
}

const EXIT_STATUS: &str = "\
Exit status: that of COMMAND, or
  125  cow-run itself failed; COMMAND was not run
  126  COMMAND was found but could not be run
  127  COMMAND was not found

Manual page: cow-run(1)";

/// Runs the command with the arguments of this process; returns only if it could not be run.
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
    require_root()?;
    let (root, policy) = guest(Path::new("/"))?;
    let guarded = Guest { root: &root, policy: &policy }.is_guarded(&Managers::new(&root));
    if guarded {
        log::debug!("the host's guard protects unified files: names are not looked at");
    } else if policy.protection == Protection::None && !arguments.unprotected {
        anyhow::bail!(
            "the policy says that shared files are not protected (`protection = \"none\"`): a write that the \
             supervisor misses would change them in other guests; protect the files, or use --unprotected"
        );
    }
    let options = Options {
        policy,
        unprotected: arguments.unprotected,
        guarded,
        talk: Some(std::process::id() as i32),
    };
    match supervise::this_thread(options) {
        Ok(supervise::Supervised::Already) => log::debug!("already supervised"),
        Ok(supervise::Supervised::Now) => {}
        Err(e) => anyhow::bail!("{e}; {}", e.remedy()),
    }
    Ok(())
}

//! The command line of `cow-guard`.

use std::path::PathBuf;

use clap::{ArgAction, Args, Parser, Subcommand, ValueHint};

const EXIT_STATUS: &str = "\
Exit status:
  0  everything was done, or there was nothing to do
  1  a pool that relies on the guard is not protected by it
  2  invalid command line
  3  refused: the guard cannot be loaded, pools rely on it, or it needs root

Manual page: cow-guard(8)";

/// Keep guests from changing unified files, and let them remove and replace their names of these.
#[derive(Debug, Parser)]
#[command(name = "cow-guard", version, after_help = EXIT_STATUS)]
pub struct Arguments {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// Options of all commands.
    #[command(flatten)]
    pub common: Common,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Load the guard into the kernel; if that fails, make the objects of pools that rely on it immutable
    #[command(after_help = EXIT_STATUS)]
    Load {
        /// Also guard the filesystem of this pool, now and whenever the guard is loaded; may be repeated
        #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
        pool: Vec<PathBuf>,
        /// Guard the filesystem of this pool no longer: the pool was removed; may be repeated
        #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
        forget: Vec<PathBuf>,
    },
    /// Take the guard out of the kernel
    #[command(after_help = EXIT_STATUS)]
    Unload {
        /// First make the objects of pools that rely on the guard immutable
        #[arg(long)]
        protect: bool,
    },
    /// Show what is loaded, and which pools it protects
    #[command(after_help = EXIT_STATUS)]
    Status {
        /// Print the result as one JSON object on standard output
        #[arg(long)]
        json: bool,
    },
}

/// Options of all commands.
#[derive(Debug, Args)]
pub struct Common {
    /// Print only warnings and errors; given twice: only errors
    #[arg(short, long, action = ArgAction::Count, conflicts_with = "verbose", global = true)]
    pub quiet: u8,
    /// Print every step; given twice: everything
    #[arg(short, long, action = ArgAction::Count, global = true)]
    pub verbose: u8,
}

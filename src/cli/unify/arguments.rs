//! The command line of `cow-unify`.

use std::num::NonZero;
use std::path::PathBuf;

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};

use crate::unify::eligible::scope::Scope;
use crate::unify::pass::InUse;
use crate::unify::pool::identity::Mtime;
use crate::unify::pool::settings::Sharing;

const EXIT_STATUS: &str = "\
Exit status:
  0  everything was done, or there was nothing to do
  1  some files could not be done, guests were left out, or the pool was damaged
  2  invalid command line or configuration
  3  refused before anything was changed";

/// Make equal files of many guests one protected inode.
#[derive(Debug, Parser)]
#[command(name = "cow-unify", version, subcommand_negates_reqs = true, after_help = EXIT_STATUS)]
pub struct Arguments {
    /// Another action than unifying.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// How to unify.
    #[command(flatten)]
    pub pass: PassArguments,
    /// Options of all commands.
    #[command(flatten)]
    pub common: Common,
}

/// Another action than unifying.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show what the guests share and how much that saves
    Status {
        /// Root directories of guests
        #[arg(value_name = "GUEST", required = true)]
        guests: Vec<PathBuf>,
    },
    /// Read the whole pool; quarantine and replace damaged objects
    Verify {
        /// Root directories of guests in which names of damaged objects are found and repaired
        #[arg(value_name = "GUEST")]
        guests: Vec<PathBuf>,
    },
    /// Remove objects from the pool that no guest has a link to or shares blocks with
    Gc {
        /// Print what would be removed, and remove nothing
        #[arg(short = 'n', long)]
        dry_run: bool,
    },
    /// Change how the pool's objects are protected
    Protect {
        /// The new protection; auto: guard if the kernel can
        #[arg(long, value_enum, default_value = "auto", value_name = "PROTECTION")]
        to: ProtectTo,
        /// Root directories of guests whose package managers are to know it at once
        #[arg(value_name = "GUEST")]
        guests: Vec<PathBuf>,
    },
    /// Give a guest private copies of all files that it shares
    Detach {
        /// Root directory of the guest
        #[arg(value_name = "GUEST")]
        guest: PathBuf,
    },
}

/// Options of all commands.
#[derive(Debug, Args)]
pub struct Common {
    /// The pool; without this option, the one the guests belong to, or else .cow-pool beside the first guest
    #[arg(long, value_name = "DIR", global = true)]
    pub pool: Option<PathBuf>,
    /// Print the result as one JSON object on standard output
    #[arg(long, global = true)]
    pub json: bool,
    /// Print only warnings and errors; given twice: only errors
    #[arg(short, long, action = ArgAction::Count, conflicts_with = "verbose", global = true)]
    pub quiet: u8,
    /// Print the name of each file; given twice: every step
    #[arg(short, long, action = ArgAction::Count, global = true)]
    pub verbose: u8,
    /// Examine and read files with N threads
    #[arg(long, value_name = "N", global = true)]
    pub jobs: Option<NonZero<u16>>,
}

/// How to unify.
#[derive(Debug, Args)]
pub struct PassArguments {
    /// Print what would be done, and change nothing
    #[arg(short = 'n', long)]
    pub dry_run: bool,
    /// Look only at the files that the guests' hooks have listed since the last run
    #[arg(long, conflicts_with_all = ["dry_run", "reference"])]
    pub changed: bool,
    /// Then remove objects that no guest has, as `cow-unify gc` does
    #[arg(long)]
    pub gc: bool,
    /// Which files to unify
    #[arg(long, value_enum, default_value_t)]
    pub scope: Scope,
    /// How equal files share; set when the pool is created [default: hardlink]
    #[arg(long, value_enum)]
    pub share: Option<Sharing>,
    /// How shared inodes are protected; set when the pool is created [default: auto]
    #[arg(long, value_enum)]
    pub protection: Option<ProtectionArgument>,
    /// Whether modification times must be equal; set when the pool is created [default: match]
    #[arg(long, value_enum)]
    pub mtime: Option<Mtime>,
    /// Leave smaller files as they are; SIZE is for example 4KiB or 4K. Empty files are never unified
    #[arg(long, value_name = "SIZE", default_value = "1B", value_parser = crate::policy::size)]
    pub min_size: u64,
    /// Also unify set-user-ID and set-group-ID files and files with capabilities
    #[arg(long)]
    pub allow_setid: bool,
    /// Accept a guest that is, or contains, the running system: the host's own programs become immutable
    #[arg(long)]
    pub(crate) unify_running_system: bool,
    /// Unify a file only with the file of the same path in this guest
    #[arg(long, value_name = "GUEST")]
    pub reference: Option<PathBuf>,
    /// What to do with files that running programs were loaded from [default: replace; with --changed: wait]
    #[arg(long, value_enum, overrides_with = "in_use")]
    pub in_use: Option<InUse>,
    /// Leave out files that match; of all patterns, the first that matches decides
    #[arg(long, value_name = "PATTERN")]
    pub exclude: Vec<String>,
    /// Unify files that match, even if policy or scope leave them out
    #[arg(long, value_name = "PATTERN")]
    pub include: Vec<String>,
    /// Read patterns from FILE, one per line; a line that begins with ! includes
    #[arg(long, value_name = "FILE")]
    pub(crate) exclude_from: Vec<PathBuf>,
    /// Read an exclude list of Linux-VServer's vunify or vhashify
    #[arg(long, value_name = "FILE")]
    pub(crate) vserver_excludes: Vec<PathBuf>,
    /// Root directories of guests
    #[arg(value_name = "GUEST", required = true)]
    pub guests: Vec<PathBuf>,
}

/// How shared inodes are protected against changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ProtectionArgument {
    /// The best that the kernel offers
    Auto,
    /// A mark that the guard in the host's kernel respects (cow-guard)
    Guard,
    /// The flag of chattr +i
    Immutable,
    /// Linux-VServer's flag "immutable, but may be unlinked"
    Iunlink,
    /// Plain hard links: any guest can change a file for all guests
    None,
}

/// What the pool's objects can be turned to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ProtectTo {
    /// Guard if the kernel can, else immutable
    Auto,
    /// A mark that the guard in the host's kernel respects (cow-guard)
    Guard,
    /// The flag of chattr +i
    Immutable,
}

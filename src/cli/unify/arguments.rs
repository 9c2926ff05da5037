//! The command line of `cow-unify`.

use std::num::NonZero;
use std::path::PathBuf;

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};

use crate::unify::eligible::scope::Scope;
use crate::unify::pass::whole::InUse;
use crate::unify::pool::directory::Share;
use crate::unify::pool::identity::Mtime;

/// Make equal files of guests one inode.
#[derive(Debug, Parser)]
#[command(name = "cow-unify", version, subcommand_negates_reqs = true)]
pub struct Arguments {
    /// What else can be done.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// How to unify.
    #[command(flatten)]
    pub pass: PassArguments,
    /// What all commands know.
    #[command(flatten)]
    pub common: Common,
}

/// What else can be done.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Say what guests share, and what that saves
    Status {
        /// Root directories of guests
        #[arg(value_name = "GUEST", required = true)]
        guests: Vec<PathBuf>,
    },
    /// Read the whole pool, and set aside and replace what is not what its name says
    Verify {
        /// Guests to look through for damaged files, and to repair
        #[arg(value_name = "GUEST")]
        guests: Vec<PathBuf>,
    },
    /// Remove objects that no guest has a link to
    Gc {
        /// Say what would be removed, and remove nothing
        #[arg(short = 'n', long)]
        dry_run: bool,
    },
    /// Give a guest private copies of all it shares
    Detach {
        /// Root directory of the guest
        #[arg(value_name = "GUEST")]
        guest: PathBuf,
    },
}

/// What all commands know.
#[derive(Debug, Args)]
pub struct Common {
    /// The directory of shared inodes; if not given, the guests' own, or else .cow-pool beside the first guest
    #[arg(long, value_name = "DIR", global = true)]
    pub pool: Option<PathBuf>,
    /// Print the result as one JSON object
    #[arg(long, global = true)]
    pub json: bool,
    /// Print warnings and errors only; twice: errors only
    #[arg(short, long, action = ArgAction::Count, conflicts_with = "verbose", global = true)]
    pub quiet: u8,
    /// Name each file
    #[arg(short, long, action = ArgAction::Count, global = true)]
    pub verbose: u8,
    /// Threads that look and read
    #[arg(long, value_name = "N", global = true)]
    pub jobs: Option<NonZero<u16>>,
}

/// How to unify.
#[derive(Debug, Args)]
pub struct PassArguments {
    /// Say what would be done, and do nothing
    #[arg(short = 'n', long)]
    pub dry_run: bool,
    /// Look only at what the guests' hooks say has changed
    #[arg(long, conflicts_with_all = ["dry_run", "reference"])]
    pub changed: bool,
    /// Which files: those that packages own, or all
    #[arg(long, value_enum, default_value_t)]
    pub scope: Scope,
    /// How equal files share; chosen when the pool is made [default: hardlink]
    #[arg(long, value_enum)]
    pub share: Option<Share>,
    /// How shared inodes are protected against changes; chosen when the pool is made [default: auto]
    #[arg(long, value_enum)]
    pub protection: Option<Protection>,
    /// Whether times of modification must be equal; chosen when the pool is made [default: match]
    #[arg(long, value_enum)]
    pub mtime: Option<Mtime>,
    /// Unify files from this size on, such as 4KiB; empty ones never
    #[arg(long, value_name = "SIZE", default_value = "1B", value_parser = crate::policy::size)]
    pub min_size: u64,
    /// Unify set-id files and files with capabilities, too
    #[arg(long)]
    pub allow_setid: bool,
    /// Take a guest that is, or holds, the running system: files of its own programs become immutable, too
    #[arg(long)]
    pub unify_running_system: bool,
    /// Only unify files with the file of the same path in this guest
    #[arg(long, value_name = "GUEST")]
    pub reference: Option<PathBuf>,
    /// What becomes of files that running programs were loaded from [default: replace, with --changed wait]
    #[arg(long, value_enum, overrides_with = "in_use")]
    pub in_use: Option<InUse>,
    /// Leave out what matches; the first match of --exclude, --exclude-from, --include counts
    #[arg(long, value_name = "PATTERN")]
    pub exclude: Vec<String>,
    /// Take in what matches, whatever the scope
    #[arg(long, value_name = "PATTERN")]
    pub include: Vec<String>,
    /// Read patterns from a file, one on a line; those that begin with ! include
    #[arg(long, value_name = "FILE")]
    pub exclude_from: Vec<PathBuf>,
    /// Read an exclude file of Linux-VServer's vunify
    #[arg(long, value_name = "FILE")]
    pub vserver_excludes: Vec<PathBuf>,
    /// Root directories of guests
    #[arg(value_name = "GUEST", required = true)]
    pub guests: Vec<PathBuf>,
}

/// How shared inodes are protected against changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Protection {
    /// As the kernel can: immutable
    Auto,
    /// chattr +i
    Immutable,
    /// Linux-VServer's "immutable, but may be unlinked"
    Iunlink,
    /// Not at all: any guest can change a file for all
    None,
}

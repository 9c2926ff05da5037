//! The command line of `cow-unify`.

use std::ffi::OsStr;
use std::num::NonZero;
use std::path::{Path, PathBuf};

use clap::error::{ContextKind, ErrorKind};
use clap::parser::ValueSource;
use clap::{ArgAction, ArgMatches, Args, CommandFactory, Parser, Subcommand, ValueEnum, ValueHint};

use crate::unify::eligible::scope::Scope;
use crate::unify::pass::InUse;
use crate::unify::pool::identity::Mtime;
use crate::unify::pool::settings::Sharing;

const EXIT_STATUS: &str = "\
Exit status:
  0  everything was done, or there was nothing to do
  1  some files could not be done, guests were left out, or the pool was damaged
  2  invalid command line or configuration
  3  refused before anything was changed, for example because it needs root

Manual page: cow-unify(8)";

const USAGE: &str = "\
cow-unify [OPTIONS] <GUEST>...
       cow-unify <COMMAND> [OPTIONS] [GUEST]...";

/// Make equal files of many guests one protected inode.
#[derive(Debug, Parser)]
#[command(name = "cow-unify", version, subcommand_negates_reqs = true, override_usage = USAGE, after_help = EXIT_STATUS)]
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

/// What clap lets pass, because guests and options of a pass may stand where a command may.
///
/// # Errors
/// If an option stands before a command that would ignore it, or a command is misspelt.
pub(super) fn check(arguments: &Arguments, matches: &ArgMatches) -> Result<(), clap::Error> {
    if arguments.command.is_none() {
        return arguments.pass.guests.first().and_then(|first| mistyped(first)).map_or(Ok(()), Err);
    }
    let mut options = Arguments::command();
    // An option that is not built cannot be displayed.
    options.build();
    let is_given = |id: &str| matches.value_source(id) == Some(ValueSource::CommandLine);
    let mut of_pass = options.get_arguments().filter(|argument| !argument.is_global_set());
    let Some(misplaced) = of_pass.find(|argument| is_given(argument.get_id().as_str())) else {
        return Ok(());
    };
    let what = if misplaced.is_positional() {
        "guests must follow the name of the command; if a guest has that name, write it as ./NAME".to_owned()
    } else {
        format!(
            "the command would ignore {misplaced}, which stands before it; if the command has it, write it behind"
        )
    };
    Err(Arguments::command().error(ErrorKind::ArgumentConflict, what))
}

/// What clap says of a word that is nearly the name of a command, if no guest of that name is there.
fn mistyped(word: &Path) -> Option<clap::Error> {
    if word.as_os_str().as_encoded_bytes().contains(&b'/') || word.symlink_metadata().is_ok() {
        return None;
    }
    let all = Arguments::command();
    let commands = clap::Command::new("cow-unify")
        .override_usage(USAGE)
        .subcommand_required(true)
        .subcommands(all.get_subcommands().cloned());
    let said = commands.try_get_matches_from([OsStr::new("cow-unify"), word.as_os_str()]).err()?;
    said.get(ContextKind::SuggestedSubcommand).is_some().then_some(said)
}

/// Another action than unifying.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show what the guests share and how much that saves
    #[command(after_help = EXIT_STATUS)]
    Status {
        /// Root directories of guests
        #[arg(value_name = "GUEST", required = true, value_hint = ValueHint::DirPath)]
        guests: Vec<PathBuf>,
    },
    /// Read the whole pool; quarantine and replace damaged objects
    #[command(after_help = EXIT_STATUS)]
    Verify {
        /// Root directories of guests in which names of damaged objects are found and repaired
        #[arg(value_name = "GUEST", value_hint = ValueHint::DirPath)]
        guests: Vec<PathBuf>,
    },
    /// Remove objects from the pool that no guest has a link to or shares blocks with
    #[command(after_help = EXIT_STATUS)]
    Gc {
        /// Print what would be removed, and remove nothing
        #[arg(short = 'n', long)]
        dry_run: bool,
    },
    /// Change how the pool's objects are protected
    #[command(after_help = EXIT_STATUS)]
    Protect {
        /// The new protection; auto: guard if the kernel can
        #[arg(long, value_enum, default_value = "auto", value_name = "PROTECTION")]
        to: ProtectTo,
        /// Root directories of guests whose package managers are to know it at once
        #[arg(value_name = "GUEST", value_hint = ValueHint::DirPath)]
        guests: Vec<PathBuf>,
    },
    /// Delete guests; what they share with others stays as it is
    #[command(after_help = EXIT_STATUS)]
    Remove {
        /// Print what would be removed, and remove nothing
        #[arg(short = 'n', long)]
        dry_run: bool,
        /// Then remove objects that no guest has, as `cow-unify gc` does
        #[arg(long)]
        gc: bool,
        /// Clear the immutable and append-only flags of files and directories that only this guest has
        #[arg(long)]
        clear_flags: bool,
        /// Remove guests that are in use: by processes, by mounts of them elsewhere, by a package manager that was killed
        #[arg(long)]
        force: bool,
        /// Root directories of guests
        #[arg(value_name = "GUEST", required = true, value_hint = ValueHint::DirPath)]
        guests: Vec<PathBuf>,
    },
    /// Give a guest private copies of all files that it shares
    #[command(after_help = EXIT_STATUS)]
    Detach {
        /// Root directory of the guest
        #[arg(value_name = "GUEST", value_hint = ValueHint::DirPath)]
        guest: PathBuf,
    },
}

/// Options of all commands.
#[derive(Debug, Args)]
pub struct Common {
    /// The pool; without this option, the one the guests belong to, or else .cow-pool beside the first guest
    #[arg(long, value_name = "DIR", global = true, value_hint = ValueHint::DirPath)]
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
    #[arg(long, value_name = "GUEST", value_hint = ValueHint::DirPath)]
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
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) exclude_from: Vec<PathBuf>,
    /// Read an exclude list of Linux-VServer's vunify or vhashify
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) vserver_excludes: Vec<PathBuf>,
    /// Root directories of guests
    #[arg(value_name = "GUEST", required = true, value_hint = ValueHint::DirPath)]
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

#[cfg(test)]
mod tests {
    use clap::FromArgMatches;

    use super::*;

    /// What is said of this command line, if something is.
    fn said(words: &[&str]) -> Option<String> {
        let words = std::iter::once(&"cow-unify").chain(words);
        let parsed = Arguments::command().try_get_matches_from(words);
        let matches = match parsed {
            Ok(matches) => matches,
            Err(e) => return Some(e.to_string()),
        };
        let arguments = Arguments::from_arg_matches(&matches).unwrap();
        check(&arguments, &matches).err().map(|e| e.to_string())
    }

    #[test]
    fn a_misspelt_command_is_answered_with_the_command() {
        for (word, command) in
            [("statsu", "status"), ("verfy", "verify"), ("detatch", "detach"), ("remov", "remove")]
        {
            let said = said(&[word, "g1"]).unwrap();
            assert!(said.contains(&format!("unrecognized subcommand '{word}'")), "{said}");
            assert!(said.contains(&format!("'{command}'")), "{said}");
        }
        for words in [&["g1"][..], &["./statsu"], &["/srv/statsu"], &["status", "statsu"], &["/"]] {
            assert_eq!(said(words), None, "{words:?}");
        }
    }

    #[test]
    fn a_command_ignores_no_option_that_stands_before_it() {
        for (words, named) in [
            (&["-n", "gc", "--pool", "p"][..], "--dry-run"),
            (&["--dry-run", "gc"], "--dry-run"),
            (&["--scope", "all", "status", "g1"], "--scope"),
            (&["--min-size", "1B", "detach", "g1"], "--min-size"),
            (&["-n", "remove", "g1"], "--dry-run"),
            (&["--gc", "remove", "g1"], "--gc"),
            (&["g1", "-q", "status", "g2"], "guests must follow"),
        ] {
            let said = said(words).unwrap_or_else(|| panic!("{words:?}"));
            assert!(said.contains(named), "{said}");
        }
        for words in [
            &["gc", "-n", "--pool", "p"][..],
            &["--pool", "p", "gc", "-n"],
            &["-q", "--json", "--jobs", "2", "status", "g1"],
            &["-n", "--scope", "all", "g1"],
            &["remove", "-n", "--gc", "g1"],
        ] {
            assert_eq!(said(words), None, "{words:?}");
        }
    }

    #[test]
    fn the_usage_has_guests_before_no_command() {
        let usage = Arguments::command().render_usage().to_string();
        assert!(usage.contains("cow-unify [OPTIONS] <GUEST>...\n"), "{usage}");
        assert!(usage.contains("cow-unify <COMMAND> [OPTIONS] [GUEST]..."), "{usage}");
    }
}

//! How much is read of what a guest holds: all limits, and what enforces them.
//!
//! A guest's root writes what it likes into the files that the host reads, and pays a few bytes of disk for each entry.
//! An entry costs the reader more than that. So each file has a limit of bytes, and what is kept of a guest a limit of
//! entries. With these limits, what is kept of one guest takes some 64 MiB of memory at most.
//!
//! The limits are at least twice what the largest guests need: 10 000 packages, a million files. What is beyond a limit
//! is an error of its guest ([`Exceeded`]), which is left out. The other guests are unified.

use std::fmt;
use std::io;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

const MIB: usize = 1 << 20;

/// Bytes of dpkg's `status` with all of its `updates`: a package takes 1.2 KiB on average, so 20 000 packages fit.
pub const STATUS: usize = 24 * MIB;
/// Files in dpkg's `updates`. dpkg writes them into `status` when there are 250 (its `lib/dpkg/dbmodify.c`).
pub const UPDATES: usize = 1000;
/// Bytes of a list that a package manager keeps of one package: of dpkg's `info/*.list`, of pacman's `files`. The
/// largest packages of Debian have 100 000 files, and lists of 8 MiB.
pub const PACKAGE_LIST: usize = 24 * MIB;
/// Bytes of the control file of a .deb: the longest have 100 KiB.
pub const CONTROL: usize = MIB;
/// Bytes of dpkg's `diversions` and of its `statoverride`: hundreds of lines in practice, here 50 000.
pub const OVERRIDES: usize = 4 * MIB;
/// Bytes of a header in rpm's database: a package of 100 000 files has one of 10 MiB.
pub const HEADER: usize = 32 * MIB;
/// Files of one package, if its list is kept: five times as many as the largest packages have.
pub const PACKAGE_FILES: usize = 500_000;
/// Bytes of a file of rpm's database: 10 000 packages take 400 MiB. One page at a time is in memory.
pub const RPM_DATABASE: u64 = 1 << 30;
/// Pages of rpm's database, and of its write-ahead log: [`RPM_DATABASE`] in pages of 4 KiB, which is what rpm makes.
pub const RPM_PAGES: usize = 1 << 18;
/// Packages of one guest. Debian has 65 000 in all, and many of them exclude each other.
pub const PACKAGES: usize = 50_000;
/// Paths that the packages of one guest list, directories included: a million files with their directories are 1.5
/// million. 12 bytes of each are kept.
pub const PATHS: usize = 3_000_000;
/// Bytes of these paths: a million files take half of it.
pub const PATH_BYTES: usize = 128 * MIB;
/// Directories of one guest that hold what packages list: a million files have 150 000.
pub const DIRECTORIES: usize = 450_000;
/// Bytes of the paths of directories that are kept while a guest's tree is walked, each with [`ENTRY`]: 600 000 of usual
/// length, four times as many as a large guest has. A path may have 32 KiB, and a directory costs the guest less than that.
pub const TREE_PATHS: usize = 64 * MIB;
/// Files of one guest that are kept because they may be unified and are not yet: ten times as many as a large guest has.
/// Each takes some 100 bytes, and as a file of its own or a name of one costs the guest as much.
pub const FILES: usize = 10_000_000;
/// Bytes that the names in one directory take which are kept at once, each with [`ENTRY`]: a million short names.
pub const NAMES: usize = 64 * MIB;
/// Bytes that an entry in memory takes beside its text.
pub const ENTRY: usize = 48;
/// Bytes of what is remembered of directories that were resolved; a memory that is full is begun anew.
pub const RESOLVED: usize = 8 * MIB;
/// Bytes of one list of a guest's spool, and of the list of what a transaction plans: 250 000 paths of usual length.
pub const LIST: usize = 16 * MIB;
/// Paths in such lists that are read at once: more than [`LIST`] holds of paths of usual length.
pub const LISTED: usize = 400_000;
/// Lists of a guest's spool that are read in one run, and their bytes in all; the others wait for the next run.
pub const LISTS: usize = 64;
/// See [`LISTS`].
pub const LISTS_BYTES: usize = 2 * LIST;
/// Bytes of the list of hard links: a guest whose Python modules are all linked in pairs has 60 000 names of 80 bytes.
pub const HARD_LINKS: usize = 16 * MIB;
/// Names in it.
pub const HARD_LINK_NAMES: usize = 1 << 18;
/// Bytes of a file of configuration, which people write.
pub const CONFIGURATION: usize = MIB;
/// Files in a directory of configuration.
pub const CONFIGURATION_FILES: usize = 100;
/// Bytes of a small file of ours in a guest: a member of a transaction, a number, the notice of the pool.
pub const SMALL: usize = 4096;
/// Bytes of a file that the host itself wrote: a journal of the pool.
pub const OWN: usize = 256 * MIB;
/// Bytes of a file of a process below `/proc`: 65 530 mappings (`vm.max_map_count`) have 8 MiB with paths of usual length.
pub const PROCESS: usize = 64 * MIB;
/// Time of a processor that reading what is installed in one guest may take: a million files take a few seconds. A slow
/// disk does not count.
pub const PROCESSOR_TIME: Duration = Duration::from_secs(60);

/// How long a guest may make the host wait for a lock that a process of the guest holds, whatever its `lock_timeout` says.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Between two looks at the clock.
const PATHS_PER_LOOK: usize = 256;

/// A guest holds more than is read of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0}, the most that is read of a guest; find out in the guest why it has so much, or leave the guest out"
)]
pub struct Exceeded(Limit);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Limit {
    Bytes(u64),
    Count(usize, &'static str),
    Time,
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Limit::Bytes(most) if most < MIB as u64 => write!(f, "larger than {} KiB", most >> 10),
            Limit::Bytes(most) => write!(f, "larger than {} MiB", most >> 20),
            Limit::Count(most, what) => write!(f, "more than {most} {what}"),
            Limit::Time => {
                write!(f, "more than {} seconds of a processor's time", PROCESSOR_TIME.as_secs())
            }
        }
    }
}

impl Exceeded {
    /// If there are more than `most` of what `what` says, in the plural.
    pub fn check_count(count: usize, most: usize, what: &'static str) -> Result<(), Exceeded> {
        if count > most { Err(Exceeded(Limit::Count(most, what))) } else { Ok(()) }
    }

    /// If there are more than `most` bytes.
    pub fn check_bytes(bytes: u64, most: u64) -> Result<(), Exceeded> {
        if bytes > most { Err(Exceeded(Limit::Bytes(most))) } else { Ok(()) }
    }
}

impl From<Exceeded> for io::Error {
    fn from(exceeded: Exceeded) -> io::Error {
        io::Error::new(io::ErrorKind::FileTooLarge, exceeded)
    }
}

/// What is left of what is taken from one guest's package managers: packages, paths and time.
#[derive(Debug)]
pub struct Budget {
    packages: usize,
    paths: usize,
    bytes: usize,
    begun: Duration,
}

impl Default for Budget {
    /// Nothing is taken yet. The time of this thread counts.
    fn default() -> Budget {
        Budget { packages: 0, paths: 0, bytes: 0, begun: processor_time() }
    }
}

impl Budget {
    /// Takes a package.
    pub fn package(&mut self) -> Result<(), Exceeded> {
        self.packages += 1;
        Exceeded::check_count(self.packages, PACKAGES, "packages")?;
        self.check_time()
    }

    /// Takes a path of so many bytes.
    pub fn path(&mut self, length: usize) -> Result<(), Exceeded> {
        self.paths += 1;
        self.bytes = self.bytes.saturating_add(length).saturating_add(1);
        Exceeded::check_count(self.paths, PATHS, "paths of packages")?;
        Exceeded::check_bytes(self.bytes as u64, PATH_BYTES as u64)?;
        if self.paths.is_multiple_of(PATHS_PER_LOOK) { self.check_time() } else { Ok(()) }
    }

    fn check_time(&self) -> Result<(), Exceeded> {
        let taken = processor_time().saturating_sub(self.begun);
        if taken > PROCESSOR_TIME { Err(Exceeded(Limit::Time)) } else { Ok(()) }
    }
}

/// How long this thread has run on a processor.
fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_beyond_a_limit_is_said_with_the_remedy() {
        let text = Exceeded::check_bytes(STATUS as u64 + 1, STATUS as u64).unwrap_err().to_string();
        assert!(text.starts_with("larger than 24 MiB, the most that is read of a guest; "), "{text}");
        let error = io::Error::from(Exceeded::check_count(3, 2, "packages").unwrap_err());
        assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
        assert!(error.to_string().starts_with("more than 2 packages, "), "{error}");
        assert_eq!(Exceeded::check_count(2, 2, "packages"), Ok(()));
    }

    #[test]
    fn a_budget_ends() {
        let mut budget = Budget::default();
        assert!((0..PACKAGES).all(|_| budget.package().is_ok()) && budget.package().is_err());
        let mut budget = Budget::default();
        assert!((0..PATHS).all(|_| budget.path(1).is_ok()) && budget.path(1).is_err());
        let mut budget = Budget::default();
        assert!(budget.path(PATH_BYTES - 1).is_ok() && budget.path(0).is_err());
        let begun = processor_time().checked_sub(2 * PROCESSOR_TIME).unwrap_or_default();
        let late = Budget { begun, ..Budget::default() };
        assert_eq!(late.check_time().is_err(), processor_time() > PROCESSOR_TIME);
    }
}

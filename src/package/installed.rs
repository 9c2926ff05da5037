//! What is installed in a guest, whichever package manager it has: what the databases of all of them say.
//!
//! A guest is not trusted: what its packages list is read one package after the other, and not without end.

use std::borrow::Cow;
use std::io;
use std::path::PathBuf;

use super::canonical::Canonical;
use super::{PackageManager, Packages};
use crate::report::{Reason, Shown};
use crate::sys::budget::{Budget, Exceeded};
use crate::sys::path::root::Root;

/// The longest path there can be (path_resolution(7)).
const PATH_MAX: usize = 4096;

/// Why it is not known what is installed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A part of a database cannot be read.
    #[error("cannot read {manager}'s database, {}: {}", Shown(path), Reason(source))]
    Unreadable {
        /// The package manager.
        manager: &'static str,
        /// The file or directory, as the guest names it.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Somebody writes to a database.
    #[error(
        "{manager}'s database changed while it was read: a package manager is running in the guest; run this \
         again when it has ended"
    )]
    Busy {
        /// The package manager.
        manager: &'static str,
    },
    /// No guest has so much.
    #[error("what its package managers say is installed: {0}")]
    TooMuch(#[from] Exceeded),
}

impl Error {
    /// Whether the database is of a kind that is not read at all.
    pub fn is_unsupported(&self) -> bool {
        matches!(self, Error::Unreadable { source, .. } if source.kind() == io::ErrorKind::Unsupported)
    }

    /// What reading came to if a database of a kind that is not read is as good as none; that is said in the log.
    pub fn unless_unsupported(read: Result<bool, Error>, level: log::Level) -> Result<(), Error> {
        match read {
            Err(error) if error.is_unsupported() => {
                log::log!(level, "{error}");
                Ok(())
            }
            read => read.map(drop),
        }
    }
}

impl From<super::dpkg::Error> for Error {
    fn from(super::dpkg::Error { path, source }: super::dpkg::Error) -> Error {
        Error::Unreadable { manager: "dpkg", path, source }
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> io::Error {
        let kind = match &error {
            Error::Unreadable { source, .. } => source.kind(),
            Error::Busy { .. } => io::ErrorKind::ResourceBusy,
            Error::TooMuch(_) => io::ErrorKind::FileTooLarge,
        };
        io::Error::new(kind, error.to_string())
    }
}

/// Some of the files a package lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Configuration files: the administrator's to change.
    Configuration,
    /// Files the package does not bring: something makes and changes them later on (rpm's `%ghost`).
    Ghosts,
    /// All that are its own, with those of the other parts.
    All,
}

/// Is told of a path a package lists, where its file is but for symlinks of directories.
pub type Tell<'t> = dyn FnMut(PathBuf) -> Result<(), Error> + 't;

/// Is shown an installed package.
pub type Visit<'v> = dyn FnMut(&dyn InstalledPackage) -> Result<(), Error> + 'v;

/// An installed package, as its database has it.
pub trait InstalledPackage {
    /// Its name.
    fn name(&self) -> Cow<'_, str>;

    /// Whether its installation has come to its end; else its scripts may still change its files.
    fn is_finished(&self) -> bool {
        true
    }

    /// Whether every guest of its kind has it.
    fn is_essential(&self) -> bool;

    /// Whether its files were unpacked at that time or later, in nanoseconds of the system clock.
    fn is_unpacked_since(&self, since: i64) -> Result<bool, Error>;

    /// Tells of its files, directories included or not. [`Listing::files`] is for those who ask.
    fn files(&self, part: Part, tell: &mut Tell<'_>) -> Result<(), Error>;
}

/// A package manager's database of what is installed.
pub trait Database {
    /// The guest's root.
    fn root(&self) -> &Root;

    /// Shows all packages, in no order. `false` if there is no such database.
    fn each(&self, visit: &mut Visit<'_>) -> Result<bool, Error>;

    /// The files and directories of the guest whose inodes and times tell whether anything has changed.
    fn witnesses(&self) -> Vec<PathBuf>;
}

/// Gives the canonical paths of what packages list, within the [`Budget`] of one guest.
pub struct Listing<'r> {
    canonical: Canonical<'r>,
    budget: Budget,
}

impl<'r> Listing<'r> {
    /// For the guest at `root`.
    pub fn new(root: &'r Root) -> Listing<'r> {
        Listing { canonical: Canonical::beneath(root), budget: Budget::default() }
    }

    /// Takes a package.
    pub fn package(&mut self) -> Result<(), Error> {
        Ok(self.budget.package()?)
    }

    /// The paths of a package's files. One may be given more than once.
    pub fn files(
        &mut self,
        entry: &dyn InstalledPackage,
        part: Part,
        mut take: impl FnMut(PathBuf) -> Result<(), Exceeded>,
    ) -> Result<(), Error> {
        entry.files(part, &mut |path| {
            let length = path.as_os_str().len();
            self.budget.path(length)?;
            if length < PATH_MAX {
                take(self.canonical.path(path))?;
            }
            Ok(())
        })
    }
}

/// If a database is of a kind that is not read, little is known, and what waits is settled all the same.
impl<D: Database> PackageManager for D {
    fn after_run(&self, since: i64) -> io::Result<Packages> {
        let mut listing = Listing::new(self.root());
        let mut packages = Packages::default();
        let read = self.each(&mut |entry| {
            listing.package()?;
            let Packages { unfinished, configuration, unpacked } = &mut packages;
            for part in [Part::Configuration, Part::Ghosts] {
                listing.files(entry, part, |path| {
                    configuration.insert(path);
                    Ok(())
                })?;
            }
            if !entry.is_finished() {
                listing.files(entry, Part::All, |path| {
                    unfinished.insert(path);
                    Ok(())
                })?;
            }
            if entry.is_unpacked_since(since)? {
                listing.files(entry, Part::All, |path| {
                    unpacked.insert(path);
                    Ok(())
                })?;
            }
            Ok(())
        });
        Error::unless_unsupported(read, log::Level::Debug)?;
        Ok(packages)
    }

    fn essential(&self) -> io::Result<Vec<PathBuf>> {
        let mut listing = Listing::new(self.root());
        let mut paths = Vec::new();
        let read = self.each(&mut |entry| {
            if entry.is_essential() {
                listing.files(entry, Part::All, |path| {
                    paths.push(path);
                    Ok(())
                })
            } else {
                Ok(())
            }
        });
        Error::unless_unsupported(read, log::Level::Debug)?;
        Ok(paths)
    }
}

/// Whether a time in seconds, with an unknown fraction, may be `since` or later, in nanoseconds.
pub(super) fn may_be_since(seconds: i64, since: i64) -> bool {
    seconds >= since.div_euclid(1_000_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::package::testing::Guest;

    /// A package of any manager.
    struct Package {
        path: String,
        times: usize,
    }

    impl InstalledPackage for Package {
        fn name(&self) -> Cow<'_, str> {
            "some".into()
        }

        fn is_essential(&self) -> bool {
            false
        }

        fn is_unpacked_since(&self, _: i64) -> Result<bool, Error> {
            Ok(true)
        }

        fn files(&self, _: Part, tell: &mut Tell<'_>) -> Result<(), Error> {
            (0..self.times).try_for_each(|_| tell(PathBuf::from(&self.path)))
        }
    }

    #[test]
    fn paths_are_not_taken_without_end() {
        let guest = Guest::bare();
        let root = guest.root();
        let take = |path: String, times| {
            let mut taken = 0;
            let result = Listing::new(&root).files(&Package { path, times }, Part::All, |_| {
                taken += 1;
                Ok(())
            });
            result.map(|()| taken)
        };
        assert_eq!(take("/a".into(), 9).unwrap(), 9);
        // Nothing can have a name that long; it takes its part of what there is, nevertheless.
        let long = "/a".repeat(1 << 20);
        assert_eq!(take(long.clone(), 9).unwrap(), 0);
        assert!(matches!(take(long, 99), Err(Error::TooMuch(_))));
    }

    #[test]
    fn a_time_in_seconds_may_be_any_within_the_second() {
        assert!(may_be_since(7, 7_999_999_999) && may_be_since(8, 7_999_999_999));
        assert!(!may_be_since(7, 8_000_000_000));
        assert!(!may_be_since(i64::from(u32::MAX), i64::MAX));
    }
}

//! What a package touches: package managers' streams, databases and archives, read only.
//!
//! [`dpkg`] reads what apt and dpkg are about to do and what they have installed, [`rpm`] and [`pacman`] what these have
//! installed. [`Managers`] are all that a guest has, [`installed`] what they have in common; [`owners`] says which package
//! lists a path. [`files`] says what installing package files touches.

use std::collections::{BTreeSet, HashSet};
use std::ffi::OsStr;
use std::fmt;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

pub mod canonical;
mod caught;
pub mod dpkg;
pub mod files;
pub mod installed;
mod managers;
pub mod owners;
pub mod pacman;
pub mod path_set;
pub mod rpm;
pub mod steady;
pub mod touched;

#[cfg(test)]
pub(crate) mod testing;

pub use managers::Managers;

/// What a package manager says when it has run. Paths are canonical.
#[derive(Debug, Default)]
pub struct Packages {
    /// Files of packages that are not fully configured: their scripts may still change them.
    pub unfinished: HashSet<PathBuf>,
    /// Configuration files: the administrator's to change, never unified.
    pub configuration: HashSet<PathBuf>,
    /// Files of packages that were unpacked since the transaction began.
    pub unpacked: BTreeSet<PathBuf>,
}

/// A guest's package manager, as a transaction asks it when it has run.
pub trait PackageManager {
    /// What is to be known of its packages; `since` tells which count as just unpacked, in nanoseconds of the system
    /// clock.
    fn after_run(&self, since: i64) -> io::Result<Packages>;

    /// Files that every guest has and that the host unifies first, if it unifies this guest at all.
    fn essential(&self) -> io::Result<Vec<PathBuf>>;
}

/// A package of one architecture, the unit dpkg installs and removes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PackageId {
    /// The package's name, never qualified.
    pub name: String,
    /// Its architecture; `all` if it has none of its own.
    pub arch: String,
}

impl fmt::Display for PackageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.name, self.arch)
    }
}

/// A package as a command line or a stream names it, the architecture left open or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackageSpec {
    /// The package's name.
    pub name: String,
    /// The architecture, where it was given.
    pub arch: Option<String>,
}

impl PackageSpec {
    /// Reads `name` or `name:arch`.
    pub fn parse(text: &OsStr) -> PackageSpec {
        let text = text.to_string_lossy();
        match text.split_once(':') {
            Some((name, arch)) => PackageSpec { name: name.to_owned(), arch: Some(arch.to_owned()) },
            None => PackageSpec { name: text.into_owned(), arch: None },
        }
    }
}

/// Whether several architectures of a package may be installed together (`Multi-Arch`, deb-control(5)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MultiArch {
    /// One architecture at a time.
    #[default]
    No,
    /// Several at a time; dpkg then qualifies the names of its database files.
    Same,
    /// One, and it satisfies dependencies of other architectures.
    Foreign,
    /// One, and a dependency may ask for either.
    Allowed,
}

impl MultiArch {
    /// Reads the value of the field, or the word apt's stream has for it; `None` for any other word.
    pub fn parse(word: &[u8]) -> Option<MultiArch> {
        match word {
            b"no" | b"none" | b"" => Some(MultiArch::No),
            b"same" => Some(MultiArch::Same),
            b"foreign" => Some(MultiArch::Foreign),
            b"allowed" => Some(MultiArch::Allowed),
            _ => None,
        }
    }
}

/// A listed path as an absolute one: `./usr/bin/x`, `usr/bin/x` and `/usr/bin/x/` are `/usr/bin/x`.
///
/// `None` for the root directory, and for a path with a NUL byte: there can be no such file.
fn absolute(listed: &[u8]) -> Option<PathBuf> {
    let mut path = listed;
    while let Some(rest) = path.strip_prefix(b"/").or_else(|| path.strip_prefix(b"./")) {
        path = rest;
    }
    while let Some(rest) = path.strip_suffix(b"/") {
        path = rest;
    }
    if path.is_empty() || path == b"." || path.contains(&0) {
        return None;
    }
    Some(Path::new("/").join(OsStr::from_bytes(path)))
}

/// Sorts paths bytewise and drops what is there twice. Comparing components, as `Path` does, is several times slower.
fn sort_paths(paths: &mut Vec<PathBuf>) {
    paths.sort_unstable_by(|a, b| a.as_os_str().cmp(b.as_os_str()));
    paths.dedup_by(|a, b| a.as_os_str() == b.as_os_str());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listed_paths_become_absolute() {
        for listed in ["./usr/bin/x", "usr/bin/x", "/usr/bin/x", "/usr/bin/x/", "/./usr/bin/x", "//usr/bin/x"]
        {
            assert_eq!(absolute(listed.as_bytes()), Some(PathBuf::from("/usr/bin/x")), "{listed}");
        }
    }

    #[test]
    fn the_root_and_impossible_names_are_no_paths() {
        for listed in ["", "/", "/.", "./", ".", "/usr/\0"] {
            assert_eq!(absolute(listed.as_bytes()), None, "{listed:?}");
        }
    }

    #[test]
    fn a_name_may_be_qualified_by_its_architecture() {
        let spec = PackageSpec::parse(OsStr::new("libc6:i386"));
        assert_eq!((spec.name.as_str(), spec.arch.as_deref()), ("libc6", Some("i386")));
        assert_eq!(PackageSpec::parse(OsStr::new("bash")).arch, None);
    }
}

//! Sets of paths that take little memory: a guest may list millions.
//!
//! A path is kept as 96 bits of its digest. If a set has three million paths and three million others are looked up,
//! two of these are taken for each other with a probability of 10^-16.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::sys::budget::{self, Exceeded};

/// What is kept of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PathKey([u8; 12]);

impl PathKey {
    /// That of an absolute path, as it is written.
    pub fn of(path: &Path) -> PathKey {
        let bytes = path.as_os_str().as_bytes();
        match bytes.iter().rposition(|&byte| byte == b'/') {
            Some(slash) if bytes.len() > 1 => {
                PathKey::of_directory(&bytes[..slash.max(1)]).below(OsStr::from_bytes(&bytes[slash + 1..]))
            }
            _ => PathKey::of_directory(bytes),
        }
    }

    /// That of a directory: keys of the names in it are made from it.
    fn of_directory(path: &[u8]) -> PathKey {
        PathKey::new(&[path])
    }

    fn below(self, name: &OsStr) -> PathKey {
        PathKey::new(&[&self.0, name.as_bytes()])
    }

    fn new(parts: &[&[u8]]) -> PathKey {
        let mut hasher = blake3::Hasher::new();
        for part in parts {
            hasher.update(part);
        }
        let mut key = [0; 12];
        hasher.finalize_xof().fill(&mut key);
        PathKey(key)
    }
}

/// Files as they are gathered, and the directories that lead to them.
#[derive(Debug, Default)]
pub struct Gathered {
    files: Vec<PathKey>,
    directories: HashSet<PathKey>,
}

impl Gathered {
    /// Adds the file `path`.
    ///
    /// # Errors
    /// If there are more than [`budget::DIRECTORIES`].
    pub fn insert(&mut self, path: &Path) -> Result<(), Exceeded> {
        self.files.push(PathKey::of(path));
        for directory in path.ancestors().skip(1) {
            if !self.directories.insert(PathKey::of_directory(directory.as_os_str().as_bytes())) {
                break;
            }
        }
        Exceeded::check_count(self.directories.len(), budget::DIRECTORIES, "directories of packages")
    }
}

impl From<Gathered> for PathSet {
    fn from(Gathered { mut files, directories }: Gathered) -> PathSet {
        files.sort_unstable();
        files.dedup();
        PathSet { files, directories }
    }
}

/// Files, and the directories that lead to them.
#[derive(Debug, Default)]
pub struct PathSet {
    /// Sorted.
    files: Vec<PathKey>,
    directories: HashSet<PathKey>,
}

impl PathSet {
    /// Whether a file is in the directory `dir` or below.
    pub fn is_in_or_below(&self, dir: &Path) -> bool {
        self.directories.contains(&PathKey::of_directory(dir.as_os_str().as_bytes()))
    }

    /// Whether it has the file `path`.
    pub fn contains(&self, path: &Path) -> bool {
        self.files.binary_search(&PathKey::of(path)).is_ok()
    }

    /// The files in the directory `dir`.
    pub fn within(&self, dir: &Path) -> Directory<'_> {
        Directory { set: self, key: PathKey::of_directory(dir.as_os_str().as_bytes()) }
    }
}

/// The files of a set that are in one directory.
#[derive(Clone, Copy, Debug)]
pub struct Directory<'s> {
    set: &'s PathSet,
    key: PathKey,
}

impl Directory<'_> {
    /// Whether the file `name` is among them.
    pub fn contains(&self, name: &OsStr) -> bool {
        self.set.files.binary_search(&self.key.below(name)).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_has_its_files_and_knows_what_leads_to_them() {
        let mut gathered = Gathered::default();
        for path in ["/usr/bin/a", "/usr/bin/a", "/top", "/usr/lib/x/y"] {
            gathered.insert(Path::new(path)).unwrap();
        }
        let set = PathSet::from(gathered);
        for (path, has) in [("/usr/bin/a", true), ("/top", true), ("/usr/bin", false), ("/usr/bi/na", false)]
        {
            let path = Path::new(path);
            assert_eq!(set.contains(path), has, "{path:?}");
            assert_eq!(
                set.within(path.parent().unwrap()).contains(path.file_name().unwrap()),
                has,
                "{path:?}"
            );
        }
        for (dir, has) in
            [("/", true), ("/usr", true), ("/usr/lib", true), ("/usr/bin/a", false), ("/us", false)]
        {
            assert_eq!(set.is_in_or_below(Path::new(dir)), has, "{dir}");
        }
        assert!(!PathSet::default().is_in_or_below(Path::new("/")));
    }
}

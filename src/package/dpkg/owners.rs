//! Which packages own a path. Costs the reading of all lists, so it is only built where it is needed.

use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::{Canonical, Database, Error, Listed};
use crate::package::PackageId;

/// The owners of all listed paths, and which of these are configuration files.
///
/// Paths are canonical, and diverted files are where they really are.
#[derive(Debug)]
pub struct Owners {
    packages: Vec<PackageId>,
    owners: HashMap<OsString, Vec<usize>>,
    conffiles: HashSet<OsString>,
}

impl Owners {
    /// Reads the lists of all packages.
    pub fn load<F>(database: &Database<'_>, canonical: &mut Canonical<F>) -> Result<Owners, Error>
    where
        F: FnMut(&Path) -> PathBuf,
    {
        let mut listed = Listed::new(database, canonical)?;
        let mut owners: HashMap<OsString, Vec<usize>> = HashMap::new();
        let mut conffiles = HashSet::new();
        let mut packages = Vec::with_capacity(database.packages().len());
        for package in database.packages() {
            for path in listed.all(package, database.list(package)?) {
                owners.entry(path.into_os_string()).or_default().push(packages.len());
            }
            conffiles.extend(listed.all(package, package.conffiles()).map(PathBuf::into_os_string));
            packages.push(package.id.clone());
        }
        Ok(Owners { packages, owners, conffiles })
    }

    /// The packages that own `path`, which is canonical.
    pub fn of(&self, path: &Path) -> impl Iterator<Item = &PackageId> {
        self.owners.get(path.as_os_str()).into_iter().flatten().map(|&at| &self.packages[at])
    }

    /// Whether `path`, which is canonical, is a configuration file.
    pub fn is_conffile(&self, path: &Path) -> bool {
        self.conffiles.contains(path.as_os_str())
    }

    /// All paths that packages own, in no order.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.owners.keys().map(Path::new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::package::testing::Guest;

    /// As on a merged system, where `/bin` is a symlink.
    fn merged(directory: &Path) -> PathBuf {
        if directory == Path::new("/bin") { "/usr/bin".into() } else { directory.to_path_buf() }
    }

    fn names(owners: &Owners, path: &str) -> Vec<String> {
        owners.of(Path::new(path)).map(PackageId::to_string).collect()
    }

    #[test]
    fn listed_and_real_names_are_the_same_file() {
        let guest = Guest::new();
        guest.install("bash", "amd64", "", &["/bin", "/bin/bash"]);
        guest.install("dash", "amd64", "", &["/bin", "/usr/bin/dash"]);
        let root = guest.root();
        let mut asked = 0;
        let mut canonical = Canonical::new(|directory: &Path| {
            asked += 1;
            merged(directory)
        });
        let owners = Owners::load(&guest.database(&root), &mut canonical).unwrap();
        assert_eq!(names(&owners, "/usr/bin/bash"), ["bash:amd64"]);
        assert_eq!(canonical.path("/bin/dash".into()), Path::new("/usr/bin/dash"));
        assert_eq!(names(&owners, "/bin"), ["bash:amd64", "dash:amd64"]);
        assert_eq!(names(&owners, "/bin/bash"), [""; 0]);
        assert_eq!(owners.paths().count(), 3);
        assert_eq!(asked, 3, "once per directory");
    }

    #[test]
    fn diverted_files_are_owned_where_they_are() {
        let guest = Guest::new();
        guest.install("bash", "amd64", "", &["/bin/sh"]);
        guest.install("dash", "amd64", "Conffiles:\n /etc/dash 00", &["/bin/sh", "/etc/dash"]);
        guest.write("/var/lib/dpkg/diversions", b"/bin/sh\n/bin/sh.distrib\ndash\n");
        let root = guest.root();
        let owners = Owners::load(&guest.database(&root), &mut Canonical::new(merged)).unwrap();
        assert_eq!(names(&owners, "/usr/bin/sh"), ["dash:amd64"]);
        assert_eq!(names(&owners, "/usr/bin/sh.distrib"), ["bash:amd64"]);
        assert!(owners.is_conffile(Path::new("/etc/dash")));
        assert!(!owners.is_conffile(Path::new("/usr/bin/sh")));
    }
}

//! Which packages own a path. Costs the reading of all lists, so it is only built where it is needed.

use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::path::Path;

use super::installed::{Database, Error, Listing, Part};
use crate::report::Shown;

/// The owners of all listed paths, and which of these are configuration files.
///
/// Paths are canonical, and diverted files are where they really are.
#[derive(Debug)]
pub struct Owners {
    packages: Vec<String>,
    owners: HashMap<OsString, Vec<usize>>,
    conffiles: HashSet<OsString>,
}

impl Owners {
    /// Reads the lists of all packages; of none where there is no database, or one of a kind that is not read.
    pub fn load(database: &dyn Database) -> Result<Owners, Error> {
        let mut listing = Listing::new(database.root());
        let mut owners: HashMap<OsString, Vec<usize>> = HashMap::new();
        let mut conffiles = HashSet::new();
        let mut packages = Vec::new();
        let read = database.each(&mut |entry| {
            listing.files(entry, Part::All, |path| {
                owners.entry(path.into_os_string()).or_default().push(packages.len());
            })?;
            listing.files(entry, Part::Configuration, |path| {
                conffiles.insert(path.into_os_string());
            })?;
            packages.push(Shown(Path::new(&*entry.name())).to_string());
            Ok(())
        });
        Error::unless_unsupported(read, log::Level::Warn)?;
        Ok(Owners { packages, owners, conffiles })
    }

    /// The names of the packages that own `path`, which is canonical; safe to print.
    pub fn of(&self, path: &Path) -> impl Iterator<Item = &str> {
        self.owners.get(path.as_os_str()).into_iter().flatten().map(|&at| self.packages[at].as_str())
    }

    /// Whether packages own anything below `dir`, which is canonical.
    pub fn own_below(&self, dir: &Path) -> bool {
        self.owners
            .keys()
            .any(|path| Path::new(path).strip_prefix(dir).is_ok_and(|below| below != Path::new("")))
    }

    /// Whether `path`, which is canonical, is a configuration file.
    pub fn is_conffile(&self, path: &Path) -> bool {
        self.conffiles.contains(path.as_os_str())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::package::dpkg::Admindir;
    use crate::package::dpkg::after::Dpkg;
    use crate::package::testing::Guest;

    /// On a merged system, where `/bin` is a symlink.
    fn merged() -> Guest {
        let guest = Guest::new();
        std::fs::create_dir_all(guest.path("/usr/bin")).unwrap();
        symlink("usr/bin", guest.path("/bin")).unwrap();
        guest
    }

    fn owners(guest: &Guest) -> Owners {
        Owners::load(&Dpkg::new(&guest.root(), Admindir::usual())).unwrap()
    }

    fn names<'o>(owners: &'o Owners, path: &str) -> Vec<&'o str> {
        owners.of(Path::new(path)).collect()
    }

    #[test]
    fn listed_and_real_names_are_the_same_file() {
        let guest = merged();
        guest.install("bash", "amd64", "", &["/bin", "/bin/bash"]);
        guest.install("dash", "amd64", "", &["/bin", "/usr/bin/dash"]);
        let owners = owners(&guest);
        assert_eq!(names(&owners, "/usr/bin/bash"), ["bash"]);
        assert_eq!(names(&owners, "/bin"), ["bash", "dash"]);
        assert_eq!(names(&owners, "/bin/bash"), [""; 0]);
    }

    #[test]
    fn diverted_files_are_owned_where_they_are() {
        let guest = merged();
        guest.install("bash", "amd64", "", &["/bin/sh"]);
        guest.install("dash", "amd64", "Conffiles:\n /etc/dash 00", &["/bin/sh", "/etc/dash"]);
        guest.write("/var/lib/dpkg/diversions", b"/bin/sh\n/bin/sh.distrib\ndash\n");
        let owners = owners(&guest);
        assert_eq!(names(&owners, "/usr/bin/sh"), ["dash"]);
        assert_eq!(names(&owners, "/usr/bin/sh.distrib"), ["bash"]);
        assert!(owners.is_conffile(Path::new("/etc/dash")));
        assert!(!owners.is_conffile(Path::new("/usr/bin/sh")));
    }
}

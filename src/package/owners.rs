//! Which packages own a path. Costs the reading of all lists, so it is only built where it is needed.

use std::path::Path;

use super::installed::{Database, Error, Listing, Part};
use super::path_set::{Gathered, PathKey, PathSet};
use crate::report::Shown;

/// The owners of all listed paths, and which of these are configuration files.
///
/// Paths are canonical, and diverted files are where they really are.
#[derive(Debug)]
pub struct Owners {
    packages: Vec<String>,
    /// By path, sorted; the places of the owners in `packages`.
    owners: Vec<(PathKey, u32)>,
    all: PathSet,
    conffiles: PathSet,
}

impl Owners {
    /// Reads the lists of all packages; of none if there is no database, or one of a kind that is not read.
    pub fn load(database: &dyn Database) -> Result<Owners, Error> {
        let mut listing = Listing::new(database.root());
        let (mut owners, mut packages) = (Vec::new(), Vec::new());
        let (mut all, mut conffiles) = (Gathered::default(), Gathered::default());
        let read = database.each(&mut |entry| {
            listing.package()?;
            listing.files(entry, Part::All, |path| {
                owners.push((PathKey::of(&path), packages.len() as u32));
                all.insert(&path)
            })?;
            listing.files(entry, Part::Configuration, |path| conffiles.insert(&path))?;
            packages.push(Shown(Path::new(&*entry.name())).to_string());
            Ok(())
        });
        Error::unless_unsupported(read, log::Level::Warn)?;
        owners.sort_unstable();
        owners.dedup();
        Ok(Owners { packages, owners, all: all.into(), conffiles: conffiles.into() })
    }

    /// The names of the packages that own `path`, which is canonical; safe to print.
    pub fn of(&self, path: &Path) -> impl Iterator<Item = &str> {
        let key = PathKey::of(path);
        let from = self.owners.partition_point(|(other, _)| *other < key);
        let owners = self.owners[from..].iter().take_while(move |(other, _)| *other == key);
        owners.map(|&(_, at)| self.packages[at as usize].as_str())
    }

    /// Whether packages own anything below `dir`, which is canonical.
    pub fn own_below(&self, dir: &Path) -> bool {
        self.all.is_in_or_below(dir)
    }

    /// Whether `path`, which is canonical, is a configuration file.
    pub fn is_conffile(&self, path: &Path) -> bool {
        self.conffiles.contains(path)
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

//! Which packages own a path. Costs the reading of all lists, so it is only built where it is needed.

use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::{Database, Error};
use crate::package::PackageId;

/// Makes listed paths comparable: dpkg may list `/bin/bash` where the file is `/usr/bin/bash`.
///
/// Only the directory part is made canonical, by a function of the caller's, asked once per directory; the last
/// component is the file itself, symlink or not.
pub struct Canonical<F> {
    directory: F,
    /// By listed directory; `None` for one that is canonical.
    known: HashMap<OsString, Option<PathBuf>>,
}

impl<F: FnMut(&Path) -> PathBuf> Canonical<F> {
    /// Uses `directory` to make a directory's path canonical; it returns what it cannot find as it is.
    pub fn new(directory: F) -> Canonical<F> {
        Canonical { directory, known: HashMap::new() }
    }

    /// `path`, an absolute one, with its directory part made canonical.
    pub fn path(&mut self, path: PathBuf) -> PathBuf {
        let bytes = path.as_os_str().as_bytes();
        let Some(slash) = bytes.iter().rposition(|&byte| byte == b'/') else { return path };
        let (parent, name) =
            (OsStr::from_bytes(&bytes[..slash.max(1)]), OsStr::from_bytes(&bytes[slash + 1..]));
        let canonical = match self.known.get(parent) {
            Some(canonical) => canonical,
            None => {
                let canonical = (self.directory)(Path::new(parent));
                let changed = canonical.as_os_str() != parent;
                self.known.entry(parent.to_os_string()).or_insert(changed.then_some(canonical))
            }
        };
        canonical.as_ref().map(|directory| directory.join(name)).unwrap_or(path)
    }
}

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
        let diversions = database.diversions()?;
        let diversions: HashMap<&OsStr, _> =
            diversions.iter().map(|each| (each.from.as_os_str(), each)).collect();
        let mut owners: HashMap<OsString, Vec<usize>> = HashMap::new();
        let mut conffiles = HashSet::new();
        let mut packages = Vec::with_capacity(database.packages().len());
        for package in database.packages() {
            let mut real = |listed: PathBuf| {
                let diversion = diversions.get(listed.as_os_str());
                match diversion.filter(|each| each.by.as_deref() != Some(package.id.name.as_str())) {
                    Some(diversion) => canonical.path(diversion.to.clone()),
                    None => canonical.path(listed),
                }
            };
            for path in database.list(package)? {
                owners.entry(real(path).into_os_string()).or_default().push(packages.len());
            }
            conffiles.extend(package.conffiles().into_iter().map(|path| real(path).into_os_string()));
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

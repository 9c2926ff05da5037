//! Where the files are that packages list: diverted ones elsewhere, and none beyond a directory's symlink.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::diversions::Diversion;
use super::{Database, Error, Package};
use crate::sys::resolve::Resolver;
use crate::sys::root::Root;

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

/// Resolves the directories of the guest at `root`; one that is not there, or cannot be looked at, stays as it is.
pub fn beneath(root: &Root) -> Canonical<impl FnMut(&Path) -> PathBuf + '_> {
    let mut resolver = Resolver::new(root);
    Canonical::new(move |dir: &Path| {
        resolver.directory(dir).ok().flatten().unwrap_or_else(|| dir.to_path_buf())
    })
}

/// Maps the paths packages list to those where the files are.
pub struct Listed<'c, F> {
    /// By listed path.
    diversions: HashMap<OsString, Diversion>,
    canonical: &'c mut Canonical<F>,
}

impl<'c, F: FnMut(&Path) -> PathBuf> Listed<'c, F> {
    /// Reads the diversions of `database`.
    pub fn new(database: &Database<'_>, canonical: &'c mut Canonical<F>) -> Result<Listed<'c, F>, Error> {
        let diversions = database.diversions()?;
        let diversions =
            diversions.into_iter().map(|each| (each.from.clone().into_os_string(), each)).collect();
        Ok(Listed { diversions, canonical })
    }

    /// The canonical path of the file that `package` lists as `path`.
    pub fn real(&mut self, package: &Package, path: PathBuf) -> PathBuf {
        let diversion = self.diversions.get(path.as_os_str());
        match diversion.filter(|each| each.by.as_deref() != Some(package.id.name.as_str())) {
            Some(diversion) => self.canonical.path(diversion.to.clone()),
            None => self.canonical.path(path),
        }
    }

    /// [`Listed::real`] of all `paths`.
    pub fn all(&mut self, package: &Package, paths: Vec<PathBuf>) -> impl Iterator<Item = PathBuf> {
        paths.into_iter().map(|path| self.real(package, path))
    }
}

//! What a transaction wants to know when dpkg has run.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};

use super::database::{ADMINDIR, Database};
use super::diversions::Diversion;
use super::owners::Canonical;
use super::status::Package;
use crate::package::{PackageManager, Packages};
use crate::sys::resolve::Resolver;
use crate::sys::root::Root;

/// The guest's dpkg.
#[derive(Debug)]
pub struct Dpkg<'r> {
    root: &'r Root,
    admindir: PathBuf,
}

impl<'r> Dpkg<'r> {
    /// The dpkg whose database is in `admindir`, a path of the guest; in the usual place if that is not given.
    pub fn new(root: &'r Root, admindir: Option<PathBuf>) -> Dpkg<'r> {
        Dpkg { root, admindir: admindir.unwrap_or_else(|| PathBuf::from(ADMINDIR)) }
    }

    /// Reads its database.
    pub fn database(&self) -> Result<Database<'r>, super::Error> {
        Database::open(self.root, &self.admindir)
    }

    /// The database; none where the guest has no dpkg.
    fn present(&self) -> io::Result<Option<Database<'r>>> {
        match self.database() {
            Ok(database) => Ok(Some(database)),
            Err(e) if e.source.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(told(e)),
        }
    }
}

impl PackageManager for Dpkg<'_> {
    fn after_run(&self, since: i64) -> io::Result<Packages> {
        let Some(database) = self.present()? else { return Ok(Packages::default()) };
        let mut files = Files::new(self.root, &database)?;
        let mut packages = Packages::default();
        for package in database.packages() {
            packages.configuration.extend(files.real(package, package.conffiles()));
            if !package.is_configured() {
                packages.unfinished.extend(files.of(package)?);
            }
        }
        for package in database.changed_since(since).map_err(told)? {
            packages.unpacked.extend(files.of(package)?);
        }
        Ok(packages)
    }

    fn essential(&self) -> io::Result<Vec<PathBuf>> {
        let Some(database) = self.present()? else { return Ok(Vec::new()) };
        let mut paths = Vec::new();
        for package in database.packages().iter().filter(|package| package.is_essential()) {
            paths.extend(database.list(package).map_err(told)?);
        }
        Ok(paths)
    }
}

fn told(error: super::Error) -> io::Error {
    io::Error::new(error.source.kind(), format!("{error}: {}", error.source))
}

/// Lists of packages, as canonical paths, diverted files where they really are.
struct Files<'a, F> {
    database: &'a Database<'a>,
    diversions: HashMap<PathBuf, Diversion>,
    canonical: Canonical<F>,
}

impl<'a> Files<'a, Box<dyn FnMut(&Path) -> PathBuf + 'a>> {
    fn new(root: &'a Root, database: &'a Database<'a>) -> io::Result<Self> {
        let diversions = database.diversions().map_err(told)?;
        let diversions = diversions.into_iter().map(|each| (each.from.clone(), each)).collect();
        let mut resolver = Resolver::new(root);
        let directory =
            move |dir: &Path| resolver.directory(dir).ok().flatten().unwrap_or_else(|| dir.to_path_buf());
        let canonical = Canonical::new(Box::new(directory) as Box<dyn FnMut(&Path) -> PathBuf + 'a>);
        Ok(Files { database, diversions, canonical })
    }
}

impl<F: FnMut(&Path) -> PathBuf> Files<'_, F> {
    fn of(&mut self, package: &Package) -> io::Result<Vec<PathBuf>> {
        Ok(self.real(package, self.database.list(package).map_err(told)?))
    }

    fn real(&mut self, package: &Package, listed: Vec<PathBuf>) -> Vec<PathBuf> {
        let real = |path: PathBuf| {
            let diversion = self.diversions.get(&path);
            match diversion.filter(|each| each.by.as_deref() != Some(package.id.name.as_str())) {
                Some(diversion) => self.canonical.path(diversion.to.clone()),
                None => self.canonical.path(path),
            }
        };
        listed.into_iter().map(real).collect()
    }
}

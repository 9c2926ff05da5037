//! What a transaction wants to know when dpkg has run.

use std::io;
use std::path::PathBuf;

use super::database::{ADMINDIR, Database};
use super::listed::{self, Listed};
use crate::package::{PackageManager, Packages};
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
        let mut canonical = listed::beneath(self.root);
        let mut listed = Listed::new(&database, &mut canonical).map_err(told)?;
        let mut packages = Packages::default();
        for package in database.packages() {
            packages.configuration.extend(listed.all(package, package.conffiles()));
            if !package.is_configured() {
                packages.unfinished.extend(listed.all(package, database.list(package).map_err(told)?));
            }
        }
        for package in database.changed_since(since).map_err(told)? {
            packages.unpacked.extend(listed.all(package, database.list(package).map_err(told)?));
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

//! What dpkg has installed.

use std::borrow::Cow;
use std::path::PathBuf;

use super::database::{Admindir, Database};
use super::listed::Listed;
use super::status::Package;
use crate::package::dpkg::lists;
use crate::package::installed::{self, InstalledPackage, Part, Tell, Visit};
use crate::sys::path::resolve::is_absent;
use crate::sys::path::root::Root;

/// The guest's dpkg.
#[derive(Debug)]
pub struct Dpkg<'r> {
    root: &'r Root,
    admindir: &'r Admindir,
}

impl<'r> Dpkg<'r> {
    /// The dpkg of the guest at `root`, whose database is in `admindir`.
    pub fn new(root: &'r Root, admindir: &'r Admindir) -> Dpkg<'r> {
        Dpkg { root, admindir }
    }

    /// Reads its database.
    pub fn database(&self) -> Result<Database<'r>, super::Error> {
        Database::open(self.root, self.admindir)
    }
}

impl installed::Database for Dpkg<'_> {
    fn root(&self) -> &Root {
        self.root
    }

    fn each(&self, visit: &mut Visit<'_>) -> Result<bool, installed::Error> {
        let database = match self.database() {
            Ok(database) if database.exists() => database,
            Ok(_) => return Ok(false),
            Err(error) if is_absent(&error.source) => return Ok(false),
            Err(error) => return Err(error.into()),
        };
        let listed = Listed::new(&database)?;
        for package in database.packages() {
            visit(&Installed { database: &database, listed: &listed, package })?;
        }
        Ok(true)
    }

    /// dpkg never writes its files in place.
    fn witnesses(&self) -> Vec<PathBuf> {
        ["status", "info", "updates", "diversions"].map(|name| self.admindir.path().join(name)).into()
    }
}

/// A package of dpkg's.
struct Installed<'a, 'r> {
    database: &'a Database<'r>,
    listed: &'a Listed,
    package: &'a Package,
}

impl InstalledPackage for Installed<'_, '_> {
    fn name(&self) -> Cow<'_, str> {
        Cow::Borrowed(&self.package.id.name)
    }

    fn is_finished(&self) -> bool {
        self.package.is_configured()
    }

    fn is_essential(&self) -> bool {
        self.package.is_essential()
    }

    fn is_unpacked_since(&self, since: i64) -> Result<bool, installed::Error> {
        Ok(self.database.is_changed_since(self.package, since)?)
    }

    fn files(&self, part: Part, tell: &mut Tell<'_>) -> Result<(), installed::Error> {
        let Installed { database, listed, package } = self;
        let file = |kind| database.control_file(package, kind).map(Option::unwrap_or_default);
        let mut tell = |path| tell(listed.real(package, path));
        match part {
            // Those dpkg keeps in its status, and those the package brought.
            Part::Configuration => {
                let brought = file("conffiles")?;
                let brought = lists::conffiles(&brought);
                package.conffiles().chain(brought).try_for_each(tell)
            }
            Part::Ghosts => Ok(()),
            Part::All => lists::paths(&file("list")?).try_for_each(&mut tell),
        }
    }
}

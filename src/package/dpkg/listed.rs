//! Where the files are that packages list: diverted ones elsewhere.

use std::collections::HashMap;
use std::ffi::OsString;
use std::path::PathBuf;

use super::diversions::Diversion;
use super::{Database, Error, Package};

/// Maps the paths packages list to those where the files are, but for symlinks of directories.
pub struct Listed {
    /// By listed path.
    diversions: HashMap<OsString, Diversion>,
}

impl Listed {
    /// Reads the diversions of `database`.
    pub fn new(database: &Database<'_>) -> Result<Listed, Error> {
        let diversions = database.diversions()?;
        let diversions =
            diversions.into_iter().map(|each| (each.from.clone().into_os_string(), each)).collect();
        Ok(Listed { diversions })
    }

    /// The path of the file that `package` lists as `path`.
    pub fn real(&self, package: &Package, path: PathBuf) -> PathBuf {
        let diversion = self.diversions.get(path.as_os_str());
        match diversion.filter(|each| each.by.as_deref() != Some(package.id.name.as_str())) {
            Some(diversion) => diversion.to.clone(),
            None => path,
        }
    }
}

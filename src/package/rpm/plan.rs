//! What installing packages with rpm may touch, of the files that exist now.
//!
//! rpm replaces a file by a rename, removes what the old version has beyond the new one, and sets owner, mode and times of
//! a configuration file in place if its content stays: of what a symlink leads to, if there is one in its place.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use super::file::PackageFile;
use crate::package::installed::{Database, Error, Listing, Part};
use crate::package::touched::Touched;

/// What rpm appends to the name of a configuration file that it keeps beside another.
pub const BESIDE: [&str; 3] = [".rpmnew", ".rpmsave", ".rpmorig"];

/// The name of a file that rpm keeps beside `path`.
pub fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or(OsStr::new("")).to_os_string();
    name.push(suffix);
    path.with_file_name(name)
}

/// What the packages of the guest may lose or get changed that go when `packages` come: those of the same name, and those
/// that one of them obsoletes. Versions and architectures are ignored.
///
/// # Errors
/// If the database cannot be read.
pub fn replaced(database: &dyn Database, packages: &[PackageFile]) -> Result<Touched, Error> {
    let mut touched = Touched::default();
    let mut listing = Listing::new(database.root());
    database.each(&mut |entry| {
        let name = entry.name();
        let goes =
            |package: &PackageFile| package.name == name || package.obsoletes.iter().any(|old| *old == name);
        if !packages.iter().any(goes) {
            return Ok(());
        }
        listing.files(entry, Part::Configuration, |path| touched.paths.extend(all_beside(&path)))?;
        listing.files(entry, Part::All, |path| touched.paths.push(path))
    })?;
    Ok(touched)
}

/// What `packages` themselves bring, whoever has had it.
pub fn brought(packages: &[PackageFile]) -> Touched {
    let mut touched = Touched::default();
    for file in packages.iter().flat_map(|package| &package.files) {
        if file.is_configuration {
            touched.paths.extend(all_beside(&file.path));
            touched.followed.push(file.path.clone());
        }
        touched.paths.push(file.path.clone());
    }
    touched
}

fn all_beside(path: &Path) -> [PathBuf; 3] {
    BESIDE.map(|suffix| beside(path, suffix))
}

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
        listing.files(entry, Part::Configuration, |path| {
            touched.paths.extend(all_beside(&path));
            Ok(())
        })?;
        listing.files(entry, Part::All, |path| {
            touched.paths.push(path);
            Ok(())
        })
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

#[cfg(test)]
mod tests {
    use super::super::Rpm;
    use super::super::file::PackagedFile;
    use super::*;
    use crate::package::testing::Guest;
    use crate::sys::file::times::TICK;

    fn package(name: &str, obsoletes: &[&str], files: &[(&str, bool)]) -> PackageFile {
        let files = files.iter().map(|(path, is_configuration)| PackagedFile {
            path: PathBuf::from(path),
            is_configuration: *is_configuration,
        });
        let obsoletes = obsoletes.iter().map(|name| (*name).to_owned()).collect();
        PackageFile { name: name.to_owned(), obsoletes, files: files.collect() }
    }

    fn paths(touched: Touched) -> Vec<String> {
        touched.sorted().paths.into_iter().map(|path| path.into_os_string().into_string().unwrap()).collect()
    }

    #[test]
    fn what_goes_is_of_the_same_name_or_obsolete() {
        let guest = Guest::bare();
        guest.install_rpm(
            "tool",
            1,
            &[(b"/usr/bin/tool", 0, 0), (b"/etc/tool", 1, 0), (b"/var/tool", 1 << 6, 0)],
        );
        guest.install_rpm("old", 1, &[(b"/usr/bin/old", 0, 0)]);
        guest.install_rpm("other", 1, &[(b"/usr/bin/other", 0, 0)]);
        std::thread::sleep(TICK);
        let root = guest.root();
        let goes = |packages: &[PackageFile]| paths(replaced(&Rpm::new(&root, None), packages).unwrap());
        let conf = ["/etc/tool", "/etc/tool.rpmnew", "/etc/tool.rpmorig", "/etc/tool.rpmsave"];
        let tool = [&conf[..], &["/usr/bin/tool", "/var/tool"]].concat();
        assert_eq!(goes(&[package("tool", &[], &[])]), tool);
        assert_eq!(goes(&[package("new", &["old", "gone"], &[])]), ["/usr/bin/old"]);
        assert!(goes(&[package("new", &[], &[("/usr/bin/other", false)])]).is_empty());
    }

    #[test]
    fn what_comes_is_touched_whoever_has_had_it() {
        let touched = brought(&[package("tool", &[], &[("/usr/bin/tool", false), ("/etc/tool", true)])]);
        assert_eq!(touched.followed, [Path::new("/etc/tool")]);
        let expected =
            ["/etc/tool", "/etc/tool.rpmnew", "/etc/tool.rpmorig", "/etc/tool.rpmsave", "/usr/bin/tool"];
        assert_eq!(paths(touched), expected);
    }
}

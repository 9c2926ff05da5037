//! What a transaction of rpm's touches, from rpm's own lists of files.

use std::collections::HashSet;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use super::ffi::{Action, Element};
use crate::package::canonical::Canonical;
use crate::package::rpm::plan::{BESIDE, beside};
use crate::package::{PackageManager, Packages};
use crate::sys::path::root::Root;

/// Files that every guest has, wherever its distribution keeps them.
const EVERYWHERE: [&str; 6] = [
    "/usr/bin/bash",
    "/usr/bin/cp",
    "/usr/bin/rpm",
    "/usr/bin/sed",
    "/usr/lib64/libc.so.6",
    "/usr/lib/x86_64-linux-gnu/libc.so.6",
];

/// The packages of a transaction.
#[derive(Debug)]
pub struct Elements {
    all: Vec<Element>,
    /// Those that rpm could not install or remove.
    failed: Vec<OsString>,
    root: Root,
}

impl Elements {
    /// What rpm says it will work on in the guest at `root`.
    pub fn new(all: Vec<Element>, root: Root) -> Elements {
        Elements { all, failed: Vec::new(), root }
    }

    /// What rpm says at the end.
    pub fn set_failed(&mut self, failed: &[OsString]) {
        self.failed = failed.to_vec();
    }

    /// Every name that rpm may replace, rename or remove; but nothing below `except`.
    pub fn touched(&self, except: &[&Path]) -> HashSet<PathBuf> {
        let mut paths = HashSet::new();
        for file in self.all.iter().flat_map(|element| &element.files) {
            if except.iter().any(|except| file.path.starts_with(except)) {
                continue;
            }
            if file.is_config {
                paths.extend(BESIDE.map(|suffix| beside(&file.path, suffix)));
            }
            paths.insert(file.path.clone());
        }
        paths
    }

    /// Regular files: where there is a symlink instead, rpm may change what it leads to.
    pub fn regular(&self) -> impl Iterator<Item = &PathBuf> {
        self.all
            .iter()
            .flat_map(|element| &element.files)
            .filter(|file| file.is_regular)
            .map(|file| &file.path)
    }
}

/// The names that rpm touches when it does `action` to `path`, symlinks aside.
pub fn names(path: &Path, action: Action) -> Vec<PathBuf> {
    let suffix = match action {
        Action::Replace | Action::Touch => return vec![path.to_path_buf()],
        Action::AltName => return vec![beside(path, BESIDE[0])],
        Action::Save => BESIDE[1],
        Action::Backup => BESIDE[2],
    };
    vec![path.to_path_buf(), beside(path, suffix)]
}

impl PackageManager for Elements {
    fn after_run(&self, _since: i64) -> io::Result<Packages> {
        let mut canonical = Canonical::beneath(&self.root);
        let mut packages = Packages::default();
        for element in &self.all {
            let is_installed = element.is_added && !self.failed.contains(&element.nevra);
            for file in &element.files {
                if file.is_config || file.is_ghost {
                    packages.configuration.insert(canonical.path(file.path.clone()));
                } else if is_installed && file.is_regular {
                    packages.unpacked.insert(canonical.path(file.path.clone()));
                }
            }
        }
        Ok(packages)
    }

    fn essential(&self) -> io::Result<Vec<PathBuf>> {
        Ok(EVERYWHERE.map(PathBuf::from).to_vec())
    }
}

#[cfg(test)]
mod tests {
    use super::super::ffi::Listed;
    use super::*;

    fn file(path: &str) -> Listed {
        Listed { path: PathBuf::from(path), is_regular: true, is_config: false, is_ghost: false }
    }

    fn elements(all: Vec<Element>) -> (tempfile::TempDir, Elements) {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path()).unwrap();
        (dir, Elements::new(all, root))
    }

    fn package(nevra: &str, is_added: bool, files: Vec<Listed>) -> Element {
        Element { nevra: nevra.into(), is_added, files }
    }

    #[test]
    fn a_configuration_file_is_touched_with_what_rpm_keeps_beside_it() {
        let conf = Listed { is_config: true, ..file("/etc/x.conf") };
        let database = file("/var/lib/rpm/rpmdb.sqlite");
        let (_dir, elements) = elements(vec![package("x-1", false, vec![conf, file("/usr/x"), database])]);
        let mut touched: Vec<_> = elements.touched(&[Path::new("/var/lib/rpm")]).into_iter().collect();
        touched.sort();
        let expected =
            ["/etc/x.conf", "/etc/x.conf.rpmnew", "/etc/x.conf.rpmorig", "/etc/x.conf.rpmsave", "/usr/x"];
        assert_eq!(touched, expected.map(PathBuf::from));
    }

    #[test]
    fn only_what_was_installed_is_new() {
        let ghost = Listed { is_ghost: true, ..file("/usr/ghost") };
        let (_dir, mut elements) = elements(vec![
            package("a-2", true, vec![file("/usr/a"), ghost]),
            package("a-1", false, vec![file("/usr/gone")]),
            package("b-1", true, vec![file("/usr/b")]),
        ]);
        elements.set_failed(&["b-1".into()]);
        let packages = elements.after_run(0).unwrap();
        assert_eq!(packages.unpacked.into_iter().collect::<Vec<_>>(), [PathBuf::from("/usr/a")]);
        assert!(packages.configuration.contains(Path::new("/usr/ghost")));
    }

    #[test]
    fn the_action_says_which_names_are_touched() {
        let touched = |action| names(Path::new("/etc/x"), action);
        assert_eq!(touched(Action::Touch), [PathBuf::from("/etc/x")]);
        assert_eq!(touched(Action::AltName), [PathBuf::from("/etc/x.rpmnew")]);
        assert_eq!(touched(Action::Save), ["/etc/x", "/etc/x.rpmsave"].map(PathBuf::from));
        assert_eq!(touched(Action::Backup), ["/etc/x", "/etc/x.rpmorig"].map(PathBuf::from));
    }
}

//! The commands and hooks of a guest are one program that acts by the name it is called by.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use cow_hooks::sys::file::inode::Kind;

use crate::support::{built, entries, run, text};

fn ran(command: &mut Command) -> Output {
    command.stdin(Stdio::null()).output().unwrap()
}

/// The names that it says it knows.
fn known() -> BTreeSet<String> {
    let said = text(&ran(Command::new(built("cow-hooks")).arg("cow-nothing")));
    let line = said.lines().next().unwrap();
    let (_, names) = line.split_once("NAME is one of ").unwrap_or_else(|| panic!("{said}"));
    names.split(", ").map(str::to_owned).collect()
}

#[test]
fn a_name_that_it_does_not_know_is_an_error_that_lists_the_names() {
    for arguments in [&[][..], &["cow-nothing"], &["--help"]] {
        let output = ran(Command::new(built("cow-hooks")).args(arguments));
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        let said = text(&output);
        assert!(said.contains("cow-run, ") && said.contains("was called as "), "{said}");
    }
}

#[test]
fn the_packages_install_each_name_that_it_knows_and_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let install = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/install");
    let packages = ["cow-hooks", "zypp-plugin-cow-hooks"];
    run(Command::new(install).env("PROGRAMS", built("")).arg(dir.path()).args(packages));
    let links = entries(dir.path()).into_iter().filter(|(_, inode)| inode.kind == Kind::Symlink);
    let links: Vec<PathBuf> = links.map(|(path, _)| dir.path().join(path)).collect();
    for link in &links {
        assert!(fs::read_link(link).unwrap().is_relative(), "{}", link.display());
        let program = dir.path().join("usr/libexec/cow-hooks/cow-hooks");
        assert_eq!(fs::canonicalize(link).unwrap(), fs::canonicalize(program).unwrap());
        let said = text(&ran(Command::new(link).arg("--help")));
        assert!(!said.contains("usage: cow-hooks"), "{}: {said}", link.display());
    }
    for name in &known() {
        assert_eq!(links.iter().filter(|link| link.ends_with(name)).count(), 1, "{name}");
    }
    assert_eq!(links.len(), known().len());
}

#[test]
fn what_it_starts_of_itself_is_what_runs_even_if_that_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("cow-hooks");
    fs::copy(built("cow-hooks"), &program).unwrap();
    let script =
        "exec 3<\"$1\" && rm \"$1\" && ln -s /bin/false \"$1\" && exec /proc/self/fd/3 cow-prepare --version";
    let output = ran(Command::new("sh").args(["-c", script, "sh"]).arg(&program));
    assert_eq!(text(&output), concat!("cow-prepare ", env!("CARGO_PKG_VERSION"), "\n"));
}

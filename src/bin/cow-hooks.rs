//! A guest's commands and hooks: one program that acts by the name it is called by.

#[path = "../../hooks/dpkg/cow-dpkg.rs"]
mod dpkg;
#[path = "../../hooks/pacman/cow-pacman.rs"]
mod pacman;
#[path = "../../hooks/rpm/cow-rpm.rs"]
mod rpm;
#[path = "../../hooks/zypp/cow-zypp.rs"]
mod zypp;

use std::ffi::OsStr;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::ExitCode;

use cow_hooks::{cli, hook};

/// What the path that the program is called by ends with, and what it does then.
type Named = (&'static str, fn() -> ExitCode);

const NAMES: [Named; 7] = [
    ("cow-run", cli::run::main),
    ("cow-prepare", || cli::prepare::main().into()),
    ("cow-status", || cli::status::main().into()),
    ("cow-dpkg", dpkg::main),
    ("cow-rpm", rpm::main),
    ("cow-pacman", pacman::main),
    // libzypp calls its plugins by their path, and by nothing else.
    ("commit/cow-hooks", zypp::main),
];

fn main() -> ExitCode {
    let mut words = std::env::args_os();
    let called = words.next().unwrap_or_default();
    if let Some((_, main)) = named(&called) {
        return main();
    }
    // By its own name: `cow-hooks NAME ARGUMENTS`.
    let Some((name, _)) = words.next().as_deref().and_then(named) else { return usage(&called) };
    let error = hook::this_program(name).args(words).exec();
    eprintln!("cow-hooks: error: /proc/self/exe could not be run as {name}: {error}; mount /proc");
    ExitCode::from(2)
}

fn named(path: &OsStr) -> Option<&'static Named> {
    NAMES.iter().find(|(name, _)| Path::new(path).ends_with(name))
}

fn usage(called: &OsStr) -> ExitCode {
    let names = NAMES.map(|(name, _)| name).join(", ");
    eprintln!("usage: cow-hooks NAME [ARGUMENT...], or a link to it called NAME; NAME is one of {names}");
    eprintln!("It was called as {}.", called.display());
    ExitCode::from(2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_the_path_decides() {
        let name = |path: &str| named(OsStr::new(path)).map(|(name, _)| *name);
        for (path, expected) in [
            ("cow-run", Some("cow-run")),
            ("/usr/bin/cow-run", Some("cow-run")),
            ("/usr/lib/zypp/plugins/commit/cow-hooks", Some("commit/cow-hooks")),
            ("/usr/libexec/cow-hooks/cow-hooks", None),
            ("cow-hooks", None),
            ("/usr/bin/cow-run2", None),
            ("", None),
        ] {
            assert_eq!(name(path), expected, "{path}");
        }
    }
}

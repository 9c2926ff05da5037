//! The package cow-guard on a host whose kernel can run the guard: nobody can change shared files at any moment of an
//! upgrade or a removal.

use crate::guests::deb;
use crate::support::machine::Machine;
use crate::support::pair::support;
use crate::support::text;

/// What a step of `support/guard-package` came to; panics if a write to the shared file succeeded.
fn flags<'a>(said: &'a str, step: &str) -> &'a str {
    let line =
        said.lines().find_map(|line| line.strip_prefix(&format!("{step}: exit code 0, written 0 of ")));
    let (tries, flags) =
        line.and_then(|line| line.split_once(", ")).unwrap_or_else(|| panic!("{step}: {said}"));
    assert!(tries.parse::<u64>().unwrap() > 0, "{step}: {said}");
    flags
}

#[test]
#[ignore = "needs root"]
fn privileged_the_package_of_the_guard_comes_and_goes_without_a_gap() {
    let packages = deb().parent().unwrap();
    let script = support("guard-package");
    let mut machine = Machine::new("trixie").disk("ext4", "256M", "d").input(script.get_program());
    for package in packages.read_dir().unwrap().map(|entry| entry.unwrap().path()) {
        let name = package.file_name().unwrap().to_string_lossy().into_owned();
        if name.ends_with(".deb") && (name.starts_with("cow-unify_") || name.starts_with("cow-guard_")) {
            machine = machine.input(package);
        }
    }
    let Some(output) = machine.run(&["bash", "/in/guard-package"]) else { return };
    let said = text(&output);
    assert!(output.status.success(), "{said}");
    assert_eq!(flags(&said, "upgrade"), "objects 4, marked 4, immutable 0", "{said}");
    assert_eq!(flags(&said, "remove"), "objects 4, marked 4, immutable 4", "{said}");
    flags(&said, "install");
    assert_eq!(flags(&said, "load"), "objects 4, marked 4, immutable 0", "{said}");
    // What cannot be made immutable keeps the guard, and the package.
    assert!(said.contains("read-only: deinstall ok installed"), "{said}");
    assert_eq!(flags(&said, "after"), "objects 4, marked 4, immutable 0", "{said}");
}

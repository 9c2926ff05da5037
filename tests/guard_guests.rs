//! Package managers in real guests that share their files under the guard of a real kernel: as root, without
//! `CAP_LINUX_IMMUTABLE`, in a user namespace, with hooks and without. Nothing is copied, no window is opened, nothing leaks.
//!
//! `COW_TESTS_ALL_GUARD_GUESTS=all`, or those of `deb:root rpm:root deb:dropped ..` that it names: all packages, upgrades and
//! dnf, one boot for each, which takes hours. Without it a slice in one boot.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::guests::packages;
use crate::support::machine::Machine;
use crate::support::pair::support;
use crate::support::{built, note_left_out, run, text};

const KERNEL: &str = "trixie";
/// The first user of guests in user namespaces.
const SHIFTED: &str = "100000";
/// What is reinstalled where not all is.
const SOME: &str = "bash login";

/// A pair of guests on a filesystem of their own.
struct Disk {
    name: &'static str,
    rpm: bool,
    first: &'static str,
    ways: &'static str,
}

/// An image of the guests.
fn image(directory: &Path, disk: &Disk, options: &[&str]) -> PathBuf {
    let image = directory.join(disk.name);
    let mut make = support("guard-guests");
    make.env("COW_BIN", built("")).args(disk.rpm.then_some("--rpm")).args(["--shift", disk.first]);
    run(make.args(options).arg(&image));
    image
}

/// A program without what only debuggers read.
fn stripped(directory: &Path, program: &str) -> PathBuf {
    let stripped = directory.join(Path::new(program).file_name().unwrap());
    run(Command::new("strip").arg("-o").args([&stripped, Path::new(program)]));
    stripped
}

/// Asserts that all is well in one machine with these guests, made with `options`; reinstalled are `packages`.
fn assert_well(disks: &[Disk], options: &[&str], packages: &str, all: &str) {
    let Some(guard) = option_env!("CARGO_BIN_EXE_cow-guard") else {
        return note_left_out("guests under the guard", "built without the feature `guard`");
    };
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support");
    let directory = tempfile::tempdir_in("/var/tmp").unwrap();
    let mut machine = Machine::new(KERNEL)
        .large(1536, 7200)
        .input(stripped(directory.path(), guard))
        .input(stripped(directory.path(), env!("CARGO_BIN_EXE_cow-unify")))
        .input(here.join("guard-guests.inside"))
        .input(here.join("in-user-namespace"));
    let (packages, all) = (format!("PACKAGES={packages}"), format!("ALL={all}"));
    let mut words = ["env", &packages, &all, "dash", "/in/guard-guests.inside"].map(str::to_owned).to_vec();
    for disk in disks {
        machine = machine.image(&image(directory.path(), disk, options), disk.name);
        let kind = if disk.rpm { "rpm" } else { "dpkg" };
        words.push(format!("{}:{kind}:{}:{}", disk.name, disk.first, disk.ways));
    }
    let words: Vec<_> = words.iter().map(String::as_str).collect();
    let Some(output) = machine.run(&words) else { return };
    println!("{}", text(&output));
    assert!(output.status.success() && text(&output).ends_with("all is well\n"), "{}", text(&output));
}

#[test]
#[ignore = "needs root"]
fn privileged_guests_under_the_guard_copy_nothing_and_open_no_window() {
    let disks = [
        Disk { name: "deb", rpm: false, first: "0", ways: "root,dropped,plain" },
        Disk { name: "rpm", rpm: true, first: SHIFTED, ways: "user-namespace" },
    ];
    assert_well(&disks, &["--packages", SOME], SOME, "");
}

#[test]
#[ignore = "needs root"]
fn privileged_guests_under_the_guard_are_upgraded_in_every_way() {
    let Ok(wanted) = std::env::var("COW_TESTS_ALL_GUARD_GUESTS") else {
        return note_left_out(
            "upgrades under the guard in every way",
            "COW_TESTS_ALL_GUARD_GUESTS is not set",
        );
    };
    let mut run = 0;
    for (first, ways) in [("0", "root"), ("0", "dropped"), (SHIFTED, "user-namespace"), ("0", "plain")] {
        for (name, packages) in [("deb", packages("reinstall")), ("rpm", format!("{SOME} less tzdata"))] {
            if wanted == "all" || wanted.split(' ').any(|word| word == format!("{name}:{ways}")) {
                assert_well(&[Disk { name, rpm: name == "rpm", first, ways }], &["--all"], &packages, "yes");
                run += 1;
            }
        }
    }
    assert!(run > 0, "COW_TESTS_ALL_GUARD_GUESTS names nothing that is there: {wanted}");
}

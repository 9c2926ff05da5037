//! systemd's units, as the packages install them.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::{run, text};

const UNITS: &str = "/lib/systemd/system";

/// A system with the units of this machine and those of the packages for the host, whose programs are empty.
fn staged(top: &Path) -> PathBuf {
    let root = top.join("root");
    for program in ["cow-guard", "cow-unify", "root/bin/sh"] {
        let program = top.join(program);
        fs::create_dir_all(program.parent().unwrap()).unwrap();
        fs::write(&program, "#!\n").unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let units = root.join("usr/lib/systemd/system");
    fs::create_dir_all(&units).unwrap();
    run(Command::new("cp").arg("-a").arg(format!("{UNITS}/.")).arg(&units));
    let install = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/install");
    run(Command::new(install).env("PROGRAMS", top).arg(&root).args(["cow-unify", "cow-guard"]));
    root
}

fn has_systemd() -> bool {
    let has = Path::new(UNITS).is_dir() && Command::new("systemd-analyze").arg("--version").output().is_ok();
    if !has {
        println!("left out: systemd's units: there is no systemd-analyze");
    }
    has
}

#[test]
fn systemd_finds_no_fault_in_the_units() {
    if !has_systemd() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let root = staged(dir.path());
    // The target finds cycles.
    let units = [
        "cow-guard.service",
        "cow-guard-late.service",
        "cow-unify.service",
        "cow-unify-changed.service",
        "multi-user.target",
    ];
    let verify = ["verify", "--man=no", "--recursive-errors=yes", "--root"];
    let output = Command::new("systemd-analyze").args(verify).arg(&root).args(units).output().unwrap();
    let said = text(&output);
    // This machine's own units may have faults.
    let ours: Vec<&str> =
        said.lines().filter(|line| line.contains("cow-") || line.contains("cycle")).collect();
    assert!(ours.is_empty(), "{said}");
}

/// The guard has no list of the guests' units: it comes before what all of them come after by default.
#[test]
fn the_guard_is_loaded_before_units_that_start_guests() {
    let dir = tempfile::tempdir().unwrap();
    if !has_systemd() {
        return;
    }
    let root = staged(dir.path());
    let units = root.join("usr/lib/systemd/system");
    let guard = fs::read_to_string(units.join("cow-guard.service")).unwrap();
    assert!(guard.lines().any(|line| line == "Before=sysinit.target shutdown.target"), "{guard}");
    assert!(guard.lines().any(|line| line == "DefaultDependencies=no"), "{guard}");
    assert!(!guard.contains("ExecStop="), "stopping it must unprotect nothing: {guard}");
    let unloads = |line: &str| line.starts_with("Exec") && line.contains("unload");
    assert!(!guard.lines().any(unloads), "stopping it must unprotect nothing: {guard}");
    // Without an enabling step, so that no preset leaves it out.
    assert!(fs::metadata(units.join("sysinit.target.wants/cow-guard.service")).unwrap().is_file());
    for unit in ["systemd-nspawn@.service", "lxc.service", "lxc@.service", "lxc-net.service", "user@.service"]
    {
        match fs::read_to_string(units.join(unit)) {
            Ok(text) => assert!(!text.contains("DefaultDependencies=no"), "{unit}: {text}"),
            Err(_) => println!("left out: {unit}: this machine does not have it"),
        }
    }
}

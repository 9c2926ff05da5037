//! systemd's units, as the packages install them.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::guests;
use crate::support::booted::{Booted, Container};
use crate::support::pair::Scope;
use crate::support::{run, same_inode, text};

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

/// A guest with one package.
fn small_guest(root: &Path, files: &[&str]) {
    let write = |path: &str, text: &str| {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    let status = "Package: p\nStatus: install ok installed\nArchitecture: all\nVersion: 1\n";
    write("var/lib/dpkg/status", status);
    write("etc/passwd", "");
    let list: String = files.iter().map(|file| format!("/{file}\n")).collect();
    write("var/lib/dpkg/info/p.list", &list);
    write("var/lib/cow-hooks/spool/none", "");
    run(Command::new("touch").args(["-d", "2020-01-01"]).args(files.iter().map(|file| {
        write(file, &file.repeat(1000));
        root.join(file)
    })));
}

/// What the units forbid keeps none of the passes from its work.
#[test]
#[ignore = "needs root"]
fn privileged_the_services_unify_guests_with_all_that_the_units_forbid() {
    let pair = guests::pair(Scope::Owned);
    let host = pair.path("g1");
    let programs = Path::new(env!("CARGO_BIN_EXE_cow-unify")).parent().unwrap();
    let install = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/install");
    run(Command::new(install).env("PROGRAMS", programs).arg(&host).arg("cow-unify"));
    fs::write(host.join("etc/default/cow-unify"), "GUESTS='/opt/guests/*'\nOPTIONS='--allow-setid'\n")
        .unwrap();
    let inner = ["a", "b"].map(|name| host.join("opt/guests").join(name));
    let files = ["usr/bin/first", "usr/bin/gone", "usr/bin/later"];
    inner.iter().for_each(|guest| small_guest(guest, &files));
    // Set-id bits are copied as well, and one is there later.
    inner.iter().for_each(|guest| {
        fs::set_permissions(guest.join(files[0]), fs::Permissions::from_mode(0o4755)).unwrap();
        fs::rename(guest.join(files[2]), guest.join("later")).unwrap();
    });
    let is_shared = |file: &str| same_inode(&inner[0].join(file), &inner[1].join(file));

    let booted = Booted::new(Container::Nspawn, &host);
    let start = |unit: &str| {
        booted.succeed(&format!("systemctl start {unit} || {{ systemctl status {unit}; exit 1; }}"))
    };
    start("cow-unify.service");
    assert!(is_shared(files[0]) && is_shared(files[1]));
    let mode = fs::metadata(inner[0].join(files[0])).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o4755);
    let flags = text(&run(Command::new("lsattr").arg(inner[0].join(files[0]))));
    assert!(flags.split(' ').next().unwrap().contains('i'), "{flags}");

    for guest in &inner {
        fs::rename(guest.join("later"), guest.join(files[2])).unwrap();
        fs::write(guest.join("var/lib/cow-hooks/spool/changed"), format!("/{}\0", files[2])).unwrap();
    }
    start("cow-unify-changed.service");
    assert!(is_shared(files[2]));

    // What no guest has any more goes with the daily pass.
    run(Command::new("chattr").arg("-i").arg(inner[0].join(files[1])));
    inner.iter().for_each(|guest| fs::remove_file(guest.join(files[1])).unwrap());
    // What has no flag would be reported.
    let objects = host.join("opt/guests/.cow-pool/objects");
    run(Command::new("sh").arg("-c").arg("chattr +i \"$0\"/*/*").arg(objects));
    let status = || text(&booted.run("cow-unify status /opt/guests/*"));
    assert!(status().contains(", 1 without a link in any guest ("));
    start("cow-unify.service");
    assert!(!status().contains("without a link"));
    // The limits are none that systemd passes over.
    let limits = "systemctl show cow-unify.service -p MemoryMax -p TasksMax -p TimeoutStartUSec";
    let limits = booted.succeed(limits);
    assert!(!limits.contains("infinity"), "{limits}");
}

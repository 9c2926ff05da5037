//! One plugin for all versions of rpm; and the hooks of dnf 5 and pacman, in chroots that share every file.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use cow_hooks::sys::file::inode::Time;

use crate::support::chroots::{Chroots, PRIVATE, RPMS, install_hooks, plugin_dir};
use crate::support::pair::ours;
use crate::support::{built, run, set_mtime, text};

/// What version 2 of all can be installed over.
const PACKAGES: &str =
    "odd shape links plain same unowned conf edited user scripts lua trans triggers taker taken";

const REFUSED: &str = "cow-hooks: error: refused, before rpm has touched anything";

/// A line of shell that is run without what it takes to change protected files.
fn without_capability(line: &str) -> String {
    format!("capsh --drop=cap_linux_immutable -- -c '{line}'")
}

/// The packages of a version, as absolute paths: what rpm 6.1.0 needs.
fn rpms(names: &str, version: u32) -> String {
    names.split(' ').map(|name| format!(" {RPMS}/cow-{name}-{version}.rpm")).collect()
}

/// All that rpm of a release does to packages comes to what it comes to on private files.
fn works_under_rpm(version: &str, release: &'static str, more: &str) {
    let chroots = Chroots::of(release);
    assert!(chroots.pair.succeed("rpm --version").contains(&format!(" {version}.")));
    for line in [format!("rpm -U{}", rpms("plain", 2)), "rpm -e cow-plain".to_owned()] {
        assert!(chroots.refuse(&without_capability(&line)).contains(REFUSED), "{line}");
    }
    let names = format!("{PACKAGES}{more}");
    let files = |version| rpms(&names, version);
    chroots.succeed(&format!("rpm -U --force{}", rpms("plain same", 1)));
    assert!(chroots.shared("usr/share/cow-plain/data") && chroots.shared("usr/bin/cow-program"));
    chroots.succeed(&format!("rpm -U{}", files(2)));
    assert!(chroots.shared("usr/bin/cow-same"));
    chroots.succeed(&format!("rpm -U --force{}", files(2)));
    // rpm lets no file take the place of a directory.
    let back = files(1).replace(&rpms("shape", 1), "");
    chroots.succeed(&format!("rpm -U --oldpackage{back}"));
    chroots.succeed("rpm --restore cow-plain cow-links cow-conf cow-odd");
    let erased: String = names.split(' ').map(|name| format!(" cow-{name}")).collect();
    chroots.succeed(&format!("rpm -e{erased}"));
    assert!(!chroots.pair.exists("/usr/share/cow odd") && !chroots.pair.exists("/usr/bin/cow-program"));
}

#[test]
#[ignore = "needs root"]
fn privileged_the_plugin_works_under_rpm_4_16() {
    works_under_rpm("4.16", "bullseye", " dir");
}

#[test]
#[ignore = "needs root"]
fn privileged_the_plugin_works_under_rpm_4_18() {
    works_under_rpm("4.18", "bookworm", " dir");
}

#[test]
#[ignore = "needs root"]
fn privileged_the_plugin_works_under_rpm_4_20() {
    works_under_rpm("4.20", "trixie", " dir");
}

#[test]
#[ignore = "needs root"]
fn privileged_the_plugin_works_under_rpm_6() {
    works_under_rpm("6", "sid", "");
}

#[test]
#[ignore = "needs root"]
fn privileged_an_unknown_rpm_works_as_if_there_were_no_plugin() {
    let Chroots { pair, .. } = Chroots::of("bookworm");
    install_hooks(&pair, PRIVATE, "bookworm");
    let root = pair.path(PRIVATE);
    let library = fs::canonicalize(root.join("usr/lib/x86_64-linux-gnu/librpm.so.9")).unwrap();
    let content = fs::read(&library).unwrap();
    let known = b"4.18.0\0";
    let at = content.windows(known.len()).position(|bytes| bytes == known).unwrap();
    fs::write(&library, [&content[..at], b"9", &content[at + 1..]].concat()).unwrap();
    // Its aliases are in a file of the same version.
    fs::rename(root.join("usr/lib/rpm/rpmpopt-4.18.0"), root.join("usr/lib/rpm/rpmpopt-9.18.0")).unwrap();
    assert!(text(&pair.run_in(PRIVATE, "rpm --version")).contains("9.18.0"));
    for line in [&format!("rpm -U -vv {RPMS}/cow-plain-2.rpm"), "rpm -e -vv cow-plain"] {
        let output = pair.run_in(PRIVATE, line);
        assert_eq!(output.status.code(), Some(0), "{line}");
        let output = text(&output);
        let hooks = output.lines().filter(|line| line.contains("in cowhooks plugin"));
        assert_eq!(hooks.collect::<Vec<_>>(), ["D: Plugin: calling hook init in cowhooks plugin"]);
        assert_eq!(ours(&output), [""; 0], "{line}");
    }
}

#[test]
#[ignore = "needs root"]
fn privileged_rpm_works_when_the_plugin_is_gone() {
    for release in ["bookworm", "sid"] {
        let Chroots { pair, .. } = Chroots::of(release);
        install_hooks(&pair, PRIVATE, release);
        let line = format!(
            "rm {}/cowhooks.so && rpm -U {RPMS}/cow-plain-2.rpm && rpm -e cow-plain",
            plugin_dir(&pair, PRIVATE)
        );
        let output = pair.run_in(PRIVATE, &line);
        assert_eq!(output.status.code(), Some(0), "{line}");
        assert_eq!(ours(&text(&output)), [""; 0], "{line}");
    }
}

/// A plugin that panics keeps rpm from nothing but what has not begun.
fn a_panic_is_harmless_under_rpm_of(release: &'static str) {
    let mut chroots = Chroots::of(release);
    let plugin = format!("{}/cowpanic.so", plugin_dir(&chroots.pair, "g1"));
    chroots.put(&plugin, fs::read(built("examples/libcowpanic.so")).expect("cargo build --example cowpanic"));
    let panicking = |chroots: &mut Chroots, hook: &str| {
        let macros = format!("%__transaction_cowpanic {plugin} {hook}\n");
        chroots.put("/usr/lib/rpm/macros.d/macros.transaction_cowpanic", macros);
    };
    let upgrade = format!("rpm -U {RPMS}/cow-conf-2.rpm");
    panicking(&mut chroots, "tsm_pre");
    assert!(chroots.refuse(&upgrade).contains("on purpose"));
    for hook in ["init", "psm_pre", "fsm_file_pre", "tsm_post", "cleanup"] {
        panicking(&mut chroots, hook);
        let line = format!("{upgrade} {RPMS}/cow-plain-2.rpm --force && rpm -V cow-plain cow-conf");
        assert!(chroots.succeed(&line).contains("on purpose"), "{hook}");
    }
}

#[test]
#[ignore = "needs root"]
fn privileged_a_panic_is_harmless_under_rpm_4_18() {
    a_panic_is_harmless_under_rpm_of("bookworm");
}

#[test]
#[ignore = "needs root"]
fn privileged_a_panic_is_harmless_under_rpm_6() {
    a_panic_is_harmless_under_rpm_of("sid");
}

/// Front ends are asked for packages of this repository; to its files they attach what they find out.
const REPOSITORY: &str = "/var/repository";

/// What a front end of rpm's does comes to what it comes to on private files. Where it could not be done it is refused,
/// if our program runs there.
fn front_end_works(release: &'static str, tool: &str, is_checked: bool) {
    let chroots = Chroots::of(release);
    let [g1, private] = ["g1", PRIVATE].map(|guest| chroots.pair.path(guest));
    let repository = private.join(&REPOSITORY[1..]);
    let names = "plain links same conf scripts triggers eaten eater system";
    fs::create_dir(&repository).unwrap();
    for name in names.split(' ') {
        for version in 1..=2 {
            let file = format!("cow-{name}-{version}.rpm");
            if let Ok(content) = fs::read(private.join(&RPMS[1..]).join(&file)) {
                fs::write(repository.join(file), content).unwrap();
            }
        }
    }
    run(Command::new("createrepo_c").arg("--quiet").arg(&repository));
    run(Command::new("cp").arg("-a").arg(&repository).arg(g1.join("var")));
    let source = format!("[cow]\nname=cow\nbaseurl=file://{REPOSITORY}\nmetadata_expire=never\n");
    for guest in [&g1, &private] {
        fs::create_dir_all(guest.join("etc/yum.repos.d")).unwrap();
        fs::write(guest.join("etc/yum.repos.d/cow.repo"), &source).unwrap();
    }
    let tool = format!("env PYTHONDONTWRITEBYTECODE=1 {tool} --assumeyes --releasever=1");
    if is_checked {
        // It is asked before anything is downloaded: nothing could be.
        let [file, aside] =
            ["repository/cow-plain-1.rpm", "cow-plain-1.rpm"].map(|name| g1.join("var").join(name));
        fs::rename(&file, &aside).unwrap();
        let refused = chroots.refuse(&without_capability(&format!("{tool} reinstall cow-plain")));
        assert!(refused.contains(REFUSED));
        fs::rename(&aside, &file).unwrap();
    }
    for work in [
        "reinstall cow-plain cow-same",
        "upgrade",
        "downgrade cow-plain cow-conf",
        "remove cow-plain cow-links cow-scripts",
        "install cow-plain cow-links",
    ] {
        let output = chroots.succeed(&format!("{tool} {work}"));
        assert!(!output.contains("not permitted"), "{work}: {output}");
        // A program that supervises is one that runs there; else files are made private beforehand.
        assert_eq!(output.contains("before rpm runs"), !is_checked, "{work}: {output}");
        assert!(output.contains("shared again") || !work.starts_with("reinstall"), "{work}: {output}");
    }
    chroots.pair.succeed("printf '#!/bin/sh\\nexit 1\\n' >/usr/libexec/cow-hooks/cow-rpm");
    chroots.succeed(&format!("{tool} reinstall cow-plain"));
}

#[test]
#[ignore = "needs root"]
fn privileged_dnf_5_works() {
    front_end_works("sid", "dnf5", true);
}

#[test]
#[ignore = "needs root"]
fn privileged_dnf_4_works_in_its_latest_version() {
    front_end_works("trixie", "dnf", true);
}

#[test]
#[ignore = "needs root"]
fn privileged_dnf_4_works_where_our_program_does_not() {
    // It needs a newer C library.
    front_end_works("bullseye", "dnf", false);
}

/// A package of pacman's, of this version.
fn pacman_package(version: u32) -> tempfile::NamedTempFile {
    let tree = tempfile::tempdir().unwrap();
    let write = |path: &str, content: String, mode: u32| {
        let path = tree.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        set_mtime(&path, Time { secs: 1_600_000_000, nanos: 0 });
    };
    let about = "pkgdesc = x\nurl = x\nbuilddate = 1\npackager = x\nsize = 1\narch = any\nbackup = etc/cow-conf-file\n";
    write(".PKGINFO", format!("pkgname = cow\npkgver = {version}-1\n{about}"), 0o644);
    write("usr/bin/cow-stays", "the same\n".repeat(100), 0o755);
    write("usr/bin/cow-changes", format!("version {version}\n").repeat(100), 0o4755);
    write(&format!("usr/share/cow/only in {version}"), format!("only in {version}\n").repeat(100), 0o644);
    write("etc/cow-conf-file", format!("default of {version}\n").repeat(100), 0o644);
    let package = tempfile::Builder::new().suffix(".pkg.tar").tempfile().unwrap();
    run(Command::new("tar")
        .args(["--owner=0", "--group=0", "-cf"])
        .arg(package.path())
        .arg("-C")
        .arg(tree.path())
        .args([".PKGINFO", "etc", "usr"]));
    package
}

#[test]
#[ignore = "needs root"]
fn privileged_pacman_works() {
    let mut chroots = Chroots::of("bookworm");
    let packages = [1, 2].map(pacman_package);
    for (package, version) in packages.iter().zip(1..) {
        for guest in ["g1", PRIVATE] {
            fs::copy(package.path(), chroots.pair.path(guest).join(format!("root/{version}.pkg.tar")))
                .unwrap();
        }
    }
    let install = |version: u32| format!("pacman --noconfirm -U /root/{version}.pkg.tar");
    chroots.succeed(&install(1));
    // The other one has the same files, however they came.
    run(Command::new("tar")
        .arg("-xpf")
        .arg(packages[0].path())
        .arg("-C")
        .arg(chroots.pair.path("g2"))
        .args(["etc", "usr"]));
    chroots.unify();
    assert!(chroots.shared("usr/bin/cow-changes") && chroots.shared("etc/cow-conf-file"));

    let refused = chroots.refuse(&without_capability(&install(2)));
    assert!(refused.contains("cow-hooks: error: refused, before pacman has touched anything"));
    let output = chroots.succeed(&install(2));
    assert!(output.contains("before pacman runs"), "{output}");
    assert!(chroots.shared("usr/bin/cow-stays") && !chroots.shared("usr/bin/cow-changes"));
    chroots.succeed(&install(2));
    chroots.succeed(&install(1));
    chroots.succeed("pacman --noconfirm -R cow");
    assert!(!chroots.pair.exists("/usr/bin/cow-stays"));
}

//! rpm and dnf in real guests that share their files, with the plugin installed in the first of them: nothing fails,
//! nothing leaks, nothing is left behind.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use crate::support::pair::{Images, Pair, Scope, ours, support};
use crate::support::{privileged, run, text};

/// Where the guest sees its repositories.
const BASE: &str = "/srv/base";

fn pair(scope: Scope) -> Pair {
    static IMAGES: Images = [const { OnceLock::new() }; 3];
    let finish = |pair: &Pair| {
        for rpm in rpms() {
            run(Command::new("cp").arg(rpm).arg(pair.path("g1/root")));
        }
        pair.succeed("dnf install /root/*.rpm");
    };
    Pair::of("rpm-guests", &IMAGES, scope, |_, _| (), finish)
}

/// The guest's packages, built once.
fn rpms() -> &'static [PathBuf] {
    static RPMS: OnceLock<Vec<PathBuf>> = OnceLock::new();
    RPMS.get_or_init(|| {
        let top = Path::new(env!("CARGO_MANIFEST_DIR"));
        let built = Command::new(top.join("packaging/build-rpm")).stderr(Stdio::inherit()).output().unwrap();
        assert!(built.status.success(), "packaging/build-rpm failed");
        let built = String::from_utf8(built.stdout).unwrap();
        let for_guests = |rpm: &&str| !rpm.contains("cow-unify") && !rpm.contains("zypp");
        built.lines().filter(for_guests).map(|line| top.join(line)).collect()
    })
}

/// The names of the packages of a test, on one line.
fn packages(of: &str) -> String {
    text(&run(support("rpm-guests").args(["packages", of]))).replace('\n', " ")
}

#[test]
fn privileged_what_dnf_reinstalls_is_shared_again() {
    if !privileged() {
        return;
    }
    let pair = pair(Scope::Owned);
    let shared = pair.watch(|| {
        let output = pair.succeed(&format!("dnf reinstall {}", packages("newer")));
        assert!(output.contains("before rpm runs") && output.contains("shared again"), "{output}");
    });
    assert!(shared.now * 100 >= shared.before * 99, "{shared:?}");
    assert_eq!(pair.unified(), shared.now);
}

#[test]
fn privileged_dnf_packages_come_and_go() {
    if !privileged() {
        return;
    }
    let pair = pair(Scope::Owned);
    pair.watch(|| drop(pair.succeed(&format!("dnf install {}", packages("install")))));
    pair.watch(|| drop(pair.succeed("dnf remove git vim hello less locales nginx")));
    assert!(!pair.exists("/usr/bin/hello"));
    pair.watch(|| drop(pair.succeed("dnf history undo last")));
    assert!(pair.exists("/usr/bin/hello"));
    pair.watch(|| drop(pair.succeed("dnf autoremove")));
}

#[test]
fn privileged_what_dnf_upgrades_is_handed_over() {
    if !privileged() {
        return;
    }
    let pair = pair(Scope::Owned);
    pair.sources("newer");
    let shared = pair.watch(|| drop(pair.succeed("dnf upgrade")));
    assert!(pair.succeed("rpm -q bash").contains("later"));
    let spool = fs::read(pair.path("g1/var/lib/cow-hooks/spool/changed")).unwrap();
    let spooled = spool.split(|&byte| byte == 0).filter(|path| !path.is_empty()).count() as u64;
    assert!(spooled >= (shared.before - shared.now) * 99 / 100, "{spooled}, {shared:?}");
    pair.watch(|| drop(pair.succeed("dnf history undo last")));
}

#[test]
fn privileged_plain_links_survive_rpm() {
    if !privileged() {
        return;
    }
    let pair = pair(Scope::Plain);
    let shared = pair.watch(|| drop(pair.succeed(&format!("dnf reinstall {}", packages("newer")))));
    assert!(shared.now * 100 >= shared.before * 99, "{shared:?}");
    pair.watch(|| drop(pair.succeed("rpm -e --nodeps sudo iputils-ping openssh-client cron mount")));
    pair.sources("newer");
    pair.watch(|| drop(pair.succeed("dnf upgrade")));
    pair.watch(|| drop(pair.succeed("rpm --restore bash coreutils passwd login dbus")));
}

#[test]
fn privileged_rpm_does_all_it_can_without_a_front_end() {
    if !privileged() {
        return;
    }
    let pair = pair(Scope::Owned);
    let rpm = |line: &str| pair.watch(|| drop(pair.succeed(line)));
    for line in [
        "rpm -U --force BASE/hello-[0-9]*.rpm BASE/bash-[0-9]*.rpm BASE/sudo-[0-9]*.rpm BASE/passwd-[0-9]*.rpm",
        "rpm -F --force BASE/less-[0-9]*.rpm NEWER/less-[0-9]*.rpm NEWER/sed-[0-9]*.rpm",
        "rpm -U --test NEWER/grep-[0-9]*.rpm",
        "rpm -U --justdb --nodeps NEWER/grep-[0-9]*.rpm && rpm -U --justdb --nodeps --oldpackage BASE/grep-[0-9]*.rpm",
        "rpm --restore bash coreutils sudo man-db",
        "rpm --setperms bash sudo passwd && rpm --setugids bash sudo && rpm --setcaps iputils-ping",
        "rpm -e --nodeps hello tzdata locales",
        "rpm --define '_minimize_writes 1' -U --force BASE/coreutils-[0-9]*.rpm BASE/dbus-[0-9]*.rpm",
    ] {
        rpm(&line.replace("BASE", BASE).replace("NEWER", "/srv/newer"));
    }
    assert!(!pair.exists("/usr/bin/hello") && !pair.exists("/usr/share/zoneinfo/UTC"));
    assert_eq!(ours(&pair.succeed("rpm -U --test /srv/newer/gzip-[0-9]*.rpm")), [""; 0]);
}

#[test]
fn privileged_rpm_works_on_a_guest_from_outside() {
    if !privileged() {
        return;
    }
    let pair = pair(Scope::Owned);
    // The second guest has rpm and no hooks; the first one's plugin works on it as on another root.
    let mount = "mkdir -p /mnt/g && mount --bind";
    let _ = mount;
    pair.watch(|| drop(pair.succeed("rpm -q bash")));
}

/// The plugin that was built with this test.
fn plugin() -> PathBuf {
    Path::new(env!("CARGO_BIN_EXE_cow-rpm")).parent().unwrap().join("deps/libcow_hooks.so")
}

#[test]
fn the_plugin_exports_its_hooks_and_needs_no_rpm() {
    let exported = text(&run(Command::new("nm").args(["-D", "--defined-only"]).arg(plugin())));
    let mut names: Vec<&str> = exported.lines().filter_map(|line| line.split(' ').nth(2)).collect();
    // What the C library of bzip2 calls when it is used against its rules.
    names.retain(|name| *name != "bz_internal_error");
    assert_eq!(names, ["cowhooks_hooks"]);
    let needed = text(&run(Command::new("objdump").arg("-p").arg(plugin())));
    let needed = needed.lines().filter_map(|line| line.trim().strip_prefix("NEEDED"));
    for library in needed.map(str::trim) {
        let stem = library.split('.').next().unwrap();
        assert!(["libc", "libgcc_s", "libm", "ld-linux-x86-64"].contains(&stem), "{library}");
    }
}

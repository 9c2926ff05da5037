//! rpm and dnf in real guests that share their files, with the plugin installed in the first of them: nothing fails,
//! nothing leaks, nothing is left behind.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use crate::support::anywhere;
use crate::support::pair::{Images, Pair, Scope, ours, support};
use crate::support::{built, inode, run, text};

/// Where the guest sees its repositories.
const BASE: &str = "/srv/base";
const NEWER: &str = "/srv/newer";
/// The packages of `tests/support/rpms`, as paths in a guest.
pub const RPMS: &str = "/root/rpms";

pub fn pair(scope: Scope) -> Pair {
    static IMAGES: Images = [const { OnceLock::new() }; 3];
    // Version 1 of our own packages in both.
    let install = |pair: &Pair, guest: &str| {
        run(support("rpms").arg(pair.path(guest).join(&RPMS[1..])));
        run(&mut pair.command_in(guest, &format!("rm {RPMS}/cow-system*; rpm -i {RPMS}/*-1.rpm")));
        anywhere::make(&pair.path(guest));
    };
    let finish = |pair: &Pair| {
        for rpm in rpms() {
            run(Command::new("cp").arg(rpm).arg(pair.path("g1/root")));
        }
        pair.succeed("dnf install /root/*.rpm");
    };
    Pair::of("rpm-guests", &IMAGES, scope, install, finish)
}

/// The guest's packages, built once.
pub fn rpms() -> &'static [PathBuf] {
    static RPMS: OnceLock<Vec<PathBuf>> = OnceLock::new();
    RPMS.get_or_init(|| {
        let top = Path::new(env!("CARGO_MANIFEST_DIR"));
        let built = Command::new(top.join("packaging/build-rpm")).stderr(Stdio::inherit()).output().unwrap();
        assert!(built.status.success(), "packaging/build-rpm failed");
        let built = String::from_utf8(built.stdout).unwrap();
        let for_guests =
            |rpm: &&str| !["cow-unify", "cow-guard", "zypp"].iter().any(|host| rpm.contains(host));
        built.lines().filter(for_guests).map(|line| top.join(line)).collect()
    })
}

/// The names of the packages of a test, on one line.
pub fn packages(of: &str) -> String {
    text(&run(support("rpm-guests").args(["packages", of]))).replace('\n', " ")
}

#[test]
#[ignore = "needs root"]
fn privileged_what_dnf_reinstalls_is_shared_again() {
    let pair = pair(Scope::Owned);
    let shared = pair.watch(|| {
        let output = pair.succeed(&format!("dnf reinstall {}", packages("newer")));
        assert!(!output.contains("before rpm runs") && output.contains("shared again"), "{output}");
    });
    assert!(shared.now * 100 >= shared.before * 99, "{shared:?}");
    assert_eq!(pair.unified(), shared.now);
}

#[test]
#[ignore = "needs root"]
fn privileged_dnf_packages_come_and_go() {
    let pair = pair(Scope::Owned);
    pair.watch(|| drop(pair.succeed(&format!("dnf install {}", packages("install")))));
    pair.watch(|| drop(pair.succeed("dnf remove git vim hello less locales nginx")));
    assert!(!pair.exists("/usr/bin/hello"));
    pair.watch(|| drop(pair.succeed("dnf history undo last")));
    assert!(pair.exists("/usr/bin/hello"));
    pair.watch(|| drop(pair.succeed("dnf autoremove")));
}

#[test]
#[ignore = "needs root"]
fn privileged_what_dnf_upgrades_is_handed_over() {
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
#[ignore = "needs root"]
fn privileged_plain_links_survive_rpm() {
    let pair = pair(Scope::Plain);
    let shared = pair.watch(|| drop(pair.succeed(&format!("dnf reinstall {}", packages("newer")))));
    assert!(shared.now * 100 >= shared.before * 99, "{shared:?}");
    pair.watch(|| {
        drop(pair.succeed("SUDO_FORCE_REMOVE=yes dnf remove sudo iputils-ping openssh-client cron"))
    });
    pair.sources("newer");
    pair.watch(|| drop(pair.succeed("dnf upgrade")));
    pair.watch(|| drop(pair.succeed("rpm --restore bash coreutils passwd login dbus")));
}

#[test]
#[ignore = "needs root"]
fn privileged_rpm_does_all_it_can_without_a_front_end() {
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
        rpm(&line.replace("BASE", BASE).replace("NEWER", NEWER));
    }
    assert!(!pair.exists("/usr/bin/hello") && !pair.exists("/usr/share/zoneinfo/UTC"));
    assert_eq!(ours(&pair.succeed("rpm -U --test /srv/newer/gzip-[0-9]*.rpm")), [""; 0]);
}

#[test]
#[ignore = "needs root"]
fn privileged_rpm_replaces_packages_of_every_shape() {
    let pair = pair(Scope::Owned);
    // Its own scripts change it after it was unpacked.
    let restore = "; rpm --restore cow-scripts";
    let all = "odd shape links plain same unowned user scripts lua trans triggers dir taker taken";
    let of = |version: u32| -> String {
        all.split(' ').map(|name| format!(" {RPMS}/cow-{name}-{version}.rpm")).collect()
    };
    pair.watch(|| drop(pair.succeed(&format!("rpm -U {} {RPMS}/cow-eater-2.rpm{restore}", of(2)))));
    assert_eq!(pair.succeed("stat -c %h /usr/lib/cow-links/a"), "3\n");
    assert!(!pair.exists("/usr/share/cow-plain/removed-in-2") && pair.exists("/usr/share/cow-shape/two/x"));
    // Version 2 of this one has the very files of version 1.
    assert_eq!(inode(&pair.path("g1/usr/bin/cow-same")).id, inode(&pair.path("g2/usr/bin/cow-same")).id);
    pair.watch(|| drop(pair.succeed(&format!("rpm -U --oldpackage {}{restore}", of(1)))));
    pair.watch(|| {
        drop(pair.succeed("rpm -e cow-odd cow-shape cow-links cow-plain cow-unowned cow-user cow-scripts"))
    });
    assert!(!pair.exists("/usr/share/cow odd") && !pair.exists("/usr/lib/cow-links"));
}

#[test]
#[ignore = "needs root"]
fn privileged_a_script_that_fails_leaves_the_guest_clean() {
    let pair = pair(Scope::Owned);
    pair.watch(|| drop(pair.exits(1, &format!("rpm -U {RPMS}/cow-fails-pre-2.rpm"))));
    // rpm goes on where what fails comes after the files.
    pair.watch(|| {
        drop(pair.succeed(&format!("rpm -U {RPMS}/cow-fails-post-2.rpm {RPMS}/cow-fails-postun-2.rpm")))
    });
    pair.watch(|| drop(pair.exits(1, "rpm -e cow-fails-preun")));
    assert!(pair.exists("/usr/share/cow-fails-preun/x"));
}

#[test]
#[ignore = "needs root"]
fn privileged_rpm_keeps_or_replaces_configuration_as_it_would_alone() {
    let pair = pair(Scope::Wide);
    let conf = "/etc/cow-conf";
    let watch = |line: String| pair.watch(|| drop(pair.succeed(&line)));
    // The %post of version 1 has edited them, and put files of all suffixes beside.
    watch(format!("rpm -U {RPMS}/cow-edited-2.rpm"));
    assert!(
        pair.succeed("tail -n 1 /etc/cow-edited/kept /etc/cow-edited/replaced.rpmsave").contains("edited")
    );
    assert!(!pair.succeed("cat /etc/cow-edited/kept.rpmnew").contains("older"));
    // A ghost; and the administrator's symlink in the place of a file that both versions have.
    pair.succeed(&format!("cd {conf} && echo ghost >ghost && cow-prepare . && mv stable /etc/elsewhere && ln -s /etc/elsewhere stable"));
    watch(format!("rpm -U {RPMS}/cow-conf-2.rpm"));
    watch(format!("rpm --restore cow-conf; rpm -U --force {RPMS}/cow-conf-2.rpm"));
    watch("rpm -e cow-conf cow-edited".to_owned());
    assert!(!pair.exists("/etc/cow-conf/changed"));
}

#[test]
#[ignore = "needs root"]
fn privileged_a_symlink_does_not_lead_rpm_to_a_shared_file() {
    let pair = pair(Scope::Wide);
    pair.succeed(
        "rm -f /etc/cow-conf/stable 2>/dev/null || { cow-prepare /etc/cow-conf; rm /etc/cow-conf/stable; }",
    );
    pair.succeed("ln -s /usr/share/cow-plain/data /etc/cow-conf/stable");
    // Restoring sets owner, mode and times of what the name leads to.
    pair.watch(|| drop(pair.succeed("rpm --restore cow-conf")));
}

#[test]
#[ignore = "needs root"]
fn privileged_scriptlets_hit_nothing_shared_even_where_all_is() {
    let pair = pair(Scope::Wide);
    for line in [
        format!(
            "rpm -U {RPMS}/cow-scripts-2.rpm {RPMS}/cow-lua-2.rpm {RPMS}/cow-trans-2.rpm {RPMS}/cow-user-2.rpm; rpm --restore cow-scripts"
        ),
        format!("dnf reinstall {}", packages("reinstall")),
        "dnf install git screen".to_owned(),
        "dnf remove man-db cron openssh-server screen".to_owned(),
    ] {
        pair.watch(|| {
            let output = pair.succeed(&line);
            assert!(!output.contains("not permitted"), "{output}");
        });
    }
}

/// The plugin that was built with this test.
pub fn plugin() -> PathBuf {
    built("deps/libcow_hooks.so")
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

//! rpm by way of zypper, from outside the guest, and in the midst of what installs our own packages.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::rpm::{pair, plugin, rpms};
use crate::support::pair::{Pair, Scope, ours, support};
use crate::support::{run, text};

#[test]
#[ignore = "needs root"]
fn privileged_all_rpms_of_one_zypper_are_one_transaction() {
    let pair = pair(Scope::Owned);
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/packages");
    run(Command::new("sh")
        .args(["-c", "cp \"$0\"/zypp-plugin-cow-hooks-*.rpm \"$1\""])
        .arg(built)
        .arg(pair.path("g1/root")));
    pair.succeed("rpm -i /root/zypp-plugin-cow-hooks-*.rpm");
    pair.succeed(
        "mkdir -p /etc/zypp/repos.d; for name in base newer; do
         zypper --non-interactive addrepo --no-gpgcheck file:///srv/$name $name; done; zypper modifyrepo --disable newer",
    );
    let zypper = |what: &str| pair.succeed(&format!("zypper --non-interactive --no-gpg-checks {what}"));
    let shared = pair.watch(|| {
        let output = zypper("install --force hello less sed grep");
        assert!(!output.contains("not permitted"), "{output}");
    });
    assert_eq!(shared.now, shared.before);
    pair.watch(|| drop(zypper("install tmux")));
    pair.watch(|| drop(zypper("remove hello tmux")));
    pair.succeed("zypper modifyrepo --enable newer");
    pair.watch(|| drop(zypper("update less sed grep gzip tar")));
    assert!(pair.succeed("rpm -q sed").contains("later"));
}

/// A third guest, whose plugin works on the first one from outside.
fn outside(pair: &Pair, line: &str) -> String {
    let output = Command::new("unshare")
        .args([
            "--mount",
            "sh",
            "-c",
            "mount --bind \"$1\" \"$2/mnt\" && exec \"$3\" run \"$2\" -- sh -c \"$4\"",
            "sh",
        ])
        .args([pair.path("g1"), pair.path("outside")])
        .arg(support("rpm-guests").get_program())
        .arg(line)
        .output()
        .unwrap();
    println!("$ {line}\n{}", text(&output));
    assert!(output.status.success(), "{line}: {}", text(&output));
    text(&output)
}

#[test]
#[ignore = "needs root"]
fn privileged_rpm_works_on_a_guest_from_outside() {
    let pair = pair(Scope::Owned);
    let host = pair.path("outside");
    run(support("rpm-guests").arg("restore").arg(&host));
    fs::create_dir_all(host.join("usr/lib64/rpm-plugins")).unwrap();
    fs::copy(plugin(), host.join("usr/lib64/rpm-plugins/cowhooks.so")).unwrap();
    let macros = "macros.transaction_cowhooks";
    let hooks = Path::new(env!("CARGO_MANIFEST_DIR")).join("hooks/rpm");
    fs::copy(hooks.join(macros), host.join("usr/lib/rpm/macros.d").join(macros)).unwrap();
    let shared = pair.watch(|| {
        let line = "rpm --root /mnt -U --force /srv/base/hello-[0-9]*.rpm /srv/base/coreutils-[0-9]*.rpm /srv/base/sudo-[0-9]*.rpm";
        let said = outside(&pair, line);
        assert!(said.contains("before rpm runs") && said.contains("shared again"), "{said}");
    });
    assert_eq!(shared.now, shared.before);
    pair.watch(|| {
        drop(outside(
            &pair,
            "rpm --root /mnt -U /srv/newer/sed-[0-9]*.rpm && rpm --root /mnt --restore bash passwd",
        ))
    });
    pair.watch(|| drop(outside(&pair, "rpm --root /mnt -e hello && dnf --installroot /mnt reinstall less")));
    assert!(!pair.exists("/usr/bin/hello"));
    let stash = pair.path("g1/var/lib/cow-hooks/host/stash");
    assert_eq!(fs::read_dir(stash).unwrap().count(), 0);
    // The ledger of the work is on the side that did it.
    assert!(host.join("var/lib/cow-hooks/roots").exists());
}

#[test]
#[ignore = "needs root"]
fn privileged_a_root_that_shares_nothing_is_left_without_a_trace() {
    let pair = pair(Scope::Owned);
    pair.succeed("mkdir /root/image && rpm --root /root/image -i --nodeps /srv/base/hello-[0-9]*.rpm && rpm --root /root/image -e hello");
    assert!(!pair.exists("/root/image/var/lib/cow-hooks"));
}

/// Our own packages with a higher release.
fn next_release(pair: &Pair) {
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    let work = tempfile::tempdir_in("/var/tmp").unwrap();
    let spec = work.path().join("cow-hooks.spec");
    let text = fs::read_to_string(top.join("packaging/rpm/cow-hooks.spec")).unwrap();
    fs::write(&spec, text.replace("\nRelease:        1\n", "\nRelease:        2\n")).unwrap();
    let define = |name: &str, value: &Path| format!("{name} {}", value.display());
    run(Command::new("rpmbuild")
        .args([
            "-ba",
            "-D",
            &define("_topdir", work.path()),
            "-D",
            &define("_sourcedir", &top.join("target/rpm/SOURCES")),
        ])
        .args(["-D", &define("prebuilt", &top.join("target/dist")), "-D", "_binary_payload w1.gzdio"])
        .arg(&spec));
    let copy = "cp \"$0\"/RPMS/*/*-2.*.rpm \"$1\"";
    run(Command::new("sh").args(["-c", copy]).arg(work.path()).arg(pair.path("g1/root")));
}

#[test]
#[ignore = "needs root"]
fn privileged_our_own_packages_come_and_go_in_the_midst_of_others() {
    let pair = pair(Scope::Owned);
    assert!(rpms().len() >= 3);
    pair.watch(|| drop(pair.succeed("rpm -U --force /root/*-1.*.rpm /srv/base/bash-[0-9]*.rpm")));
    next_release(&pair);
    let names =
        "/root/cow-hooks-*-2.*.rpm /root/rpm-plugin-cowhooks-*-2.*.rpm /root/dnf-plugin-cow-hooks-*-2.*.rpm";
    pair.watch(|| drop(pair.succeed(&format!("dnf upgrade {names} && dnf reinstall less"))));
    assert!(pair.succeed("rpm -q cow-hooks").contains("-2."));
    assert!(pair.succeed("rpm -U --force /srv/base/less-[0-9]*.rpm").contains("shared again"));
    pair.watch(|| drop(pair.succeed("dnf downgrade /root/*-1.*.rpm")));
    let ours_are = "rpm-plugin-cowhooks dnf-plugin-cow-hooks cow-hooks";
    pair.watch(|| drop(pair.succeed(&format!("rpm -e {ours_are} hello less"))));
    assert!(!pair.exists("/var/lib/cow-hooks") && !pair.exists("/usr/lib64/rpm-plugins/cowhooks.so"));
    assert_eq!(ours(&pair.succeed("dnf install screen")), [""; 0]);
}

#[test]
#[ignore = "needs root"]
fn privileged_both_kinds_of_packages_hold_the_same_hooks() {
    let _ = (crate::guests::deb(), rpms());
    let packages = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/packages");
    for name in
        ["cow-hooks", "rpm-plugin-cowhooks", "dnf-plugin-cow-hooks", "zypp-plugin-cow-hooks", "cow-unify"]
    {
        let list = |command: &str| {
            let line = format!("cd \"$0\" && {command}");
            let output = text(&run(Command::new("sh").args(["-c", &line]).arg(&packages)));
            // What the two distributions have elsewhere, and documentation.
            let mut files: Vec<String> = output
                .lines()
                .filter(|path| !path.ends_with('/') && !path.contains("/doc/") && !path.contains("licenses"))
                .filter(|path| !path.contains("lintian"))
                .map(|path| path.rsplit('/').next().unwrap().trim_end_matches(".gz").to_owned())
                .collect();
            files.sort();
            files
        };
        let deb = list(&format!("dpkg-deb --fsys-tarfile {name}_*.deb | tar -t"));
        let rpm = list(&format!(
            "rpm -qp --qf '[%{{FILEMODES:perms}} %{{FILENAMES}}\\n]' {name}-[0-9]*.rpm | sed -n 's/^[-l][^ ]* //p'"
        ));
        assert_eq!(deb, rpm, "{name}");
    }
}

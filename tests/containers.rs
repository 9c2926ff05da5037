//! Guests booted in containers, with the containers' own defaults: package managers work in there as anywhere.

use crate::guests::{self, DEBS};
use crate::support::booted::{Booted, Container};
use crate::support::pair::{Scope, ours};
use crate::support::privileged;

/// Scripts write where no list foresees it, and what shares its inode is replaced, removed and added to.
const LINES: [&str; 3] = [
    "dpkg -i DEBS/cow-scripts_2.deb DEBS/cow-conf_2.deb",
    "dpkg --unpack DEBS/cow-links_2.deb && dpkg --configure -a",
    "apt-get install --reinstall less",
];

fn works_in(container: Container) {
    let pair = guests::pair(Scope::Owned);
    pair.policy("prepare = []\nsupervise = 'always'\n");
    pair.watch(|| {
        let booted = Booted::new(container, &pair.path("g1"));
        assert!(booted.succeed("cow-status").contains("package managers run with copy on write\n"));
        for line in LINES {
            let output = booted.succeed(&line.replace("DEBS", DEBS));
            assert!(!ours(&output).iter().any(|line| line.contains("made private")), "{output}");
        }
    });
}

#[test]
fn privileged_package_managers_copy_on_write_in_systemd_nspawn() {
    if privileged() {
        works_in(Container::Nspawn);
    }
}

#[test]
fn privileged_package_managers_copy_on_write_in_lxc() {
    if privileged() {
        works_in(Container::Lxc);
    }
}

#[test]
fn privileged_a_service_whose_filter_kills_may_run_package_managers() {
    if !privileged() {
        return;
    }
    let pair = guests::pair(Scope::Owned);
    let service = "systemd-run --quiet --wait --pipe -p SystemCallFilter=@system-service";
    pair.watch(|| {
        let booted = Booted::new(Container::Lxc, &pair.path("g1"));
        let status = booted.succeed(&format!("{service} cow-status"));
        let reason = "none, files are made private beforehand: a system call filter forbids ";
        assert!(status.contains(reason), "{status}");
        for line in ["dpkg -i DEBS/cow-scripts_2.deb", "apt-get install --reinstall less"] {
            let output = booted.succeed(&format!("{service} {}", line.replace("DEBS", DEBS)));
            assert!(ours(&output)[0].ends_with("before dpkg runs"), "{output}");
        }
        let output = booted.exits(125, &format!("{service} cow-run true"));
        assert!(output.contains("a system call filter forbids "), "{output}");
    });
}

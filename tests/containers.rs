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

fn works_in(container: Container, supervise: &str) {
    let pair = guests::pair(Scope::Owned);
    pair.policy(&format!("prepare = []\nsupervise = '{supervise}'\n"));
    pair.watch(|| {
        let booted = Booted::new(container, &pair.path("g1"));
        for line in LINES {
            let output = booted.succeed(&line.replace("DEBS", DEBS));
            let prepared = ours(&output).iter().any(|line| line.contains("made private"));
            assert_eq!(prepared, supervise == "never", "{output}");
        }
    });
}

#[test]
fn privileged_package_managers_work_in_systemd_nspawn() {
    if privileged() {
        works_in(Container::Nspawn, "never");
    }
}

#[test]
fn privileged_package_managers_copy_on_write_in_lxc() {
    if privileged() {
        works_in(Container::Lxc, "always");
    }
}

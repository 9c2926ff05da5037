//! Guests booted in containers, with the containers' own defaults: package managers work in there as anywhere.

use crate::guests::{self, DEBS};
use crate::support::booted::{Booted, Container};
use crate::support::pair::{Scope, ours};
use crate::support::{run, same_inode, text};

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
        let checked = booted.succeed("cow-status --check");
        let name = match container {
            Container::Nspawn => ", systemd-nspawn\n",
            Container::Lxc => ", lxc\n",
        };
        assert!(checked.contains(name) && checked.contains("\ncow-hooks is ready\n"), "{checked}");
        for line in LINES {
            let output = booted.succeed(&line.replace("DEBS", DEBS));
            assert!(!ours(&output).iter().any(|line| line.contains("made private")), "{output}");
        }
    });
}

#[test]
#[ignore = "needs root"]
fn privileged_package_managers_copy_on_write_in_systemd_nspawn() {
    works_in(Container::Nspawn);
}

#[test]
#[ignore = "needs root"]
fn privileged_package_managers_copy_on_write_in_lxc() {
    works_in(Container::Lxc);
}

#[test]
#[ignore = "needs root"]
fn privileged_a_service_whose_filter_kills_may_run_package_managers() {
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
        let checked = booted.succeed(&format!("{service} cow-status --check"));
        assert!(checked.contains(reason) && checked.contains("\ncow-hooks is ready\n"), "{checked}");
        let output = booted.exits(125, &format!("{service} cow-run true"));
        assert!(output.contains("a system call filter forbids "), "{output}");
    });
}

/// The services that needrestart would restart, and the sessions.
fn outdated(booted: &Booted) -> Vec<String> {
    let found = booted.succeed("needrestart -b -r l");
    let wants = |line: &&str| line.starts_with("NEEDRESTART-SVC") || line.starts_with("NEEDRESTART-SESS");
    found.lines().filter(wants).map(str::to_owned).collect()
}

#[test]
#[ignore = "needs root"]
fn privileged_no_service_wants_a_restart_because_of_what_is_unified() {
    const PACKAGES: &str = "cron cron-daemon-common openssh-server openssh-client openssh-sftp-server";
    let pair = guests::pair(Scope::Owned);
    guests::install_in_second(&pair);
    for guest in ["g1", "g2"] {
        assert!(
            pair.run_in(guest, "apt-get install needrestart && rm /usr/sbin/policy-rc.d").status.success()
        );
        pair.sources_in(guest, "newer");
    }
    let none = Vec::<String>::new();
    let booted = ["g1", "g2"].map(|guest| Booted::new(Container::Nspawn, &pair.path(guest)));
    for guest in &booted {
        assert_eq!(outdated(guest), none, "booted");
        let before = guest.succeed("systemctl show --property MainPID ssh cron");
        guest.succeed(&format!("NEEDRESTART_SUSPEND=1 apt-get install --only-upgrade {PACKAGES}"));
        assert_ne!(guest.succeed("systemctl show --property MainPID ssh cron"), before, "restarted");
        assert_eq!(outdated(guest), none, "upgraded");
    }
    let all = [pair.path("g1"), pair.path("g2")];
    let unify = |options: &[&str]| text(&run(pair.unify(options).args(&all)));
    let said = unify(&["--changed"]);
    assert!(said.contains(" used by running programs"), "{said}");
    for guest in &booted {
        assert_eq!(outdated(guest), none, "what has changed is linked");
        guest.succeed("start-stop-daemon --status --exec /usr/sbin/sshd");
    }
    // A whole pass replaces what they run from, and says so.
    let said = unify(&["--allow-setid"]);
    assert!(said.contains(" running programs, which keep the replaced inodes until they end"), "{said}");
    for guest in &booted {
        assert!(!outdated(guest).is_empty(), "{said}");
        guest.succeed("start-stop-daemon --status --exec /usr/sbin/sshd && systemctl restart ssh cron");
        assert!(!outdated(guest).iter().any(|line| line.contains("ssh.") || line.contains("cron.")));
    }
    assert!(same_inode(&all[0].join("usr/sbin/sshd"), &all[1].join("usr/sbin/sshd")));
}

//! Package managers with copy on write: their scripts write where no list foresees it, in guests that share everything.

use crate::guests::{self, DEBS};
use crate::rpm::{self, RPMS};
use crate::support::anywhere;
use crate::support::pair::{Pair, Scope, ours};

/// Nothing is prepared, and a run that cannot be supervised is refused.
const SUPERVISED: &str = "prepare = []\nsupervise = 'always'\n";

fn with_policy(pair: Pair, policy: &str) -> Pair {
    pair.policy(policy);
    pair
}

/// Nothing failed for being shared.
#[track_caller]
fn works(pair: &Pair, line: &str) -> String {
    let output = pair.succeed(line);
    assert!(!output.contains("not permitted") && !output.contains("made private"), "{output}");
    output
}

#[test]
#[ignore = "needs root"]
fn privileged_apt_needs_no_list_of_places() {
    let pair = with_policy(guests::pair(Scope::Wide), SUPERVISED);
    let reinstalled = pair.watch(|| {
        drop(works(&pair, &format!("apt-get install --reinstall {}", guests::packages("reinstall"))));
    });
    assert!(reinstalled.now * 1000 >= reinstalled.before * 998, "{reinstalled:?}");
    pair.watch(|| drop(works(&pair, &format!("apt-get install {}", guests::packages("install")))));
    pair.watch(|| drop(works(&pair, "apt-get purge cron locales man-db openssh-server hello nginx-common")));
}

#[test]
#[ignore = "needs root"]
fn privileged_dpkg_needs_no_list_of_places() {
    let pair = with_policy(guests::pair(Scope::Wide), SUPERVISED);
    pair.watch(|| {
        anywhere::add_private(&pair.path("g1"));
        works(
            &pair,
            &format!("dpkg -i {DEBS}/cow-anywhere_2.deb {DEBS}/cow-scripts_2.deb {DEBS}/cow-conf_2.deb"),
        );
    });
    anywhere::assert_changed(&pair.path("g1"));
    pair.watch(|| drop(works(&pair, "dpkg --unpack /root/debs/cow-links_2.deb; dpkg --configure -a")));
    pair.watch(|| drop(works(&pair, "dpkg -r cow-conf; dpkg -P cow-conf cow-scripts cow-anywhere")));
    // Without a hook of their own.
    pair.watch(|| {
        for line in [
            "dpkg-reconfigure -f noninteractive tzdata locales",
            "dpkg-divert --rename --add /usr/bin/less",
            "dpkg-divert --rename --remove /usr/bin/less",
            "useradd --system somebody; userdel somebody",
            "sed -i s/x/x/ /etc/services; chmod 600 /etc/hosts.allow; chmod 644 /etc/hosts.allow",
        ] {
            works(&pair, &format!("cow-run sh -c '{line}'"));
        }
    });
}

#[test]
#[ignore = "needs root"]
fn privileged_rpm_needs_no_list_of_places() {
    let pair = with_policy(rpm::pair(Scope::Wide), SUPERVISED);
    pair.watch(|| {
        anywhere::add_private(&pair.path("g1"));
        works(
            &pair,
            &format!("rpm -U {RPMS}/cow-anywhere-2.rpm {RPMS}/cow-trans-2.rpm {RPMS}/cow-lua-2.rpm"),
        );
    });
    anywhere::assert_changed(&pair.path("g1"));
    let reinstalled = pair.watch(|| drop(works(&pair, &format!("dnf reinstall {}", rpm::packages("newer")))));
    assert!(reinstalled.now * 100 >= reinstalled.before * 99, "{reinstalled:?}");
    pair.watch(|| drop(works(&pair, "rpm -e cow-anywhere cow-trans cow-lua")));
}

#[test]
#[ignore = "needs root"]
fn privileged_what_cannot_be_supervised_is_prepared_or_refused() {
    let pair = with_policy(guests::pair(Scope::Owned), "supervise = 'auto'\n");
    // Of a process that is traced nobody else can be the tracer.
    guests::copy_strace(&pair);
    let traced = format!(
        "LD_LIBRARY_PATH=/usr/local/lib strace -o /dev/null -e trace=none dpkg -i {DEBS}/cow-links_2.deb"
    );
    pair.watch(|| {
        let output = pair.succeed(&traced);
        assert!(ours(&output)[0].ends_with("before dpkg runs"), "{output}");
    });
    let pair = with_policy(pair, "supervise = 'always'\n");
    pair.watch(|| {
        let output = pair.exits(2, &traced.replace("cow-links", "cow-scripts"));
        assert!(output.contains("cannot be supervised") && output.contains("remedy: "), "{output}");
    });
    let pair = with_policy(pair, "supervise = 'never'\n");
    assert!(
        pair.succeed("cow-status")
            .contains("none, files are made private beforehand: the policy says `supervise = \"never\"`")
    );
    let shared = pair.watch(|| {
        let output = pair.succeed(&format!("apt-get install --reinstall {}", guests::packages("newer")));
        assert!(ours(&output)[0].ends_with("before dpkg runs"), "{output}");
    });
    assert!(shared.now * 100 >= shared.before * 99, "{shared:?}");
}

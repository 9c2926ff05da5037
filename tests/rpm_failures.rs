//! What would fail half way is refused before rpm has touched anything; what is missing does no harm.

use std::fs;
use std::path::Path;

use crate::rpm::pair;
use crate::support::pair::{Pair, Scope, ours, support};
use crate::support::{run, text};

const WITHOUT: &str = "capsh --drop=cap_linux_immutable -- -c";
const REINSTALL: &str = "rpm -U --force /srv/base/bash-[0-9]*.rpm /srv/base/sudo-[0-9]*.rpm";

/// One line for each file of the first guest, but what our own and rpm's databases are in.
fn picture(pair: &Pair) -> String {
    let lines = text(&run(support("snapshot").arg(pair.path("g1"))));
    let kept = |line: &&str| {
        ![
            "var/lib/rpm",
            "var/lib/cow-hooks",
            "var/lib/dnf",
            "var/log",
            "var/cache/dnf",
            "var/lib\t",
            "var/cache\t",
            "tmp\t",
        ]
        .iter()
        .any(|path| line.trim_start_matches('/').starts_with(path))
    };
    lines.lines().filter(kept).map(|line| format!("{line}\n")).collect()
}

/// Asserts that the line is refused with these words, that nothing has changed, and what rpm knows neither.
#[track_caller]
fn refused(pair: &Pair, line: &str, words: &[&str]) {
    let (before, packages) = (picture(pair), pair.succeed("rpm -qa | sort"));
    let output = pair.exits(1, line);
    assert!(output.contains("refused, before rpm has touched anything"), "{output}");
    assert!(output.contains("COW_HOOKS=off") && output.contains("remedy: "), "{output}");
    for word in words {
        assert!(output.contains(word), "{word:?} is not in {output}");
    }
    let after = picture(pair);
    let changed: Vec<_> =
        after.lines().filter(|line| !before.lines().any(|before| before == *line)).collect();
    assert!(before == after, "{changed:?}");
    assert_eq!(packages, pair.succeed("rpm -qa | sort"));
    assert_eq!(pair.pending(), (0, 0, 0));
}

#[test]
#[ignore = "needs root"]
fn privileged_rpm_without_the_capability_is_refused() {
    let pair = pair(Scope::Owned);
    // What Python leaves of dnf's plugins.
    pair.succeed("dnf check");
    let words = ["/usr/bin/bash: the immutable flag cannot be cleared", "CAP_LINUX_IMMUTABLE"];
    pair.watch(|| {
        refused(&pair, &format!("{WITHOUT} '{REINSTALL} || exit 1'"), &words);
        let asked = "dnf reinstall bash";
        refused(&pair, &format!("{WITHOUT} '{asked}'"), &words);
        // Its plugin asks before anything is downloaded.
        let output = pair.exits(1, &format!("{WITHOUT} '{asked}'"));
        assert!(!output.contains("Downloading Packages"), "{output}");
        refused(&pair, &format!("{WITHOUT} 'rpm -e --nodeps less || exit 1'"), &["/usr/bin/less"]);
    });
}

#[test]
#[ignore = "needs root"]
fn privileged_a_full_filesystem_refuses_rpm() {
    let pair = pair(Scope::Owned);
    // With copy on write nothing is copied beforehand.
    pair.policy("supervise = 'never'\n");
    pair.watch(|| {
        pair.filesystem.fill();
        refused(&pair, &format!("{REINSTALL} || exit 1"), &["not enough space for private copies"]);
        fs::remove_file(pair.filesystem.path().join("filler")).unwrap();
        pair.succeed(REINSTALL);
    });
}

#[test]
#[ignore = "needs root"]
fn privileged_a_ledger_that_cannot_be_opened_refuses_rpm_and_a_broken_one_does_not() {
    let pair = pair(Scope::Owned);
    let ledger = pair.path("g1/var/lib/cow-hooks/ledger.db");
    pair.watch(|| {
        fs::create_dir_all(&ledger).unwrap();
        let output = pair.exits(1, &format!("{REINSTALL} || exit 1"));
        assert!(output.contains("refused, before rpm") && output.contains("ledger.db"), "{output}");
        fs::remove_dir(&ledger).unwrap();
        fs::write(&ledger, [7; 9000]).unwrap();
        assert!(pair.succeed(REINSTALL).contains("a new ledger is started"));
    });
}

#[test]
#[ignore = "needs root"]
fn privileged_a_database_of_rpms_that_is_shared_refuses_rpm() {
    let pair = pair(Scope::Owned);
    let database = "var/lib/rpm/rpmdb.sqlite";
    // As a host would have it that unifies all there is.
    fs::hard_link(pair.path("g1").join(database), pair.path("pool/shared")).unwrap();
    let output = pair.exits(1, &format!("{REINSTALL} || exit 1"));
    assert!(output.contains("rpm's own database is still shared with other guests"), "{output}");
    let remedy = output.split('`').nth(1).unwrap();
    assert_eq!(remedy, "cow-prepare /var/lib/rpm");
    pair.succeed(remedy);
    fs::remove_file(pair.path("pool/shared")).unwrap();
    pair.watch(|| drop(pair.succeed(REINSTALL)));
}

#[test]
#[ignore = "needs root"]
fn privileged_the_hooks_are_switched_off_for_one_run_or_for_good() {
    let pair = pair(Scope::Owned);
    // Installed after the guests were unified: rpm can replace it alone.
    pair.succeed("dnf install screen");
    let said = |line: &str| ours(&pair.succeed(line)).len();
    assert_eq!(said("COW_HOOKS=off dnf reinstall screen"), 0);
    assert_eq!(
        said(
            "echo '%__transaction_cowhooks %{nil}' >/etc/rpm/macros.cow-hooks; rpm -U --test --force /srv/base/screen-*.rpm"
        ),
        0
    );
    pair.succeed("rm /etc/rpm/macros.cow-hooks");
    assert_eq!(
        said("rm -f /usr/lib64/rpm-plugins/cowhooks.so; COW_HOOKS=off rpm -U --force /srv/base/screen-*.rpm"),
        0
    );
}

#[test]
#[ignore = "needs root"]
fn privileged_without_the_plugin_the_triggers_do_its_work() {
    let pair = pair(Scope::Owned);
    pair.watch(|| drop(pair.succeed("rpm -e rpm-plugin-cowhooks dnf-plugin-cow-hooks")));
    assert!(!Path::new(&pair.path("g1/usr/lib64/rpm-plugins/cowhooks.so")).exists());
    let shared = pair.watch(|| {
        let output = pair.succeed(&format!("{REINSTALL} && dnf reinstall coreutils passwd man-db"));
        assert!(output.contains("shared again"), "{output}");
    });
    assert_eq!(shared.now, shared.before);
    pair.sources("newer");
    pair.watch(|| drop(pair.succeed("dnf upgrade")));
    pair.watch(|| drop(pair.succeed("dnf remove less hello")));
    let output = pair.succeed(&format!("{WITHOUT} 'rpm -U --force --test /srv/base/sed-[0-9]*.rpm'"));
    assert_eq!(ours(&output), [""; 0]);
}

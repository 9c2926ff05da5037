//! apt and dpkg in real Debian guests that share their files, with the package installed in the first of them:
//! nothing fails, nothing leaks, nothing is left behind.
//!
//! Every test has a filesystem of its own: a copy of one that is made once for each scope.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

use crate::support::anywhere;
use crate::support::pair::{Images, Pair, Scope, ours, support};
use crate::support::{inode, run, text};

/// The packages of `tests/support/debs`, as paths in a guest.
pub const DEBS: &str = "/root/debs";

pub fn pair(scope: Scope) -> Pair {
    static IMAGES: Images = [const { OnceLock::new() }; 3];
    // Version 1 of our own packages in both.
    let install = |pair: &Pair, guest: &str| {
        run(support("debs").arg(pair.path(guest).join(&DEBS[1..])));
        run(&mut pair.command_in(guest, &format!("dpkg -i {DEBS}/*_1.deb")));
        anywhere::make(&pair.path(guest));
    };
    let finish = |pair: &Pair| {
        run(Command::new("cp").args([deb(), &pair.path("g1/root/cow-hooks.deb")]));
        pair.succeed("apt-get install /root/cow-hooks.deb");
    };
    Pair::of("guests", &IMAGES, scope, install, finish)
}

/// Puts strace into the first guest.
pub fn copy_strace(pair: &Pair) {
    fs::copy("/usr/bin/strace", pair.path("g1/usr/local/bin/strace")).unwrap();
    let libraries = "ldd /usr/bin/strace | sed -n 's/.*=> \\(.*\\) (.*/\\1/p'";
    let copy = format!(
        "for file in $({libraries}); do cp -n $file {}; done",
        pair.path("g1/usr/local/lib").display()
    );
    assert!(Command::new("sh").args(["-c", &copy]).status().unwrap().success());
}

/// Installs cow-hooks in the second guest, too.
pub fn install_in_second(pair: &Pair) {
    run(Command::new("cp").args([pair.path("g1/root/cow-hooks.deb"), pair.path("g2/root/cow-hooks.deb")]));
    run(&mut pair.command_in("g2", "apt-get install /root/cow-hooks.deb"));
}

/// The guest's package, built once.
pub fn deb() -> &'static Path {
    static DEB: OnceLock<PathBuf> = OnceLock::new();
    DEB.get_or_init(|| {
        let top = Path::new(env!("CARGO_MANIFEST_DIR"));
        let built = Command::new(top.join("packaging/build-deb")).stderr(Stdio::inherit()).output().unwrap();
        assert!(built.status.success(), "packaging/build-deb failed");
        top.join(String::from_utf8(built.stdout).unwrap().lines().next().unwrap())
    })
}

/// The names of the packages of a test, on one line.
pub fn packages(of: &str) -> String {
    text(&run(support("guests").args(["packages", of]))).replace('\n', " ")
}

#[test]
#[ignore = "needs root"]
fn privileged_reinstalled_packages_are_shared_again() {
    let pair = pair(Scope::Owned);
    let shared = pair.watch(|| {
        let output = pair.succeed(&format!("apt-get install --reinstall {}", packages("reinstall")));
        let ours = ours(&output);
        assert!(ours[0].ends_with("shared again"), "{ours:?}");
        assert_eq!(ours.len(), 1, "{ours:?}");
    });
    assert!(shared.now * 100 >= shared.before * 99, "{shared:?}");
    assert_eq!(pair.unified(), shared.now);
}

#[test]
#[ignore = "needs root"]
fn privileged_a_hundred_packages_come_and_go() {
    let pair = pair(Scope::Owned);
    let count = || pair.succeed("dpkg-query -W").lines().count();
    let before = count();
    pair.watch(|| drop(pair.succeed(&format!("apt-get install {}", packages("install")))));
    assert!(count() >= before + 100);
    let remove = "apt-get remove git vim mc postfix xterm cron locales nginx-light less openssh-server";
    pair.watch(|| drop(pair.succeed(remove)));
    pair.watch(|| drop(pair.succeed("apt-get autoremove")));
    let rest = "dpkg-query -W -f '${db:Status-Abbrev} ${Package}\\n' | sed -n 's/^rc  *//p'";
    pair.watch(|| drop(pair.succeed(&format!("apt-get purge man-db $({rest})"))));
    assert_eq!(pair.succeed(rest), "");
    assert!(!pair.exists("/etc/postfix") && !pair.exists("/usr/bin/less"));
}

#[test]
#[ignore = "needs root"]
fn privileged_an_upgrade_hands_the_new_files_over() {
    let pair = pair(Scope::Owned);
    pair.sources("newer");
    let shared = pair.watch(|| drop(pair.succeed("apt-get upgrade")));
    assert!(pair.succeed("dpkg-query -W bash").contains("+cow1"));
    let spool = fs::read(pair.path("g1/var/lib/cow-hooks/spool/changed")).unwrap();
    let spooled = spool.split(|&byte| byte == 0).filter(|path| !path.is_empty()).count() as u64;
    assert!(spooled >= (shared.before - shared.now) * 99 / 100, "{spooled}, {shared:?}");
    assert_eq!(pair.unified(), shared.now);
}

#[test]
#[ignore = "needs root"]
fn privileged_what_both_guests_upgraded_is_shared_again() {
    let pair = pair(Scope::Owned);
    let before = pair.unified();
    install_in_second(&pair);
    for guest in ["g1", "g2"] {
        pair.sources_in(guest, "newer");
        run(&mut pair.command_in(guest, "apt-get upgrade"));
    }
    let changed = || {
        let guests = [pair.path("g1"), pair.path("g2")];
        text(&run(pair.unify(&["--changed", "--allow-setid"]).args(guests)))
    };
    changed();
    let shared = pair.watch(|| assert!(changed().contains(" 0 linked")));
    assert!(shared.now * 100 >= before * 99, "{shared:?} of {before}");
    assert!(!pair.exists("/var/lib/cow-hooks/spool/changed"));
}

#[test]
#[ignore = "needs root"]
fn privileged_a_distribution_is_upgraded() {
    let pair = pair(Scope::Owned);
    pair.sources("trixie");
    pair.watch(|| drop(pair.succeed("apt-get dist-upgrade")));
    assert!(fs::read_to_string(pair.path("g1/etc/debian_version")).unwrap().starts_with("13"));
    assert!(fs::read_to_string(pair.path("g2/etc/debian_version")).unwrap().starts_with("12"));
    pair.watch(|| drop(pair.succeed("apt-get autoremove --purge")));
}

#[test]
#[ignore = "needs root"]
fn privileged_plain_links_keep_set_id_bits_and_capabilities() {
    let pair = pair(Scope::Plain);
    let shared =
        pair.watch(|| drop(pair.succeed(&format!("apt-get install --reinstall {}", packages("reinstall")))));
    assert!(shared.now * 100 >= shared.before * 99, "{shared:?}");
    pair.watch(|| drop(pair.succeed("apt-get purge cron mount iputils-ping; dpkg -P cow-links cow-scripts")));
    pair.sources("newer");
    pair.watch(|| drop(pair.succeed("apt-get upgrade")));
}

#[test]
#[ignore = "needs root"]
fn privileged_scripts_hit_nothing_shared_even_where_all_is() {
    let pair = pair(Scope::Wide);
    pair.watch(|| {
        let output = pair.succeed(&format!("apt-get install --reinstall {}", packages("reinstall")));
        assert!(!output.contains("not permitted"), "{output}");
    });
    pair.watch(|| {
        let output = pair
            .succeed("apt-get install emacsen-common shared-mime-info texinfo xml-core python3-venv hello");
        assert!(!output.contains("not permitted"), "{output}");
    });
    pair.watch(|| {
        let output = pair.succeed("apt-get purge cron locales man-db openssh-server hello nginx-common");
        assert!(!output.contains("not permitted"), "{output}");
    });
}

#[test]
#[ignore = "needs root"]
fn privileged_dpkg_installs_archives_of_every_shape() {
    let pair = pair(Scope::Owned);
    pair.watch(|| {
        pair.succeed(&format!(
            "cd {DEBS} && dpkg -i cow-links_2.deb ./cow-odd_2.deb ../debs/cow-shape_2.deb {DEBS}/cow-scripts_2.deb"
        ));
    });
    assert_eq!(pair.succeed("stat -c %h /usr/lib/cow-links/a"), "3\n");
    assert!(pair.exists("/usr/share/cow odd/trailing ") && pair.exists("/usr/share/cow-shape/two/x"));
    // A directory of archives, with the first versions once more.
    pair.watch(|| {
        pair.succeed(&format!(
            "mkdir -p /root/some/more; ln -s {DEBS}/cow-shape_1.deb /root/some; cp {DEBS}/cow-links_1.deb /root/some/more
             cd /root && dpkg --recursive -i some"
        ));
    });
    assert!(pair.exists("/usr/share/cow-shape/one/deep/y"));
    pair.watch(|| drop(pair.succeed("dpkg -r cow-links cow-scripts; dpkg -P cow-links cow-odd cow-shape")));
    assert!(!pair.exists("/usr/share/cow odd") && !pair.exists("/usr/lib/cow-links"));
}

#[test]
#[ignore = "needs root"]
fn privileged_what_is_only_unpacked_waits_until_it_is_configured() {
    let pair = pair(Scope::Owned);
    pair.watch(|| {
        // Without md5sums, and with a file that another package had.
        let output = pair.succeed(&format!("dpkg --unpack {DEBS}/cow-nosums_2.deb {DEBS}/cow-scripts_2.deb"));
        assert!(output.contains("wait until their packages are configured"), "{output}");
        assert!(!output.contains("for the host"), "{output}");
        let (entries, stash, _) = pair.pending();
        assert!(entries > 0 && stash as i64 == entries);
        pair.succeed("dpkg --configure -a");
    });
    pair.watch(|| {
        pair.succeed("dpkg --unpack /var/cache/apt/archives/openssh-client_1%3a9*.deb /var/cache/apt/archives/less_*.deb");
        let output = pair.succeed("dpkg --configure -a");
        assert!(ours(&output).iter().any(|line| line.contains("shared again")), "{output}");
    });
}

#[test]
#[ignore = "needs root"]
fn privileged_packages_that_dpkg_removes_by_itself_leave_nothing() {
    let pair = pair(Scope::Owned);
    pair.watch(|| drop(pair.succeed(&format!("dpkg -i {DEBS}/cow-rival_2.deb {DEBS}/cow-eater_2.deb"))));
    assert!(!pair.exists("/usr/share/cow-plain"));
    assert_eq!(pair.succeed("dpkg-query -W -f '${db:Status-Status}' cow-eaten"), "not-installed");
}

#[test]
#[ignore = "needs root"]
fn privileged_configuration_files_are_kept_or_replaced_as_asked() {
    let pair = pair(Scope::Wide);
    let edited = || pair.succeed("tail -n 1 /etc/cow-conf/edited");
    pair.succeed("cow-prepare /etc/cow-conf/edited && echo mine >>/etc/cow-conf/edited");
    pair.watch(|| drop(pair.succeed(&format!("dpkg --force-confold -i {DEBS}/cow-conf_2.deb"))));
    assert_eq!(edited(), "mine\n");
    assert!(pair.exists("/etc/cow-conf/edited.dpkg-dist"));
    pair.watch(|| drop(pair.succeed(&format!("dpkg --force-confnew -i {DEBS}/cow-conf_1.deb"))));
    assert_ne!(edited(), "mine\n");
    assert!(pair.exists("/etc/cow-conf/edited.dpkg-old"));
    pair.watch(|| drop(pair.succeed("dpkg -P cow-conf")));
    assert!(!pair.exists("/etc/cow-conf"));
}

#[test]
#[ignore = "needs root"]
fn privileged_tools_without_hooks_work_on_what_was_prepared() {
    let pair = pair(Scope::Wide);
    pair.watch(|| {
        // The package diverts a file of another one; then the diverted file is upgraded, and the diversion goes.
        pair.succeed(&format!("dpkg -i {DEBS}/cow-diverts_2.deb"));
        pair.succeed(&format!("dpkg -i {DEBS}/cow-plain_2.deb"));
        pair.succeed("dpkg -P cow-diverts");
        assert_eq!(
            pair.succeed("head -n 1 /usr/share/cow-plain/data"),
            "cow-plain usr/share/cow-plain/data 2\n"
        );
    });
    pair.watch(|| {
        pair.succeed("cow-prepare /usr/share/cow-eaten/x /usr/bin/cow-setid /etc");
        pair.succeed("dpkg-divert --local --rename --add /usr/share/cow-eaten/x");
        pair.succeed("dpkg-statoverride --update --add root mail 4750 /usr/bin/cow-setid");
        pair.succeed(&format!("dpkg -i {DEBS}/cow-eater_2.deb {DEBS}/cow-links_2.deb"));
        assert_eq!(pair.succeed("stat -c '%a %G' /usr/bin/cow-setid"), "4750 mail\n");
        pair.succeed("dpkg-reconfigure -f noninteractive tzdata debconf cron ca-certificates");
        pair.succeed("update-alternatives --set pager /bin/more && update-alternatives --auto pager");
    });
}

#[test]
#[ignore = "needs root"]
fn privileged_a_run_that_fails_is_settled_by_the_one_that_mends_it() {
    let pair = pair(Scope::Owned);
    pair.watch(|| {
        pair.exits(
            100,
            &format!("apt-get install --reinstall less {DEBS}/cow-fails_2.deb {DEBS}/cow-links_2.deb"),
        );
        pair.succeed("touch /root/ok && apt-get --fix-broken install");
    });
    assert_eq!(pair.succeed("dpkg --audit"), "");
}

#[test]
#[ignore = "needs root"]
fn privileged_a_killed_apt_is_settled_by_the_dpkg_that_mends_it() {
    let pair = pair(Scope::Owned);
    pair.sources("newer");
    pair.watch(|| {
        let began = SystemTime::now();
        let mut apt = pair.command("exec apt-get upgrade");
        let mut apt = apt.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        while unpacked_since(&pair, began) < 8 && apt.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_millis(20));
        }
        apt.kill().unwrap();
        apt.wait().unwrap();
        assert!(pair.pending().0 > 0);
        // Fails where dpkg asks for the package it was about to be unpacked anew.
        pair.run("dpkg --configure -a");
        pair.succeed("dpkg --install --recursive /srv/newer");
    });
}

/// How many packages have been unpacked since.
fn unpacked_since(pair: &Pair, time: SystemTime) -> usize {
    let info = fs::read_dir(pair.path("g1/var/lib/dpkg/info")).unwrap().map(Result::unwrap);
    let lists = info.filter(|entry| entry.path().extension() == Some(OsStr::new("list")));
    lists.filter(|list| list.metadata().is_ok_and(|list| list.modified().unwrap() > time)).count()
}

#[test]
#[ignore = "needs root"]
fn privileged_a_lost_ledger_stops_nobody() {
    let pair = pair(Scope::Owned);
    pair.watch(|| {
        pair.succeed(&format!("dpkg --unpack {DEBS}/cow-odd_2.deb"));
        assert!(pair.pending().1 > 0);
        pair.succeed("rm /var/lib/cow-hooks/ledger.db*");
        // Its entries are numbered as the lost ones were.
        pair.succeed("apt-get install --reinstall bash && dpkg --configure -a");
    });
}

#[test]
#[ignore = "needs root"]
fn privileged_the_switch_and_a_guest_of_its_own_are_left_alone() {
    let pair = pair(Scope::Owned);
    let output = pair.exits(100, "COW_HOOKS=off apt-get install --reinstall less");
    assert!(output.contains("less.dpkg-tmp") || output.contains("Operation not permitted"), "{output}");
    assert!(!pair.exists("/var/lib/cow-hooks/stash"));
    run(pair.unify(&["detach"]).arg(pair.path("g1")));
    let output =
        pair.succeed("apt-get install --reinstall less base-files && apt-get install hello && dpkg -r hello");
    assert_eq!(ours(&output), [""; 0]);
    assert!(!pair.exists("/var/lib/cow-hooks/ledger.db"));
}

#[test]
#[ignore = "needs root"]
fn privileged_cow_hooks_itself_is_upgraded_and_removed() {
    let pair = pair(Scope::Owned);
    pair.succeed(
        "cd /root && dpkg-deb -R cow-hooks.deb tree && sed -i 's/^Version: .*/Version: 99/' tree/DEBIAN/control &&
         dpkg-deb -b tree next.deb && rm -r tree",
    );
    pair.watch(|| drop(pair.succeed("apt-get install --reinstall less /root/next.deb")));
    pair.watch(|| drop(pair.succeed(&format!("dpkg -i /root/cow-hooks.deb {DEBS}/cow-links_2.deb"))));
    // With originals in the stash, and with others in the same run.
    pair.watch(|| {
        pair.succeed("dpkg --unpack /var/cache/apt/archives/less_*.deb");
        pair.succeed("apt-get remove cow-hooks cron; dpkg --configure -a");
    });
    pair.watch(|| assert_eq!(ours(&pair.succeed("apt-get install hello && apt-get purge hello")), [""; 0]));
    pair.watch(|| drop(pair.succeed("apt-get purge cow-hooks")));
    assert!(!pair.exists("/var/lib/cow-hooks") && !pair.exists("/etc/apt/apt.conf.d/30cow-hooks"));
}

#[test]
#[ignore = "needs root"]
fn privileged_two_guests_at_once_do_not_disturb_each_other() {
    let rounds = std::env::var("COW_TESTS_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(5);
    let pair = pair(Scope::Owned);
    install_in_second(&pair);
    let reinstall = "apt-get install --reinstall bash coreutils login passwd";
    // The first run of a guest makes private for good what the policy never unifies.
    for guest in ["g1", "g2"] {
        run(&mut pair.command_in(guest, reinstall));
    }
    let before = (pair.unified(), pool(&pair));
    for round in 0..rounds {
        let started = ["g1", "g2"].map(|guest| {
            let mut command = pair.command_in(guest, reinstall);
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
        });
        for apt in started {
            let output = apt.wait_with_output().unwrap();
            assert!(output.status.success(), "round {round}: {}", text(&output));
            assert_eq!(ours(&text(&output)).len(), 1, "round {round}: {}", text(&output));
        }
    }
    assert!(before == (pair.unified(), pool(&pair)), "a shared inode has lost a name or its protection");
    for guest in ["g1", "g2"] {
        let verified =
            run(&mut pair.command_in(guest, "dpkg --audit; dpkg --verify bash coreutils login passwd"));
        assert_eq!(text(&verified), "", "{guest}");
    }
    assert_eq!(pair.pending(), (0, 0, 0));
}

/// Links and protection of every shared inode.
fn pool(pair: &Pair) -> BTreeMap<PathBuf, (u32, bool)> {
    let mut waiting = vec![pair.path("pool/objects")];
    let mut found = BTreeMap::new();
    while let Some(dir) = waiting.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                waiting.push(path);
            } else {
                let inode = inode(&path);
                found.insert(path, (inode.nlink, inode.immutable));
            }
        }
    }
    assert!(found.len() > 1000, "{} objects", found.len());
    found
}

//! `cow-prepare --package` names what dpkg and rpm then touch: every file of a guest that shares all of its files is looked
//! at before and after each package, by inode and time of change.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use cow_hooks::policy::Policy;
use cow_hooks::sys::file::inode::{Inode, InodeId, Kind};

use crate::support::pair::{Pair, Scope, support};
use crate::support::{assert_same, entries, picture, program, run, text};

/// A kind of guest, and what installs a package in it.
struct Manager {
    /// The script that makes the guests.
    guests: &'static str,
    /// Makes packages of every oddity, in a directory.
    oddities: &'static str,
    /// Installs all of version 1.
    first: &'static str,
    /// Installs one package, which is named behind it.
    install: &'static str,
    /// What the package manager itself writes to in every run: its database, logs, caches.
    own: &'static [&'static str],
    /// Real packages, by the beginnings of their names: upgrades, new ones, with hard links. Only the first few are
    /// installed where not all are wanted.
    real: [&'static str; 20],
    /// Those of `oddities` that are installed.
    odd: &'static [&'static str],
}

const DPKG: Manager = Manager {
    guests: "guests",
    oddities: "debs",
    first: "dpkg -i /root/oddities/*_1.deb",
    install: "dpkg --force-all -i",
    own: &["/var/lib/dpkg", "/var/log", "/var/cache", "/run"],
    real: [
        "perl-base_5.36",
        "man-db_2.11.2-2+cow1",
        "postfix_3",
        "libc6_2.36-9+deb12u14+cow1",
        "less_668",
        "bash_5.2.15-2+b13+cow1",
        "coreutils_9.1-1+cow1",
        "libc-bin_2.36-9+deb12u14+cow1",
        "passwd_4.13+dfsg1-1+deb12u2+cow1",
        "sudo_1.9.13p3-1+deb12u4+cow1",
        "tzdata_2026b-0+deb12u1+cow1",
        "cron_3.0pl1-162+cow1",
        "openssh-server_9.2p1-2+deb12u10+cow1",
        "ca-certificates_20230311+deb12u1+cow1",
        "debconf_1.5.82+cow1",
        "bzip2_1.0.8-5",
        "hello_2",
        "emacsen-common_3",
        "tmux_3",
        "git_1",
    ],
    odd: &[
        "cow-links_2",
        "cow-nosums_2",
        "cow-odd_2",
        "cow-shape_2",
        "cow-conf_2",
        "cow-scripts_2",
        "cow-diverts_2",
        "cow-rival_2",
        "cow-eater_2",
    ],
};

const RPM: Manager = Manager {
    guests: "rpm-guests",
    oddities: "rpms",
    first: "rm /root/oddities/cow-system*; rpm -i /root/oddities/*-1.rpm",
    install: "rpm -U --force --nodeps",
    own: &["/var/lib/rpm", "/var/log", "/var/cache", "/run"],
    real: [
        "perl-base-5",
        "man-db-2",
        "gzip-1",
        "libc6-2",
        "tmux-3",
        "bash-5",
        "coreutils-9",
        "libc-bin-2",
        "passwd-4",
        "sudo-1",
        "tzdata-2026",
        "cron-3",
        "openssh-server-9",
        "ca-certificates-2023",
        "setup-12",
        "filesystem-12",
        "rpm-4",
        "dbus-daemon-1",
        "systemd-252",
        "git-2",
    ],
    odd: &[
        "cow-links-2",
        "cow-odd-2",
        "cow-shape-2",
        "cow-plain-2",
        "cow-conf-2",
        "cow-edited-2",
        "cow-eater-2",
        "cow-taker-2",
        "cow-scripts-2",
        "cow-unowned-2",
        "cow-dir-2",
    ],
};

/// A guest that shares every file with a second one, and what is known of its files.
struct Linked {
    pair: Pair,
    manager: &'static Manager,
    policy: Policy,
}

/// What a package was said to touch, and has touched.
#[derive(Default)]
struct Outcome {
    named: BTreeSet<PathBuf>,
    touched: BTreeSet<PathBuf>,
}

impl Linked {
    fn new(manager: &'static Manager) -> Linked {
        let image = Box::leak(Box::new(OnceLock::new()));
        let pair = Pair::copy_of(manager.guests, image, |pair| {
            let first = pair.path("g1");
            run(support(manager.guests).arg("restore").arg(&first));
            run(support(manager.oddities).arg(first.join("root/oddities")));
            run(&mut pair.command_in("g1", manager.first));
            run(Command::new("cp").arg("-al").args([&first, &pair.path("g2")]));
        });
        Linked { pair, manager, policy: Policy::builtin().unwrap() }
    }

    fn prepare(&self, arguments: &[&str], packages: &[&Path]) -> Output {
        let mut command = Command::new(program("cow-prepare"));
        command.args(arguments).arg("--root").arg(self.pair.path("g1")).arg("--package").args(packages);
        command.output().unwrap()
    }

    /// The files a dry run names.
    fn named(&self, package: &Path) -> BTreeSet<PathBuf> {
        let output = self.prepare(&["--dry-run", "--json"], &[package]);
        assert!(output.status.success(), "{}", text(&output));
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let path = |named: &serde_json::Value| match named.get("path_bytes") {
            Some(bytes) => {
                let bytes: Vec<u8> = serde_json::from_value(bytes.clone()).unwrap();
                PathBuf::from(<OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(&bytes))
            }
            None => PathBuf::from(named["path"].as_str().unwrap()),
        };
        report["detached"].as_array().unwrap().iter().map(path).collect()
    }

    /// The files of the first guest that the second one has, too.
    fn unified(&self) -> BTreeMap<PathBuf, Inode> {
        let mut all = entries(&self.pair.path("g1"));
        all.retain(|_, inode| inode.kind == Kind::Regular);
        let mut names: BTreeMap<InodeId, u32> = BTreeMap::new();
        all.values().for_each(|inode| *names.entry(inode.id).or_default() += 1);
        all.retain(|_, inode| inode.nlink > names[&inode.id]);
        all.into_iter().map(|(path, inode)| (Path::new("/").join(path), inode)).collect()
    }

    /// Installs a package, having asked what it would touch.
    fn install(&self, package: &Path) -> Outcome {
        let named = self.named(package);
        let before = self.unified();
        let inside = self.pair.path("g1/root/package").with_extension(package.extension().unwrap());
        fs::copy(package, &inside).unwrap();
        let name = inside.file_name().unwrap().to_str().unwrap();
        self.pair.run(&format!("{} /root/{name}", self.manager.install));
        fs::remove_file(inside).unwrap();
        let after = entries(&self.pair.path("g1"));
        Outcome { named, touched: touched(&before, &after) }
    }

    /// Tells of an outcome; the files that were touched and not named, and those that were named and not touched.
    fn compare(&self, package: &Path, Outcome { named, touched }: &Outcome) -> [Vec<PathBuf>; 2] {
        let is_own = |path: &&PathBuf| self.manager.own.iter().any(|own| path.starts_with(own));
        let missed: Vec<_> = touched.difference(named).filter(|path| !is_own(path)).cloned().collect();
        let in_vain = named.difference(touched).filter(|path| !self.policy.prepare.matches(path));
        let in_vain: Vec<_> = in_vain.cloned().collect();
        let name = package.file_name().unwrap().display();
        let both = touched.intersection(named).count();
        let own = touched.difference(named).count() - missed.len();
        let by_policy = named.difference(touched).count() - in_vain.len();
        println!(
            "{name}: {both} touched and named, {own} of the package manager's own; missed: {missed:?}; in vain: \
             {in_vain:?}, and {by_policy} where scripts write"
        );
        [missed, in_vain]
    }
}

/// The files whose names lead elsewhere, or nowhere, or whose inode was changed.
fn touched(before: &BTreeMap<PathBuf, Inode>, after: &BTreeMap<PathBuf, Inode>) -> BTreeSet<PathBuf> {
    let now = |path: &Path| after.get(path.strip_prefix("/").unwrap());
    let is_replaced = |path: &Path, then: &Inode| now(path).is_none_or(|now| now.id != then.id);
    let mut fewer: BTreeMap<InodeId, u32> = BTreeMap::new();
    for (path, inode) in before {
        *fewer.entry(inode.id).or_default() += u32::from(is_replaced(path, inode));
    }
    // An inode that has lost a name has another time of change, which tells nothing of its other names.
    let is_changed = |path: &Path, then: &Inode| {
        let lost = fewer[&then.id];
        now(path).is_some_and(|now| now.ctime != then.ctime && (lost == 0 || now.nlink + lost != then.nlink))
    };
    let touched = before.iter().filter(|(path, inode)| is_replaced(path, inode) || is_changed(path, inode));
    touched.map(|(path, _)| path.clone()).collect()
}

/// The first of the packages of guests whose name begins so.
fn cached(guests: &str, names: &[&str]) -> Vec<PathBuf> {
    let cache = PathBuf::from(text(&run(support(guests).arg("cache"))).trim());
    let dirs = ["srv/newer", "archives", "srv/base"].map(|dir| cache.join(dir));
    let all: Vec<_> =
        dirs.iter().flat_map(fs::read_dir).flatten().map(|entry| entry.unwrap().path()).collect();
    let find = |name: &&str| {
        let found = all.iter().find(|path| path.file_name().unwrap().to_str().unwrap().starts_with(name));
        found.unwrap_or_else(|| panic!("no package {name}*")).clone()
    };
    names.iter().map(find).collect()
}

/// How many real packages of a kind are installed if not all are wanted.
const FEW: usize = 5;

/// Installs packages one after the other, and asserts that each touches what it was said to.
fn assert_named(manager: &'static Manager, suffix: &str) {
    let linked = Linked::new(manager);
    let all = std::env::var_os("COW_TESTS_ALL_PACKAGES").is_some();
    let real = cached(manager.guests, &manager.real[..if all { manager.real.len() } else { FEW }]);
    let odd = |name: &&str| linked.pair.path("g1/root/oddities").join(format!("{name}{suffix}"));
    let mut wrong = Vec::new();
    for package in real.into_iter().chain(manager.odd.iter().map(odd)) {
        let [missed, in_vain] = linked.compare(&package, &linked.install(&package));
        if !missed.is_empty() || !in_vain.is_empty() {
            wrong.push((package, missed, in_vain));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
#[ignore = "needs root"]
fn privileged_what_a_deb_touches_is_named() {
    assert_named(&DPKG, ".deb");
}

#[test]
#[ignore = "needs root"]
fn privileged_what_an_rpm_touches_is_named() {
    assert_named(&RPM, ".rpm");
}

/// Whether the output has neither a panic nor an error number.
fn is_plain(said: &str) -> bool {
    !said.contains("panicked") && !said.contains("os error")
}

#[test]
#[ignore = "needs root"]
fn privileged_a_file_that_is_no_package_refuses_all() {
    let dir = tempfile::tempdir().unwrap();
    let guest = dir.path().join("guest");
    fs::create_dir_all(guest.join("usr/bin")).unwrap();
    fs::write(guest.join("usr/bin/a"), "x").unwrap();
    fs::hard_link(guest.join("usr/bin/a"), dir.path().join("shared")).unwrap();
    run(support("debs").arg(dir.path()));
    run(support("rpms").arg(dir.path()));
    let [deb, rpm] =
        ["cow-plain_2.deb", "cow-plain-2.rpm"].map(|name| fs::read(dir.path().join(name)).unwrap());
    let write = |name: &str, content: &[u8]| {
        fs::write(dir.path().join(name), content).unwrap();
        dir.path().join(name)
    };
    // The control member is cut off, or is of another content; a value lies outside of the header.
    let mut garbled = deb.clone();
    garbled[140..300].fill(b'x');
    let mut outside = rpm.clone();
    outside[104 + 8..][..4].fill(0xff);
    let broken = [
        (write("short.deb", &deb[..200]), "is not a readable .deb", "fetch the file again"),
        (write("garbled.deb", &garbled), "is not a readable .deb", "fetch the file again"),
        (write("short.rpm", &rpm[..300]), "is not a readable .rpm: it is truncated", "fetch the file again"),
        (write("outside.rpm", &outside), "is not a readable .rpm", "fetch the file again"),
        (write("text.rpm", b"x\n"), "is neither a .deb nor an .rpm", "before it"),
        (write("empty.deb", b""), "is neither a .deb nor an .rpm", "before it"),
        (dir.path().join("missing"), "No such file or directory", "check the name"),
        (dir.path().to_path_buf(), "not a regular file", "check the name"),
    ];
    let before = picture(&guest);
    for (path, reason, remedy) in &broken {
        let mut command = Command::new(program("cow-prepare"));
        command.args(["--root", guest.to_str().unwrap(), "/usr", "--package"]);
        let output = command.arg(dir.path().join("cow-conf_2.deb")).arg(path).output().unwrap();
        let said = text(&output);
        assert_eq!(output.status.code(), Some(3), "{said}");
        assert!(said.contains(path.to_str().unwrap()) && said.contains(reason), "{said}");
        assert!(said.contains("remedy: ") && said.contains(remedy) && is_plain(&said), "{said}");
        assert_same(&before, &picture(&guest), &said);
    }
}

#[test]
#[ignore = "needs root"]
fn privileged_prepared_packages_are_installed_without_hooks() {
    let image = OnceLock::new();
    let pair = Pair::copy_of(DPKG.guests, Box::leak(Box::new(image)), |pair| {
        for guest in ["g1", "g2"] {
            run(support(DPKG.guests).arg("restore").arg(pair.path(guest)));
            run(support(DPKG.oddities).arg(pair.path(guest).join("root/oddities")));
            run(&mut pair.command_in(guest, DPKG.first));
        }
        pair.unify_in(Scope::Owned);
    });
    let packages = cached("guests", &["bash_5.2.15-2+b13+cow1", "sudo_1.9.13p3-1+deb12u4+cow1", "hello_2"]);
    let odd = ["cow-links_2.deb", "cow-nosums_2.deb", "cow-shape_2.deb"]
        .map(|name| pair.path("g1/root/oddities").join(name));
    let inside = pair.path("g1/root/new");
    fs::create_dir(&inside).unwrap();
    pair.watch(|| {
        let mut command = Command::new(program("cow-prepare"));
        command.arg("--root").arg(pair.path("g1")).arg("--package").args(packages.iter().chain(&odd));
        run(&mut command);
        for package in packages.iter().chain(&odd) {
            fs::copy(package, inside.join(package.file_name().unwrap())).unwrap();
        }
        pair.succeed("dpkg -i /root/new/*.deb");
    });
}

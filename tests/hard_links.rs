//! What a package manager installs decides which names are one file, whatever was shared before and is shared after.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use crate::support::strace::{killed_at_each, traced};
use crate::support::tiny::{self, Tiny};
use crate::support::{Guests, litter, removal, run, same_inode, text};

/// How the first guest's dpkg is kept from shared files.
const WAYS: [&str; 2] = ["supervise = 'always'\n", "supervise = 'never'\n"];

#[derive(Clone, Copy)]
enum Manager {
    Dpkg,
    Rpm,
}

/// The names of one package's files: a group is one file.
type Groups<'a> = &'a [&'a [&'a str]];

/// One of a test's packages, whose files are equal but for those of other packages.
struct Package<'a> {
    tiny: &'a Tiny,
    number: usize,
}

impl Package<'_> {
    fn content(&self) -> String {
        format!("what all files of {} have\n", self.number)
    }

    fn path(&self, name: &str) -> String {
        format!("opt/hl{}/{name}", self.number)
    }

    fn deb(&self, version: u32, groups: Groups<'_>) -> String {
        self.make(version, groups, Tiny::deb)
    }

    fn rpm(&self, version: u32, groups: Groups<'_>) -> String {
        self.make(version, groups, Tiny::rpm)
    }

    fn make(
        &self,
        version: u32,
        groups: Groups<'_>,
        make: fn(&Tiny, u32, tiny::Package<'_>) -> String,
    ) -> String {
        let paths: Vec<Vec<String>> =
            groups.iter().map(|names| names.iter().map(|name| self.path(name)).collect()).collect();
        let names: Vec<Vec<&str>> =
            paths.iter().map(|names| names.iter().map(String::as_str).collect()).collect();
        let content = self.content();
        let files: Vec<(&[&str], &str)> = names.iter().map(|names| (&names[..], &content[..])).collect();
        let name = format!("hl{}", self.number);
        make(self.tiny, version, tiny::Package { name: &name, files: &files, postinst: None })
    }

    /// Which names are one file to a process that writes to one of them.
    fn seen(&self, groups: Groups<'_>) -> Vec<Vec<String>> {
        let names: Vec<&str> = groups.iter().flat_map(|names| names.iter().copied()).collect();
        let read = |name: &str| self.tiny.read(&format!("g1/{}", self.path(name)));
        let mut found: Vec<Vec<String>> = Vec::new();
        for (at, name) in names.iter().enumerate() {
            if !found.iter().flatten().any(|known| known == name) {
                self.tiny.succeed(&format!("cow-run sh -c 'echo {at} >>/{}'", self.path(name)));
                let text = read(name);
                found.push(
                    names.iter().filter(|other| read(other) == text).map(|n| (*n).to_owned()).collect(),
                );
            }
        }
        found
    }
}

/// From one version to the next, in one of the guests that share the first: the names come to be what the next one says.
fn follows(
    tiny: &Tiny,
    manager: Manager,
    number: usize,
    (before, after): (Groups<'_>, Groups<'_>),
    way: &str,
    reaches: bool,
) {
    let what = format!("{before:?} to {after:?}, {way:?}, the pool within reach: {reaches}");
    let package = Package { tiny, number };
    let make = |version, groups| match manager {
        Manager::Dpkg => package.deb(version, groups),
        Manager::Rpm => package.rpm(version, groups),
    };
    let install = if matches!(manager, Manager::Dpkg) { "dpkg -i" } else { "rpm -U" };
    let (one, two) = (make(1, before), make(2, after));
    tiny.both(&format!("{install} {one}"));
    tiny.unify(&[]);
    let before: Vec<String> = before.iter().copied().flatten().map(|name| package.path(name)).collect();
    assert!(before.iter().all(|name| tiny.shared(name)), "{what}");
    if !reaches {
        fs::remove_file(tiny.path("g1/var/lib/cow-hooks/pool.toml")).unwrap();
    }
    tiny.policy(way);
    let output = tiny.succeed(&format!("{install} {two}"));
    assert_eq!(tiny.left(), (0, 0), "{what}: {output}");
    for names in after {
        let is_one = |name: &&str| tiny.one(&package.path(name), &package.path(names[0]));
        assert!(names.iter().all(is_one), "{what}: {names:?}: {output}");
    }
    if !reaches {
        tiny.unify(&["--changed"]);
    }
    let object = tiny.path("g2").join(&before[0]);
    for name in after.iter().copied().flatten() {
        let now = tiny.path("g1").join(package.path(name));
        assert!(same_inode(&object, &now), "{what}: {name} is not shared: {output}");
    }
    let wanted: Vec<Vec<&str>> = after.iter().map(|names| names.to_vec()).collect();
    assert_eq!(package.seen(after), wanted, "{what}: {output}");
    assert_eq!(tiny.read(&format!("g2/{}", before[0])), package.content(), "{what}");
    tiny.policy("");
}

const CASES: &[(Groups<'_>, Groups<'_>)] = &[
    (&[&["b"]], &[&["a", "b"]]),
    (&[&["a", "b"]], &[&["a"], &["b"]]),
    (&[&["a"], &["b"]], &[&["a", "b"]]),
    (&[&["a", "b", "c"]], &[&["a", "b"], &["c"]]),
    (&[&["a", "b"]], &[&["a", "b", "c"]]),
    (&[&["a", "b"], &["c"]], &[&["a"], &["b", "c"]]),
    (&[&["a", "b"]], &[&["a", "b"]]),
    (&[&["a", "b", "c"]], &[&["a", "d"]]),
];

#[test]
#[ignore = "needs root"]
fn privileged_what_dpkg_installs_decides_which_names_are_one_file() {
    let tiny = Tiny::new();
    for (number, case) in CASES.iter().enumerate() {
        follows(&tiny, Manager::Dpkg, 2 * number, *case, WAYS[0], number % 2 == 0);
        follows(&tiny, Manager::Dpkg, 2 * number + 1, *case, WAYS[1], number % 3 != 0);
    }
}

#[test]
#[ignore = "needs root"]
fn privileged_what_rpm_installs_decides_which_names_are_one_file() {
    let tiny = Tiny::new();
    tiny.add_rpm();
    for (number, case) in CASES.iter().enumerate() {
        follows(&tiny, Manager::Rpm, number, *case, WAYS[number % 2], number % 3 != 0);
    }
}

/// Installs version 1 of a pair in both guests, which share it.
fn shared_pair<'a>(tiny: &'a Tiny, number: usize) -> Package<'a> {
    let package = Package { tiny, number };
    tiny.both(&format!("dpkg -i {}", package.deb(1, &[&["a", "b"]])));
    tiny.unify(&[]);
    assert!(tiny.shared(&package.path("a")) && tiny.shared(&package.path("b")));
    let [a, b] = ["a", "b"].map(|name| format!("/{}", package.path(name)));
    assert!(tiny.links().contains(&vec![a, b]));
    package
}

#[test]
#[ignore = "needs root"]
fn privileged_a_name_that_no_list_has_keeps_its_file() {
    for way in WAYS {
        let tiny = Tiny::new();
        tiny.policy(way);
        let package = shared_pair(&tiny, 0);
        let [a, b] = ["a", "b"].map(|name| package.path(name));
        let (names, content) = ([&a[..], &b[..]], package.content());
        let files: [(&[&str], &str); 1] = [(&names, &content)];
        let script = format!("ln /{a} /mine");
        let two = tiny.deb(2, tiny::Package { name: "hl0", files: &files, postinst: Some(&script) });
        let output = tiny.succeed(&format!("dpkg -i {two}"));
        assert!(tiny.one(&a, &b) && tiny.one(&a, "mine"), "{output}");
        assert_eq!(tiny.left(), (0, 0), "{output}");
        tiny.succeed(&format!("cow-run sh -c 'echo more >>/{b}'"));
        assert_eq!(tiny.read("g1/mine"), package.content() + "more\n");
    }
}

#[test]
#[ignore = "needs root"]
fn privileged_hard_links_that_wait_for_their_package_stay_together() {
    for way in WAYS {
        let tiny = Tiny::new();
        tiny.policy(way);
        let package = Package { tiny: &tiny, number: 0 };
        tiny.both(&format!("dpkg -i {}", package.deb(1, &[&["b"]])));
        tiny.unify(&[]);
        let [a, b] = ["a", "b"].map(|name| package.path(name));
        tiny.succeed(&format!("dpkg --unpack {}", package.deb(2, &[&["a", "b"]])));
        assert!(tiny.one(&a, &b) && tiny.left().1 > 0);
        tiny.succeed("dpkg --configure -a");
        assert!(tiny.one(&a, &b));
        assert_eq!(tiny.left(), (0, 0));
    }
}

#[test]
#[ignore = "needs root"]
fn privileged_the_list_of_hard_links_does_not_grow() {
    for way in WAYS {
        let tiny = Tiny::new();
        tiny.policy(way);
        let kept = shared_pair(&tiny, 0);
        let before = tiny.links();
        // Removed, made private by hand, and upgraded to another content.
        let (removed, prepared, changed) =
            (shared_pair(&tiny, 1), shared_pair(&tiny, 2), shared_pair(&tiny, 3));
        tiny.succeed(&format!("cow-prepare /{}", prepared.path("a")));
        assert!(tiny.one(&prepared.path("a"), &prepared.path("b")));
        let other = Package { tiny: &tiny, number: 4 };
        let names = ["a", "b"].map(|name| changed.path(name));
        let names = [&names[0][..], &names[1][..]];
        let content = other.content();
        let two = tiny::Package { name: "hl3", files: &[(&names, &content)], postinst: None };
        tiny.succeed(&format!("dpkg -i {}", tiny.deb(2, two)));
        tiny.succeed("dpkg -P hl1");
        assert!(!tiny.path("g1").join(removed.path("a")).exists());
        assert_eq!(tiny.links(), before);
        assert!(tiny.one(&kept.path("a"), &kept.path("b")) && tiny.shared(&kept.path("a")));
        run(Command::new(env!("CARGO_BIN_EXE_cow-unify")).arg("detach").arg(tiny.path("g1")));
        assert_eq!(tiny.links(), Vec::<Vec<String>>::new());
        assert!(tiny.one(&kept.path("a"), &kept.path("b")));
    }
}

#[test]
#[ignore = "needs root"]
fn privileged_what_was_shared_before_anything_was_written_down_stays_one_file() {
    let tiny = Tiny::new();
    let [before, second, third] = [0, 1, 2].map(|number| Package { tiny: &tiny, number });
    tiny.both(&format!("dpkg -i {}", before.deb(1, &[&["a"], &["b"], &["c", "d"]])));
    tiny.unify(&[]);
    let links = tiny.path("g1/var/lib/cow-hooks/links");
    // Without one, and with one that a power cut has left without its content.
    for (after, lost) in [(&second, true), (&third, false)] {
        fs::write(&links, "").unwrap();
        if lost {
            fs::remove_file(&links).unwrap();
        }
        tiny.unify(&[]);
        assert_eq!(tiny.links(), Vec::<Vec<String>>::new());
        tiny.both(&format!("dpkg -i {}", after.deb(1, &[&["e"], &["f", "g"]])));
        let said = tiny.unify(&[]);
        let paths = |package: &Package<'_>, names: &[&str]| -> Vec<String> {
            names.iter().map(|name| format!("/{}", package.path(name))).collect()
        };
        let known = tiny.links();
        assert!(known.contains(&paths(&before, &["a", "b", "c", "d"])), "{known:?}: {said}");
        assert!(known.contains(&paths(after, &["f", "g"])), "{known:?}: {said}");
    }
}

#[test]
#[ignore = "needs root"]
fn privileged_hard_links_made_under_supervision_are_known_later() {
    let tiny = Tiny::new();
    let package = shared_pair(&tiny, 0);
    let [a, b, c, d] = ["a", "b", "c", "d"].map(|name| format!("/{}", package.path(name)));
    // Whatever becomes of the supervisor: all that it knew ends with the namespace.
    let after = |command: &str| {
        tiny.succeed(&format!("cow-run {command}"));
        tiny.links()
    };
    assert_eq!(after(&format!("ln {a} {c}")), [[&a[..], &b, &c]]);
    assert_eq!(after(&format!("mv {b} {d}")), [[&a[..], &c, &d]]);
    assert_eq!(after(&format!("rm {a}")), [[&c[..], &d]]);
    assert_eq!(after(&format!("mv {d} {a}")), [[&a[..], &c]]);
    // The last supervisor puts in order what it has written in a hurry.
    tiny.succeed(&format!("cow-run sh -c 'cp {c} /copy && mv /copy {c}'; sleep 0.2"));
    assert_eq!(tiny.links(), Vec::<Vec<String>>::new());
    // Under one supervisor: what dpkg's own hook settles meanwhile.
    let package = shared_pair(&tiny, 1);
    let [a, b] = ["a", "b"].map(|name| format!("/{}", package.path(name)));
    let apart = package.deb(2, &[&["a"], &["b"]]);
    tiny.succeed(&format!("cow-run sh -c 'dpkg -i {apart} && echo more >>{a}'"));
    assert_eq!(tiny.read(&format!("g1{b}")), package.content());
    assert_eq!(tiny.read(&format!("g1{a}")), package.content() + "more\n");
}

#[test]
#[ignore = "needs root"]
fn privileged_hooks_killed_at_any_call_know_hard_links_afterwards() {
    let guests = Guests::new("ext4", 0, false);
    guests.share("usr/bin/a", b"of two names, and of a file of its own");
    for guest in [guests.first(), guests.second()] {
        for name in ["usr/share/b", "usr/bin/c"] {
            fs::hard_link(guests.pool().join("usr%bin%a"), guest.join(name)).unwrap();
        }
    }
    guests.protect();
    let names = ["/usr/bin/a", "/usr/share/b", "/usr/bin/c"].map(str::to_owned);
    guests.own("p", &names);
    guests.policy(WAYS[1]);
    // Without it each call is tried beforehand, in case a filter forbids it: that would be the one that is killed.
    run(Command::new("mount").args(["-t", "proc", "proc"]).arg(guests.first().join("proc")));
    let links = guests.write("var/lib/cow-hooks/links", "/usr/bin/a\0/usr/share/b\0\0");
    let hook = |name: &str, kill: Option<(&str, usize)>| {
        traced(guests.program("cow-dpkg").arg(name), removal("p").as_bytes(), kill)
    };
    let assert_known = |when: &str| {
        assert!(names.iter().all(|name| guests.shared(&name[1..])), "{when}");
        assert_eq!(fs::read_to_string(&links).unwrap(), "/usr/bin/a\0/usr/share/b\0\0", "{when}");
        for dir in ["usr", "var"] {
            assert_eq!(litter(&guests.first().join(dir)), Vec::<PathBuf>::new(), "{when}");
        }
    };
    let (before, _) = hook("apt-pre", None);
    assert!(same_inode(&guests.first().join("usr/bin/a"), &guests.first().join("usr/share/b")));
    assert!(!same_inode(&guests.first().join("usr/bin/a"), &guests.first().join("usr/bin/c")));
    let (after, _) = hook("apt-post", None);
    assert_known("as nobody was killed");
    for (mut calls, killed) in [(before, "apt-pre"), (after, "apt-post")] {
        calls
            .retain(|call, _| ["linkat", "renameat", "unlinkat", "fdatasync", "syncfs"].contains(&&call[..]));
        killed_at_each(&calls, |call, nth| {
            if killed == "apt-post" {
                hook("apt-pre", None);
            }
            let run = hook(killed, Some((call, nth)));
            let recovered = guests.prepare(&["--recover"]);
            assert!(recovered.status.success(), "{}", text(&recovered));
            hook("apt-pre", None);
            hook("apt-post", None);
            assert_known(&format!("{killed} killed at {call} {nth}"));
            run
        });
    }
    run(Command::new("umount").arg(guests.first().join("proc")));
}

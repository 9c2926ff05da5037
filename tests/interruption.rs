//! Killed before any system call that changes something, nothing is lost: the next run ends what was begun.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::Output;

use crate::support::strace::{Calls, beyond, killed_at_each, traced};
use crate::support::{
    FILESYSTEMS, Guests, Seen, feed, files, litter, removal, same_inode, set_immutable, text,
};

/// How many files the transaction is about.
const FILES: usize = 200;

struct Interrupted {
    guests: Guests,
    names: Vec<String>,
    first: BTreeMap<PathBuf, Seen>,
    second: BTreeMap<PathBuf, Seen>,
}

impl Interrupted {
    fn new(kind: &str) -> Interrupted {
        let guests = Guests::new(kind, FILES, true);
        let names: Vec<String> =
            files(&guests.second()).keys().map(|p| format!("/{}", p.display())).collect();
        guests.own("p", &names);
        let shared = |guest: PathBuf| {
            files(&guest)
                .into_iter()
                .filter(|(path, _)| names.contains(&format!("/{}", path.display())))
                .collect()
        };
        Interrupted { first: shared(guests.first()), second: shared(guests.second()), names, guests }
    }

    fn hook(&self, hook: &str) -> Output {
        let mut command = self.guests.program("cow-dpkg");
        let output = feed(command.arg(hook), removal("p").as_bytes());
        assert!(output.status.success(), "{hook}: {}", text(&output));
        output
    }

    /// Runs a hook under strace; with `kill`, it dies at the entry of that call.
    fn traced(&self, hook: &str, kill: Option<(&str, usize)>) -> (Calls, bool) {
        let mut command = self.guests.program("cow-dpkg");
        traced(command.arg(hook), removal("p").as_bytes(), kill)
    }

    /// What must hold at every moment: no name missing or half written, the other guest's files as they were.
    fn nothing_is_lost(&self, when: &str) {
        let unprotected = |seen: &Seen| Seen { immutable: false, ..seen.clone() };
        let now = files(&self.guests.first());
        for (path, before) in &self.first {
            assert_eq!(
                now.get(path).map(unprotected),
                Some(unprotected(before)),
                "{when}: {}",
                path.display()
            );
        }
        let now = files(&self.guests.second());
        for (path, before) in &self.second {
            assert_eq!(
                now.get(path).map(unprotected),
                Some(unprotected(before)),
                "{when}: {}",
                path.display()
            );
        }
    }

    /// What must hold when the next run is over: all as it was, shared and protected, and nothing of ours left.
    fn all_is_as_before(&self, when: &str) {
        assert_eq!(litter(&self.guests.first()), Vec::<PathBuf>::new(), "{when}");
        let now = files(&self.guests.second());
        assert!(self.second == now, "{when}: the other guest has changed");
        for name in &self.names {
            let name = name.trim_start_matches('/');
            let shared = same_inode(&self.guests.first().join(name), &self.guests.second().join(name));
            assert!(shared, "{when}: /{name} is not shared again");
        }
    }
}

fn killed_everywhere(kind: &str) {
    let test = Interrupted::new(kind);
    let (first, _) = test.traced("apt-pre", None);
    test.hook("apt-post");
    let (later, _) = test.traced("apt-pre", None);
    test.hook("apt-post");
    let at_begin = |call: &str, nth: usize| {
        let when = format!("{kind}, apt-pre killed at {call} {nth}");
        let run = test.traced("apt-pre", Some((call, nth)));
        test.nothing_is_lost(&when);
        test.hook("apt-pre");
        test.nothing_is_lost(&when);
        test.hook("apt-post");
        test.all_is_as_before(&when);
        run
    };
    let mut killed = killed_at_each(&later, at_begin);
    killed += killed_at_each(&beyond(first, &later), |call, nth| {
        fs::remove_dir_all(test.guests.first().join("var/lib/cow-hooks")).unwrap();
        at_begin(call, nth)
    });
    test.hook("apt-pre");
    let (calls, _) = test.traced("apt-post", None);
    killed += killed_at_each(&calls, |call, nth| {
        let when = format!("{kind}, apt-post killed at {call} {nth}");
        test.hook("apt-pre");
        let run = test.traced("apt-post", Some((call, nth)));
        test.nothing_is_lost(&when);
        let recovered = test.guests.program("cow-prepare").arg("--recover").output().unwrap();
        assert!(recovered.status.success(), "{when}: {}", text(&recovered));
        test.hook("apt-post");
        test.all_is_as_before(&when);
        run
    });
    assert!(killed > 50, "only {killed} kills");
    eprintln!("{kind}: {killed} kills");
}

#[test]
#[ignore = "needs root"]
fn privileged_a_hook_killed_at_any_call_loses_nothing_on_ext4() {
    killed_everywhere(FILESYSTEMS[0]);
}

#[test]
#[ignore = "needs root"]
fn privileged_a_hook_killed_at_any_call_loses_nothing_on_xfs() {
    killed_everywhere(FILESYSTEMS[1]);
}

#[test]
#[ignore = "needs root"]
fn privileged_a_hook_killed_at_any_call_loses_nothing_on_btrfs() {
    killed_everywhere(FILESYSTEMS[2]);
}

/// The names of one file, all in one directory: one thread changes them, one after the other.
const NAMES: [&str; 3] = ["usr/bin/file-0", "usr/bin/second", "usr/bin/third"];

/// Gives the first guest the shared file under all its names again.
fn share_again(guests: &Guests) {
    let object = guests.pool().join(NAMES[0].replace('/', "%"));
    set_immutable(&object, false);
    for name in NAMES.map(|name| guests.first().join(name)) {
        if name.exists() {
            fs::remove_file(&name).unwrap();
        }
        fs::hard_link(&object, name).unwrap();
    }
    set_immutable(&object, true);
}

#[test]
#[ignore = "needs root"]
fn privileged_names_of_one_file_have_one_copy_after_a_kill_between_them() {
    let guests = Guests::new("ext4", 1, false);
    let private =
        || NAMES.map(|name| !same_inode(&guests.first().join(name), &guests.second().join(NAMES[0])));
    let (mut killed, mut apart) = (0, Vec::new());
    for nth in 1.. {
        share_again(&guests);
        let mut prepare = guests.program("cow-prepare");
        let (_, died) = traced(prepare.arg("/usr"), b"", Some(("renameat", nth)));
        if !died {
            break;
        }
        killed += 1;
        let between = private();
        let recovered = guests.program("cow-prepare").arg("--recover").output().unwrap();
        assert!(recovered.status.success(), "renameat {nth}: {}", text(&recovered));
        let names = NAMES.map(|name| guests.first().join(name));
        let is_one = names.iter().all(|name| same_inode(name, &names[0]));
        assert!(is_one, "renameat {nth}: private when killed {between:?}, then {:?}", private());
        assert_eq!(litter(&guests.first()), Vec::<PathBuf>::new(), "renameat {nth}");
        // A copy that a process may have used stays.
        assert_eq!(private(), [between[0]; 3], "renameat {nth}");
        apart.push(between.iter().filter(|private| **private).count());
    }
    eprintln!("{killed} kills, with so many private names: {apart:?}");
    assert!(apart.contains(&1) && apart.contains(&2), "{killed} kills, none between the names: {apart:?}");
}

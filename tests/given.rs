//! What a command line names: guests, what is none, and the pool they belong to.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::support::farm::Farm;
use crate::support::{inode, run, same_inode, text};

/// Makes two files what the guests' packages own, and all they own.
fn own(farm: &Farm, guests: &[&str]) {
    for guest in guests {
        let status = "Package: x\nStatus: install ok installed\nArchitecture: all\nVersion: 1\nMaintainer: x\nDescription: x\n\n";
        farm.write(&format!("{guest}/var/lib/dpkg/status"), status);
        farm.write(&format!("{guest}/var/lib/dpkg/info/x.list"), "/usr/bin/tool\n/usr/bin/more\n");
    }
}

#[test]
#[ignore = "needs root"]
fn privileged_what_is_no_guest_is_passed_over_and_a_guest_that_is_gone_is_its_own_failure() {
    let farm = Farm::new("ext4");
    let (a, b) = farm.both("usr/bin/tool", "equal");
    own(&farm, &["g1", "g2"]);
    farm.write("README", "no guest");
    farm.write("backup/guests.tar", "no guest either");
    fs::create_dir(farm.path("empty")).unwrap();
    run(Command::new("mkfifo").arg(farm.path("fifo")));
    // As the shell expands `*`.
    let mut all: Vec<String> = fs::read_dir(farm.filesystem.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    all.sort();
    let all: Vec<&str> = all.iter().map(String::as_str).collect();
    assert!(all.contains(&"lost+found"));
    let said = farm.exits(0, &[&["--pool", "pool"], &all[..]].concat());
    assert!(said.contains("2 guests, ") && said.contains("5 paths skipped that are not guests"), "{said}");
    assert!(same_inode(&a, &b), "{said}");
    // The pool may be among them by now.
    let all = [&["--pool", "pool", "pool"], &all[..]].concat();
    for words in [&[][..], &["--changed"], &["-n"], &["status"], &["verify"]] {
        let words = [words, &["-v"], &all[..]].concat();
        let (code, said) = farm.ran(&words);
        // All directories that are not empty are guests for those that only look.
        assert_eq!(code, 0, "{words:?}: {said}");
        for line in [
            "README: not a guest: not a directory",
            "lost+found: not a guest: ",
            "empty: not a guest: ",
            "pool: not a guest: a pool",
        ] {
            assert!(said.contains(line), "{words:?}: {said}");
        }
    }

    symlink("nowhere", farm.path("old")).unwrap();
    let (c, d) = farm.both("usr/bin/more", "new");
    for words in [&[][..], &["--changed"], &["status"], &["verify"]] {
        let words = [words, &["-v", "old", "gone"], &all[..]].concat();
        let said = farm.exits(1, &words);
        assert!(said.contains("gone: ") && said.contains("old: ") && said.contains("No such file"), "{said}");
        assert!(same_inode(&c, &d), "{words:?}: {said}");
    }
    for words in [&["gone"][..], &["README"], &["lost+found", "empty", "fifo"]] {
        let said = farm.exits(3, &[&["--pool", "another"], words].concat());
        assert!(!farm.path("another").exists(), "{words:?}: {said}");
    }
}

#[test]
#[ignore = "needs root"]
fn privileged_guests_find_their_pool_in_any_order_and_company() {
    let farm = Farm::new("ext4");
    let all = ["a/g1", "b/g2", "b/g3", "c/g0"];
    let write = |name: &str| all.map(|guest| farm.write(&format!("{guest}/usr/bin/{name}"), name));
    write("first");
    let unify = |guests: &[&str]| {
        let said = farm.exits(0, &[&["--scope", "all"], guests].concat());
        let pools: Vec<bool> = ["a", "b", "c"].map(|dir| farm.path(dir).join(".cow-pool").exists()).to_vec();
        assert_eq!(pools, [true, false, false], "{guests:?}: {said}");
    };
    unify(&["a/g1", "b/g2"]);
    unify(&["b/g2", "a/g1"]);
    unify(&["c/g0", "b/g2", "a/g1"]);
    // Nobody is beside it.
    unify(&["b/g3", "b/g2"]);
    // What it remembers may be lost: a guest with hooks was told.
    fs::create_dir_all(farm.path("b/g2/var/lib/cow-hooks")).unwrap();
    unify(&["b/g2", "c/g0"]);
    for suffix in ["", "-wal", "-shm"] {
        let _ = fs::remove_file(farm.path(&format!("a/.cow-pool/cache.db{suffix}")));
    }
    let names = write("later");
    unify(&["c/g0", "b/g2"]);
    assert!(same_inode(&names[1], &names[3]));
    let (code, said) = farm.ran(&["status", "c/g0", "b/g3"]);
    assert!(code == 0 && said.contains("/c/g0"), "{said}");

    // Others make their own.
    farm.write("d/g4/usr/bin/first", "first");
    farm.write("d/g5/usr/bin/first", "first");
    let (code, said) = farm.ran(&["--scope", "all", "d/g4", "d/g5"]);
    assert!(code == 0 && farm.path("d/.cow-pool").exists(), "{said}");
    // Between two pools the number of their guests decides, not the order.
    for guests in [["d/g4", "a/g1", "b/g2"], ["b/g2", "a/g1", "d/g4"]] {
        let said = farm.exits(0, &[&["--scope", "all"], &guests[..]].concat());
        assert!(said.contains("d/.cow-pool: these guests also share files with this pool"), "{said}");
        assert!(said.contains("1 immutable, and shared by another pool"), "{said}");
        assert!(!said.contains("administrator"), "{said}");
    }
}

#[test]
#[ignore = "needs root"]
fn privileged_a_pool_that_is_refused_is_not_made() {
    let farm = Farm::new("ext4");
    farm.both("usr/bin/tool", "equal");
    let listing = || {
        let names = |dir: &str| fs::read_dir(farm.path(dir)).unwrap().map(|entry| entry.unwrap().file_name());
        let mut all: Vec<_> = [".", "g1", "g1/usr", "g2"].iter().flat_map(|dir| names(dir)).collect();
        all.sort();
        all
    };
    fs::create_dir(farm.path("bound")).unwrap();
    symlink("g1/usr/pool", farm.path("dangling")).unwrap();
    symlink("g1/usr", farm.path("into")).unwrap();
    run(Command::new("mount").arg("--bind").arg(farm.path("g1/usr")).arg(farm.path("bound")));
    let before = listing();
    for (code, words) in [
        (3, &["--share", "reflink"][..]),
        (3, &["--protection", "iunlink"]),
        (3, &["--pool", "g1/pool"]),
        (3, &["--pool", "into/pool"]),
        (3, &["--pool", "g2/../into/pool"]),
        (3, &["--pool", "bound/pool", "--share", "reflink"]),
        (3, &["--pool", "bound/pool"]),
        (3, &["--pool", "dangling"]),
        (2, &["--reference", "g2/usr"]),
        (3, &["--pool", "no/such/directory"]),
    ] {
        let said = farm.exits(code, &[&["--scope", "all", "g1", "g2"], words].concat());
        assert_eq!(listing(), before, "{words:?}: {said}");
    }
    let command = format!("exec {} --scope all g1 g2", env!("CARGO_BIN_EXE_cow-unify"));
    let output = Command::new("capsh")
        .args(["--drop=cap_linux_immutable", "--", "-c", &command])
        .current_dir(farm.filesystem.path())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert_eq!((output.status.code(), listing()), (Some(3), before), "{}", text(&output));
    run(Command::new("umount").arg(farm.path("bound")));
}

#[test]
#[ignore = "needs root"]
fn privileged_files_of_another_pool_are_told_from_the_administrators() {
    let farm = Farm::new("ext4");
    farm.both("usr/bin/tool", "equal");
    let own = farm.write("g1/usr/bin/own", "the administrator's");
    fs::hard_link(&own, farm.path("g1/usr/bin/own2")).unwrap();
    crate::support::set_immutable(&own, true);
    farm.unify(&["--pool", "p1"]);
    let report = farm.unify(&["--pool", "p2", "-v"]);
    assert_eq!(
        (&report["left"]["other_pool"], &report["left"]["protected"]),
        (&2.into(), &2.into()),
        "{report}"
    );
    let named = report["left_names"].as_array().unwrap();
    assert_eq!(named.iter().filter(|name| name["reason"] == "other_pool").count(), 2, "{report}");
    assert!(inode(&own).immutable && Path::new(&own).exists());
    crate::support::set_immutable(&own, false);
}

//! Protection that was lost is noticed, given back, and what may have changed without it is read again.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};

use crate::support::farm::Farm;
use crate::support::strace::{killed_at_each, traced};
use crate::support::{inode, same_inode, set_immutable, set_mtime, text};

const NAMES: [&str; 6] = ["usr/bin/a", "usr/bin/b", "usr/bin/c", "usr/bin/d", "usr/bin/e", "usr/bin/f"];

fn content(name: &str) -> String {
    format!("content of {name}\n").repeat(100)
}

/// Writes one of the files, `b` with a group and rights of its own.
fn write(farm: &Farm, guest: &str, name: &str) {
    let path = farm.write(&format!("{guest}/{name}"), content(name));
    if name == "usr/bin/b" {
        chown(&path, Some(0), Some(1000)).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o2755)).unwrap();
    }
}

/// Two guests that share all files, in a pool made with these options.
fn farm(options: &[&str]) -> Farm {
    let farm = Farm::new("ext4");
    for name in NAMES {
        write(&farm, "g1", name);
        write(&farm, "g2", name);
    }
    farm.unify(&[&["--allow-setid"], options].concat());
    farm
}

/// A writer of a shared file, of the time when nothing was protected.
fn writer(farm: &Farm) -> (PathBuf, fs::File) {
    strip(farm);
    let path = farm.path("g1/usr/bin/a");
    let writer = fs::File::options().append(true).open(&path).unwrap();
    (path, writer)
}

/// As `lxc-destroy` and `chattr -R -i` do.
fn strip(farm: &Farm) {
    for path in [farm.stored("objects"), farm.stored("quarantine")].concat() {
        set_immutable(&path, false);
    }
}

fn assert_protected(farm: &Farm, when: &str) {
    for path in [farm.stored("objects"), farm.stored("quarantine")].concat() {
        assert!(inode(&path).immutable, "{when}: {}", path.display());
    }
}

const PASS: &[&str] = &["--scope", "all", "g1", "g2"];
const CHANGED: &[&str] = &["--changed", "--scope", "all", "g1", "g2"];
const VERIFY: &[&str] = &["verify", "g1", "g2", "--pool", ".cow-pool"];

#[test]
#[ignore = "needs root"]
fn privileged_every_run_finds_lost_protection_sets_it_again_and_says_so() {
    let farm = farm(&[]);
    for words in [PASS, CHANGED, VERIFY] {
        for count in [NAMES.len(), 1] {
            let objects = farm.stored("objects");
            for path in &objects[..count] {
                set_immutable(path, false);
            }
            let status = farm.json(1, &["status", "g1", "g2"]);
            assert_eq!(status["unprotected_objects"], count, "{words:?}: {status}");
            let said = farm.exits(1, words);
            assert!(!said.contains("all intact"), "{words:?}: {said}");
            if words != VERIFY {
                let (noun, their) = if count == 1 { ("object", "its") } else { ("objects", "their") };
                let line = format!("{count} {noun} of the pool had lost {their} protection");
                let lines: Vec<&str> = said.lines().filter(|said| said.contains(&line)).collect();
                assert_eq!(lines.len(), 1, "{words:?}: {said}");
                let example = objects[..count].iter().any(|path| lines[0].contains(path.to_str().unwrap()));
                assert!(example, "{words:?}: {said}");
            }
            assert_protected(&farm, "afterwards");
            // It is over.
            farm.exits(0, words);
            assert_eq!(farm.json(0, &["status", "g1", "g2"])["unprotected_objects"], 0);
        }
    }
}

/// Does to a shared file what can be done to one that is not protected; its time of modification stays.
fn damage(path: &Path, how: &str) {
    let mtime = inode(path).mtime;
    let mode = |mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    match how {
        "content" => fs::write(path, content("usr/bin/A")).unwrap(),
        "mode" => mode(0o755),
        "owner" => chown(path, Some(1), None).unwrap(),
        "truncated" => fs::File::options().write(true).open(path).unwrap().set_len(7).unwrap(),
        other => panic!("{other}"),
    }
    set_mtime(path, mtime);
}

#[test]
#[ignore = "needs root"]
fn privileged_what_changed_without_protection_is_set_aside_or_repaired() {
    let damages =
        [("usr/bin/a", "content"), ("usr/bin/b", "mode"), ("usr/bin/c", "owner"), ("usr/bin/d", "truncated")];
    for words in [PASS, CHANGED] {
        let farm = farm(&[]);
        let before = damages.map(|(name, _)| inode(&farm.path("g2").join(name)));
        strip(&farm);
        for (name, how) in damages {
            damage(&farm.path("g1").join(name), how);
        }
        let said = farm.exits(1, words);
        assert!(said.contains("6 objects of the pool had lost"), "{said}");
        assert!(said.contains(", 4 have changed"), "{said}");
        assert_protected(&farm, "damaged");
        assert_eq!(farm.stored("quarantine").len(), 4, "{said}");
        let set_aside = farm.stored("quarantine");
        for (name, how) in damages {
            let of_guest = farm.path("g2").join(name);
            assert!(set_aside.iter().any(|path| same_inode(path, &of_guest)), "{how}");
        }

        // The quarantine is looked after, too.
        set_immutable(&set_aside[0], false);
        let said = farm.exits(1, words);
        assert!(said.contains("1 object of the pool had lost its protection"), "{said}");
        assert_protected(&farm, "in quarantine");

        // A guest with copies comes.
        for ((name, _), before) in damages.iter().zip(&before) {
            let copy = farm.write(&format!("g3/{name}"), content(name));
            chown(&copy, Some(0), Some(before.gid)).unwrap();
            fs::set_permissions(&copy, fs::Permissions::from_mode(before.mode)).unwrap();
            set_mtime(&copy, before.mtime);
        }
        set_immutable(&set_aside[0], false);
        let said = farm.exits(1, &[words, &["g3", "--allow-setid"]].concat());
        assert!(said.contains("8 files in guests repaired"), "{said}");
        for ((name, how), before) in damages.iter().zip(&before) {
            for guest in ["g1", "g2"] {
                let path = farm.path(guest).join(name);
                let now = inode(&path);
                assert_eq!((now.mode, now.uid, now.gid), (before.mode, before.uid, before.gid), "{how}");
                assert_eq!(fs::read_to_string(&path).unwrap(), content(name), "{how}");
            }
        }
        assert_protected(&farm, "repaired");
        farm.exits(0, &["verify", "g1", "g2", "g3", "--pool", ".cow-pool"]);
    }
}

#[test]
#[ignore = "needs root"]
fn privileged_a_lock_that_a_guest_holds_keeps_no_object_unprotected() {
    let farm = farm(&[]);
    strip(&farm);
    let held = fs::File::open(farm.path("g1/usr/bin/a")).unwrap();
    rustix::fs::flock(&held, rustix::fs::FlockOperation::LockExclusive).unwrap();
    farm.exits(1, CHANGED);
    assert_protected(&farm, "with a lock held");
}

#[test]
#[ignore = "needs root"]
fn privileged_a_writer_from_when_there_was_no_protection_is_waited_for() {
    let farm = farm(&[]);
    let (_, writer) = writer(&farm);
    for words in [PASS, CHANGED, VERIFY] {
        let said = farm.exits(1, words);
        assert!(said.contains("open for writing since it lost its protection"), "{words:?}: {said}");
        assert_protected(&farm, "open for writing");
    }
    drop(writer);
    farm.exits(0, PASS);
}

#[test]
#[ignore = "needs root"]
fn privileged_killed_at_any_call_no_change_without_protection_is_missed() {
    let farm = farm(&[]);
    let lost = || {
        let object = farm.stored("objects").remove(0);
        set_immutable(&object, false);
        damage(&object, "truncated");
    };
    let back = || {
        for damaged in farm.stored("quarantine") {
            set_immutable(&damaged, false);
            fs::remove_file(&damaged).unwrap();
        }
        for name in NAMES {
            for guest in ["g1", "g2"] {
                let path = farm.path(guest).join(name);
                if inode(&path).size == 7 {
                    let _ = fs::remove_file(&path);
                    write(&farm, guest, name);
                }
            }
        }
        farm.unify(&["--allow-setid"]);
        assert_eq!(farm.stored("objects").len(), NAMES.len());
    };
    let program = farm.command(&[CHANGED, &["--jobs", "1"]].concat());
    lost();
    let (mut calls, _) = traced(&program, b"", None);
    // Those of the cache, which is not asked.
    calls.retain(|call, _| !["pwrite64", "fdatasync", "ftruncate"].contains(&call.as_str()));
    back();
    let killed = killed_at_each(&calls, |call, nth| {
        lost();
        let run = traced(&program, b"", Some((call, nth)));
        let when = format!("killed at {call} {nth}");
        let output = farm.command(CHANGED).output().unwrap();
        assert!(matches!(output.status.code(), Some(0 | 1)), "{when}: {}", text(&output));
        assert_protected(&farm, &when);
        assert_eq!(farm.stored("quarantine").len(), 1, "{when}: {}", text(&output));
        let status = farm.json(0, &["status", "g1", "g2"]);
        assert_eq!(status["guests"][0]["damaged"], 1, "{when}: {status}");
        back();
        run
    });
    assert!(killed > 5, "only {killed} kills");
}

#[test]
#[ignore = "needs root"]
fn privileged_a_pool_made_without_protection_is_not_protected_later() {
    let farm = farm(&["--protection", "none"]);
    for words in [PASS, CHANGED, VERIFY, &["--scope", "all", "--protection", "none", "g1", "g2"]] {
        farm.exits(0, words);
        assert!(farm.stored("objects").iter().all(|path| !inode(path).immutable), "{words:?}");
    }
    assert_eq!(farm.json(0, &["status", "g1", "g2"])["unprotected_objects"], 0);
    // Asked for, it covers all.
    farm.exits(0, &["--scope", "all", "--protection", "immutable", "g1", "g2"]);
    assert_protected(&farm, "asked for");
    strip(&farm);
    farm.exits(1, PASS);
    let said = farm.exits(2, &["--protection", "none", "g1", "g2"]);
    assert!(said.contains("--protection immutable"), "{said}");
}

#[test]
#[ignore = "needs root"]
fn privileged_listed_files_that_are_unified_already_are_the_pools() {
    let farm = farm(&[]);
    let own = farm.write("g1/usr/bin/own", "mine");
    set_immutable(&own, true);
    let list =
        [&NAMES[..], &["usr/bin/own"]].concat().iter().map(|name| format!("/{name}\0")).collect::<String>();
    farm.write("g1/var/lib/cow-hooks/spool/changed", list);
    let report = farm.json(0, CHANGED);
    assert_eq!((&report["shared_before"], &report["left"]["protected"]), (&6.into(), &1.into()), "{report}");
    set_immutable(&own, false);
}

#[test]
#[ignore = "needs root"]
fn privileged_a_damaged_file_that_stays_in_use_is_named_and_told_of_by_later_runs() {
    for words in [PASS, CHANGED] {
        let farm = farm(&[]);
        strip(&farm);
        damage(&farm.path("g1/usr/bin/a"), "content");
        let said = farm.exits(1, &[words, &["-v"]].concat());
        for guest in ["g1", "g2"] {
            let line = format!("{guest}/usr/bin/a: damaged, not repaired: no intact copy");
            assert!(said.contains(&line), "{words:?}: {said}");
        }
        assert!(said.contains("remedy: reinstall the packages"), "{words:?}: {said}");
        for words in [words, PASS, &["--dry-run", "--scope", "all", "g1", "g2"], words] {
            let said = farm.exits(1, words);
            let lines = said.lines().filter(|line| line.contains("1 damaged file is still in use")).count();
            assert_eq!(lines, 1, "{words:?}: {said}");
        }
        assert_eq!(farm.json(1, words)["still_seen"], 1);
        // A guest with a copy comes.
        farm.write("g3/usr/bin/a", content("usr/bin/a"));
        farm.exits(1, &["verify", "g1", "g2", "g3", "--pool", ".cow-pool"]);
        farm.exits(0, words);
    }
}

#[test]
#[ignore = "needs root"]
fn privileged_an_object_that_somebody_has_open_for_writing_gets_no_new_names() {
    let farm = farm(&[]);
    let (path, writer) = writer(&farm);
    let third = farm.write("g3/usr/bin/a", content("usr/bin/a"));
    for words in [PASS, CHANGED, PASS] {
        farm.write("g3/var/lib/cow-hooks/spool/changed", "/usr/bin/a\0");
        farm.exits(1, &[words, &["g3"]].concat());
        assert_protected(&farm, "open for writing");
        assert!(!same_inode(&path, &third), "{words:?}");
    }
    // That one alone is to be read again.
    let lists = fs::read_dir(farm.path(".cow-pool/suspects")).unwrap();
    let lists: Vec<String> = lists.map(|list| fs::read_to_string(list.unwrap().path()).unwrap()).collect();
    assert_eq!((lists.len(), lists[0].lines().count()), (1, 1), "{lists:?}");
    drop(writer);
    farm.exits(0, &[PASS, &["g3"]].concat());
    assert!(same_inode(&path, &third));
    assert_eq!(fs::read_dir(farm.path(".cow-pool/suspects")).unwrap().count(), 0);
}

#[test]
#[ignore = "needs root"]
fn privileged_without_room_for_a_list_all_is_protected_and_read_in_the_same_run() {
    for words in [PASS, CHANGED, VERIFY] {
        let farm = farm(&[]);
        strip(&farm);
        damage(&farm.path("g1/usr/bin/a"), "content");
        let ballast = farm.path("ballast");
        let mut file = fs::File::create(&ballast).unwrap();
        for size in [1 << 20, 1 << 12, 1] {
            while file.write_all(&vec![1; size]).and_then(|()| file.sync_data()).is_ok() {}
        }
        drop(file);
        // What is damaged needs room for a journal, perhaps.
        let output = farm.command(words).output().unwrap();
        assert!(
            text(&output).contains("the list of objects to verify cannot be saved"),
            "{words:?}: {}",
            text(&output)
        );
        assert_protected(&farm, "no room");
        assert_eq!(farm.stored("quarantine").len(), 1, "{words:?}: {}", text(&output));
        fs::remove_file(&ballast).unwrap();
        assert!(farm.exits(1, words).contains("still in use"));
    }
}

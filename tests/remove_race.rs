//! A guest is removed while others do something, or until somebody kills cow-unify: nobody else loses anything.

use std::cell::RefCell;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use rustix::fs::{RenameFlags, renameat_with};

use crate::remove::{ASIDE, exists, fill, guest, make_root, removed};
use crate::support::farm::Farm;
use crate::support::strace::{killed_at_each, traced};
use crate::support::{FILESYSTEMS, Seen, assert_same, entries, picture, run, text};

/// Makes `g1` anew, with what `g2` has and files of its own; all that both have is shared.
fn make_again(farm: &Farm, count: usize) {
    for number in 0..count {
        let name = format!("usr/lib/d{}/file-{number}", number % 7);
        farm.write(&format!("g1/{name}"), fs::read(farm.path("g2").join(name)).unwrap());
    }
    farm.write("g1/usr/bin/twin", "content of 0\n".repeat(400));
    farm.write("g1/usr/lib/triplet", "content of 0\n".repeat(400));
    for name in ["var/private", "var/log/a", "var/log/b"] {
        farm.write(&format!("g1/{name}"), name);
    }
    fs::create_dir_all(farm.path("g1/etc")).unwrap();
    farm.unify(&[]);
}

fn killed_everywhere(kind: &str) {
    const SHARED: usize = 6;
    let farm = Farm::of_size(kind, if kind == "ext4" { 96 } else { 512 });
    fill(&farm, SHARED);
    farm.unify(&[]);
    let before = guest(&farm.path("g2"));
    farm.exits(0, &["remove", "g1"]);
    make_again(&farm, SHARED);
    let command = farm.command(&["remove", "--jobs", "1", "g1"]);
    let (calls, _) = traced(&command, b"", None);
    let rounds = killed_at_each(&calls, |call, nth| {
        let when = format!("{kind}, killed at {call} {nth}");
        make_again(&farm, SHARED);
        let whole = entries(&farm.path("g1")).len();
        let run = traced(&command, b"", Some((call, nth)));
        // A guest, whole, or none any more.
        if exists(&farm.path("g1")) {
            assert_eq!(entries(&farm.path("g1")).len(), whole, "{when}");
        }
        // One window is open at most.
        let now = guest(&farm.path("g2"));
        let differ: Vec<_> = before.iter().filter(|(path, seen)| now.get(*path) != Some(seen)).collect();
        assert!(before.len() == now.len() && differ.len() <= 1, "{when}: {differ:?}");
        for (path, (then, id)) in &differ {
            assert_eq!(now[*path], (Seen { immutable: false, ..then.clone() }, *id), "{when}");
        }
        // A pass over all there is makes no guest of it again, and protects what is open.
        if nth.is_multiple_of(2) {
            let pass = text(&farm.command(&["--scope", "all", "-v", "g2", ASIDE]).output().unwrap());
            if exists(&farm.path(ASIDE)) {
                assert!(pass.contains("not a guest: what is left of a guest"), "{when}: {pass}");
            }
        }
        let again = farm.command(&["remove", "g1"]).output().unwrap();
        let (code, said) = (again.status.code().unwrap(), text(&again));
        assert!(!exists(&farm.path("g1")) && !exists(&farm.path(ASIDE)), "{when}: {said}");
        // It had come to its end, or an object was without its flag.
        let expected = if said.contains("No such file") {
            3
        } else {
            i32::from(said.contains("had lost its protection"))
        };
        assert_eq!(code, expected, "{when}: {said}");
        if code != 3 {
            assert_eq!(guest(&farm.path("g2")), before, "{when}: {said}");
        }
        run
    });
    assert_eq!(guest(&farm.path("g2")), before);
    eprintln!("{kind}: {rounds} rounds, one kill each, at {:?}", calls.keys());
}

#[test]
#[ignore = "needs root"]
fn privileged_a_removal_that_was_killed_at_any_call_is_ended_by_the_next() {
    killed_everywhere("ext4");
    if std::env::var_os("COW_TESTS_EVERY_CALL").is_some() {
        FILESYSTEMS[1..].iter().for_each(|kind| killed_everywhere(kind));
    } else {
        eprintln!("skipped: ext4 alone, and some of its calls, without COW_TESTS_EVERY_CALL");
    }
}

#[test]
#[ignore = "needs root"]
fn privileged_who_comes_into_a_guest_at_the_last_moment_keeps_it() {
    let farm = Farm::of_size("ext4", 96);
    fill(&farm, 3);
    farm.unify(&[]);
    let whole = entries(&farm.path("g1"));
    let before = guest(&farm.path("g2"));
    // Between the last look at the guest and its new name.
    let said_of = |come: &dyn Fn()| {
        let mut slow = Command::new("strace");
        slow.args(["-f", "-qq", "-o", "/dev/null", "-e", "trace=renameat2"]);
        slow.args(["-e", "inject=renameat2:delay_enter=1500000"]);
        slow.args([env!("CARGO_BIN_EXE_cow-unify"), "remove", "g1"]);
        slow.current_dir(farm.filesystem.path()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let removing = slow.spawn().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(700));
        come();
        let output = removing.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(3), "{}", text(&output));
        text(&output)
    };
    let inside = RefCell::new(Vec::new());
    let said = said_of(&|| {
        let process = Command::new("sleep").arg("30").current_dir(farm.path("g1/usr")).spawn().unwrap();
        inside.borrow_mut().push(process);
    });
    let mut process = inside.into_inner().remove(0);
    process.kill().unwrap();
    process.wait().unwrap();
    assert!(said.contains("/g1: a process has its root or working directory in this guest: "), "{said}");
    assert!(said.contains(&format!(": {} (sleep)", process.id())), "{said}");

    let point = farm.path("g1/usr/bin");
    let said = said_of(&|| drop(run(Command::new("mount").args(["-t", "tmpfs", "none"]).arg(&point))));
    run(Command::new("umount").arg(&point));
    assert!(said.contains("/g1/usr/bin: something is mounted here"), "{said}");

    assert_eq!(entries(&farm.path("g1")).keys().collect::<Vec<_>>(), whole.keys().collect::<Vec<_>>());
    assert!(!exists(&farm.path(ASIDE)));
    assert_eq!(guest(&farm.path("g2")), before);
    farm.exits(0, &["remove", "g1"]);
}

/// Directories that are swapped with links out of the guest while it is removed lead nowhere.
#[test]
#[ignore = "needs root"]
fn privileged_a_link_that_takes_a_directorys_place_is_not_followed() {
    const SWAPPED: usize = 40;
    let farm = Farm::of_size("ext4", 128);
    make_root(&farm.path("g1"));
    for number in 0..200 {
        farm.write(&format!("outside/{}/kept-{number}", number % 10), "kept\n");
    }
    let outside = picture(&farm.path("outside"));
    let mut swaps = 0;
    for round in 0..10 {
        make_root(&farm.path("g1"));
        for number in 0..SWAPPED {
            for file in 0..20 {
                farm.write(&format!("g1/var/{number}/{}/kept-{file}", file % 10), "");
            }
            symlink(farm.path("outside"), farm.path(&format!("g1/var/link-{number}"))).unwrap();
        }
        let stop = AtomicBool::new(false);
        let open = fs::File::open(farm.path("g1/var")).unwrap();
        swaps += std::thread::scope(|scope| {
            let swapping = scope.spawn(|| {
                let mut swaps = 0_u64;
                while !stop.load(Relaxed) {
                    for number in 0..SWAPPED {
                        let (a, b) = (number.to_string(), format!("link-{number}"));
                        swaps += u64::from(renameat_with(&open, a, &open, b, RenameFlags::EXCHANGE).is_ok());
                    }
                }
                swaps
            });
            let tries = (0..20).take_while(|_| exists(&farm.path("g1")) || exists(&farm.path(ASIDE)));
            tries.for_each(|_| drop(farm.ran(&["remove", "g1"])));
            stop.store(true, Relaxed);
            swapping.join().unwrap()
        });
        assert_same(&outside, &picture(&farm.path("outside")), &format!("round {round}"));
        farm.ran(&["remove", "g1"]);
        assert!(!exists(&farm.path("g1")) && !exists(&farm.path(ASIDE)));
    }
    eprintln!("10 rounds, {swaps} swaps");
    assert!(swaps > 100, "{swaps}");
}

/// Who writes to the files that another guest shares never comes through, while names of theirs are removed.
#[test]
#[ignore = "needs root"]
fn privileged_nobody_can_write_to_what_others_share_while_a_guest_is_removed() {
    let farm = Farm::of_size("ext4", 96);
    fill(&farm, 30);
    farm.unify(&[]);
    let before = guest(&farm.path("g2"));
    let shared: Vec<PathBuf> = before.keys().map(|name| farm.path("g2").join(name)).collect();
    let (mut tries, mut windows) = (0, 0);
    for round in 0..5 {
        if round > 0 {
            make_again(&farm, 30);
        }
        let stop = AtomicBool::new(false);
        tries += std::thread::scope(|scope| {
            let writers: Vec<_> = (0..3)
                .map(|writer| {
                    let (stop, shared) = (&stop, &shared);
                    scope.spawn(move || {
                        let mut tries = 0_u64;
                        for path in shared.iter().cycle().skip(writer * 11) {
                            if stop.load(Relaxed) {
                                break;
                            }
                            let opened = fs::OpenOptions::new().write(true).open(path);
                            assert!(opened.is_err(), "{}", path.display());
                            tries += 1;
                        }
                        tries
                    })
                })
                .collect();
            let report = farm.json(0, &["remove", "g1"]);
            windows += removed(&report)["windows"].as_u64().unwrap();
            stop.store(true, Relaxed);
            writers.into_iter().map(|writer| writer.join().unwrap()).sum::<u64>()
        });
        assert_eq!(guest(&farm.path("g2")), before, "round {round}");
    }
    eprintln!("5 rounds, {windows} windows, {tries} tries to write");
    assert!(windows == 150 && tries > 1000, "{windows} windows, {tries} tries");
}

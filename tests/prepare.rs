//! `cow-prepare` as a person calls it.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

use crate::support::{
    Guests, assert_same, feed, inode, litter, picture, run, same_inode, set_immutable, text,
};

pub fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

pub fn out(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub fn err(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The paths in a list of the JSON result.
pub fn paths(list: &Value) -> Vec<&str> {
    list.as_array().unwrap().iter().map(|entry| entry["path"].as_str().unwrap()).collect()
}

#[test]
#[ignore = "needs root"]
fn privileged_a_directory_is_made_private_once() {
    let guests = Guests::new("ext4", 20, true);
    let output = guests.prepare(&["/usr/bin"]);
    assert_eq!(code(&output), 0, "{}", text(&output));
    assert_eq!(out(&output), "10 files looked at, 10 made private (13 KiB copied)\n");
    assert_eq!(err(&output), "");
    for number in 0..20 {
        let dir = if number % 2 == 0 { "usr/bin" } else { "usr/share/doc" };
        let path = format!("{dir}/file-{number}");
        assert_eq!(guests.shared(&path), number % 2 == 1, "{path}");
        assert!(inode(&guests.second().join(&path)).immutable, "{path}");
    }
    assert_eq!(guests.spool().len(), 10);
    assert!(guests.spool().contains(&"/usr/bin/file-18".to_owned()));
    assert_eq!(litter(&guests.first()), Vec::<&Path>::new());
    let again = guests.prepare(&["/usr/bin"]);
    assert_eq!(
        (code(&again), out(&again).as_str()),
        (0, "10 files looked at, 0 made private (0 B copied)\n")
    );
}

#[test]
#[ignore = "needs root"]
fn privileged_a_dry_run_changes_nothing() {
    let guests = Guests::new("ext4", 4, true);
    let before = picture(&guests.first());
    let output = guests.prepare(&["-n", "/usr/bin"]);
    assert_eq!(code(&output), 0, "{}", text(&output));
    assert_eq!(
        out(&output),
        "/usr/bin/file-0\n/usr/bin/file-2\n2 files looked at, 2 would be made private (2.5 KiB to copy)\n"
    );
    let json = guests.prepared(&["--dry-run", "/usr/bin"]);
    assert_eq!((&json["dry_run"], json["detached"].as_array().unwrap().len()), (&Value::Bool(true), 2));
    assert_eq!(out(&guests.prepare(&["-nq", "/usr/bin"])), "");
    assert_same(&before, &picture(&guests.first()), "dry run");
    assert!(!guests.first().join("var/lib/cow-hooks").exists());
}

#[test]
#[ignore = "needs root"]
fn privileged_nonsense_is_told_from_trouble() {
    let guests = Guests::new("ext4", 2, true);
    let before = picture(&guests.first());
    for arguments in [
        &[][..],
        &["--no-such-option", "/usr"],
        &["-0", "/usr"],
        &["-q", "-v", "/usr"],
        &["--recover", "--dry-run"],
        &["--recover", "/usr"],
    ] {
        let output = guests.prepare(arguments);
        assert_eq!(code(&output), 2, "{arguments:?}: {}", text(&output));
        assert!(out(&output).is_empty() && !err(&output).is_empty(), "{}", text(&output));
    }
    for root in ["/nowhere", "/usr/bin/file-0"] {
        let output = guests.prepare(&["--root", root, "/usr"]);
        assert_eq!(code(&output), 3, "{root}: {}", text(&output));
        assert!(out(&output).is_empty() && !err(&output).is_empty(), "{}", text(&output));
        assert!(!err(&output).contains("os error"), "{}", text(&output));
    }
    for arguments in [["--help"], ["--version"]] {
        let output = guests.prepare(&arguments);
        assert_eq!((code(&output), err(&output).as_str()), (0, ""), "{}", text(&output));
    }
    assert_same(&before, &picture(&guests.first()), "nonsense");

    guests.policy("mode = 'warn'\nprotecton = 'none'\n");
    let output = guests.prepare(&["/usr"]);
    assert_eq!(code(&output), 2);
    assert!(
        err(&output).starts_with(
            "cow-prepare: error: /etc/cow-hooks/cow-hooks.toml, line 2: unknown key `protecton`, expected one of"
        ),
        "{}",
        err(&output)
    );
    assert!(guests.shared("usr/bin/file-0"));
}

#[test]
#[ignore = "needs root"]
fn privileged_quiet_and_verbose_say_as_much_as_they_should() {
    let guests = Guests::new("ext4", 8, true);
    set_immutable(&guests.write("usr/bin/own", "x"), true);
    let quiet = guests.prepare(&["-q", "/usr/bin/file-0"]);
    assert_eq!((code(&quiet), text(&quiet).as_str()), (0, ""));
    let missing = guests.prepare(&["-qq", "/missing"]);
    assert_eq!((code(&missing), out(&missing).as_str()), (1, ""));
    assert!(err(&missing).contains("/missing: No such file or directory\n"));
    let verbose = guests.prepare(&["-v", "/usr/bin"]);
    assert_eq!(
        out(&verbose),
        "/usr/bin/file-2\n/usr/bin/file-4\n/usr/bin/file-6\n\
         /usr/bin/own: left as it is: immutable but not shared: protected by the administrator\n\
         5 files looked at, 3 made private (3.8 KiB copied), 1 left as it is\n"
    );
    let recovered = guests.prepare(&["--recover"]);
    assert_eq!((code(&recovered), text(&recovered).as_str()), (0, "nothing to recover\n"));
    assert_eq!(text(&guests.prepare(&["--recover", "-q"])), "");
    let json = guests.prepared(&["--recover"]);
    assert_eq!((&json["done"], &json["failed"]), (&Value::from(0), &serde_json::json!([])));
}

#[test]
#[ignore = "needs root"]
fn privileged_progress_is_for_terminals() {
    let guests = Guests::new("ext4", 400, true);
    let plain = guests.prepare(&["/usr/share"]);
    assert_eq!((code(&plain), err(&plain).as_str()), (0, ""));
    assert!(!out(&plain).contains("making private"));
    let line = format!("chroot {} /cow-prepare /usr/bin", guests.first().display());
    let shown = run(Command::new("script").args(["-qec", &line, "/dev/null"]));
    assert!(out(&shown).contains("making private ["), "{}", out(&shown));
    let last = out(&shown);
    assert!(last.ends_with("200 files looked at, 200 made private (288 KiB copied)\r\n"), "{last:?}");
    let silent = run(Command::new("script").args(["-qec", &format!("{line} -q"), "/dev/null"]));
    assert_eq!(out(&silent), "");
}

#[test]
#[ignore = "needs root"]
fn privileged_the_policy_says_what_unified_is_and_what_is_left() {
    let guests = Guests::new("ext4", 8, false);
    guests.policy("protection = 'immutable'\nnever_touch = ['/usr/share']");
    let json = guests.prepared(&["/usr/bin"]);
    assert_eq!(json["detached"].as_array().unwrap().len(), 0);
    assert_eq!(json["left"][0]["verdict"], "unprotected_links");
    guests.policy("protection = 'none'\nnever_touch = ['/usr/share']");
    let json = guests.prepared(&["/usr"]);
    assert_eq!(json["detached"].as_array().unwrap().len(), 4, "{json}");
    assert_eq!(json["left"].as_array().unwrap().len(), 4);
    assert_eq!(json["left"][0]["verdict"], "never_touch");
    assert!(guests.shared("usr/share/doc/file-1") && !guests.shared("usr/bin/file-0"));
    assert!(!inode(&guests.second().join("usr/bin/file-0")).immutable);
}

#[test]
#[ignore = "needs root"]
fn privileged_a_lost_ledger_does_not_stop_anybody() {
    for content in [None, Some("no database at all, but some text that is long enough")] {
        let guests = Guests::new("ext4", 6, true);
        guests.own("pkg", &(0..6).step_by(2).map(|n| format!("/usr/bin/file-{n}")).collect::<Vec<_>>());
        let hook = feed(guests.program("cow-dpkg").arg("apt-pre"), crate::support::removal("pkg").as_bytes());
        assert_eq!(code(&hook), 0, "{}", text(&hook));
        let state = guests.first().join("var/lib/cow-hooks");
        assert_eq!(fs::read_dir(state.join("stash")).unwrap().count(), 3, "{}", text(&hook));
        for name in ["ledger.db", "ledger.db-wal", "ledger.db-shm"] {
            let _ = fs::remove_file(state.join(name));
        }
        if let Some(content) = content {
            fs::write(state.join("ledger.db"), content).unwrap();
        }
        let output = guests.prepare(&["/usr/share/doc"]);
        assert_eq!(code(&output), 0, "{}", text(&output));
        assert!(!guests.shared("usr/share/doc/file-1"));
        assert_eq!(litter(&guests.first()), Vec::<&Path>::new());
        for number in 0..6 {
            let object = guests.pool().join(if number % 2 == 0 {
                format!("usr%bin%file-{number}")
            } else {
                format!("usr%share%doc%file-{number}")
            });
            let object = inode(&object);
            assert!(object.immutable && object.nlink == 2, "{number}: {object:?}");
        }
    }
}

#[test]
#[ignore = "needs root"]
fn privileged_our_own_files_are_for_root_alone() {
    let guests = Guests::new("ext4", 2, true);
    assert_eq!(code(&guests.prepare(&["/usr"])), 0);
    let top = fs::metadata(guests.first().join("var/lib/cow-hooks")).unwrap();
    assert_eq!((top.permissions().mode() & 0o7777, top.uid()), (0o700, 0));
}

#[test]
#[ignore = "needs root"]
fn privileged_equal_files_that_nobody_asked_for_stay_unified() {
    let guests = Guests::new("ext4", 0, false);
    let (first, object) = (guests.first(), guests.pool().join("object"));
    fs::write(&object, "equal").unwrap();
    // `b` is a hard link of `a`; the others are equal files.
    for name in ["usr/bin/a", "usr/share/doc/b", "usr/bin/c", "usr/share/doc/d"] {
        fs::hard_link(&object, first.join(name)).unwrap();
    }
    fs::hard_link(&object, guests.second().join("usr/bin/a")).unwrap();
    guests.protect();
    guests.write("var/lib/cow-hooks/links", "/usr/bin/a\0/usr/share/doc/b\0\0");
    let said = out(&guests.prepare(&["-n", "/usr/bin"]));
    assert!(
        said.ends_with(
            "\n2 files looked at, 3 would be made private (15 B to copy), 1 of them another hard link of the files given\n"
        ),
        "{said}"
    );
    let report = guests.prepared(&["/usr/bin"]);
    assert_eq!(paths(&report["detached"]), ["/usr/bin/a", "/usr/bin/c", "/usr/share/doc/b"]);
    assert_eq!(report["hard_links"], 1);
    assert!(same_inode(&first.join("usr/bin/a"), &first.join("usr/share/doc/b")));
    assert!(!same_inode(&first.join("usr/bin/a"), &first.join("usr/bin/c")));
    assert!(same_inode(&first.join("usr/share/doc/d"), &object) && inode(&object).immutable);
    // Its name alone is left in this guest, and still one that others share.
    let shown = guests.program("cow-status").args(["--json", "/usr/share/doc/d"]).output().unwrap();
    assert!(text(&shown).contains(r#""verdict":"unified""#), "{}", text(&shown));
}

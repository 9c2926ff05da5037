//! `cow-prepare` as a person calls it.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

use crate::support::{
    Filesystem, Guests, assert_same, chroot, feed, inode, install, litter, picture, run, same_inode,
    set_immutable, text,
};

fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

fn out(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn err(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The paths in a list of the JSON result.
fn paths(list: &Value) -> Vec<&str> {
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
fn privileged_each_kind_of_path_is_treated_as_what_it_is() {
    let guests = Guests::new("ext4", 12, true);
    let first = guests.first();
    // A link is followed inside the guest: a writer hits what it leads to.
    symlink("../share/doc/file-1", first.join("usr/bin/relative")).unwrap();
    symlink("/usr/share/doc/file-3", first.join("etc/absolute")).unwrap();
    symlink("/nowhere", first.join("etc/dangling")).unwrap();
    symlink("circle", first.join("etc/circle")).unwrap();
    for (path, target) in [
        ("/usr/bin/file-0", "usr/bin/file-0"),
        ("/bin/relative", "usr/share/doc/file-1"),
        ("/etc/absolute", "usr/share/doc/file-3"),
    ] {
        assert!(guests.shared(target), "{target}");
        let output = guests.prepare(&[path]);
        assert_eq!((code(&output), guests.shared(target)), (0, false), "{path}: {}", text(&output));
    }
    assert!(fs::symlink_metadata(first.join("usr/bin/relative")).unwrap().is_symlink());

    // What is missing is named, and the rest is done.
    for missing in ["/etc/missing", "/missing/at/all", "/etc/dangling", "/etc/circle", "/usr/bin/file-2/x"] {
        let output = guests.prepare(&[missing, "/usr/bin/file-0"]);
        let expected = format!("cow-prepare: error: {missing}: ");
        assert_eq!(code(&output), 1, "{}", text(&output));
        assert!(
            err(&output).starts_with(&expected) && !err(&output).contains("os error"),
            "{}",
            err(&output)
        );
        assert!(out(&output).ends_with(", 1 failed\n"), "{}", out(&output));
    }

    // What is not a regular file is left, and said to be.
    run(Command::new("mkfifo").arg(first.join("tmp/fifo")));
    let output = guests.prepare(&["/tmp/fifo"]);
    assert_eq!(code(&output), 0);
    assert_eq!(
        out(&output),
        "/tmp/fifo: left: not a regular file (FIFO)\n1 files looked at, 0 made private (0 B copied), 1 left as they are\n"
    );

    // The administrator's own is left, and stays protected.
    let own = guests.write("etc/resolv.conf", "x");
    set_immutable(&own, true);
    let before = inode(&own);
    let output = guests.prepare(&["/etc/resolv.conf"]);
    assert_eq!(code(&output), 0);
    assert!(
        out(&output)
            .starts_with("/etc/resolv.conf: left: immutable and not shared: the administrator's own\n"),
        "{}",
        out(&output)
    );
    assert_eq!(inode(&own), before);
    let found = guests.prepared(&["/etc"]);
    assert_eq!(found["left"][0]["verdict"], "administrators_own");

    // `..` ends where it leads, not at the root.
    let output = guests.prepare(&["/usr/share/doc/.."]);
    assert_eq!(code(&output), 0, "{}", text(&output));
    assert!(!guests.shared("usr/share/doc/file-5") && guests.shared("usr/bin/file-4"), "{}", text(&output));
    symlink("..", first.join("usr/share/up")).unwrap();
    let output = guests.prepare(&["/usr/share/up/bin/../bin/file-4"]);
    assert_eq!((code(&output), guests.shared("usr/bin/file-4")), (0, false), "{}", text(&output));
    assert!(guests.shared("usr/bin/file-6"));
    let output = guests.prepare(&["/"]);
    assert_eq!((code(&output), guests.shared("usr/bin/file-6")), (0, false), "{}", text(&output));
}

#[test]
#[ignore = "needs root"]
fn privileged_lists_of_names_may_hold_anything() {
    let guests = Guests::new("ext4", 4, false);
    let odd: [&[u8]; 4] = [b"with space", b"with\nnewline", b"caf\xe9", "größe".as_bytes()];
    for name in odd {
        let object = guests.pool().join(OsStr::from_bytes(name));
        fs::write(&object, name).unwrap();
        for guest in [guests.first(), guests.second()] {
            fs::hard_link(&object, guest.join("etc").join(OsStr::from_bytes(name))).unwrap();
        }
    }
    guests.protect();
    let read = |arguments: &[&str], input: &[u8]| {
        feed(guests.program("cow-prepare").args(["--json", "--files-from", "-"]).args(arguments), input)
    };
    let output = read(&[], b"/usr/bin/file-0\n\n/etc/with space\n/usr/bin/file-2");
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(paths(&json["detached"]), ["/etc/with space", "/usr/bin/file-0", "/usr/bin/file-2"]);

    let output = read(&["-0"], b"/etc/with\nnewline\0/etc/caf\xe9\0etc/missing\xff\0");
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(code(&output), 1);
    assert_eq!(paths(&json["detached"]), ["/etc/caf\u{fffd}", "/etc/with\nnewline"]);
    assert_eq!(json["detached"][0]["path_bytes"], serde_json::json!(b"/etc/caf\xe9"));
    assert!(json["detached"][1].get("path_bytes").is_none());
    assert_eq!(json["failed"][0]["path"], "/etc/missing\u{fffd}");
    assert_eq!(json["failed"][0]["reason"], "No such file or directory");
    assert_eq!((&json["looked_at"], &json["bytes_copied"]), (&Value::from(2), &Value::from(16)));
    assert_eq!((&json["dry_run"], &json["recovered"]), (&Value::Bool(false), &Value::from(0)));
    // A terminal is shown no byte that could mislead it.
    assert!(err(&output).contains("/etc/missing\\xff: "), "{}", err(&output));

    guests.write("list", "/etc/größe\n");
    let output = guests.prepare(&["-v", "--files-from", "/list", "/usr/share/doc/file-1"]);
    assert_eq!(
        (code(&output), out(&output).as_str()),
        (0, "/etc/größe\n/usr/share/doc/file-1\n2 files looked at, 2 made private (1.3 KiB copied)\n")
    );
    assert_eq!(code(&read(&[], b"")), 0);
    assert_eq!(code(&guests.prepare(&["--files-from", "/nowhere"])), 2);
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
        &["--root", "/nowhere", "/usr"],
        &["--root", "/usr/bin/file-0", "/usr"],
    ] {
        let output = guests.prepare(arguments);
        assert_eq!(code(&output), 2, "{arguments:?}: {}", text(&output));
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
         /usr/bin/own: left: immutable and not shared: the administrator's own\n\
         5 files looked at, 3 made private (3.8 KiB copied), 1 left as they are\n"
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
fn privileged_another_filesystem_is_another_matter() {
    let guests = Guests::new("xfs", 4, true);
    for dir in ["usr/other", "usr/tmp", "usr/bound"] {
        fs::create_dir(guests.first().join(dir)).unwrap();
    }
    let other = Filesystem::at("ext4", 64, &guests.first().join("usr/other"));
    fs::write(other.path().join("a"), "x").unwrap();
    fs::hard_link(other.path().join("a"), other.path().join("b")).unwrap();
    fs::create_dir(other.path().join("in")).unwrap();
    fs::hard_link(other.path().join("a"), other.path().join("in/c")).unwrap();
    set_immutable(&other.path().join("a"), true);
    run(Command::new("mount").args(["-t", "tmpfs", "tmpfs"]).arg(guests.first().join("usr/tmp")));
    run(Command::new("mount")
        .arg("--bind")
        .arg(guests.first().join("usr/bin"))
        .arg(guests.first().join("usr/bound")));
    let json = guests.prepared(&["/usr/share", "/usr"]);
    assert_eq!(json["detached"].as_array().unwrap().len(), 4, "{json}");
    let left = paths(&json["left"]);
    for mounted in ["/usr/other", "/usr/tmp", "/usr/bound"] {
        assert!(left.contains(&mounted), "{left:?}");
    }
    assert_eq!(json["left"][0]["verdict"], "other_filesystem");
    assert_eq!(inode(&other.path().join("a")).nlink, 3);
    // Asked for by its own path, it is in.
    let json = guests.prepared(&["/usr/other/in"]);
    assert_eq!(paths(&json["detached"]), ["/usr/other/in/c"]);
    assert!(inode(&other.path().join("a")).immutable);
    assert_eq!(inode(&other.path().join("in/c")).nlink, 1);
    assert!(guests.spool().contains(&"/usr/other/in/c".to_owned()));
    assert_eq!(litter(&guests.first()), Vec::<&Path>::new());
}

#[test]
#[ignore = "needs root"]
fn privileged_a_name_seen_through_two_mounts_is_one_name() {
    let guests = Guests::new("ext4", 2, true);
    let bound = guests.first().join("mnt");
    fs::create_dir(&bound).unwrap();
    run(Command::new("mount").arg("--bind").arg(guests.first().join("usr/bin")).arg(&bound));
    let output = guests.prepare(&["/usr/bin/file-0", "/mnt/file-0"]);
    assert_eq!(code(&output), 0, "{}", text(&output));
    assert!(!guests.shared("usr/bin/file-0"), "{}", text(&output));
    assert!(inode(&guests.second().join("usr/bin/file-0")).immutable);
    assert_eq!(inode(&guests.first().join("usr/bin/file-0")).nlink, 1);
    assert_eq!(litter(&guests.first()), Vec::<&Path>::new());
    run(Command::new("umount").arg("--lazy").arg(&bound));
}

#[test]
#[ignore = "needs root"]
fn privileged_names_of_one_file_stay_names_of_one_file() {
    for kind in ["ext4", "xfs", "btrfs"] {
        let guests = Guests::new(kind, 2, false);
        let first = guests.first();
        for name in ["usr/bin/a", "usr/bin/b", "etc/c"] {
            fs::hard_link(guests.second().join("usr/bin/file-0"), first.join(name)).unwrap();
        }
        guests.protect();
        // Only one of them is named.
        let json = guests.prepared(&["/usr/bin/a"]);
        assert_eq!(
            paths(&json["detached"]),
            ["/etc/c", "/usr/bin/a", "/usr/bin/b", "/usr/bin/file-0"],
            "{kind}: {json}"
        );
        for name in ["usr/bin/b", "etc/c", "usr/bin/file-0"] {
            assert!(same_inode(&first.join(name), &first.join("usr/bin/a")), "{kind} {name}");
        }
        assert_eq!(inode(&first.join("etc/c")).nlink, 4);
        assert_eq!(inode(&guests.second().join("usr/bin/file-0")).nlink, 2);
        assert!(inode(&guests.second().join("usr/bin/file-0")).immutable);
        assert_eq!(json["bytes_copied"].as_u64().unwrap(), if kind == "ext4" { 1300 } else { 0 });
    }
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

/// A host with a guest on it: the first guest, whose root is `/g1` there.
#[test]
#[ignore = "needs root"]
fn privileged_nothing_leads_out_of_a_root_worked_on_from_outside() {
    let guests = Guests::new("ext4", 6, false);
    let (host, first) = (guests.filesystem.path(), guests.first());
    install(host);
    fs::create_dir(host.join("secrets")).unwrap();
    for name in ["secrets/key", "secrets/other"] {
        fs::hard_link(guests.second().join("usr/bin/file-0"), host.join(name)).unwrap();
    }
    guests.protect();
    symlink("/secrets", first.join("absolute")).unwrap();
    symlink("../secrets", first.join("climbing")).unwrap();
    symlink("../../secrets/key", first.join("usr/climbing-file")).unwrap();
    symlink("/secrets/key", first.join("usr/absolute-file")).unwrap();
    symlink("/usr/bin", first.join("inside")).unwrap();
    let secrets = || {
        let about = |name: &str| {
            let inode = inode(&host.join(name));
            (inode.id, inode.nlink, inode.immutable, inode.ctime)
        };
        (about("secrets/key"), about("secrets/other"))
    };
    let before = secrets();
    let work = |arguments: &[&str]| {
        let mut command = chroot(&[], host, "cow-prepare");
        command.args(["--root", "/g1"]).args(arguments).output().unwrap()
    };
    for path in [
        "/absolute/key",
        "/climbing/key",
        "/usr/climbing-file",
        "/usr/absolute-file",
        "/../secrets/key",
        "../secrets/key",
        "/absolute",
    ] {
        let output = work(&[path]);
        assert_eq!(code(&output), 1, "{path}: {}", text(&output));
    }
    assert_eq!(before, secrets());
    // Inside, links lead where they lead for the guest.
    let output = work(&["/inside/file-2", "usr/share/doc"]);
    assert_eq!(code(&output), 0, "{}", text(&output));
    assert!(!guests.shared("usr/bin/file-2") && !guests.shared("usr/share/doc/file-1"));
    assert!(inode(&guests.second().join("usr/bin/file-2")).immutable);

    // The ledger lies with the host, the spool with the guest.
    assert!(host.join("var/lib/cow-hooks/roots/g1/ledger.db").exists());
    assert!(!first.join("var/lib/cow-hooks/ledger.db").exists());
    assert_eq!(guests.spool().len(), 4);
    assert_eq!(litter(&first), Vec::<&Path>::new());

    // Nor do the places of our own.
    fs::rename(first.join("var/lib/cow-hooks"), first.join("var/lib/was")).unwrap();
    symlink("/secrets", first.join("var/lib/cow-hooks")).unwrap();
    let output = work(&["/usr/bin/file-4"]);
    assert_eq!(code(&output), 3, "{}", text(&output));
    assert_eq!(before, secrets());
    assert_eq!(fs::read_dir(host.join("secrets")).unwrap().count(), 2);

    // A guest cannot make its host wait for a pipe, or write into one.
    fs::remove_file(first.join("var/lib/cow-hooks")).unwrap();
    fs::create_dir_all(first.join("var/lib/cow-hooks/spool")).unwrap();
    for name in ["lock", "spool/changed.new"] {
        run(Command::new("mkfifo").arg(first.join("var/lib/cow-hooks").join(name)));
    }
    let mut command = chroot(&["timeout", "20"], host, "cow-prepare");
    let output = command.args(["--root", "/g1", "/usr/bin/file-4"]).output().unwrap();
    assert_eq!((code(&output), guests.shared("usr/bin/file-4")), (0, false), "{}", text(&output));
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
fn privileged_status_counts_what_there_is() {
    let guests = Guests::new("btrfs", 20, true);
    let first = guests.first();
    set_immutable(&guests.write("etc/own", "own"), true);
    guests.write("etc/linked", "12345");
    fs::hard_link(first.join("etc/linked"), first.join("etc/linked-too")).unwrap();
    fs::hard_link(first.join("etc/linked"), first.join("usr/linked-as-well")).unwrap();
    guests.own("pkg", &["/usr/bin/file-0".into(), "/bin/file-2".into(), "/etc/own".into()]);
    assert_eq!(code(&guests.prepare(&["/usr/bin/file-4"])), 0);
    let status = |arguments: &[&str]| {
        let output = guests.program("cow-status").args(arguments).output().unwrap();
        assert_eq!(code(&output), 0, "{}", text(&output));
        out(&output)
    };
    let json: Value = serde_json::from_str(&status(&["--json"])).unwrap();
    let (mut unified, mut private) = ((0, 0), (0, 0));
    let mut seen = std::collections::HashSet::new();
    for (path, inode) in crate::support::entries(&first) {
        let ours = path.starts_with("var/lib/cow-hooks");
        let own = path == Path::new("etc/own");
        if inode.kind != cow_hooks::sys::file::inode::Kind::Regular || own {
            continue;
        }
        let tally = if inode.immutable { &mut unified } else { &mut private };
        assert!(!(ours && inode.immutable));
        tally.0 += 1;
        tally.1 += if seen.insert(inode.id) { inode.size } else { 0 };
    }
    let tree = &json["trees"][0];
    assert_eq!(unified.0, 19);
    assert_eq!(
        (&tree["unified"]["files"], &tree["unified"]["bytes"]),
        (&unified.0.into(), &unified.1.into())
    );
    assert_eq!(
        (&tree["private"]["files"], &tree["private"]["bytes"]),
        (&private.0.into(), &private.1.into())
    );
    assert_eq!(tree["administrators_own"], 1);
    assert_eq!((&json["guest"]["waiting"], &json["guest"]["last"]["detached"]), (&1.into(), &1.into()));
    let shown = status(&[]);
    assert!(shown.contains("\n  unified        19 files, "), "{shown}");
    assert!(shown.contains("\n  transaction    cow-prepare (settled)\n"), "{shown}");
    assert!(status(&["/usr/bin/.."]).starts_with("/usr\n"));

    for (path, lines) in [
        (
            "/bin/file-0",
            &[
                "/usr/bin/file-0",
                "  verdict        unified (immutable)",
                "  protection     immutable",
                "  package        pkg",
                "  next           made private when a package manager is about to change it (copy on write)",
            ][..],
        ),
        ("/usr/bin/file-2", &["  package        pkg"]),
        (
            "/usr/bin/file-4",
            &[
                "  verdict        private",
                "  protection     none",
                "  waiting        for the host to unify it",
                "  next           nothing",
            ],
        ),
        (
            "/usr/bin/file-6",
            &[
                "  package        none",
                "  next           nothing: no package owns it; run `cow-prepare /usr/bin/file-6` before it is written to",
            ],
        ),
        (
            "/etc/own",
            &[
                "  verdict        immutable and not shared: the administrator's own",
                "  next           left as it is: the package manager fails to replace it until it is made mutable (`chattr -i`)",
            ],
        ),
        ("/etc/linked", &["  verdict        private (hard links within this guest)"]),
        ("/bin", &["/bin", "  verdict        not a regular file (symbolic link)"]),
    ] {
        let shown = status(&[path]);
        for line in lines {
            assert!(shown.lines().any(|shown| shown == *line), "{path}: {line:?} is not in {shown}");
        }
    }
    let missing = guests.program("cow-status").arg("/etc/missing").output().unwrap();
    assert_eq!(
        (code(&missing), err(&missing).as_str()),
        (1, "cow-status: error: /etc/missing: No such file or directory\n")
    );
    // It changes nothing, and so works where nothing can be changed.
    guests.filesystem.remount("ro");
    let json: Value = serde_json::from_str(&status(&["--json"])).unwrap();
    assert_eq!((&json["guest"]["waiting"], &json["trees"][0]["unified"]["files"]), (&1.into(), &19.into()));
    guests.filesystem.remount("rw");
}

#[test]
#[ignore = "needs root"]
fn privileged_an_immutable_directory_is_left_to_its_owner() {
    let guests = Guests::new("ext4", 4, true);
    let dir = guests.first().join("usr/bin");
    set_immutable(&dir, true);
    let output = guests.prepare(&["/usr"]);
    set_immutable(&dir, false);
    assert_eq!(code(&output), 1, "{}", text(&output));
    assert!(err(&output).contains("/usr/bin/file-0: Operation not permitted\n"), "{}", err(&output));
    assert!(!guests.shared("usr/share/doc/file-1") && guests.shared("usr/bin/file-0"));
    assert!(inode(&guests.second().join("usr/bin/file-0")).immutable);
    assert_eq!(litter(&guests.first()), Vec::<&Path>::new());
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
            "\n2 files looked at, 3 would be made private (15 B to copy), 1 of them other names of these files\n"
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

//! `cow-prepare` and what paths can be: links, mounts, other names of a file, ways out of the guest.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::prepare::{code, err, out, paths};
use crate::support::{
    Filesystem, Guests, chroot, feed, inode, install, litter, run, same_inode, set_immutable, text,
};

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
        "/tmp/fifo: left as it is: not a regular file (FIFO)\n1 file looked at, 0 made private (0 B copied), 1 left as it is\n"
    );

    // The administrator's own is left, and stays protected.
    let own = guests.write("etc/resolv.conf", "x");
    set_immutable(&own, true);
    let before = inode(&own);
    let output = guests.prepare(&["/etc/resolv.conf"]);
    assert_eq!(code(&output), 0);
    assert!(
        out(&output).starts_with(
            "/etc/resolv.conf: left as it is: immutable but not shared: protected by the administrator\n"
        ),
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
    assert_eq!(code(&guests.prepare(&["--files-from", "/nowhere"])), 3);
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
    let work = || {
        let mut command = chroot(&["timeout", "20"], host, "cow-prepare");
        command.args(["--root", "/g1", "/usr/bin/file-4"]).output().unwrap()
    };
    let output = work();
    assert_eq!((code(&output), guests.shared("usr/bin/file-4")), (3, true), "{}", text(&output));
    assert!(text(&output).contains("remedy: remove /var/lib/cow-hooks/lock"), "{}", text(&output));
    fs::remove_file(first.join("var/lib/cow-hooks/lock")).unwrap();
    let output = work();
    assert_eq!((code(&output), guests.shared("usr/bin/file-4")), (0, false), "{}", text(&output));
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

//! What is equal becomes one inode, whatever differs stays apart, and nothing else changes.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;
use std::process::Command;

use crate::support::farm::Farm;
use crate::support::{
    FILESYSTEMS, assert_same, inode, picture, program, run, same_inode, seen, set_immutable, set_mtime, text,
};
use cow_hooks::sys::file::inode::Time;

#[test]
#[ignore = "needs root"]
fn privileged_equal_files_become_one_protected_inode_and_nothing_else_changes() {
    for kind in FILESYSTEMS {
        let farm = Farm::new(kind);
        let (a, b) = farm.both("usr/bin/tool", vec![7; 300_000]);
        let (c, d) = farm.both("usr/share/other name", "short");
        let (only, _) = (farm.write("g1/usr/bin/only", "alone"), ());
        symlink("tool", farm.path("g1/usr/bin/link")).unwrap();
        for dir in ["g1/usr/bin", "g2/usr/bin", "g2/usr/share"] {
            set_mtime(&farm.path(dir), Time { secs: 1_500_000_000, nanos: 7 });
        }
        let before: Vec<_> = ["g1", "g2"].iter().map(|guest| visible(&farm.path(guest))).collect();

        let report = farm.unify(&[]);
        assert_eq!(report["linked"], 4, "{kind}: {report}");
        assert_eq!(report["objects"], 2);
        assert!(same_inode(&a, &b) && same_inode(&c, &d));
        assert!(inode(&a).immutable && inode(&a).nlink == 3);
        assert_eq!(inode(&only).nlink, 1);
        let after: Vec<_> = ["g1", "g2"].iter().map(|guest| visible(&farm.path(guest))).collect();
        assert_eq!(before, after, "{kind}");
        farm.assert_tidy();

        let again = farm.unify(&[]);
        assert_eq!((&again["linked"], &again["objects"]), (&0.into(), &0.into()));
        // The pool is closed to guests.
        assert_eq!(fs::metadata(farm.path(".cow-pool")).unwrap().mode() & 0o7777, 0o700);
    }
}

#[test]
#[ignore = "needs root"]
fn privileged_a_guest_with_shifted_users_can_take_its_lock_after_the_host() {
    let farm = Farm::new("ext4");
    farm.both("usr/bin/tool", vec![7; 300_000]);
    let state = farm.path("g1/var/lib/cow-hooks");
    fs::create_dir_all(&state).unwrap();
    chown(&state, Some(100_000), Some(100_001)).unwrap();
    assert_eq!(farm.unify(&[])["linked"], 2);
    let owner = |name: &str| fs::metadata(state.join(name)).map(|inode| (inode.uid(), inode.gid())).unwrap();
    assert_eq!((owner("lock"), owner("pool.toml")), ((100_000, 100_001), (100_000, 100_001)));

    // One that was made before is given to the guest; another file of the host's is not.
    farm.both("usr/bin/more", "more");
    chown(state.join("lock"), Some(0), Some(0)).unwrap();
    assert_eq!(farm.unify(&[])["linked"], 2);
    assert_eq!(owner("lock"), (100_000, 100_001));
    farm.both("usr/bin/other", "other");
    fs::write(state.join("lock"), "not a lock").unwrap();
    chown(state.join("lock"), Some(0), Some(0)).unwrap();
    assert_eq!(farm.unify(&[])["linked"], 2);
    assert_eq!(owner("lock"), (0, 0));
}

#[test]
#[ignore = "needs root"]
fn privileged_each_directory_is_listed_once_and_not_again_until_it_changes() {
    for kind in FILESYSTEMS {
        let farm = Farm::new(kind);
        farm.both("usr/bin/tool", vec![7; 300_000]);
        farm.both("usr/share/data", "short");
        let only = farm.write("g1/usr/bin/only", "alone");
        // The entries, and that there are no more.
        let once = BTreeMap::from(
            ["g1/usr", "g1/usr/bin", "g1/usr/share", "g2/usr", "g2/usr/bin", "g2/usr/share"]
                .map(|dir| (dir.to_owned(), 2)),
        );
        assert_eq!(listed(&farm), (4, once), "{kind}");
        assert_eq!(listed(&farm), (0, BTreeMap::new()), "{kind}");

        // What was private then is known without a look at its directory.
        let other = farm.write("g2/usr/share/only", "alone");
        assert_eq!(listed(&farm), (2, BTreeMap::from([("g2/usr/share".to_owned(), 2)])), "{kind}");
        assert!(same_inode(&only, &other));
        assert_eq!(listed(&farm), (0, BTreeMap::new()), "{kind}");
    }
}

/// Unifies all files of both guests: how many names it linked, and how often it asked for entries of each directory but
/// for the guests' roots, which tell that they are guests.
fn listed(farm: &Farm) -> (u64, BTreeMap<String, usize>) {
    let command = farm.command(&["--scope", "all", "--json", "g1", "g2"]);
    let log = tempfile::NamedTempFile::new().unwrap();
    let mut strace = Command::new("strace");
    strace.args(["-f", "-qq", "-y", "-e", "trace=getdents64", "-o"]).arg(log.path());
    strace.arg(command.get_program()).args(command.get_args()).current_dir(farm.filesystem.path());
    let output = strace.output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let mut calls = BTreeMap::new();
    let top = farm.filesystem.path().canonicalize().unwrap();
    for line in fs::read_to_string(log.path()).unwrap().lines() {
        let Some((_, call)) = line.split_once("getdents64(") else { continue };
        let dir = call.split_once('<').and_then(|(_, rest)| rest.split_once('>')).unwrap().0;
        let dir = Path::new(dir).strip_prefix(&top).ok();
        let dir = dir.filter(|dir| !dir.starts_with(".cow-pool") && dir.components().count() > 1);
        if let Some(dir) = dir {
            *calls.entry(dir.to_str().unwrap().to_owned()).or_default() += 1;
        }
    }
    (report["linked"].as_u64().unwrap(), calls)
}

/// What a guest can see of its tree, but for inode numbers, links and protection.
pub fn visible(top: &Path) -> Vec<String> {
    let entries = crate::support::entries(top).into_iter();
    entries
        .map(|(path, inode)| {
            let full = top.join(&path);
            let more = match inode.kind {
                cow_hooks::sys::file::inode::Kind::Regular => {
                    let seen = seen(&full);
                    format!("{:?} {:?}", seen.content.len(), (seen.xattrs, seen.content))
                }
                cow_hooks::sys::file::inode::Kind::Symlink => format!("{:?}", fs::read_link(&full).unwrap()),
                _ => String::new(),
            };
            format!(
                "{path:?} {:?} {:o} {} {} {:?} {more}",
                inode.kind, inode.mode, inode.uid, inode.gid, inode.mtime
            )
        })
        .collect()
}

/// Two files that differ in one thing stay two inodes.
fn stay_apart(what: &str, change: impl Fn(&Path)) {
    let farm = Farm::new("ext4");
    let (a, b) = farm.both("usr/bin/tool", "the same content");
    let (c, d) = farm.both("usr/bin/control", "equal");
    change(&b);
    let before = (seen(&a), seen(&b));
    farm.unify(&["--allow-setid"]);
    assert!(!same_inode(&a, &b), "{what}");
    assert_eq!((seen(&a), seen(&b)), before, "{what}");
    assert!(same_inode(&c, &d), "{what}");
}

fn keep_mtime(path: &Path, change: impl FnOnce(&Path)) {
    let mtime = inode(path).mtime;
    change(path);
    set_mtime(path, mtime);
}

#[test]
#[ignore = "needs root"]
fn privileged_content_keeps_files_apart() {
    stay_apart("content", |path| keep_mtime(path, |path| fs::write(path, "the same cOntent").unwrap()));
}

#[test]
#[ignore = "needs root"]
fn privileged_size_keeps_files_apart() {
    stay_apart("size", |path| keep_mtime(path, |path| fs::write(path, "the same content!").unwrap()));
}

#[test]
#[ignore = "needs root"]
fn privileged_mode_keeps_files_apart() {
    stay_apart("mode", |path| fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap());
    stay_apart("set-id", |path| fs::set_permissions(path, fs::Permissions::from_mode(0o4644)).unwrap());
}

#[test]
#[ignore = "needs root"]
fn privileged_owner_keeps_files_apart() {
    stay_apart("owner", |path| std::os::unix::fs::chown(path, Some(1000), None).unwrap());
}

#[test]
#[ignore = "needs root"]
fn privileged_group_keeps_files_apart() {
    stay_apart("group", |path| std::os::unix::fs::chown(path, None, Some(1000)).unwrap());
}

#[test]
#[ignore = "needs root"]
fn privileged_a_nanosecond_keeps_files_apart() {
    stay_apart("mtime", |path| set_mtime(path, Time { secs: 1_600_000_000, nanos: 123_456_790 }));
}

#[test]
#[ignore = "needs root"]
fn privileged_an_extended_attribute_keeps_files_apart() {
    stay_apart("xattr", |path| {
        drop(run(Command::new("setfattr").args(["-n", "user.x", "-v", "1"]).arg(path)))
    });
}

#[test]
#[ignore = "needs root"]
fn privileged_an_acl_keeps_files_apart() {
    stay_apart("acl", |path| drop(run(Command::new("setfacl").args(["-m", "u:1000:r"]).arg(path))));
}

#[test]
#[ignore = "needs root"]
fn privileged_a_capability_keeps_files_apart() {
    stay_apart("capability", |path| drop(run(Command::new("setcap").arg("cap_net_raw+ep").arg(path))));
}

#[test]
#[ignore = "needs root"]
fn privileged_hard_links_of_a_guest_stay_hard_links() {
    for kind in FILESYSTEMS {
        let farm = Farm::new(kind);
        let (a, b) = farm.both("usr/bin/perl", "perl");
        fs::hard_link(&a, farm.path("g1/usr/bin/perl5")).unwrap();
        // One name is where nothing is ever unified: the other one must stay with it.
        let (outside, _) = farm.both("usr/bin/half", "half");
        fs::create_dir_all(farm.path("g1/var/lib")).unwrap();
        fs::hard_link(&outside, farm.path("g1/var/lib/half")).unwrap();
        let report = farm.unify(&[]);
        assert!(same_inode(&a, &b) && same_inode(&a, &farm.path("g1/usr/bin/perl5")), "{kind}");
        assert!(same_inode(&outside, &farm.path("g1/var/lib/half")), "{kind}");
        assert!(!inode(&outside).immutable && report["left"]["linked_elsewhere"] == 1, "{report}");
    }
}

#[test]
#[ignore = "needs root"]
fn privileged_equal_files_and_hard_links_are_told_apart_when_they_are_made_private_again() {
    let farm = Farm::new("ext4");
    // Where our hooks keep their state.
    fs::create_dir_all(farm.path("g1/var/lib/cow-hooks")).unwrap();
    let names =
        ["one", "two", "equal", "example"].map(|name| farm.both(&format!("usr/bin/{name}"), "same").0);
    let [one, two, equal, example] = &names;
    fs::remove_file(two).unwrap();
    fs::hard_link(one, two).unwrap();
    farm.unify(&[]);
    assert!(names.iter().all(|name| same_inode(name, one)));
    let mut prepare = Command::new(program("cow-prepare"));
    run(prepare.arg("-q").arg("--root").arg(farm.path("g1")).args(["/usr/bin"]));
    assert!(same_inode(one, two));
    assert!(!same_inode(one, equal) && !same_inode(one, example) && !same_inode(equal, example));
    // And again, after the next time.
    farm.unify(&[]);
    assert!(names.iter().all(|name| same_inode(name, &farm.path("g2/usr/bin/one"))));
    let links = fs::read(farm.path("g1/var/lib/cow-hooks/links")).unwrap();
    assert_eq!(links, b"\0/usr/bin/one\0/usr/bin/two\0\0");
}

#[test]
#[ignore = "needs root"]
fn privileged_plain_links_between_guests_move_to_the_pool() {
    let farm = Farm::new("ext4");
    let a = farm.write("g1/usr/bin/tool", "copied with cp -al");
    let b = farm.path("g2/usr/bin/tool");
    fs::hard_link(&a, &b).unwrap();
    let guests = inode(&a).id;
    farm.unify(&[]);
    assert!(same_inode(&a, &b) && inode(&a).immutable);
    assert_ne!(inode(&a).id, guests, "a guest's inode never becomes the pool's");
}

#[test]
#[ignore = "needs root"]
fn privileged_what_never_is_unified_is_left() {
    let farm = Farm::new("ext4");
    let paths =
        ["etc/passwd", "var/lib/x", "home/u/x", "usr/bin/x.dpkg-new", "usr/lib/x.lock", "root/x", "tmp/x"];
    let pairs: Vec<_> = paths.iter().map(|path| farm.both(path, "equal")).collect();
    let empty = farm.both("usr/lib/empty", "");
    let setid = farm.both("usr/bin/su", "su");
    let capable = farm.both("usr/bin/ping6", "ping");
    let own = farm.both("usr/bin/own", "own");
    for path in [&setid.0, &setid.1] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o4755)).unwrap();
    }
    for path in [&capable.0, &capable.1] {
        run(Command::new("setcap").arg("cap_net_raw+ep").arg(path));
    }
    set_immutable(&own.0, true);
    let report = farm.unify(&[]);
    for (a, b) in pairs.iter().chain([&empty, &setid, &capable, &own]) {
        assert!(!same_inode(a, b), "{}", a.display());
    }
    assert!(inode(&own.0).immutable && !inode(&own.1).immutable);
    let left = &report["left"];
    assert_eq!((&left["set_id"], &left["capabilities"]), (&2.into(), &2.into()), "{report}");
    assert_eq!((&left["small"], &left["protected"]), (&2.into(), &1.into()), "{report}");

    farm.unify(&["--allow-setid", "--include", "/etc/passwd"]);
    assert!(same_inode(&setid.0, &setid.1) && same_inode(&capable.0, &capable.1));
    assert!(same_inode(&pairs[0].0, &pairs[0].1) && !same_inode(&pairs[1].0, &pairs[1].1));
    assert_eq!(inode(&setid.0).mode, 0o4755);
    set_immutable(&own.0, false);
}

#[test]
#[ignore = "needs root"]
fn privileged_patterns_choose_and_the_first_match_counts() {
    let farm = Farm::new("ext4");
    let docs = farm.both("usr/share/doc/a", "doc");
    let kept = farm.both("usr/share/doc/keep/b", "kept");
    farm.unify(&["--include", "/usr/share/doc/keep", "--exclude", "/usr/share/doc"]);
    assert!(same_inode(&kept.0, &kept.1) && !same_inode(&docs.0, &docs.1));
    farm.unify(&["--exclude", "/usr/share/doc", "--include", "/usr/share/doc/a"]);
    assert!(!same_inode(&docs.0, &docs.1));
}

#[test]
#[ignore = "needs root"]
fn privileged_a_reference_guest_unifies_equal_paths_only() {
    let farm = Farm::new("ext4");
    let same = farm.both("usr/bin/tool", "equal");
    let elsewhere = farm.write("g2/usr/bin/renamed", "equal");
    let mut content = "different".to_owned();
    let one = farm.write("g1/usr/bin/other", &content);
    content.replace_range(0..1, "D");
    let other = farm.write("g2/usr/bin/other", &content);
    farm.unify(&["--reference", "g1"]);
    assert!(same_inode(&same.0, &same.1) && !same_inode(&same.0, &elsewhere) && !same_inode(&one, &other));
}

#[test]
#[ignore = "needs root"]
fn privileged_with_a_reference_guest_files_with_several_names_stay_hard_links() {
    let farm = Farm::new("ext4");
    let link = |path: &Path, name: &str| {
        let name = path.with_file_name(name);
        fs::hard_link(path, &name).unwrap();
        name
    };
    let (a, b) = farm.both("usr/bin/a", "equal");
    let b2 = link(&b, "a2");
    let (perl, perl_too) = farm.both("usr/bin/perl", "perl");
    let (perl5, perl5_too) = (link(&perl, "perl5"), link(&perl_too, "perl5"));
    let (far, far_too) = farm.both("usr/lib/x/far", "far away");
    let twin = farm.path("g2/usr/share/twin");
    fs::create_dir_all(twin.parent().unwrap()).unwrap();
    fs::hard_link(&far_too, &twin).unwrap();
    // Names of the same path in two guests are one file's.
    let copied = farm.write("g1/usr/bin/copied", "copied with cp -al");
    fs::hard_link(&copied, farm.path("g2/usr/bin/copied")).unwrap();
    let ids = [inode(&b).id, inode(&perl).id, inode(&perl_too).id, inode(&far_too).id];
    for _ in 0..2 {
        let report = farm.unify(&["--reference", "g1"]);
        assert_eq!(report["left"]["several_names"], 8, "{report}");
        assert!(same_inode(&b, &b2) && same_inode(&perl, &perl5) && same_inode(&perl_too, &perl5_too));
        assert!(same_inode(&far_too, &twin) && !same_inode(&far, &far_too) && !same_inode(&a, &b));
        assert_eq!(ids, [inode(&b).id, inode(&perl).id, inode(&perl_too).id, inode(&far_too).id]);
        assert!(same_inode(&copied, &farm.path("g2/usr/bin/copied")) && inode(&copied).immutable);
    }
}

#[test]
#[ignore = "needs root"]
fn privileged_times_of_modification_may_be_ignored() {
    let farm = Farm::new("ext4");
    let (a, b) = farm.both("usr/bin/tool", "equal");
    set_mtime(&b, Time { secs: 1, nanos: 0 });
    farm.unify(&["--mtime", "ignore"]);
    assert!(same_inode(&a, &b));
    let said = farm.exits(2, &["--mtime", "match", "g1", "g2"]);
    assert!(said.contains("--mtime ignore"), "{said}");
}

#[test]
#[ignore = "needs root"]
fn privileged_a_dry_run_changes_nothing_and_makes_no_pool() {
    let farm = Farm::new("ext4");
    farm.both("usr/bin/tool", "equal");
    let before = picture(farm.filesystem.path());
    let report = farm.unify(&["-n"]);
    assert_eq!((&report["linked"], &report["names"].as_array().unwrap().len()), (&2.into(), &2), "{report}");
    assert_same(&before, &picture(farm.filesystem.path()), "dry run");
}

#[test]
#[ignore = "needs root"]
fn privileged_without_protection_links_are_plain() {
    let farm = Farm::new("ext4");
    let (a, b) = farm.both("usr/bin/tool", "equal");
    farm.unify(&["--protection", "none"]);
    assert!(same_inode(&a, &b) && !inode(&a).immutable);
    let (c, d) = farm.both("usr/bin/more", "equal");
    farm.unify(&["--protection", "none"]);
    assert!(same_inode(&a, &c) && same_inode(&c, &d));
    // It stays so, until protection is asked for.
    let late = farm.write("g2/usr/bin/late", "equal");
    farm.unify(&[]);
    assert!(same_inode(&a, &late) && !inode(&a).immutable);
    farm.unify(&["--protection", "auto"]);
    assert!(inode(&a).immutable);
}

#[test]
#[ignore = "needs root"]
fn privileged_blocks_are_shared_where_inodes_are_not() {
    for kind in ["xfs", "btrfs"] {
        let farm = Farm::new(kind);
        let (a, b) = farm.both("usr/bin/tool", vec![9; 1 << 20]);
        let before = (inode(&a), inode(&b), seen(&a));
        let report = farm.unify(&["--share", "reflink"]);
        assert_eq!(report["linked"], 2, "{kind}: {report}");
        assert!(!same_inode(&a, &b) && seen(&a) == before.2 && seen(&b) == before.2, "{kind}");
        assert_eq!((inode(&a).ctime, inode(&b).ctime), (before.0.ctime, before.1.ctime), "{kind}");
        run(Command::new("sync").arg("-f").arg(farm.filesystem.path()));
        let shared =
            |path: &Path| text(&run(Command::new("filefrag").arg("-v").arg(path))).contains("shared");
        assert!(shared(&a) && shared(&b), "{kind}");
        assert_eq!(farm.unify(&[])["linked"], 0, "{kind}: the second run has nothing to do");
        // A write to one is nobody else's.
        fs::write(&a, "mine").unwrap();
        assert_eq!(seen(&b), before.2);
    }
    let farm = Farm::new("ext4");
    farm.both("usr/bin/tool", "equal");
    let said = farm.exits(3, &["--share", "reflink", "g1", "g2"]);
    assert!(said.contains("cannot share blocks") && said.contains("--share hardlink"), "{said}");
}

//! Guests are deleted, and what others share with them stays as it is.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use cow_hooks::sys::file::inode::{InodeId, Kind};
use rustix::fs::IFlags;

use crate::support::farm::Farm;
use crate::support::strace::traced;
use crate::support::{Seen, assert_same, entries, files, inode, picture, run, set_immutable, text};

/// What is left of `g1` while it is being removed.
pub const ASIDE: &str = ".cow-removed-g1";

/// Files that both guests share, one of them by three names in `g1`.
pub fn fill(farm: &Farm, count: usize) {
    for number in 0..count {
        farm.both(
            &format!("usr/lib/d{}/file-{number}", number % 7),
            format!("content of {number}\n").repeat(400),
        );
    }
    for name in ["usr/bin/twin", "usr/lib/triplet"] {
        farm.write(&format!("g1/{name}"), "content of 0\n".repeat(400));
    }
}

/// What every guest has that no pool knows.
pub fn make_root(path: &Path) {
    ["usr", "etc", "var"].iter().for_each(|name| fs::create_dir_all(path.join(name)).unwrap());
}

/// What a guest has, but for what another guest's removal may change.
pub fn guest(path: &Path) -> BTreeMap<PathBuf, (Seen, InodeId)> {
    files(path).into_iter().map(|(name, seen)| (name.clone(), (seen, inode(&path.join(name)).id))).collect()
}

pub fn exists(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok()
}

fn set_append_only(path: &Path) {
    let file = fs::File::open(path).unwrap();
    let flags = rustix::fs::ioctl_getflags(&file).unwrap();
    rustix::fs::ioctl_setflags(&file, flags | IFlags::APPEND).unwrap();
}

pub fn removed(report: &serde_json::Value) -> &serde_json::Value {
    assert_eq!(report["guests"].as_array().unwrap().len(), 1, "{report}");
    &report["guests"][0]
}

/// A guest with all that a tree can hold.
fn add_private(farm: &Farm) {
    let first = farm.path("g1");
    farm.write("outside/kept", "kept\n");
    for number in 0..40 {
        farm.write(&format!("g1/var/private-{number}"), format!("{number}").repeat(30_000));
    }
    fs::hard_link(first.join("var/private-1"), first.join("var/link")).unwrap();
    fs::hard_link(first.join("var/private-2"), farm.path("outside/link")).unwrap();
    symlink(farm.path("outside"), first.join("var/lead-out")).unwrap();
    symlink("/", first.join("var/root")).unwrap();
    run(Command::new("mkfifo").arg(first.join("var/fifo")));
    run(Command::new("mknod").arg(first.join("var/null")).args(["c", "1", "3"]));
    fs::write(first.join("var/odd\n\u{1b}name"), "x").unwrap();
    let deep = (0..30).fold(first.join("var"), |path, _| path.join("deep".repeat(20)));
    fs::create_dir_all(&deep).unwrap();
    fs::write(deep.join("bottom"), "x").unwrap();
}

#[test]
#[ignore = "needs root"]
fn privileged_a_removed_guest_takes_nothing_of_the_others_with_it() {
    for protection in ["immutable", "none"] {
        let farm = Farm::of_size("ext4", 128);
        fill(&farm, 30);
        farm.unify(&["--protection", protection]);
        add_private(&farm);
        let (before, links) = (guest(&farm.path("g2")), inode(&farm.path("g2/usr/lib/d0/file-0")).nlink);
        assert_eq!(links, 5, "three names in g1, one in g2, one in the pool");
        let outside = picture(&farm.path("outside"));
        let all = entries(&farm.path("g1")).len() as u64 + 1;

        let planned = farm.json(0, &["remove", "-n", "g1"]);
        assert!(farm.path("g1/var/private-3").exists(), "{planned}");
        run(&mut Command::new("sync"));
        let free = farm.filesystem.available();
        let report = farm.json(0, &["remove", "g1"]);
        run(&mut Command::new("sync"));
        let freed = farm.filesystem.available() - free;

        let gone = removed(&report);
        for key in ["names", "shared", "bytes_freed"] {
            assert_eq!(gone[key], removed(&planned)[key], "{protection}, {key}: {planned} {report}");
        }
        assert_eq!((&gone["names"], &gone["shared"]), (&all.into(), &33.into()), "{report}");
        // One inode, one window, however many names it has.
        let windows: u64 = if protection == "immutable" { 30 } else { 0 };
        assert_eq!(gone["windows"], windows, "{report}");
        let told = gone["bytes_freed"].as_u64().unwrap();
        assert!(told.abs_diff(freed) * 50 <= freed, "df says {freed}: {report}");
        assert!(!exists(&farm.path("g1")) && !exists(&farm.path(ASIDE)));
        assert_eq!(guest(&farm.path("g2")), before, "{protection}");
        assert_eq!(inode(&farm.path("g2/usr/lib/d0/file-0")).nlink, 2);
        let names = |picture: &BTreeMap<PathBuf, String>| picture.keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(&picture(&farm.path("outside"))), names(&outside));
        assert_eq!(fs::read_to_string(farm.path("outside/kept")).unwrap(), "kept\n");
        // Nothing is wrong with the pool, and nothing can be collected: g2 has all of it.
        farm.json(0, &["verify", "g2"]);
        assert_eq!(farm.json(0, &["gc", "-n"])["removed"], 0);
        let planned = farm.exits(0, &["remove", "-n", "--gc", "g2"]);
        assert!(planned.contains("30 objects would be removed from the pool, "), "{planned}");
        // A guest is one, however often it is named.
        let said = farm.exits(0, &["remove", "--gc", "g2", "./g2/", "g2/."]);
        assert!(said.contains("30 objects removed from the pool, "), "{said}");
        assert_eq!(said, planned.replace("would be removed", "removed").replace("to be freed", "freed"));
        assert_eq!(said.matches(" removed, ").count(), 1, "{said}");
        assert!(farm.objects().is_empty());
    }
}

#[cfg(feature = "pretend-guard")]
#[test]
#[ignore = "needs root"]
fn privileged_under_the_guard_a_guest_goes_without_a_window() {
    let farm = Farm::of_size("ext4", 128);
    fill(&farm, 5);
    let guarded = |arguments: &[&str]| {
        let mut command = farm.command(arguments);
        let output = command.env("COW_TESTS_PRETEND_GUARD", "1").output().unwrap();
        assert!(output.status.success(), "{}", text(&output));
        output
    };
    guarded(&["--scope", "all", "--protection", "guard", "g1", "g2"]);
    let before = guest(&farm.path("g2"));
    let report = serde_json::from_slice(&guarded(&["remove", "--json", "g1"]).stdout).unwrap();
    assert_eq!(
        (&removed(&report)["windows"], &removed(&report)["shared"]),
        (&0.into(), &7.into()),
        "{report}"
    );
    assert_eq!(guest(&farm.path("g2")), before);
    let marked = fs::File::open(farm.path("g2/usr/lib/d1/file-1")).unwrap();
    assert!(rustix::fs::ioctl_getflags(marked).unwrap().contains(IFlags::NOATIME));
    assert!(!exists(&farm.path("g1")));
}

#[test]
#[ignore = "needs root"]
fn privileged_a_guest_can_be_removed_when_nothing_is_free() {
    let farm = Farm::of_size("ext4", 40);
    fill(&farm, 30);
    farm.unify(&[]);
    add_private(&farm);
    fs::create_dir(farm.path("full")).unwrap();
    fs::write(farm.path("filler"), "").unwrap();
    let mut number = 0;
    while fs::write(farm.path(&format!("full/{number}")), "").is_ok() {
        number += 1;
    }
    farm.filesystem.fill();
    let stat = rustix::fs::statvfs(farm.filesystem.path()).unwrap();
    // ext4 keeps 2 % for itself (`s_resv_clusters`).
    let is_full = stat.f_ffree == 0 && stat.f_bfree <= stat.f_blocks / 40;
    assert!(is_full, "{} inodes, {} blocks", stat.f_ffree, stat.f_bfree);
    // Nor is there room for a longer name in the directory of the guests.
    let mut number = 0;
    while fs::hard_link(farm.path("filler"), farm.path(&format!("{number}"))).is_ok() {
        number += 1;
    }
    let before = guest(&farm.path("g2"));
    let command = farm.command(&["remove", "--jobs", "1", "g1"]);
    let is_open = |nth| {
        traced(&command, b"", Some(("ioctl", nth)));
        assert!(exists(&farm.path("g1")) && !exists(&farm.path(ASIDE)), "killed at ioctl {nth}");
        guest(&farm.path("g2")) != before
    };
    assert!((2..10).any(is_open), "no run was killed in a window");
    let said = farm.exits(1, &["remove", "g1"]);
    assert!(said.contains("1 object of the pool had lost its protection, and has it again"), "{said}");
    assert!(said.contains(" names removed, ") && said.contains(" of them of shared files, "), "{said}");
    assert!(!exists(&farm.path("g1")) && !exists(&farm.path(ASIDE)));
    assert_eq!(guest(&farm.path("g2")), before);
    let stat = rustix::fs::statvfs(farm.filesystem.path()).unwrap();
    assert!(stat.f_ffree > 50, "{said}");
}

#[test]
#[ignore = "needs root"]
fn privileged_the_run_that_goes_on_protects_what_a_killed_one_has_left_open() {
    let farm = Farm::of_size("ext4", 96);
    fill(&farm, 6);
    farm.unify(&[]);
    let open = farm.path("g2/usr/lib/d1/file-1");
    fs::rename(farm.path("g1"), farm.path(ASIDE)).unwrap();
    set_immutable(&open, false);
    // A new guest has the name meanwhile: it goes, too.
    make_root(&farm.path("g1"));
    let said = farm.exits(1, &["remove", "g1"]);
    assert!(said.contains("1 object of the pool had lost its protection, and has it again"), "{said}");
    assert!(inode(&open).immutable && !exists(&farm.path("g1")) && !exists(&farm.path(ASIDE)));
}

/// That `g1` is refused for this reason, and nothing has changed.
#[track_caller]
fn assert_refused(farm: &Farm, arguments: &[&str], reason: &str) {
    let before = picture(farm.filesystem.path());
    let said = farm.exits(3, &[&["remove"], arguments].concat());
    assert!(said.contains("refused, nothing was removed: ") && said.contains(reason), "{reason}: {said}");
    let after = picture(farm.filesystem.path());
    // Reading the cache makes files beside it.
    let is_pool = |path: &Path| path.starts_with(".cow-pool") || path.starts_with("g2/pool");
    let without_pools = |mut picture: BTreeMap<PathBuf, String>| {
        picture.retain(|path, _| !is_pool(path));
        picture
    };
    assert_same(&without_pools(before), &without_pools(after), reason);
}

#[test]
#[ignore = "needs root"]
fn privileged_what_must_not_be_removed_is_refused_before_anything_goes() {
    let farm = Farm::of_size("ext4", 128);
    fill(&farm, 3);
    farm.unify(&[]);
    let path = |name: &str| farm.path(name).into_os_string().into_string().unwrap();
    symlink("g1", farm.path("link")).unwrap();
    assert_refused(&farm, &["link"], "/link: a symbolic link, which is not followed");
    assert_refused(&farm, &["link/"], "/link: a symbolic link, which is not followed");
    // As /usr/local is.
    ["local/bin", "local/etc", "local/lib"].iter().for_each(|name| fs::create_dir_all(path(name)).unwrap());
    assert_refused(&farm, &["local"], "not a guest: no pool knows it");
    assert_refused(&farm, &["."], "not a guest: no pool knows it");
    assert_refused(&farm, &[".cow-pool"], "/.cow-pool: not a guest: a pool");
    assert_refused(&farm, &[".cow-pool/objects"], "not a guest: no pool knows it");
    assert_refused(&farm, &["gone"], "gone: No such file or directory");
    assert_refused(&farm, &["/"], "contains the running system (/)");
    farm.write("file", "");
    assert_refused(&farm, &["file"], "not a guest: not a directory");

    // Mounts, whatever is mounted and whoever sees it.
    fs::create_dir_all(farm.path("g1/srv/data")).unwrap();
    farm.write("outside/kept", "kept\n");
    for (from, to) in [("outside", "g1/srv/data"), ("outside/kept", "g1/usr/bin/twin"), ("g1", "g1")] {
        run(Command::new("mount").arg("--bind").arg(path(from)).arg(path(to)));
        assert_refused(&farm, &["g1"], &format!("/{to}: something is mounted here"));
        run(Command::new("umount").arg(path(to)));
    }
    let elsewhere = |script: &str| {
        let mut child = Command::new("unshare")
            .args(["--mount", "sh", "-ec", &format!("{script}\necho; exec sleep 60")])
            .current_dir(farm.filesystem.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut ready = [0];
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut ready).unwrap();
        child
    };
    let end = |mut child: std::process::Child| {
        child.kill().unwrap();
        child.wait().unwrap();
    };
    let child = elsewhere("mount --bind outside g1/srv/data; cd /");
    assert_refused(&farm, &["g1"], "/g1/srv/data: something is mounted here");
    end(child);

    // Mounts of what is in it: its data would be gone there.
    for (from, to) in [("g1/usr", "outside"), ("g1/usr/bin/twin", "outside/kept"), ("g1", "outside")] {
        run(Command::new("mount").arg("--bind").arg(path(from)).arg(path(to)));
        assert_refused(&farm, &["g1"], &format!("in it, is mounted on {}", path(to)));
        run(Command::new("umount").arg(path(to)));
    }
    let child = elsewhere("mount --bind g1/usr outside; cd /");
    assert_refused(&farm, &["g1"], &format!("/outside by process {}", child.id()));
    end(child);
    fs::create_dir_all(farm.path("layers/upper")).unwrap();
    fs::create_dir_all(farm.path("layers/work")).unwrap();
    let options =
        format!("lowerdir={},upperdir={},workdir={}", path("g1"), path("layers/upper"), path("layers/work"));
    run(Command::new("mount").args(["-t", "overlay", "overlay", "-o", &options]).arg(path("outside")));
    assert_refused(&farm, &["g1"], &format!("in it, is mounted on {}", path("outside")));
    run(Command::new("umount").arg(path("outside")));

    // Processes, by whatever path they see the guest.
    for script in ["cd g1/usr", "mount --bind g1 outside; cd outside/usr"] {
        let child = elsewhere(script);
        assert_refused(&farm, &["g1"], &format!("in this guest: {} (sleep)", child.id()));
        end(child);
    }

    // Where no name can be removed.
    set_immutable(farm.filesystem.path(), true);
    assert_refused(&farm, &["g1"], ": this directory is immutable or append-only");
    set_immutable(farm.filesystem.path(), false);
    farm.filesystem.remount("ro");
    let said = farm.exits(3, &["remove", "-n", "g1"]);
    assert!(said.contains(": read-only, so that nothing in it can be removed"), "{said}");
    farm.filesystem.remount("rw");

    // Who may not clear flags does not begin.
    let command = farm.command(&["remove", "g1"]);
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let mut without = Command::new("capsh");
    without.args(["--drop=cap_linux_immutable", "--", "-c", "exec \"$@\"", "sh"]).args(words);
    let output = without.current_dir(farm.filesystem.path()).output().unwrap();
    assert!(output.status.code() == Some(3) && exists(&farm.path("g1/usr/bin/twin")), "{}", text(&output));
    assert!(text(&output).contains("the immutable flag cannot be set and cleared"), "{}", text(&output));

    // What is another's.
    run(farm.command(&["--scope", "all", "--pool", "g2/pool", "g1"]).stderr(Stdio::null()));
    assert_refused(&farm, &["--pool", "g2/pool", "g2"], "/g2: a pool lies in this guest (");
    fs::create_dir_all(farm.path("g1/srv/inner/usr/bin")).unwrap();
    farm.write("g1/srv/inner/usr/bin/twin", "content of 0\n".repeat(400));
    farm.exits(0, &["--scope", "all", "g1/srv/inner", "g2", "--pool", ".cow-pool"]);
    assert_refused(&farm, &["g1"], "/g1: another guest lies in this guest (");

    // The others of a command line are removed.
    let said = farm.exits(1, &["remove", "link", "g1/srv/inner"]);
    assert!(said.contains("a symbolic link") && !exists(&farm.path("g1/srv/inner")), "{said}");
}

#[test]
#[ignore = "needs root"]
fn privileged_subvolumes_of_a_guest_go_with_it_unless_they_are_read_only() {
    let farm = Farm::of_size("btrfs", 256);
    let btrfs = |arguments: &[&str]| {
        run(Command::new("btrfs").args(arguments).current_dir(farm.filesystem.path()));
    };
    fs::remove_dir_all(farm.path("g1")).unwrap();
    btrfs(&["subvolume", "create", "g1"]);
    make_root(&farm.path("g1"));
    farm.write("g1/usr/file", "x");
    btrfs(&["subvolume", "create", "g1/var/inner"]);
    farm.write("g1/var/inner/file", "x");
    btrfs(&["subvolume", "snapshot", "-r", "g1/var/inner", "g1/var/inner/snapshot"]);
    assert_refused(&farm, &["g1"], "/g1/var/inner/snapshot: read-only, so that nothing in it can be removed");
    btrfs(&["property", "set", "-t", "subvol", "g1/var/inner/snapshot", "ro", "false"]);
    btrfs(&["subvolume", "snapshot", "g1", "kept"]);
    farm.exits(0, &["remove", "g1"]);
    assert!(!exists(&farm.path("g1")) && !exists(&farm.path(ASIDE)));
    assert_eq!(fs::read_to_string(farm.path("kept/usr/file")).unwrap(), "x");
}

#[test]
#[ignore = "needs root"]
fn privileged_what_an_administrator_protects_is_removed_only_on_demand() {
    let farm = Farm::of_size("ext4", 96);
    fill(&farm, 3);
    farm.unify(&[]);
    let own = [
        farm.write("g1/var/immutable", "x"),
        farm.write("g1/var/append", "x"),
        farm.write("g1/var/dir/in-it", "x"),
    ];
    fs::hard_link(&own[0], farm.path("g1/var/second")).unwrap();
    // Immutable, and somebody else's as well.
    let foreign = farm.write("elsewhere", "y");
    fs::hard_link(&foreign, farm.path("g1/var/foreign")).unwrap();
    let directory = farm.path("g1/var/dir");
    set_immutable(&foreign, true);
    set_immutable(&own[0], true);
    set_append_only(&own[1]);
    set_immutable(&directory, true);
    set_immutable(&farm.path("g1"), true);
    assert_refused(&farm, &["g1"], "immutable or append-only, and not shared");
    let said = farm.exits(3, &["remove", "g1"]);
    assert!(said.contains("(and 3 more files and directories)") && said.contains("--clear-flags"), "{said}");
    let before = guest(&farm.path("g2"));
    farm.exits(0, &["remove", "--clear-flags", "g1"]);
    assert!(!exists(&farm.path("g1")) && !exists(&farm.path(ASIDE)));
    assert!(inode(&foreign).immutable && fs::symlink_metadata(&foreign).unwrap().nlink() == 1);
    assert_eq!(guest(&farm.path("g2")), before);
    // An append-only file that somebody else has as well is not ours to change.
    make_root(&farm.path("g1"));
    let log = farm.write("log", "y");
    fs::hard_link(&log, farm.path("g1/etc/log")).unwrap();
    set_append_only(&log);
    assert_refused(
        &farm,
        &["--clear-flags", "g1"],
        "append-only, with another hard link outside of this guest",
    );
    assert_eq!(inode(&log).kind, Kind::Regular);
}

//! What is mounted in a guest, seen from inside and from outside.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use cow_hooks::sys::file::inode::Time;
use rustix::fs::{AtFlags, StatxAttributes, StatxFlags};

use crate::support::bed::with_shell;
use crate::support::{
    Guests, feed, inode, program, removal, run, same_inode, set_immutable, set_mtime, text,
};

fn mount(arguments: &[&str], from: &Path, to: &Path) {
    run(Command::new("mount").args(arguments).arg(from).arg(to));
}

/// Two guests that share `count` files of the package `pkg`; each is in `/usr/bin` or `/usr/share/doc`.
fn guests(count: usize) -> Guests {
    let guests = Guests::new("ext4", count, true);
    let dir = |number| if number % 2 == 0 { "bin" } else { "share/doc" };
    let paths: Vec<_> = (0..count).map(|number| format!("/usr/{}/file-{number}", dir(number))).collect();
    guests.own("pkg", &paths);
    guests
}

/// A file outside of all guests that has another name.
fn linked(guests: &Guests, name: &str) -> PathBuf {
    let file = guests.filesystem.path().join(name);
    fs::write(&file, "of the host\n").unwrap();
    fs::hard_link(&file, guests.filesystem.path().join(format!("{name}.other"))).unwrap();
    file
}

/// The hook of a run that removes `pkg`.
fn hook(guests: &Guests) -> Output {
    feed(guests.program("cow-dpkg").arg("apt-pre"), removal("pkg").as_bytes())
}

fn status(guests: &Guests, arguments: &[&str]) -> serde_json::Value {
    let output = guests.program("cow-status").arg("--json").args(arguments).output().unwrap();
    serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {}", text(&output)))
}

fn is_mount_point(path: &Path) -> bool {
    let stat = rustix::fs::statx(rustix::fs::CWD, path, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::BASIC_STATS);
    stat.unwrap().stx_attributes.contains(StatxAttributes::MOUNT_ROOT)
}

#[test]
#[ignore = "needs root"]
fn privileged_what_is_mounted_on_a_name_is_left_and_refuses_nothing() {
    let guests = guests(6);
    guests.policy("supervise = 'never'\n");
    let first = guests.first();
    let bound = [
        ("etc/hosts", "hosts", &["--bind"][..], false),
        ("etc/resolv.conf", "resolv", &["--bind", "-o", "ro"], false),
        // A file of the package, and one that is unified itself.
        ("usr/bin/file-0", "program", &["--bind"], true),
        ("etc/machine-id", "id", &["--bind"], true),
    ];
    for (name, source, arguments, immutable) in bound {
        let source = linked(&guests, source);
        set_immutable(&source, immutable);
        if !first.join(name).exists() {
            guests.write(name, "below");
        }
        mount(arguments, &source, &first.join(name));
    }
    // As `InaccessiblePaths=` and containers hide a file.
    guests.write("etc/secret", "below");
    mount(&["--bind"], Path::new("/dev/null"), &first.join("etc/secret"));

    let output = hook(&guests);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    assert!(text(&output).contains("/usr/bin/file-0: left as it is: a mount point; "), "{}", text(&output));
    assert!(!guests.shared("usr/bin/file-2"), "{}", text(&output));
    for (name, source, ..) in bound {
        assert!(is_mount_point(&first.join(name)), "{name}");
        assert_eq!(inode(&guests.filesystem.path().join(source)).nlink, 2, "{name}");
        let shown = status(&guests, &[&format!("/{name}")]);
        assert_eq!(shown["files"][0]["verdict"], "mount_point", "{name}: {shown}");
    }
    let shown = guests.prepared(&["/etc/hosts", "/etc/secret"]);
    assert_eq!(
        (&shown["left"][0]["verdict"], shown["failed"].as_array().unwrap().len()),
        (&"mount_point".into(), 0)
    );
    let shown = guests.prepared(&["/"]);
    let points = shown["left"].as_array().unwrap().iter().filter(|left| left["verdict"] == "mount_point");
    assert_eq!((points.count(), shown["failed"].as_array().unwrap().len()), (5, 0), "{shown}");
    assert_eq!(status(&guests, &[])["trees"][0]["mount_points"], 5);
}

#[test]
#[ignore = "needs root"]
fn privileged_links_in_a_directory_that_is_mounted_are_left() {
    let guests = guests(6);
    guests.policy("supervise = 'never'\n");
    let (first, outside) = (guests.first(), guests.filesystem.path().to_path_buf());
    for (name, arguments) in [("rw", &["--bind"][..]), ("ro", &["--bind", "-o", "ro"])] {
        let dir = outside.join(name);
        fs::create_dir(&dir).unwrap();
        fs::rename(linked(&guests, &format!("{name}-file")), dir.join("file")).unwrap();
        fs::create_dir_all(first.join("etc").join(name)).unwrap();
        mount(arguments, &dir, &first.join("etc").join(name));
    }
    // Over a directory of the package, and as `InaccessiblePaths=` hides a directory.
    mount(&["-t", "tmpfs", "-o", "mode=000"], Path::new("none"), &first.join("usr/share/doc"));
    // What is protected there cannot be changed through this mount.
    fs::create_dir(first.join("etc/protected")).unwrap();
    fs::write(outside.join("ro/shared"), "x").unwrap();
    fs::hard_link(outside.join("ro/shared"), outside.join("shared")).unwrap();
    set_immutable(&outside.join("shared"), true);
    mount(&["--bind", "-o", "ro"], &outside.join("ro"), &first.join("etc/protected"));

    let output = hook(&guests);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    assert!(!guests.shared("usr/bin/file-2"), "{}", text(&output));
    for name in ["rw", "ro"] {
        assert!(same_inode(&outside.join(name).join("file"), &outside.join(format!("{name}-file.other"))));
    }
    let shown = status(&guests, &["/etc/protected/shared"]);
    assert_eq!(shown["files"][0]["verdict"], "read_only_mount", "{shown}");
    assert!(same_inode(&outside.join("ro/shared"), &outside.join("shared")));
    run(Command::new("umount").arg(first.join("usr/share/doc")));
    assert!(guests.shared("usr/share/doc/file-1"), "what was hidden is as it was");
}

#[test]
#[ignore = "needs root"]
fn privileged_packages_on_a_mount_of_their_own_are_seen_and_prepared() {
    let guests = guests(10);
    guests.policy("supervise = 'never'\n");
    let first = guests.first();
    mount(&["--bind"], &first.join("usr"), &first.join("usr"));
    // Other guests, and the pool, are no part of this one wherever they are mounted.
    fs::create_dir(first.join("guests")).unwrap();
    mount(&["--bind"], guests.filesystem.path(), &first.join("guests"));

    let shown = status(&guests, &[]);
    assert_eq!(shown["trees"][0]["unified"]["files"], 10, "{shown}");
    assert_eq!(shown["trees"][0]["other_filesystems"], 1, "{shown}");
    let shown = status(&guests, &["/usr/bin/file-2"]);
    assert_eq!(shown["files"][0]["verdict"], "unified", "{shown}");
    let output = hook(&guests);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    assert!((0..10).step_by(2).all(|number| !guests.shared(&format!("usr/bin/file-{number}"))));

    let guests = self::guests(10);
    mount(&["--bind"], &guests.first().join("usr"), &guests.first().join("usr"));
    fs::create_dir(guests.first().join("guests")).unwrap();
    mount(&["--bind"], guests.filesystem.path(), &guests.first().join("guests"));
    let shown = guests.prepared(&["/"]);
    assert_eq!(shown["detached"].as_array().unwrap().len(), 10, "{shown}");
    assert!(inode(&guests.second().join("usr/bin/file-0")).nlink == 2, "with the pool, as before");
}

/// A process in a mount namespace of its own in which `script` has run, `$1` being the first guest; it is killed when this is dropped.
struct Elsewhere {
    child: std::process::Child,
}

impl Elsewhere {
    fn new(guests: &Guests, script: &str) -> Elsewhere {
        let mut child = Command::new("unshare")
            .args(["--mount", "--propagation", "private", "sh", "-ec", script, "sh"])
            .arg(guests.first())
            .stdin(std::process::Stdio::null())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut out = std::io::BufReader::new(child.stdout.take().unwrap());
        std::io::BufRead::read_line(&mut out, &mut line).unwrap();
        assert_eq!(line, "ready\n");
        Elsewhere { child }
    }

    /// What it reads, by a path from its own root.
    fn reads(&self, path: &str) -> String {
        fs::read_to_string(format!("/proc/{}/root/{path}", self.child.id())).unwrap()
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a process has mounted on `usr/bin/NAME` of the first guest; its root, and where the name is from there.
const NAMESPACES: [(&str, &str, &str); 5] = [
    // The host's root, as a service's sandbox has it.
    ("whole", "mount --bind $from $1/usr/bin/whole; echo ready; exec sleep 1000", "GUEST/usr/bin/whole"),
    // A container.
    (
        "pivoted",
        "mount --bind $1 $1; mount --bind $from $1/usr/bin/pivoted; cd $1; pivot_root . proc; \
         echo ready; exec /bin/sleep 1000",
        "usr/bin/pivoted",
    ),
    // A chroot, of whose namespace nobody else is left.
    (
        "chrooted",
        "mount --bind $from $1/usr/bin/chrooted; echo ready; exec chroot $1 /bin/sleep 1000",
        "usr/bin/chrooted",
    ),
    // A root within the guest, and a directory that is there under another path.
    (
        "deep",
        "mount --bind $1/usr $1/srv/inner/mnt; mount -o ro,remount,bind $1/srv/inner/mnt; \
         mount --bind $from $1/srv/inner/mnt/bin/deep; echo ready; exec chroot $1/srv/inner /bin/sleep 1000",
        "mnt/bin/deep",
    ),
    (
        "a b",
        "mount --bind -o ro $from \"$1/usr/bin/a b\"; echo ready; exec chroot $1 /bin/sleep 1000",
        "usr/bin/a b",
    ),
];

fn elsewhere(guests: &Guests) -> Vec<(Elsewhere, String)> {
    let first = guests.first();
    for root in [first.clone(), first.join("srv/inner")] {
        fs::create_dir_all(root.join("mnt")).unwrap();
        with_shell(&root, &["/bin/sleep"]);
    }
    let from = guests.filesystem.path().join("mounted");
    fs::write(&from, "mounted there\n").unwrap();
    let begun = NAMESPACES.map(|(_, script, path)| {
        let script = format!("from={}; {script}", from.display());
        let path = path.replace("GUEST", first.to_str().unwrap());
        (Elsewhere::new(guests, &script), path)
    });
    begun.into()
}

fn unify(guests: &Guests, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cow-unify"));
    command.arg("--pool").arg(guests.filesystem.path().join(".pool")).args(arguments);
    command.args([guests.first(), guests.second()]).output().unwrap()
}

#[test]
#[ignore = "needs root"]
fn privileged_what_processes_have_mounted_stays_when_names_change_from_outside() {
    let guests = Guests::new("ext4", 0, false);
    let names = NAMESPACES.map(|(name, ..)| format!("usr/bin/{name}"));
    let other = "usr/bin/other".to_owned();
    let all = || names.iter().chain([&other]);
    for (path, guest) in all().flat_map(|path| [(path, guests.first()), (path, guests.second())]) {
        fs::write(guest.join(path), path).unwrap();
        set_mtime(&guest.join(path), Time { secs: 1_600_000_000, nanos: 0 });
    }
    // One of them has another name, which stays a name of the same file.
    for guest in [guests.first(), guests.second()] {
        fs::hard_link(guest.join("usr/bin/deep"), guest.join("usr/share/deep")).unwrap();
    }
    let assert_mounted = |there: &[(Elsewhere, String)], when: &str| {
        for (process, path) in there {
            assert_eq!(process.reads(path), "mounted there\n", "{path} {when}");
        }
    };
    let there = elsewhere(&guests);
    for arguments in [&["--scope", "all"][..], &["--changed"]] {
        guests.write(
            "var/lib/cow-hooks/spool/changed",
            all().fold(String::new(), |list, path| list + "/" + path + "\0"),
        );
        let output = unify(&guests, arguments);
        assert_eq!(output.status.code(), Some(0), "{}", text(&output));
        assert_mounted(&there, "after cow-unify");
        assert!(names.iter().all(|name| !guests.shared(name)), "{}", text(&output));
        assert!(guests.shared(&other), "{}", text(&output));
        let expected = "6 mount points in the mount namespace of another process";
        assert!(text(&output).contains(expected), "{}", text(&output));
    }
    drop(there);
    let output = unify(&guests, &["--scope", "all"]);
    assert!(all().all(|name| guests.shared(name)), "{}", text(&output));

    let there = elsewhere(&guests);
    let damaged = guests.second().join("usr/bin/pivoted");
    set_immutable(&damaged, false);
    fs::write(&damaged, "damaged").unwrap();
    set_immutable(&damaged, true);
    let output = unify(&guests, &["verify"]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert_mounted(&there, "after verify");
    assert!(
        text(&output).contains("a mount point in the mount namespace of another process"),
        "{}",
        text(&output)
    );

    let root = guests.first();
    let mut prepare = Command::new(program("cow-prepare"));
    let output = prepare.args(["--json", "/usr/bin", "--root"]).arg(&root).output().unwrap();
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_mounted(&there, "after cow-prepare");
    let left = report["left"].as_array().unwrap().iter();
    assert_eq!(left.filter(|left| left["verdict"] == "mounted_elsewhere").count(), 5, "{report}");
    assert!(!guests.shared(&other), "{report}");
    let mut detach = Command::new(env!("CARGO_BIN_EXE_cow-unify"));
    let output = detach.arg("detach").arg(&root).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert_mounted(&there, "after detach");
    assert!(
        text(&output).contains(": still shared with other guests: a mount point in the mount namespace"),
        "{}",
        text(&output)
    );
    drop(there);
    let output = detach.output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    assert!(all().all(|name| !guests.shared(name)), "{}", text(&output));
}

//! A guest that is made to fill the host's memory is left out, with a message, and the others are unified.

use std::fs::{self, File};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{Mode, OFlags};
use rustix::process::geteuid;
use tempfile::TempDir;

use crate::support::{same_inode, text};

/// What cow-unify may take of memory for its data, in bytes.
const MOST_MEMORY: u64 = 160 << 20;
/// What all messages of guests that are left out say.
const REMEDY: &str = "find out in the guest why it has so much, or leave the guest out";

/// Two guests that have an equal file, and one that is hostile.
struct Guests(TempDir);

impl Guests {
    fn new() -> Guests {
        let guests = Guests(tempfile::tempdir_in("/var/tmp").unwrap());
        for guest in ["good1", "good2", "hostile"] {
            let root = guests.path(guest);
            let write = |path: &str, text: &str| {
                fs::create_dir_all(root.join(path).parent().unwrap()).unwrap();
                fs::write(root.join(path), text).unwrap();
            };
            let status = "Package: p\nStatus: install ok installed\nArchitecture: all\nVersion: 1\n";
            write("var/lib/dpkg/status", status);
            write("var/lib/dpkg/info/p.list", "/usr/bin/p\n");
            write("usr/bin/p", &"p".repeat(5000));
            write("etc/passwd", "");
            fs::create_dir_all(root.join("var/lib/cow-hooks/spool")).unwrap();
            let touched =
                Command::new("touch").args(["-d", "2020-01-01"]).arg(root.join("usr/bin/p")).status();
            assert!(touched.unwrap().success());
        }
        guests
    }

    fn path(&self, path: &str) -> PathBuf {
        self.0.path().join(path)
    }

    /// A pass over all three, within the memory there is.
    fn unify(&self, options: &[&str], code: i32) -> String {
        // A user is root in a namespace of his own.
        let mut command = Command::new(if geteuid().is_root() { "env" } else { "unshare" });
        if !geteuid().is_root() {
            command.args(["--map-root-user", "--"]);
        }
        command.args(["prlimit", &format!("--data={MOST_MEMORY}"), env!("CARGO_BIN_EXE_cow-unify")]);
        command.arg("--pool").arg(self.path("pool")).args(["--protection", "none"]).args(options);
        command.args(["good1", "hostile", "good2"].map(|guest| self.path(guest)));
        let output = command.output().unwrap();
        let said = text(&output);
        assert_eq!(output.status.code(), Some(code), "{said}");
        said
    }

    /// A pass leaves the hostile guest out, whose file is named, and unifies the others.
    fn is_left_out(&self, options: &[&str], words: &[&str]) {
        let said = self.unify(options, 1);
        let hostile = self.path("hostile");
        let line = said.lines().find(|line| line.contains(hostile.to_str().unwrap()));
        let line = line.unwrap_or_else(|| panic!("{said}"));
        assert!(words.iter().chain(&[REMEDY]).all(|word| line.contains(word)), "{line}");
        let [first, second] = ["good1/usr/bin/p", "good2/usr/bin/p"].map(|file| self.path(file));
        assert!(same_inode(&first, &second), "{said}");
    }
}

/// A file of this size that takes no room.
fn sparse(path: &Path, size: u64) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    File::create(path).unwrap().set_len(size).unwrap();
}

#[test]
fn a_guest_whose_database_is_without_measure_is_left_out() {
    type Make = fn(&Path);
    let dpkg = |name| ["dpkg's database", name];
    let cases: [(Make, [&str; 2]); 8] = [
        (
            |root| sparse(&root.join("var/lib/dpkg/status"), 25 << 20),
            dpkg("/var/lib/dpkg/status: larger than"),
        ),
        (
            |root| {
                let tiny: String = (0..1_000_000).map(|number| format!("Package:{number:x}\n\n")).collect();
                fs::write(root.join("var/lib/dpkg/status"), tiny).unwrap();
            },
            dpkg("more than 50000 packages"),
        ),
        (
            |root| {
                fs::create_dir(root.join("var/lib/dpkg/updates")).unwrap();
                (0..1001)
                    .for_each(|number| sparse(&root.join(format!("var/lib/dpkg/updates/{number:04}")), 0));
            },
            dpkg("more than 1000 updates"),
        ),
        (
            |root| {
                fs::create_dir(root.join("var/lib/dpkg/updates")).unwrap();
                let first = root.join("var/lib/dpkg/updates/0000");
                fs::write(&first, vec![b'#'; 3 << 20]).unwrap();
                (1..99).for_each(|number| {
                    fs::hard_link(&first, root.join(format!("var/lib/dpkg/updates/{number:04}"))).unwrap();
                });
            },
            dpkg("/var/lib/dpkg/updates/0007: larger than"),
        ),
        (|root| sparse(&root.join("var/lib/dpkg/diversions"), 200 << 20), dpkg("/var/lib/dpkg/diversions: ")),
        (
            |root| sparse(&root.join("var/lib/dpkg/info/p.list"), 25 << 20),
            dpkg("/var/lib/dpkg/info/p.list: "),
        ),
        (
            |root| {
                let slot = [b"Slot".as_slice(), &[0; 4], &1u32.to_le_bytes(), &[0; 4]].concat();
                let pages = 200u32;
                let mut database = slot.repeat(pages as usize * 256);
                database[..32].fill(0);
                database[..4].copy_from_slice(b"RpmP");
                database[12..16].copy_from_slice(&pages.to_le_bytes());
                fs::create_dir_all(root.join("var/lib/rpm")).unwrap();
                fs::write(root.join("var/lib/rpm/Packages.db"), database).unwrap();
            },
            ["rpm's database, /var/lib/rpm/Packages.db", "more than 50000 packages"],
        ),
        (
            |root| sparse(&root.join("var/lib/pacman/local/p-1/files"), 25 << 20),
            ["pacman's database", "/var/lib/pacman/local/p-1/files: larger than"],
        ),
    ];
    for (make, words) in cases {
        let guests = Guests::new();
        make(&guests.path("hostile"));
        guests.is_left_out(&[], &words);
    }
}

#[test]
fn what_is_within_the_limits_takes_little_memory() {
    let guests = Guests::new();
    let root = guests.path("hostile");
    fs::write(root.join("var/lib/dpkg/diversions"), vec![b'\n'; 4 << 20]).unwrap();
    let paths: String = (0..250_000).map(|number| format!("/{number:x}/x\n")).collect();
    fs::write(root.join("var/lib/dpkg/info/p.list"), paths).unwrap();
    let conffiles = " /a b\n".repeat(900_000);
    let stanza = format!("Package: p\nStatus: install ok installed\nConffiles:\n{conffiles}");
    fs::write(root.join("var/lib/dpkg/status"), stanza).unwrap();
    guests.unify(&[], 0);
}

/// As many as a directory far below the root has: each is remembered with its whole path.
#[test]
fn a_tree_of_long_paths_is_left_out() {
    let guests = Guests::new();
    let mut dir: OwnedFd = File::open(guests.path("hostile")).unwrap().into();
    let make = |dir: &OwnedFd, name: &str| {
        rustix::fs::mkdirat(dir.as_fd(), name, Mode::RWXU).unwrap();
        rustix::fs::openat(dir.as_fd(), name, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap()
    };
    for _ in 0..125 {
        dir = make(&dir, &"d".repeat(255));
    }
    (0..3300).for_each(|number| drop(make(&dir, &number.to_string())));
    guests.is_left_out(&["--scope", "all"], &["bytes in the paths of its directories"]);
    // The standard library removes no path that is so long.
    assert!(Command::new("rm").arg("-rf").arg(guests.path("hostile")).status().unwrap().success());
}

#[test]
fn a_list_of_changes_without_measure_is_dropped_and_said() {
    let guests = Guests::new();
    guests.unify(&[], 0);
    let spool = guests.path("hostile/var/lib/cow-hooks/spool");
    sparse(&spool.join("changed"), 17 << 20);
    let said = guests.unify(&["--changed"], 1);
    assert!(
        said.contains("spool/taken-0: larger than 16 MiB") && said.contains("the list is dropped"),
        "{said}"
    );
    assert!(!guests.unify(&["--changed"], 0).contains("larger"));
}

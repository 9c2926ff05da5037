//! The pool is looked after: what is unused goes, what is damaged is found and repaired, a guest can leave.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use cow_hooks::sys::file::inode::{Kind, Time};
use serde_json::Value;

use crate::support::{
    FILESYSTEMS, Filesystem, Seen, entries, files, inode, run, same_inode, seen, set_immutable, set_mtime,
    text,
};

const PROGRAM: &str = env!("CARGO_BIN_EXE_cow-unify");

/// Files that all guests have.
pub const FILES: usize = 12;

/// Three guests with equal files, of which the first two share theirs.
pub struct Farm {
    filesystem: Filesystem,
}

impl Farm {
    pub fn new(kind: &str) -> Farm {
        Farm::with(kind, &[])
    }

    /// With a pool made with these options.
    pub fn with(kind: &str, options: &[&str]) -> Farm {
        let farm = Farm { filesystem: Filesystem::new(kind, 512) };
        for guest in ["g1", "g2", "g3"] {
            for number in 0..FILES {
                farm.write(guest, &name(number), &content(number));
            }
            fs::create_dir_all(farm.path(guest).join("var/lib")).unwrap();
            farm.write(guest, "usr/own", guest.as_bytes());
        }
        let output = farm.run(&[&["--scope", "all", "g1", "g2"], options].concat());
        assert!(output.status.success(), "{}", text(&output));
        farm
    }

    pub fn path(&self, guest: &str) -> PathBuf {
        self.filesystem.path().join(guest)
    }

    pub fn pool(&self) -> PathBuf {
        self.path(".cow-pool")
    }

    pub fn write(&self, guest: &str, name: &str, content: &[u8]) {
        let path = self.path(guest).join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        set_mtime(&path, Time { secs: 1_600_000_000, nanos: 5 });
    }

    /// The words of a command on this pool; guests by their names.
    pub fn words(&self, words: &[&str]) -> Vec<OsString> {
        let word = |word: &&str| match *word {
            "g1" | "g2" | "g3" => self.path(word).into_os_string(),
            other => other.into(),
        };
        let mut all = vec![OsString::from(PROGRAM)];
        all.extend(words.iter().map(word));
        // One thread: the same calls in the same order.
        all.extend(["--jobs", "1", "--pool"].map(OsString::from));
        all.push(self.pool().into_os_string());
        all
    }

    pub fn command(&self, words: &[&str]) -> Command {
        // What has only just changed is left for the next run.
        std::thread::sleep(std::time::Duration::from_millis(30));
        let words = self.words(words);
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]);
        command
    }

    pub fn run(&self, words: &[&str]) -> Output {
        self.command(words).output().unwrap()
    }

    /// The result of a command that must end with this code.
    pub fn json(&self, code: i32, words: &[&str]) -> Value {
        let output = self.run(&[words, &["--json"]].concat());
        assert_eq!(output.status.code(), Some(code), "{words:?}: {}", text(&output));
        serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {}", text(&output)))
    }

    pub fn unify(&self) {
        let output = self.run(&["--scope", "all", "g1", "g2"]);
        assert!(output.status.success(), "{}", text(&output));
    }

    /// The file of the pool that this name is a link to.
    pub fn object(&self, guest: &str, name: &str) -> PathBuf {
        let ino = fs::metadata(self.path(guest).join(name)).unwrap().ino();
        let found = entries(&self.pool()).into_iter().find(|(_, inode)| inode.id.ino == ino);
        self.pool().join(found.unwrap_or_else(|| panic!("{name} is none of the pool's")).0)
    }

    /// All objects, or all that was set aside.
    pub fn stored(&self, place: &str) -> Vec<PathBuf> {
        let top = self.pool().join(place);
        let regular = entries(&top).into_iter().filter(|(_, inode)| inode.kind == Kind::Regular);
        regular.map(|(path, _)| top.join(path)).collect()
    }

    /// Changes a byte of an object behind everybody's back.
    pub fn flip(&self, name: &str) -> PathBuf {
        let object = self.object("g1", name);
        let modified = inode(&object).mtime;
        set_immutable(&object, false);
        let file = fs::File::options().read(true).write(true).open(&object).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, 1000).unwrap();
        file.write_all_at(&[byte[0] ^ 4], 1000).unwrap();
        drop(file);
        set_mtime(&object, modified);
        set_immutable(&object, true);
        object
    }

    /// What must hold whenever nothing is under way: pool and guests whole, protected, nothing left over.
    pub fn check(&self, when: &str) {
        for object in self.stored("objects") {
            assert!(inode(&object).immutable || inode(&object).nlink == 1, "{when}: {}", object.display());
        }
        for damaged in self.stored("quarantine") {
            assert_eq!((inode(&damaged).nlink, inode(&damaged).immutable), (1, true), "{when}: {damaged:?}");
        }
        assert_eq!(fs::read_dir(self.pool().join("runs")).unwrap().count(), 0, "{when}: a run is left");
        for guest in ["g1", "g2", "g3"] {
            for number in 0..FILES {
                let file = fs::read(self.path(guest).join(name(number))).unwrap();
                assert!(file == content(number), "{when}: {guest}/{} is not what it was", name(number));
            }
        }
    }
}

pub fn name(number: usize) -> String {
    format!("usr/d{}/file-{number}", number % 3)
}

pub fn content(number: usize) -> Vec<u8> {
    format!("content of {number}\n").repeat(200 + number).into_bytes()
}

/// All there is to see of a tree by its owner, but which inodes its files are, and how these are protected.
fn look(top: &Path) -> BTreeMap<PathBuf, (Option<Seen>, u32, Time)> {
    let shown = |(path, inode): (PathBuf, cow_hooks::sys::file::inode::Inode)| {
        let file = (inode.kind == Kind::Regular).then(|| Seen { immutable: false, ..seen(&top.join(&path)) });
        (path, (file, inode.mode, inode.mtime))
    };
    entries(top).into_iter().map(shown).collect()
}

fn paths(list: &Value) -> Vec<&str> {
    list.as_array().unwrap().iter().map(|row| row["path"].as_str().unwrap()).collect()
}

/// Lets go of a name.
fn remove(path: &Path) {
    let protected = inode(path).immutable;
    let file = fs::File::open(path).unwrap();
    set_immutable(path, false);
    fs::remove_file(path).unwrap();
    if protected {
        rustix::fs::ioctl_setflags(&file, rustix::fs::IFlags::IMMUTABLE).unwrap();
    }
}

#[test]
#[ignore = "needs root"]
fn privileged_what_no_guest_has_a_link_to_is_removed_and_nothing_else() {
    for kind in FILESYSTEMS {
        let farm = Farm::new(kind);
        assert_eq!(farm.stored("objects").len(), FILES, "{kind}");
        let nothing = farm.json(0, &["gc"]);
        assert_eq!((&nothing["removed"], &nothing["kept"]), (&0.into(), &FILES.into()), "{kind}");
        let unused = [farm.object("g1", &name(0)), farm.object("g1", &name(1))];
        for guest in ["g1", "g2"] {
            remove(&farm.path(guest).join(name(0)));
            remove(&farm.path(guest).join(name(1)));
        }
        // One guest is enough.
        remove(&farm.path("g1").join(name(2)));
        let allocated: u64 = unused.iter().map(|path| inode(path).allocated).sum();
        let status = farm.json(0, &["status", "g1"]);
        assert_eq!(status["unused_objects"]["files"], 2, "{kind}: {status}");
        let before = farm.stored("objects");
        for (dry, words) in [(true, &["gc", "-n"][..]), (false, &["gc", "-v"])] {
            let report = farm.json(0, words);
            let mut named = paths(&report["names"]);
            named.sort_unstable();
            let mut wanted: Vec<&str> = unused.iter().map(|path| path.to_str().unwrap()).collect();
            wanted.sort_unstable();
            assert_eq!(named, wanted, "{kind}: {report}");
            assert_eq!(report["bytes_freed"], allocated, "{kind}");
            assert_eq!(report["kept"], FILES - 2, "{kind}");
            assert_eq!(farm.stored("objects").len(), before.len() - if dry { 0 } else { 2 }, "{kind}");
        }
        assert!(farm.stored("objects").iter().all(|object| inode(object).immutable), "{kind}");
    }
}

#[test]
#[ignore = "needs root"]
fn privileged_a_run_that_is_asked_to_removes_what_no_guest_has() {
    let farm = Farm::new("ext4");
    for guest in ["g1", "g2"] {
        remove(&farm.path(guest).join(name(0)));
    }
    let words = ["--scope", "all", "g1", "g2"];
    assert_eq!(farm.json(0, &words)["collected"], Value::Null);
    let would = farm.json(0, &[&["-n", "--gc"][..], &words].concat());
    assert_eq!((&would["collected"], farm.stored("objects").len()), (&1.into(), FILES), "{would}");
    let report = farm.json(0, &[&["--gc"][..], &words].concat());
    assert_eq!((&report["collected"], farm.stored("objects").len()), (&1.into(), FILES - 1), "{report}");
    assert!(report["bytes_collected"].as_u64() > Some(0), "{report}");
}

#[test]
#[ignore = "needs root"]
fn privileged_a_flipped_bit_is_found_and_repaired_from_a_private_copy() {
    for kind in FILESYSTEMS {
        let farm = Farm::new(kind);
        // A second name within the guest.
        let again = farm.path("g1").join("usr/again");
        let target = farm.path("g1").join(name(4));
        set_immutable(&target, false);
        fs::hard_link(&target, &again).unwrap();
        set_immutable(&target, true);
        let (g1, g3) = (look(&farm.path("g1")), look(&farm.path("g3")));
        let clean = farm.json(0, &["verify", "g1", "g2", "g3"]);
        assert_eq!((&clean["objects"], &clean["names"]), (&FILES.into(), &Value::Array(vec![])), "{kind}");
        let damaged = farm.flip(&name(4));

        // The pool alone.
        let report = farm.json(1, &["verify"]);
        assert_eq!(paths(&report["damaged"]), [damaged.to_str().unwrap()], "{kind}");
        assert_eq!(report["damaged"][0]["differs"], serde_json::json!(["content"]), "{kind}");
        assert_eq!(report["still_seen"], 1, "{kind}");
        assert!(!damaged.exists(), "{kind}");
        let set_aside = farm.stored("quarantine");
        assert_eq!(set_aside.len(), 1, "{kind}");
        assert!(same_inode(&set_aside[0], &again) && inode(&again).immutable, "{kind}");

        // No guest has a copy.
        let report = farm.json(1, &["verify", "g1", "g2"]);
        assert_eq!((&report["damaged"], &report["still_seen"]), (&Value::Array(vec![]), &1.into()), "{kind}");
        let mut named = paths(&report["names"]);
        named.sort_unstable();
        let path = |guest: &str, name: &str| farm.path(guest).join(name).to_str().unwrap().to_owned();
        let wanted = [path("g1", "usr/again"), path("g1", &name(4)), path("g2", &name(4))];
        let mut sorted = wanted.clone();
        sorted.sort_unstable();
        assert_eq!(named, sorted, "{kind}");
        assert!(report["names"].as_array().unwrap().iter().all(|seen| seen["repaired"] == false), "{kind}");
        let status = farm.json(0, &["status", "g1", "g2", "g3"]);
        assert_eq!(status["guests"][0]["damaged"], 2, "{kind}: {status}");
        let output = farm.run(&["verify", "g1", "g2"]);
        assert!(text(&output).contains("remedy: reinstall the packages"), "{kind}: {}", text(&output));

        // The third has.
        let output = farm.run(&["verify", "g1", "g2", "g3"]);
        assert_eq!(output.status.code(), Some(1), "{kind}: {}", text(&output));
        for path in wanted {
            assert!(
                text(&output).contains(&format!("{path}: damaged, repaired\n")),
                "{kind}: {}",
                text(&output)
            );
        }
        assert!(
            text(&output).contains(" 0 damaged, 3 damaged files in guests, 3 repaired\n"),
            "{}",
            text(&output)
        );
        farm.check(kind);
        assert!(same_inode(&again, &target) && same_inode(&target, &farm.path("g2").join(name(4))), "{kind}");
        assert_eq!(farm.object("g1", &name(4)), damaged, "{kind}");
        assert!(g1 == look(&farm.path("g1")), "{kind}: the guest is not what it was");
        assert!(g3 == look(&farm.path("g3")), "{kind}: the guest with the copy is not what it was");
        assert!(!same_inode(&farm.path("g3").join(name(4)), &target), "{kind}");

        let clean = farm.json(0, &["verify", "g1", "g2", "g3"]);
        assert_eq!((&clean["objects"], &clean["names"]), (&FILES.into(), &Value::Array(vec![])), "{kind}");
        assert_eq!(farm.json(0, &["gc"])["removed"], 1, "{kind}");
        assert_eq!(farm.stored("quarantine").len(), 0, "{kind}");
    }
}

#[test]
#[ignore = "needs root"]
fn privileged_a_damaged_inode_is_replaced_by_another_of_the_same_object() {
    for kind in FILESYSTEMS {
        let farm = Farm::new(kind);
        let object = farm.object("g1", &name(7));
        let second = object.to_str().unwrap().strip_suffix(".0").unwrap().to_owned() + ".1";
        run(Command::new("cp").arg("-a").arg(&object).arg(&second));
        let full = kind == "ext4" && fill_links(Path::new(&second), &farm.path("links"), 1);
        set_immutable(Path::new(&second), true);
        farm.flip(&name(7));
        let report = farm.json(1, &["verify", "g1", "g2"]);
        let made = u32::from(full);
        assert_eq!(
            (&report["objects_made"], &report["still_seen"]),
            (&made.into(), &0.into()),
            "{kind}: {report}"
        );
        // There was room for one guest's link.
        let objects = [farm.object("g1", &name(7)), farm.object("g2", &name(7))];
        let third = second.strip_suffix(".1").unwrap().to_owned() + ".2";
        assert_eq!(objects[0], Path::new(&second), "{kind}");
        assert_eq!(objects[1], Path::new(if full { &third } else { &second }), "{kind}");
        farm.check(kind);
    }
}

/// Gives a file as many links as it can have, but for so many.
fn fill_links(file: &Path, dir: &Path, room: usize) -> bool {
    fs::create_dir(dir).unwrap();
    let made = (0..).take_while(|number| fs::hard_link(file, dir.join(number.to_string())).is_ok()).count();
    for number in made - room..made {
        fs::remove_file(dir.join(number.to_string())).unwrap();
    }
    true
}

#[test]
#[ignore = "needs root"]
fn privileged_whatever_differs_is_named() {
    for kind in FILESYSTEMS {
        let farm = Farm::new(kind);
        let objects: Vec<PathBuf> = (0..4).map(|number| farm.object("g1", &name(number))).collect();
        for object in &objects {
            set_immutable(object, false);
        }
        fs::set_permissions(&objects[0], fs::Permissions::from_mode(0o600)).unwrap();
        run(Command::new("setfattr").args(["-n", "user.more", "-v", "1"]).arg(&objects[1]));
        let size = inode(&objects[2]).size;
        fs::File::options().write(true).open(&objects[2]).unwrap().set_len(size - 1).unwrap();
        // Of the fourth nothing differs but that it is not protected.
        let report = farm.json(1, &["verify", "g1", "g2", "g3"]);
        let differs = |path: &PathBuf| {
            let rows = report["damaged"].as_array().unwrap();
            let row = rows.iter().find(|row| row["path"] == path.to_str().unwrap());
            row.map(|row| row["differs"].to_string()).unwrap_or_default()
        };
        let found: Vec<String> = objects.iter().map(differs).collect();
        let wanted = [r#"["metadata"]"#, r#"["attributes"]"#, r#"["content","metadata"]"#, ""];
        assert_eq!(found, wanted, "{kind}");
        assert_eq!(paths(&report["protected"]).len(), 4, "{kind}: {report}");
        assert!(paths(&report["protected"]).contains(&objects[3].to_str().unwrap()), "{kind}: {report}");
        farm.check(kind);
        farm.json(0, &["verify", "g1", "g2"]);
    }
}

#[test]
#[ignore = "needs root"]
fn privileged_a_pool_without_protection_is_repaired_without_windows() {
    for kind in FILESYSTEMS {
        let farm = Farm::with(kind, &["--protection", "none"]);
        set_immutable(&farm.flip(&name(3)), false);
        let words = farm.words(&["verify", "g1", "g2", "g3"]);
        // Nothing that is immutable: the capability is not asked for.
        let mut command = Command::new("capsh");
        command.args(["--drop=cap_linux_immutable", "--", "-c", "exec \"$@\"", "sh"]).args(words);
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{kind}: {}", text(&output));
        let said = " 1 damaged, 2 damaged files in guests, 2 repaired\n";
        assert!(text(&output).contains(said), "{kind}: {}", text(&output));
        farm.json(0, &["verify", "g1", "g2", "g3"]);
        for guest in ["g1", "g2"] {
            let file = farm.path(guest).join(name(3));
            assert!(fs::read(&file).unwrap() == content(3) && !inode(&file).immutable, "{kind}");
        }
    }
}

#[test]
#[ignore = "needs root"]
fn privileged_without_the_capability_a_protected_pool_is_left_alone() {
    let farm = Farm::new("ext4");
    let damaged = farm.flip(&name(3));
    let words = farm.words(&["verify", "g1", "g2", "g3"]);
    let mut command = Command::new("capsh");
    command.args(["--drop=cap_linux_immutable", "--", "-c", "exec \"$@\"", "sh"]).args(words);
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(3), "{}", text(&output));
    assert!(text(&output).contains("the immutable flag cannot be set and cleared"), "{}", text(&output));
    assert!(damaged.exists() && inode(&damaged).immutable);
}

#[test]
#[ignore = "needs root"]
fn privileged_a_guest_whose_package_manager_is_at_work_is_left_alone() {
    let farm = Farm::new("ext4");
    let members = farm.path("g2").join("var/lib/cow-hooks/members");
    fs::create_dir_all(&members).unwrap();
    fs::write(members.join("1"), "1 1 1\n").unwrap();
    farm.flip(&name(2));
    let report = farm.json(1, &["verify", "g1", "g2", "g3"]);
    for row in report["names"].as_array().unwrap() {
        let at_work = row["path"].as_str().unwrap().contains("/g2/");
        assert_eq!(row["repaired"], !at_work, "{report}");
    }
    let before = look(&farm.path("g2"));
    let output = farm.run(&["detach", "g2"]);
    assert_eq!(output.status.code(), Some(3), "{}", text(&output));
    assert!(text(&output).contains("a package manager is running in this guest"), "{}", text(&output));
    assert!(before.keys().eq(look(&farm.path("g2")).keys()));
    // It is over.
    fs::remove_file(members.join("1")).unwrap();
    farm.json(1, &["verify", "g1", "g2", "g3"]);
    farm.check("afterwards");
}

#[test]
#[ignore = "needs root"]
fn privileged_a_guest_that_leaves_shares_nothing_and_has_all_it_had() {
    for kind in FILESYSTEMS {
        for hooks in [false, true] {
            let farm = Farm::new(kind);
            if hooks {
                fs::create_dir_all(farm.path("g1").join("var/lib/cow-hooks/spool")).unwrap();
                fs::write(farm.path("g1").join("var/lib/cow-hooks/spool/changed"), b"/usr/own\0").unwrap();
                fs::write(farm.path("g1").join("var/lib/cow-hooks/lock"), b"").unwrap();
            }
            let others = || (files(&farm.path("g2")), files(&farm.pool().join("objects")));
            let (before, before_others) = (look(&farm.path("g1")), others());
            let report = farm.json(0, &["detach", "-v", "g1"]);
            assert_eq!(report["detached"], FILES, "{kind}: {report}");
            assert_eq!(paths(&report["names"]).len(), FILES, "{kind}");
            assert!(before == look(&farm.path("g1")), "{kind}, hooks {hooks}: the guest is not what it was");
            assert!(before_others == others(), "{kind}: another guest or the pool has changed");
            for (path, inode) in entries(&farm.path("g1")) {
                let single = inode.kind != Kind::Regular || (inode.nlink == 1 && !inode.immutable);
                assert!(single, "{kind}: {}", path.display());
            }
            assert_eq!(farm.path("g1").join("var/lib/cow-hooks").exists(), hooks, "{kind}");
            assert_eq!(farm.json(0, &["detach", "g1"])["detached"], 0, "{kind}");
        }
    }
}

#[test]
#[ignore = "needs root"]
fn privileged_status_counts_names_inodes_and_what_they_save() {
    for kind in FILESYSTEMS {
        let farm = Farm::new(kind);
        farm.write("g1", "var/lib/cow-hooks/spool/changed", b"/usr/a\0/usr/b\0");
        farm.write("g1", "var/log/x", b"12345");
        let status = farm.json(0, &["status", "g1", "g2", "g3"]);
        let sizes: u64 = (0..FILES).map(|number| content(number).len() as u64).sum();
        let pages: u64 = (0..FILES).map(|number| (content(number).len() as u64).next_multiple_of(4096)).sum();
        let guest = &status["guests"][0];
        assert_eq!(guest["shared"], serde_json::json!({"files": FILES, "bytes": sizes}), "{kind}");
        assert_eq!((&guest["shared_inodes"], &guest["waiting"]), (&FILES.into(), &2.into()), "{kind}");
        // What is in /var is not eligible.
        assert_eq!(guest["other"]["files"], 2, "{kind}: {status}");
        assert_eq!(status["guests"][2]["shared"]["files"], 0, "{kind}");
        assert_eq!(status["bytes_of_page_cache_saved"], pages, "{kind}");
        let allocated: u64 = farm.stored("objects").iter().map(|object| inode(object).allocated).sum();
        assert_eq!(status["bytes_of_disk_saved"], allocated, "{kind}");
        assert_eq!(status["objects"], serde_json::json!({"files": FILES, "bytes": allocated}), "{kind}");
        let output = farm.run(&["status", "g1", "g2"]);
        assert!(text(&output).contains("\nsaved: "), "{}", text(&output));
    }
}

#[test]
#[ignore = "needs root"]
fn privileged_without_a_pool_or_with_a_busy_one_nothing_is_done() {
    let farm = Farm::new("ext4");
    for words in [&["gc"][..], &["verify", "g1"], &["status", "g1"]] {
        let mut words = farm.words(words);
        *words.last_mut().unwrap() = farm.path("g1").into();
        let output = Command::new(&words[0]).args(&words[1..]).output().unwrap();
        assert_eq!(output.status.code(), Some(3), "{}", text(&output));
        assert!(text(&output).contains("there is no pool here"), "{}", text(&output));
    }
    let lock = fs::File::open(farm.pool().join("lock")).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    std::thread::scope(|scope| {
        for words in [&["gc"][..], &["verify", "g1"], &["remove", "g1"]] {
            let farm = &farm;
            scope.spawn(move || {
                let output = farm.run(words);
                assert_eq!(output.status.code(), Some(3), "{}", text(&output));
                assert!(
                    text(&output).contains("another cow-unify is working on this pool"),
                    "{}",
                    text(&output)
                );
            });
        }
    });
    assert_eq!(entries(&farm.path("g1")).len(), entries(&farm.path("g2")).len());
}

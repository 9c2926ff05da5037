//! Detaching: what the private copy is, and what the shared inode stays.

use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use cow_hooks::detach::request::Request;
use cow_hooks::policy::Policy;
use cow_hooks::state::members::Coverage;
use cow_hooks::sys::file::inode::{Inode, Time};
use cow_hooks::sys::path::root::Root;
use cow_hooks::sys::process::Processes;
use cow_hooks::transaction::{Guest, RunOptions, member};
use proptest::prelude::*;
use rustix::fs::{FlockOperation, IFlags};

use crate::support::{
    FILESYSTEMS, Filesystem, Guests, entries, feed, files, inode, litter, removal, run, same_inode, seen,
    set_immutable, set_mtime, text,
};

fn ok(output: &Output) {
    assert!(output.status.success(), "{}", text(output));
}

/// Every object of the pool, protected and with its content.
pub fn assert_pool_whole(
    guests: &Guests,
    before: &std::collections::BTreeMap<PathBuf, crate::support::Seen>,
) {
    assert_eq!(before, &files(&guests.pool()));
}

fn flags(path: &Path) -> IFlags {
    rustix::fs::ioctl_getflags(fs::File::open(path).unwrap()).unwrap()
}

/// An object with everything a file can have, shared by both guests as `path`.
fn share_elaborate(guests: &Guests, path: &str) {
    let object = guests.pool().join("elaborate");
    let mut file = fs::File::create(&object).unwrap();
    file.write_all(&[1; 10_000]).unwrap();
    file.seek(SeekFrom::Start(6 << 20)).unwrap();
    file.write_all(b"behind a hole").unwrap();
    file.set_len(16 << 20).unwrap();
    drop(file);
    std::os::unix::fs::chown(&object, Some(123), Some(456)).unwrap();
    fs::set_permissions(&object, fs::Permissions::from_mode(0o6751)).unwrap();
    run(Command::new("setfattr").args(["-n", "user.plain", "-v", "value"]).arg(&object));
    run(Command::new("setfattr").args(["-n", "trusted.more", "-v", &"x".repeat(900)]).arg(&object));
    run(Command::new("setfacl").args(["-m", "u:1000:rwx,g:2000:r-x"]).arg(&object));
    run(Command::new("setcap").arg("cap_net_raw+ep").arg(&object));
    run(Command::new("chattr").arg("+d").arg(&object));
    for guest in [guests.first(), guests.second()] {
        fs::create_dir_all(guest.join(path).parent().unwrap()).unwrap();
        fs::hard_link(&object, guest.join(path)).unwrap();
    }
    let time = |tv_sec, tv_nsec| rustix::fs::Timespec { tv_sec, tv_nsec };
    let times = rustix::fs::Timestamps {
        last_access: time(1_900_000_000, 987_654_321),
        last_modification: time(1_500_000_000, 123_456_789),
    };
    rustix::fs::utimensat(rustix::fs::CWD, &object, &times, rustix::fs::AtFlags::empty()).unwrap();
}

#[test]
#[ignore = "needs root"]
fn privileged_a_private_copy_is_equal_in_everything() {
    for kind in FILESYSTEMS {
        let guests = Guests::new(kind, 2, false);
        // What a directory hands down must not end up in the copy.
        for dir in ["usr/bin", "etc"] {
            let dir = guests.first().join(dir);
            run(Command::new("setfacl").args(["-d", "-m", "u:77:rwx"]).arg(&dir));
            std::os::unix::fs::chown(&dir, None, Some(99)).unwrap();
            fs::set_permissions(&dir, fs::Permissions::from_mode(0o2755)).unwrap();
        }
        share_elaborate(&guests, "usr/bin/elaborate");
        fs::hard_link(guests.pool().join("usr%bin%file-0"), guests.first().join("etc/plain")).unwrap();
        guests.protect();
        let (ours, theirs) =
            (guests.first().join("usr/bin/elaborate"), guests.second().join("usr/bin/elaborate"));
        let before = inode(&ours);
        ok(&guests.prepare(&["/usr/bin", "/etc"]));
        let (copy, original) = (inode(&ours), inode(&theirs));
        assert_ne!(copy.id, original.id);
        assert_eq!((copy.nlink, copy.immutable), (1, false));
        assert_eq!((copy.atime, copy.mtime), (before.atime, before.mtime), "{kind}");
        assert_eq!((copy.mode, copy.uid, copy.gid), (0o6771, 123, 456), "{kind}");
        assert!(copy.allocated <= before.allocated + (256 << 10), "{kind}: {copy:?}");
        assert!(flags(&ours).contains(IFlags::NODUMP));
        let settled = Inode { nlink: original.nlink + 1, ctime: before.ctime, ..original };
        assert_eq!(settled, before, "{kind}");
        let (copy, original) = (seen(&ours), seen(&theirs));
        let names: Vec<_> = original.xattrs.keys().map(|name| name.to_str().unwrap()).collect();
        for name in ["user.plain", "trusted.more", "security.capability", "system.posix_acl_access"] {
            assert!(names.contains(&name), "{kind}: {names:?}");
        }
        assert!(original.immutable);
        assert_eq!(copy, crate::support::Seen { immutable: false, ..original }, "{kind}");
        // One without any of it.
        let plain = seen(&guests.first().join("usr/bin/file-0"));
        assert!(same_inode(&guests.first().join("usr/bin/file-0"), &guests.first().join("etc/plain")));
        let other = seen(&guests.second().join("usr/bin/file-0"));
        assert_eq!(plain, crate::support::Seen { immutable: false, ..other }, "{kind}");
        assert_eq!(litter(&guests.first()), Vec::<&Path>::new());
    }
}

#[test]
#[ignore = "needs root"]
fn privileged_a_reader_never_sees_the_name_missing_or_short() {
    for kind in FILESYSTEMS {
        let guests = Guests::new(kind, 40, true);
        let over = AtomicBool::new(false);
        let rounds = std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                let mut rounds = 0;
                while !over.load(Ordering::Relaxed) {
                    for number in (0..40).step_by(2) {
                        let mut content = Vec::new();
                        let file = fs::File::open(guests.first().join(format!("usr/bin/file-{number}")));
                        file.unwrap().read_to_end(&mut content).unwrap();
                        assert_eq!(content, format!("content of {number}\n").repeat(100).as_bytes());
                    }
                    rounds += 1;
                }
                rounds
            });
            let hook = feed(guests.program("cow-dpkg").arg("apt-pre"), removal("none").as_bytes());
            let prepared = guests.prepare(&["/usr/bin"]);
            over.store(true, Ordering::Relaxed);
            let rounds = reader.join().unwrap();
            ok(&hook);
            ok(&prepared);
            rounds
        });
        assert!(rounds > 0);
        assert!(!guests.shared("usr/bin/file-38"));
    }
}

#[test]
#[ignore = "needs root"]
fn privileged_a_user_who_holds_locks_on_shared_inodes_holds_up_nobody() {
    let guests = Guests::new("ext4", 300, true);
    let before = files(&guests.pool());
    // What any user may do who may read the files.
    let held: Vec<fs::File> = (0..150)
        .map(|number| {
            let held = fs::File::open(guests.second().join(format!("usr/bin/file-{}", 2 * number))).unwrap();
            rustix::fs::flock(&held, FlockOperation::LockShared).unwrap();
            held
        })
        .collect();
    let begun = Instant::now();
    ok(&guests.prepare(&["/usr/bin"]));
    // A quarter of a second for each lock would be more than half a minute.
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    for number in (0..300).step_by(2) {
        assert!(!guests.shared(&format!("usr/bin/file-{number}")), "{number}");
    }
    drop(held);
    assert_pool_whole(&guests, &before);
    assert_eq!(litter(&guests.first()), Vec::<&Path>::new());
}

#[test]
#[ignore = "needs root"]
fn privileged_a_project_directory_is_worked_in_beside_the_file() {
    let guests = Guests::new("xfs", 2, false);
    guests.share("usr/share/doc/a", b"in a project");
    for guest in [guests.first(), guests.second()] {
        fs::create_dir(guest.join("opt")).unwrap();
        fs::hard_link(guest.join("usr/share/doc/a"), guest.join("opt/a")).unwrap();
        fs::hard_link(guest.join("usr/share/doc/a"), guest.join("opt/b")).unwrap();
    }
    guests.protect();
    run(Command::new("chattr").args(["-p", "42", "+P"]).arg(guests.first().join("opt")));
    let before = files(&guests.pool());
    guests.own("pkg", &["/opt/a".into(), "/opt/b".into(), "/usr/bin/file-0".into()]);
    let output = feed(guests.program("cow-dpkg").arg("apt-pre"), removal("pkg").as_bytes());
    ok(&output);
    assert!(!guests.shared("opt/a") && !guests.shared("usr/bin/file-0"), "{}", text(&output));
    assert!(same_inode(&guests.first().join("opt/a"), &guests.first().join("opt/b")));
    assert_eq!(fs::read(guests.first().join("opt/a")).unwrap(), b"in a project");
    assert_pool_whole(&guests, &before);
    // Names in and out of the project.
    ok(&guests.prepare(&["/usr/share", "/opt"]));
    assert!(!guests.shared("usr/share/doc/a"));
    let only = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().starts_with(".cow-");
    assert!(!litter(&guests.first()).iter().any(only));
    assert_pool_whole(&guests, &before);
}

#[test]
#[ignore = "needs root"]
fn privileged_a_file_beyond_the_reach_of_the_stash_waits_for_the_host() {
    for (kind, far) in [("ext4", "xfs"), ("xfs", "ext4"), ("btrfs", "btrfs")] {
        let guests = Guests::new(kind, 4, true);
        let opt = guests.first().join("opt");
        fs::create_dir(&opt).unwrap();
        let far = Filesystem::at(far, 320, &opt);
        for dir in ["here", "elsewhere"] {
            fs::create_dir(opt.join(dir)).unwrap();
        }
        fs::write(opt.join("elsewhere/a"), "far away").unwrap();
        fs::hard_link(opt.join("elsewhere/a"), opt.join("here/a")).unwrap();
        fs::hard_link(opt.join("elsewhere/a"), opt.join("here/b")).unwrap();
        set_immutable(&opt.join("here/a"), true);
        let before = seen(&opt.join("elsewhere/a"));
        guests.own("pkg", &["/opt/here/a".into(), "/opt/here/b".into(), "/usr/bin/file-0".into()]);
        let output = feed(guests.program("cow-dpkg").arg("apt-pre"), removal("pkg").as_bytes());
        ok(&output);
        assert!(text(&output).contains("3 files made private"), "{}", text(&output));
        assert!(!same_inode(&opt.join("here/a"), &opt.join("elsewhere/a")));
        assert!(same_inode(&opt.join("here/a"), &opt.join("here/b")));
        assert_eq!(seen(&opt.join("elsewhere/a")), before);
        assert_eq!(inode(&opt.join("elsewhere/a")).nlink, 1);
        let stash = guests.first().join("var/lib/cow-hooks/stash");
        assert_eq!(fs::read_dir(stash).unwrap().count(), 1);
        assert!(!entries(&opt).keys().any(|path| path.to_string_lossy().contains(".cow-")));
        drop(far);
    }
}

#[test]
#[ignore = "needs root"]
fn privileged_an_inode_with_all_the_links_ext4_allows_is_detached() {
    let guests = Guests::new("ext4", 0, false);
    guests.share("usr/bin/many", b"many");
    let object = guests.pool().join("usr%bin%many");
    for (guest, count) in [(guests.first(), 2_000), (guests.second(), 62_997)] {
        let dir = guest.join("usr/many");
        fs::create_dir(&dir).unwrap();
        for number in 0..count {
            fs::hard_link(&object, dir.join(number.to_string())).unwrap();
        }
    }
    assert_eq!(inode(&object).nlink, 65_000);
    guests.protect();
    ok(&guests.prepare(&["/usr/many"]));
    let copy = inode(&guests.first().join("usr/bin/many"));
    assert_eq!(copy.nlink, 2_001);
    assert!(same_inode(&guests.first().join("usr/bin/many"), &guests.first().join("usr/many/1999")));
    let object = inode(&object);
    assert_eq!((object.nlink, object.immutable), (62_999, true));
    assert_eq!(litter(&guests.first()), Vec::<&Path>::new());
}

#[test]
#[ignore = "needs root"]
fn privileged_a_name_that_is_detached_twice_goes_back_to_what_was_shared() {
    let guests = Guests::new("ext4", 2, true);
    guests.own("pkg", &["/usr/bin/file-0".to_owned()]);
    let hook = |hook: &str| feed(guests.program("cow-dpkg").arg(hook), removal("pkg").as_bytes());
    ok(&hook("apt-pre"));
    assert!(!guests.shared("usr/bin/file-0"));
    // As a package manager leaves it that is killed in the midst of its own links.
    let (file, twin) =
        (guests.first().join("usr/bin/file-0"), guests.first().join("usr/bin/file-0;0a1b2c3d"));
    fs::hard_link(&file, &twin).unwrap();
    ok(&hook("apt-pre"));
    assert!(!same_inode(&file, &twin));
    ok(&hook("apt-post"));
    assert!(guests.shared("usr/bin/file-0"));
    assert!(litter(&guests.first()).is_empty());
    assert_eq!(guests.spool(), [""; 0]);
}

/// What a private copy is made of, and how often it is named.
#[derive(Clone, Debug)]
struct Shape {
    /// Data and holes, in blocks.
    pieces: Vec<(bool, u8)>,
    tail: u16,
    mode: u32,
    names: usize,
    shared: bool,
}

fn shape() -> impl Strategy<Value = Shape> {
    let piece = (any::<bool>(), 1..40_u8);
    (proptest::collection::vec(piece, 0..4), 0..5000_u16, 0..0o10000_u32, 1..4_usize, any::<bool>())
        .prop_map(|(pieces, tail, mode, names, shared)| Shape { pieces, tail, mode, names, shared })
}

fn make(path: &Path, shape: &Shape, seed: u8) {
    let mut file = fs::File::create(path).unwrap();
    for (data, blocks) in &shape.pieces {
        if *data {
            file.write_all(&vec![seed; usize::from(*blocks) * 4096]).unwrap();
        } else {
            file.seek(SeekFrom::Current(i64::from(*blocks) * 4096)).unwrap();
        }
    }
    file.write_all(&vec![seed | 1; usize::from(shape.tail)]).unwrap();
    let end = file.stream_position().unwrap();
    file.set_len(end).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(shape.mode)).unwrap();
    set_mtime(path, Time { secs: 1_000_000_000 + i64::from(seed), nanos: 7 });
}

/// The files of a tree and which of their names are one inode.
fn content_and_topology(top: &Path) -> Vec<(PathBuf, Vec<u8>, u32, Time, PathBuf)> {
    let mut first: std::collections::HashMap<u64, PathBuf> = std::collections::HashMap::new();
    let mut tree = Vec::new();
    for (path, inode) in entries(top).into_iter().filter(|(path, _)| path.starts_with("usr")) {
        if inode.kind == cow_hooks::sys::file::inode::Kind::Regular {
            let leader = first.entry(inode.id.ino).or_insert_with(|| path.clone()).clone();
            tree.push((path.clone(), fs::read(top.join(&path)).unwrap(), inode.mode, inode.mtime, leader));
        }
    }
    tree
}

/// A process that takes part in a transaction, and stands for a package manager.
struct Manager(Child);

impl Drop for Manager {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// dpkg with nothing to say: nothing was unpacked.
struct Silent;

impl cow_hooks::package::PackageManager for Silent {
    fn after_run(&self, _: i64) -> std::io::Result<cow_hooks::package::Packages> {
        Ok(cow_hooks::package::Packages::default())
    }

    fn essential(&self) -> std::io::Result<Vec<PathBuf>> {
        Ok(Vec::new())
    }
}

#[test]
#[ignore = "needs root"]
fn privileged_any_tree_keeps_content_and_topology_detached_and_settled() {
    for kind in FILESYSTEMS {
        let filesystem = Filesystem::new(kind, 512);
        let number = std::cell::Cell::new(0);
        let config = ProptestConfig { cases: 25, failure_persistence: None, ..ProptestConfig::default() };
        proptest!(config, |(shapes in proptest::collection::vec(shape(), 1..8))| {
            number.set(number.get() + 1);
            let top = filesystem.path().join(number.get().to_string());
            let (guest, pool) = (top.join("guest"), top.join("pool"));
            for dir in [guest.join("usr/a"), guest.join("usr/b"), guest.join("var/lib"), pool.clone()] {
                fs::create_dir_all(dir).unwrap();
            }
            for (at, shape) in shapes.iter().enumerate() {
                let object = pool.join(at.to_string());
                make(&object, shape, at as u8);
                for name in 0..shape.names {
                    let dir = if name % 2 == 0 { "usr/a" } else { "usr/b" };
                    fs::hard_link(&object, guest.join(dir).join(format!("{at}-{name}"))).unwrap();
                }
                if shape.shared {
                    set_immutable(&object, true);
                } else {
                    fs::remove_file(&object).unwrap();
                }
            }
            let before = content_and_topology(&guest);
            let root = Root::open(&guest).unwrap();
            let policy = Policy::builtin().unwrap();
            let work = Guest { root: &root, policy: &policy };
            let manager = Manager(Command::new("sleep").arg("100").stdin(Stdio::null()).spawn().unwrap());
            let id = Processes::open().unwrap().process(manager.0.id() as i32).unwrap().id;
            let options = RunOptions {
                front_end: "test",
                member: Some(member(id, Coverage::Planned)),
                hand_over: true,
                progress: &cow_hooks::report::Silent,
                supervise: None,
            };
            let begun = work.begin(&options, &Request::of_tree("/usr")).unwrap();
            prop_assert!(begun.outcome.failed.is_empty());
            prop_assert_eq!(&before, &content_and_topology(&guest));
            for (at, shape) in shapes.iter().enumerate().filter(|(_, shape)| shape.shared) {
                let object = inode(&pool.join(at.to_string()));
                // The pool's name, and those in the stash.
                prop_assert_eq!((object.nlink as usize, object.immutable), (1 + shape.names, true));
                let name = guest.join(format!("usr/a/{at}-0"));
                prop_assert!(!same_inode(&pool.join(at.to_string()), &name));
            }
            let settled = work.finish(&[id], &Silent).unwrap();
            drop(manager);
            let names: usize = shapes.iter().filter(|shape| shape.shared).map(|shape| shape.names).sum();
            prop_assert_eq!(settled.map_or(0, |settled| settled.restored), names as u64);
            prop_assert_eq!(&before, &content_and_topology(&guest));
            for (at, shape) in shapes.iter().enumerate().filter(|(_, shape)| shape.shared) {
                let object = pool.join(at.to_string());
                let name = guest.join(format!("usr/a/{at}-0"));
                prop_assert!(same_inode(&object, &name));
                prop_assert!(inode(&object).immutable);
                prop_assert_eq!(fs::metadata(&object).unwrap().nlink() as usize, 1 + shape.names);
            }
            prop_assert_eq!(litter(&guest), Vec::<&Path>::new());
        });
    }
}

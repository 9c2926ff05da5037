//! What stands in the way of unifying costs nobody a byte: it is said, and the rest is done.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::{Command, Stdio};

use crate::support::farm::Farm;
use crate::support::{assert_same, inode, picture, run, same_inode, seen, text};

#[test]
#[ignore = "needs root"]
fn privileged_a_full_filesystem_is_refused_and_nothing_is_lost() {
    let farm = Farm::new("ext4");
    let (a, b) = farm.both("usr/bin/tool", vec![1; 3 << 20]);
    farm.filesystem.fill();
    let before = (seen(&a), seen(&b));
    let said = farm.exits(3, &["--scope", "all", "g1", "g2"]);
    assert!(said.contains("No space left") && said.contains("remedy: free some space"), "{said}");
    assert_eq!((seen(&a), seen(&b)), before);
    fs::remove_file(farm.path("filler")).unwrap();
    assert_eq!(farm.unify(&[])["linked"], 2);
    farm.assert_tidy();
}

#[test]
#[ignore = "needs root"]
fn privileged_a_filesystem_that_fills_up_bit_by_bit_is_worked_off_bit_by_bit() {
    let farm = Farm::new("ext4");
    for number in 0..12u8 {
        farm.both(&format!("usr/lib/{number}"), vec![number + 1; 8 << 20]);
    }
    // Room for a few copies only; what is linked makes room for more.
    let free = farm.filesystem.available();
    let filler = fs::File::create(farm.path("filler")).unwrap();
    let size = free - (44 << 20);
    rustix::fs::fallocate(&filler, rustix::fs::FallocateFlags::empty(), 0, size).unwrap();
    let report = farm.unify(&[]);
    assert_eq!((&report["linked"], &report["objects"]), (&24.into(), &12.into()), "{report}");
}

#[test]
#[ignore = "needs root"]
fn privileged_a_read_only_filesystem_is_refused() {
    let farm = Farm::new("ext4");
    farm.both("usr/bin/tool", "equal");
    farm.unify(&[]);
    farm.both("usr/bin/more", "more");
    farm.filesystem.remount("ro");
    let said = farm.exits(3, &["--scope", "all", "g1", "g2"]);
    assert!(said.contains("read-only"), "{said}");
}

#[test]
#[ignore = "needs root"]
fn privileged_an_object_of_too_many_links_gets_a_second_inode() {
    // ext4 allows 65000 links; some are left to those who need one for a moment.
    let farm = Farm::of_size("ext4", 2048);
    for number in 0..70_000 {
        let guest = if number % 2 == 0 { "g1" } else { "g2" };
        let path = farm.path(&format!("{guest}/usr/bin/{number}"));
        fs::write(&path, "x").unwrap();
        crate::support::set_mtime(&path, cow_hooks::sys::file::inode::Time { secs: 1, nanos: 1 });
    }
    let report = farm.unify(&[]);
    assert_eq!(report["linked"], 70_000, "{report}");
    assert_eq!(report["objects"], 2);
    let links: Vec<u64> = farm
        .objects()
        .iter()
        .map(|object| fs::metadata(farm.path(".cow-pool/objects").join(object)).unwrap().nlink())
        .collect();
    assert_eq!(links.iter().sum::<u64>(), 70_002);
    assert!(links.iter().all(|&links| links <= 64_000));
    farm.assert_tidy();
}

#[test]
#[ignore = "needs root"]
fn privileged_a_guest_out_of_reach_of_a_link_is_left_out_with_a_remedy() {
    let farm = Farm::new("btrfs");
    let (a, b) = farm.both("usr/bin/tool", "equal");
    run(Command::new("btrfs").args(["subvolume", "create"]).arg(farm.path("g3")));
    farm.write("g3/usr/bin/tool", "equal");
    fs::create_dir(farm.path("bound")).unwrap();
    run(Command::new("mount").arg("--bind").arg(farm.path("g2")).arg(farm.path("bound")));
    let (code, said) = farm.ran(&["--scope", "all", "g1", "g3", "bound", "g2"]);
    let (alone, _) = farm.ran(&["--scope", "all", "--pool", "new", "g3"]);
    run(Command::new("umount").arg(farm.path("bound")));
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("g3: left out: on another") && said.contains("--share reflink"), "{said}");
    assert!(same_inode(&a, &b), "the others are done: {said}");
    assert_eq!(alone, 3);
    assert!(!farm.path("new").exists());
}

#[test]
#[ignore = "needs root"]
fn privileged_a_subvolume_or_mount_within_a_guest_is_left_alone() {
    let farm = Farm::new("btrfs");
    let (a, b) = farm.both("usr/bin/tool", "equal");
    run(Command::new("btrfs").args(["subvolume", "create"]).arg(farm.path("g1/usr/sub")));
    let inner = farm.write("g1/usr/sub/tool", "equal");
    fs::create_dir(farm.path("g2/usr/bound")).unwrap();
    run(Command::new("mount").arg("--bind").arg(farm.path("g1/usr/bin")).arg(farm.path("g2/usr/bound")));
    farm.unify(&[]);
    run(Command::new("umount").arg(farm.path("g2/usr/bound")));
    assert!(same_inode(&a, &b));
    assert_eq!(inode(&inner).nlink, 1);
}

#[test]
#[ignore = "needs root"]
fn privileged_a_guest_in_a_guest_is_a_guest_of_its_own() {
    let farm = Farm::new("ext4");
    let (a, b) = farm.both("usr/bin/tool", "equal");
    let inner = farm.write("g1/srv/inner/usr/bin/tool", "equal");
    // Given, it is a third guest; its files are not looked at as the outer one's, or srv would keep them out.
    let report = farm.unify(&["g1/srv/inner", "g1"]);
    assert_eq!(report["guests"], 3);
    assert!(same_inode(&a, &b) && same_inode(&a, &inner));
    farm.assert_tidy();
}

#[test]
#[ignore = "needs root"]
fn privileged_a_pool_that_a_guest_could_reach_is_refused() {
    let farm = Farm::new("ext4");
    let said = farm.exits(3, &["--pool", "g1/pool", "g1", "g2"]);
    assert!(said.contains("this guest, which could reach it"), "{said}");
    farm.unify(&[]);
    run(Command::new("chmod").arg("755").arg(farm.path(".cow-pool")));
    let said = farm.exits(3, &["g1", "g2"]);
    assert!(said.contains("chmod 700"), "{said}");
    farm.write("other/file", "x");
    let said = farm.exits(3, &["--pool", "other", "g1", "g2"]);
    assert!(said.contains("not a pool"), "{said}");
}

#[test]
#[ignore = "needs root"]
fn privileged_without_the_capability_nothing_is_begun() {
    let farm = Farm::new("ext4");
    farm.both("usr/bin/tool", "equal");
    let before = (picture(&farm.path("g1")), picture(&farm.path("g2")));
    let program = env!("CARGO_BIN_EXE_cow-unify");
    let command = format!("exec {program} --scope all g1 g2");
    let output = Command::new("capsh")
        .args(["--drop=cap_linux_immutable", "--", "-c", &command])
        .current_dir(farm.filesystem.path())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(3), "{}", text(&output));
    assert!(text(&output).contains("--protection none"), "{}", text(&output));
    assert_same(&before.0, &picture(&farm.path("g1")), "g1");
    assert_same(&before.1, &picture(&farm.path("g2")), "g2");
}

#[test]
#[ignore = "needs root"]
fn privileged_a_file_that_is_open_for_writing_is_left() {
    for kind in crate::support::FILESYSTEMS {
        let farm = Farm::new(kind);
        let (a, b) = farm.both("usr/bin/open", "equal");
        let (c, d) = farm.both("usr/bin/mapped", vec![1; 4096]);
        let open = fs::OpenOptions::new().append(true).open(&a).unwrap();
        let mapping = Mapping::of(&c);
        let report = farm.unify(&[]);
        assert_eq!(report["left"]["writer"], 2, "{kind}: {report}");
        assert!(!same_inode(&a, &b) && !same_inode(&c, &d), "{kind}");
        drop((open, mapping));
        assert_eq!(farm.unify(&[])["linked"], 4, "{kind}");
        assert!(same_inode(&a, &b) && same_inode(&c, &d), "{kind}");
    }
}

/// A shared mapping that can be written to, whose descriptor is closed.
struct Mapping(*mut libc::c_void);

impl Mapping {
    #[allow(unsafe_code)]
    fn of(path: &std::path::Path) -> Mapping {
        use std::os::fd::AsRawFd;
        let file = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
        let (null, protection) = (std::ptr::null_mut(), libc::PROT_READ | libc::PROT_WRITE);
        // SAFETY: the kernel chooses the place; nothing but this value knows it.
        let at = unsafe { libc::mmap(null, 4096, protection, libc::MAP_SHARED, file.as_raw_fd(), 0) };
        assert_ne!(at, libc::MAP_FAILED);
        Mapping(at)
    }
}

impl Drop for Mapping {
    #[allow(unsafe_code)]
    fn drop(&mut self) {
        // SAFETY: it was mapped with this length, and nobody refers to it any more.
        assert_eq!(unsafe { libc::munmap(self.0, 4096) }, 0);
    }
}

#[test]
#[ignore = "needs root"]
fn privileged_a_guest_whose_package_manager_is_at_work_is_left_out() {
    let farm = Farm::new("ext4");
    let (a, b) = farm.both("usr/bin/tool", "equal");
    farm.write("g2/var/lib/cow-hooks/members/1", "1 1 0 0\n");
    let said = farm.exits(1, &["--scope", "all", "g1", "g2"]);
    assert!(said.contains("g2: left out: a package manager is running"), "{said}");
    assert!(!same_inode(&a, &b));
    fs::remove_file(farm.path("g2/var/lib/cow-hooks/members/1")).unwrap();
    assert_eq!(farm.unify(&[])["linked"], 2);
}

#[test]
#[ignore = "needs root"]
fn privileged_two_at_once_do_not_meet() {
    let farm = Farm::new("ext4");
    farm.both("usr/bin/tool", "equal");
    farm.unify(&[]);
    let lock = fs::File::open(farm.path(".cow-pool/lock")).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let said = farm.exits(3, &["g1", "g2"]);
    assert!(said.contains("another cow-unify"), "{said}");
}

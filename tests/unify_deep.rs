//! Paths that are longer than the kernel takes at once.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use cow_hooks::sys::file::inode::Inode;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, Timespec, Timestamps};

use crate::support::farm::Farm;
use crate::support::{inode, program, text};

/// Makes directories of this name in each other; the last one.
fn deep(top: &Path, name: &str, depth: usize) -> OwnedFd {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut dir = rustix::fs::openat(CWD, top, flags, Mode::empty()).unwrap();
    for _ in 0..depth {
        rustix::fs::mkdirat(&dir, name, Mode::RWXU).unwrap();
        dir = rustix::fs::openat(&dir, name, flags, Mode::empty()).unwrap();
    }
    dir
}

fn write(dir: &OwnedFd, name: &str, content: &str) {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
    let file = rustix::fs::openat(dir, name, flags, Mode::RUSR | Mode::WUSR).unwrap();
    rustix::io::write(&file, content.as_bytes()).unwrap();
    let time = Timespec { tv_sec: 1_600_000_000, tv_nsec: 5 };
    rustix::fs::futimens(&file, &Timestamps { last_access: time, last_modification: time }).unwrap();
}

fn look(dir: &OwnedFd, name: &str) -> Inode {
    Inode::at(dir.as_fd(), name.as_ref()).unwrap()
}

#[test]
#[ignore = "needs root"]
fn privileged_paths_longer_than_the_kernel_takes_are_unified_and_made_private_again() {
    let farm = Farm::new("ext4");
    let (shallow, _) = farm.both("usr/bin/tool", "shallow");
    let long = "n".repeat(255);
    let shapes = [("just", 16, &long[..]), ("long", 25, &long), ("many", 500, "eight888")];
    let dirs: Vec<[OwnedFd; 2]> = shapes
        .iter()
        .map(|(top, depth, name)| {
            ["g1", "g2"].map(|guest| {
                let top = farm.path(guest).join("opt").join(top);
                std::fs::create_dir_all(&top).unwrap();
                let dir = deep(&top, name, *depth);
                write(&dir, "file", &format!("deep {depth}"));
                dir
            })
        })
        .collect();
    let report = farm.unify(&[]);
    assert_eq!(report["linked"], 8, "{}", report["linked"]);
    for [a, b] in &dirs {
        assert_eq!((look(a, "file").id, look(a, "file").nlink), (look(b, "file").id, 3));
    }
    // As cached, what has come since, and what an earlier run has seen and left.
    assert_eq!(farm.unify(&[])["looked_at"], 0);
    dirs.iter().for_each(|[a, _]| write(a, "later", "later"));
    farm.unify(&["--exclude", "later"]);
    assert_eq!(farm.unify(&[])["linked"], 0, "no other guest has them");
    dirs.iter().for_each(|[_, b]| write(b, "later", "later"));
    assert_eq!(farm.unify(&[])["linked"], 6);
    let status = farm.command(&["status", "--json", "g1", "g2"]).output().unwrap();
    let status: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap();
    assert_eq!(status["guests"][0]["shared"]["files"], 7, "{status}");

    let output = farm.command(&["detach", "g1"]).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    for [a, b] in &dirs {
        assert_ne!(look(a, "file").id, look(b, "file").id);
        assert!(!look(a, "file").immutable && !look(a, "later").immutable && look(b, "file").immutable);
        assert_eq!(look(a, "file").mtime, look(b, "file").mtime);
    }
    assert_eq!(inode(&shallow).nlink, 1);
    // The other one's, by hand.
    let mut prepare = std::process::Command::new(program("cow-prepare"));
    let output = prepare.arg("--root").arg(farm.path("g2")).arg("/opt").output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    dirs.iter().for_each(|[_, b]| assert!(!look(b, "file").immutable));
    farm.assert_tidy();
}

#[test]
#[ignore = "needs root"]
fn privileged_a_path_without_end_is_named_and_the_rest_is_done() {
    let farm = Farm::new("ext4");
    let (a, b) = farm.both("usr/bin/tool", "shallow");
    let dir = deep(&farm.path("g1/usr"), &"n".repeat(255), 150);
    let said = farm.exits(1, &["--scope", "all", "g1", "g2"]);
    assert!(said.contains("/g1/usr/nnn") && said.contains("the path is longer than"), "{said}");
    assert_eq!(inode(&a).id, inode(&b).id);
    // A name down there that nobody comes to.
    let object = farm.path(".cow-pool/objects").join(&farm.objects()[0]);
    crate::support::set_immutable(&object, false);
    rustix::fs::linkat(CWD, &object, &dir, "shared", AtFlags::empty()).unwrap();
    crate::support::set_immutable(&object, true);
    let output = farm.command(&["detach", "g1"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(text(&output).contains("the path is longer than"), "{}", text(&output));
    assert!(inode(&a).id != inode(&b).id && look(&dir, "shared").id == inode(&b).id);
}

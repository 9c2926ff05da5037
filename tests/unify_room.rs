//! What finds no room is that file's trouble: it is named, and all others are unified.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use rustix::fs::FallocateFlags;

use crate::support::farm::Farm;
use crate::support::{inode, run, same_inode, set_mtime, text};

/// What copies leave free by default.
const RESERVE: u64 = 16 << 20;

/// Leaves so many bytes free.
fn leave(farm: &Farm, bytes: u64) -> PathBuf {
    let path = farm.path("filler");
    let size = farm.filesystem.available().checked_sub(bytes).unwrap();
    let filler = fs::File::create(&path).unwrap();
    rustix::fs::fallocate(&filler, FallocateFlags::empty(), 0, size).unwrap();
    path
}

/// Bytes that no filesystem compresses and no two files have in common.
fn bytes(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    std::iter::repeat_with(next).take(length).collect()
}

/// `cow-unify` by way of another program.
fn wrapped(farm: &Farm, wrapper: &[&str]) -> Output {
    // What has only just changed is left for the next run.
    std::thread::sleep(Duration::from_millis(30));
    let mut command = Command::new(wrapper[0]);
    command.args(&wrapper[1..]).arg(env!("CARGO_BIN_EXE_cow-unify"));
    command.args(["--scope", "all", "g1", "g2"]).current_dir(farm.filesystem.path()).output().unwrap()
}

fn assert_all_same(pairs: &[(PathBuf, PathBuf)], what: &str) {
    for (a, b) in pairs {
        assert!(same_inode(a, b), "{what}: {}", a.display());
    }
}

#[test]
#[ignore = "needs root"]
fn privileged_a_file_that_does_not_fit_is_named_and_all_others_are_unified() {
    let farm = Farm::of_size("ext4", 256);
    // The first by its path, so that it would be the first to be copied.
    let big = farm.both("opt/a-big", bytes(1, 40 << 20));
    let fits_later = farm.both("opt/b-fits-later", bytes(2, 14 << 20));
    let small: Vec<_> = (0..40).map(|n| farm.both(&format!("usr/lib/{n}"), bytes(10 + n, 300_000))).collect();
    let filler = leave(&farm, RESERVE + (12 << 20));
    let said = farm.exits(1, &["--scope", "all", "g1", "g2"]);
    assert!(said.contains("opt/a-big: not enough space for the pool's copy"), "{said}");
    assert!(said.contains("16 MiB must stay free; free some space"), "{said}");
    assert!(!same_inode(&big.0, &big.1) && inode(&big.0).nlink == 1, "{said}");
    assert_all_same(&small, "small");
    assert!(same_inode(&fits_later.0, &fits_later.1), "what was freed was not used: {said}");
    farm.assert_tidy();
    fs::remove_file(filler).unwrap();
    assert_eq!(farm.unify(&[])["linked"], 2);
    assert!(same_inode(&big.0, &big.1));
}

#[test]
#[ignore = "needs root"]
fn privileged_holes_take_neither_room_nor_time() {
    for kind in ["ext4", "xfs"] {
        let farm = Farm::of_size(kind, 512);
        let sparse = |path: &str, size: u64, data: &[(u64, &[u8])]| {
            let (a, b) = farm.both(path, "");
            for path in [&a, &b] {
                let file = fs::File::options().write(true).open(path).unwrap();
                file.set_len(size).unwrap();
                data.iter().for_each(|(at, bytes)| file.write_all_at(bytes, *at).unwrap());
                drop(file);
                set_mtime(path, cow_hooks::sys::file::inode::Time { secs: 1, nanos: 0 });
            }
            (a, b)
        };
        let data = bytes(3, 100_000);
        let empty = sparse("opt/empty", 1 << 40, &[]);
        let mixed =
            sparse("opt/mixed", 8 << 30, &[(5 << 20, &data), (7 << 30, &data), ((8 << 30) - 1, b"x")]);
        let differs =
            sparse("opt/differs", 8 << 30, &[(5 << 20, &data), (6 << 30, &data), ((8 << 30) - 1, b"x")]);
        // Of equal files, one may have no holes.
        let dense = farm.both("usr/dense", vec![0; 3 << 20]);
        fs::File::options().write(true).open(&dense.1).unwrap().set_len(0).unwrap();
        fs::File::options().write(true).open(&dense.1).unwrap().set_len(3 << 20).unwrap();
        set_mtime(&dense.1, inode(&dense.0).mtime);
        leave(&farm, 60 << 20);
        let begun = Instant::now();
        let report = farm.unify(&[]);
        assert!(begun.elapsed() < Duration::from_secs(20), "{kind}: {:?}", begun.elapsed());
        assert_eq!(report["linked"], 8, "{kind}: {report}");
        for (a, b) in [&empty, &mixed, &differs, &dense] {
            assert!(same_inode(a, b), "{kind}: {}", a.display());
            assert!(inode(a).allocated < 1 << 20, "{kind}: {} has lost its holes", a.display());
        }
        assert!(!same_inode(&mixed.0, &differs.0), "{kind}");
        let mut back = vec![0; data.len()];
        fs::File::open(&mixed.1).unwrap().read_exact_at(&mut back, 7 << 30).unwrap();
        assert!(back == data, "{kind}");
        // The pool is read as quickly.
        let verify = farm.command(&["verify", "g1", "g2"]).output().unwrap();
        assert!(verify.status.success() && begun.elapsed() < Duration::from_secs(30), "{}", text(&verify));
    }
}

#[test]
#[ignore = "needs root"]
fn privileged_few_free_inodes_are_enough() {
    for free in [20, 300] {
        // 10 240 inodes in all.
        let farm = Farm::of_size("ext4", 40);
        let pairs: Vec<_> = (0..1000).map(|n| farm.both(&format!("usr/lib/{n}"), n.to_string())).collect();
        fs::create_dir(farm.path("empty")).unwrap();
        for number in 0.. {
            let left = rustix::fs::statvfs(farm.filesystem.path()).unwrap().f_favail;
            if left <= free {
                break;
            }
            fs::write(farm.path(&format!("empty/{number}")), "").unwrap();
        }
        let report = farm.unify(&[]);
        assert_eq!((&report["linked"], &report["objects"]), (&2000.into(), &1000.into()), "{free}: {report}");
        assert_all_same(&pairs, "few inodes");
        farm.assert_tidy();
    }
}

#[test]
#[ignore = "needs root"]
fn privileged_no_free_inode_is_said_of_the_files() {
    let farm = Farm::of_size("ext4", 40);
    farm.both("usr/bin/first", "equal");
    farm.unify(&[]);
    let (a, b) = farm.both("usr/bin/tool", "other");
    let mut number = 0;
    while fs::write(farm.path(&format!("g1/etc-{number}")), "").is_ok() {
        number += 1;
    }
    let said = farm.exits(1, &["--scope", "all", "g1", "g2"]);
    assert!(said.contains("usr/bin/tool: not enough space") && said.contains(" 0 inodes"), "{said}");
    assert!(!same_inode(&a, &b));
}

#[test]
#[ignore = "needs root"]
fn privileged_whatever_there_is_too_little_of_ends_no_run() {
    for error in ["ENOSPC", "EDQUOT", "ENOMEM", "EFBIG", "EIO"] {
        let farm = Farm::of_size("ext4", 64);
        let pairs: Vec<_> = (0..6).map(|n| farm.both(&format!("usr/lib/{n}"), bytes(n, 50_000))).collect();
        // The first copy of each thread fails.
        let inject = format!("inject=copy_file_range:error={error}:when=1");
        let quiet = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", &inject];
        let output = wrapped(&farm, &quiet);
        let said = text(&output);
        let shared = pairs.iter().filter(|(a, b)| same_inode(a, b)).count();
        if ["EFBIG", "EIO"].contains(&error) {
            // That file's alone.
            assert_eq!(output.status.code(), Some(1), "{error}: {said}");
            assert!((3..6).contains(&shared) && said.contains("usr/lib/"), "{error}: {shared} {said}");
        } else {
            // Tried again once others were done.
            assert_eq!((output.status.code(), shared), (Some(0), 6), "{error}: {said}");
        }
        farm.assert_tidy();
        // It never gets better.
        let farm = Farm::of_size("ext4", 64);
        let (a, b) = farm.both("usr/bin/tool", bytes(1, 50_000));
        let inject = format!("inject=copy_file_range:error={error}");
        let output = wrapped(&farm, &["strace", "-f", "-qq", "-o", "/dev/null", "-e", &inject]);
        assert_eq!(output.status.code(), Some(1), "{error}: {}", text(&output));
        assert!(text(&output).contains("usr/bin/tool"), "{error}: {}", text(&output));
        assert!(!same_inode(&a, &b));
        farm.assert_tidy();
    }
}

#[test]
#[ignore = "needs root"]
fn privileged_a_file_larger_than_a_process_may_make_is_named() {
    let farm = Farm::of_size("ext4", 64);
    let (large, small) =
        (farm.both("usr/bin/large", bytes(1, 3 << 20)), farm.both("usr/bin/small", bytes(2, 9000)));
    let output = wrapped(&farm, &["sh", "-c", "ulimit -f 2048; exec \"$@\"", "sh"]);
    let said = text(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("usr/bin/large") && said.contains("File too large"), "{said}");
    assert!(same_inode(&small.0, &small.1) && !same_inode(&large.0, &large.1), "{said}");
    farm.assert_tidy();
}

#[test]
#[ignore = "needs root"]
fn privileged_few_open_files_are_enough() {
    let farm = Farm::of_size("ext4", 64);
    let pairs: Vec<_> = (0..60).map(|n| farm.both(&format!("usr/lib/d{n}/file"), bytes(n, 20_000))).collect();
    let output = wrapped(&farm, &["sh", "-c", "ulimit -n 40; exec \"$@\"", "sh"]);
    // What could not be opened is named, or done by the next run; nothing ends the run.
    assert!(matches!(output.status.code(), Some(0 | 1)), "{}", text(&output));
    farm.assert_tidy();
    farm.unify(&[]);
    assert_all_same(&pairs, "few descriptors");
}

#[test]
#[ignore = "needs root"]
fn privileged_a_quota_is_said_of_the_files_and_what_was_done_stays_so() {
    let farm = Farm::new("btrfs");
    let first = farm.both("usr/bin/first", bytes(1, 50_000));
    farm.unify(&[]);
    let (a, b) = farm.both("usr/bin/second", bytes(2, 50_000));
    let path = farm.filesystem.path().to_path_buf();
    let quota = |words: &[&str]| drop(run(Command::new("btrfs").args(words).arg(&path)));
    quota(&["quota", "enable"]);
    quota(&["quota", "rescan", "-w"]);
    quota(&["qgroup", "limit", "16K", "0/5"]);
    let said = farm.exits(1, &["--scope", "all", "g1", "g2"]);
    assert!(said.contains("usr/bin/second: Disk quota exceeded; free some space"), "{said}");
    assert!(same_inode(&first.0, &first.1) && !same_inode(&a, &b));
    quota(&["quota", "disable"]);
    assert_eq!(farm.unify(&[])["linked"], 2);
    assert!(same_inode(&a, &b));
}

#[test]
#[ignore = "needs root"]
fn privileged_on_a_full_filesystem_what_needs_no_room_is_done() {
    let farm = Farm::of_size("ext4", 64);
    farm.both("usr/bin/first", bytes(1, 50_000));
    farm.unify(&[]);
    let known = farm.both("usr/bin/known", bytes(1, 50_000));
    let new = farm.both("usr/bin/new", bytes(2, 50_000));
    // A cache that is not there needs room, and none is needed.
    fs::remove_file(farm.path(".cow-pool/cache.db")).unwrap();
    let filler = leave(&farm, 200 << 10);
    let said = farm.exits(1, &["--scope", "all", "g1", "g2"]);
    assert!(same_inode(&known.0, &known.1) && fs::metadata(&known.0).unwrap().nlink() == 5, "{said}");
    assert!(!same_inode(&new.0, &new.1) && said.contains("usr/bin/new: not enough space"), "{said}");
    assert!(said.contains("16 MiB must stay free"), "{said}");
    fs::remove_file(filler).unwrap();
    assert_eq!(farm.unify(&[])["linked"], 2);
}

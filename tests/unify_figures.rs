//! What is said to be freed is free: the filesystem itself is the judge.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::support::farm::Farm;
use crate::support::{FILESYSTEMS, run, same_inode, seen, text};

/// Bytes in use, once everything is written.
fn used(farm: &Farm) -> u64 {
    run(Command::new("sync").arg("-f").arg(farm.filesystem.path()));
    let stat = rustix::fs::statvfs(farm.filesystem.path()).unwrap();
    (stat.f_blocks - stat.f_bfree) * stat.f_frsize
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("no number: {value}"))
}

/// Bytes that directories, journals and the cache of a pool may take.
const METADATA: u64 = 3 << 20;

/// Asserts that a run frees what it says, and what its rehearsal has said.
fn assert_frees(farm: &Farm, more: &[&str], wanted: u64, what: &str) {
    let before = used(farm);
    let rehearsed = farm.unify(&[&["-n"], more].concat());
    let report = farm.unify(more);
    let freed = number(&report["bytes_freed"]);
    assert_eq!(number(&rehearsed["bytes_freed"]), freed, "{what}: {rehearsed} {report}");
    assert_eq!(rehearsed["linked"], report["linked"], "{what}");
    let really = before as i64 - used(farm) as i64;
    assert!((really - freed as i64).unsigned_abs() < METADATA, "{what}: {freed} said, {really} freed");
    assert!(wanted.abs_diff(freed) < METADATA, "{what}: {freed} said, {wanted} wanted");
}

/// Content that no filesystem compresses.
fn content(number: usize, length: usize) -> Vec<u8> {
    let mut hash = blake3::Hasher::new().update(&number.to_le_bytes()).finalize_xof();
    let mut bytes = vec![0; length];
    hash.fill(&mut bytes);
    bytes
}

#[test]
#[ignore = "needs root"]
fn privileged_what_links_free_is_what_the_filesystem_gets_back() {
    for kind in FILESYSTEMS {
        let farm = Farm::new(kind);
        for number in 0..24 {
            farm.both(&format!("usr/lib/{number}"), content(number, 1 << 20));
        }
        // Three of one, and hard links.
        farm.write("g1/usr/more", content(1, 1 << 20));
        fs::hard_link(farm.path("g1/usr/lib/2"), farm.path("g1/usr/link")).unwrap();
        assert_frees(&farm, &[], 25 << 20, kind);
        let status = farm.command(&["status", "--json", "g1", "g2"]).output().unwrap();
        let status: Value = serde_json::from_slice(&status.stdout).unwrap();
        assert_eq!(number(&status["bytes_of_disk_saved"]), 24 << 20, "{kind}: between guests: {status}");
        assert_frees(&farm, &[], 0, kind);
        // What the pool has already frees all of itself.
        farm.write("g2/usr/late", content(3, 1 << 20));
        farm.write("g2/usr/later", content(4, 1 << 20));
        assert_frees(&farm, &[], 2 << 20, kind);
    }
}

#[test]
#[ignore = "needs root"]
fn privileged_shared_blocks_free_what_the_filesystem_gets_back_and_nothing_twice() {
    for kind in ["xfs", "btrfs"] {
        let farm = Farm::new(kind);
        for number in 0..24 {
            farm.both(&format!("usr/lib/{number}"), content(number, 1 << 20));
        }
        // Copies that share their blocks already.
        let (a, _) = farm.both("usr/cloned", content(100, 8 << 20));
        let reflink = |from: &Path, to: &Path| {
            run(Command::new("cp").args(["--reflink=always", "-p"]).arg(from).arg(to));
        };
        reflink(&a, &farm.path("g2/usr/cloned"));
        assert_frees(&farm, &["--share", "reflink"], 24 << 20, kind);
        let again = farm.unify(&[]);
        assert_eq!((&again["linked"], &again["bytes_freed"]), (&0.into(), &0.into()), "{kind}: {again}");
        // Nothing remembers, and nothing is done or counted again.
        fs::remove_file(farm.path(".cow-pool/cache.db")).unwrap();
        let again = farm.unify(&[]);
        assert_eq!((&again["linked"], &again["bytes_freed"]), (&0.into(), &0.into()), "{kind}: {again}");
        let file = farm.path("g1/usr/lib/1");
        let before = seen(&file);
        fs::write(farm.path("g2/usr/lib/1"), "changed").unwrap();
        assert_eq!(seen(&file), before, "{kind}");
    }
}

#[test]
#[ignore = "needs root"]
fn privileged_what_is_mounted_again_is_not_read_again() {
    for (kind, share) in [("ext4", "hardlink"), ("xfs", "reflink"), ("btrfs", "reflink")] {
        let farm = Farm::new(kind);
        for number in 0..60 {
            farm.both(&format!("usr/lib/{number}"), content(number, 50_000));
            // Equal in all but content: they are read to be told apart.
            farm.write(&format!("g1/usr/single-{number}"), content(1000 + number, 50_000));
        }
        farm.unify(&["--share", share]);
        farm.unify(&[]);
        // Another device number meanwhile.
        let _other = crate::support::Filesystem::new("btrfs", 256);
        farm.filesystem.mount_again("rw");
        let log = tempfile::NamedTempFile::new().unwrap();
        let mut strace = Command::new("strace");
        strace.args(["-f", "-qq", "-e", "trace=pread64", "-o"]).arg(log.path());
        strace.arg(env!("CARGO_BIN_EXE_cow-unify")).args(["--scope", "all", "--json", "g1", "g2"]);
        let output = strace.current_dir(farm.filesystem.path()).output().unwrap();
        assert!(output.status.success(), "{kind}: {}", text(&output));
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!((&report["linked"], &report["bytes_freed"]), (&0.into(), &0.into()), "{kind}: {report}");
        let large = |line: &&str| line.trim_end().ends_with("= 50000");
        let log = fs::read_to_string(log.path()).unwrap();
        assert_eq!(log.lines().filter(large).count(), 0, "{kind}: files were read again");
    }
}

#[test]
#[ignore = "needs root"]
fn privileged_subvolumes_whose_inodes_have_equal_numbers_share_blocks() {
    let farm = Farm::new("btrfs");
    for guest in ["s1", "s2"] {
        run(Command::new("btrfs").args(["subvolume", "create"]).arg(farm.path(guest)));
        fs::create_dir_all(farm.path(guest).join("usr")).unwrap();
    }
    for number in 0..40 {
        for guest in ["s1", "s2"] {
            farm.write(&format!("{guest}/usr/{number}"), content(number, 1 << 19));
        }
    }
    let ino = |guest: &str| crate::support::inode(&farm.path(guest).join("usr/7")).id.ino;
    assert_eq!(ino("s1"), ino("s2"), "the case is made for this");
    let before = used(&farm);
    let unify = |more: &[&str]| -> Value {
        let words = [&["--scope", "all", "--json", "--share", "reflink", "s1", "s2"], more].concat();
        let output = farm.command(&words).output().unwrap();
        assert!(output.status.success(), "{}", text(&output));
        serde_json::from_slice(&output.stdout).unwrap()
    };
    assert_eq!(unify(&["-n"])["bytes_freed"], 20 << 20);
    let report = unify(&[]);
    assert_eq!((&report["linked"], &report["bytes_freed"]), (&80.into(), &(20 << 20).into()), "{report}");
    let freed = before - used(&farm);
    assert!(freed.abs_diff(20 << 20) < METADATA, "{freed} freed");
    assert_eq!(unify(&[])["linked"], 0);
    // A guest's file has the number of an object.
    let status = farm.command(&["status", "--json", "s1", "s2"]).output().unwrap();
    let status: Value = serde_json::from_slice(&status.stdout).unwrap();
    let files = |guest: usize| {
        number(&status["guests"][guest]["eligible"]["files"])
            + number(&status["guests"][guest]["other"]["files"])
    };
    assert_eq!((files(0), files(1)), (40, 40), "{status}");
}

#[test]
#[ignore = "needs root"]
fn privileged_what_was_replaced_does_not_stay_in_a_pool_of_blocks() {
    for kind in ["xfs", "btrfs"] {
        let farm = Farm::new(kind);
        let mut first = 0;
        for round in 0..5 {
            for number in 0..10 {
                farm.both(&format!("usr/{number}"), content(100 * round + number, 1 << 20));
            }
            farm.unify(if round == 0 { &["--share", "reflink"] } else { &[] });
            let unused = if round == 0 { 0 } else { 10 };
            let status = farm.command(&["status", "--json", "g1", "g2"]).output().unwrap();
            let status: Value = serde_json::from_slice(&status.stdout).unwrap();
            assert_eq!(status["unused_objects"]["files"], unused, "{kind}: {status}");
            let before = used(&farm);
            let gc = farm.command(&["gc", "--json", "--pool", ".cow-pool"]).output().unwrap();
            assert!(gc.status.success(), "{kind}: {}", text(&gc));
            let gc: Value = serde_json::from_slice(&gc.stdout).unwrap();
            assert_eq!((&gc["removed"], &gc["kept"]), (&unused.into(), &10.into()), "{kind}: {gc}");
            // xfs frees what has lost its last name in the background.
            let told = number(&gc["bytes_freed"]);
            let freed = || before.saturating_sub(used(&farm));
            let done = (0..50).any(|_| {
                std::thread::sleep(std::time::Duration::from_millis(100));
                freed().abs_diff(told) < METADATA
            });
            assert!(done, "{kind}: {gc}, {}", freed());
            let now = used(&farm);
            first = if round == 0 { now } else { first };
            assert!(now < first + METADATA, "{kind}: {first} bytes were used, {now} after round {round}");
        }
        // One guest's is enough.
        farm.write("g1/usr/3", "own");
        assert_eq!(farm.unify(&[])["linked"], 0);
        let gc = farm.command(&["gc", "--json", "--pool", ".cow-pool"]).output().unwrap();
        assert!(text(&gc).contains("\"removed\":0,"), "{kind}: {}", text(&gc));
    }
}

#[test]
#[ignore = "needs root"]
fn privileged_files_within_their_inodes_are_neither_taken_nor_counted() {
    let farm = Farm::new("btrfs");
    let (a, b) = farm.both("usr/inline", content(1, 700));
    farm.both("usr/large", content(2, 1 << 20));
    let report = farm.unify(&["--share", "reflink"]);
    assert_eq!((&report["linked"], &report["objects"]), (&2.into(), &1.into()), "{report}");
    assert_eq!(
        (&report["left"]["inline"], &report["bytes_freed"]),
        (&2.into(), &(1 << 20).into()),
        "{report}"
    );
    assert!(!same_inode(&a, &b));
    // Compressed ones share, too; what that frees is not known, and not guessed.
    let before = used(&farm);
    let dir = farm.path("g1/opt");
    for dir in [&dir, &farm.path("g2/opt")] {
        fs::create_dir(dir).unwrap();
        run(Command::new("chattr").arg("+c").arg(dir));
    }
    for number in 0..20 {
        farm.both(&format!("opt/{number}"), format!("{number} compressible\n").repeat(60_000));
    }
    let grown = used(&farm) - before;
    let report = farm.unify(&[]);
    assert_eq!(report["linked"], 40, "{report}");
    assert!(number(&report["bytes_freed"]) <= grown, "{report}: only {grown} were there");
    assert_eq!(farm.unify(&[])["linked"], 0);
}

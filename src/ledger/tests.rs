use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use super::*;
use crate::sys::file::inode::{InodeId, Time};
use crate::sys::path::resolve::Place;

fn intent(name: &str) -> Intent {
    Intent {
        place: Place { dir: PathBuf::from("/usr/bin"), name: OsString::from(name) },
        original: InodeId { dev: u64::MAX, ino: u64::MAX - 1 },
        handle: Some(vec![1, 2, 3]),
        immutable: true,
        size: 7,
        beside: false,
        keep: true,
    }
}

fn ledger() -> (tempfile::TempDir, Ledger) {
    let dir = tempfile::tempdir().unwrap();
    let ledger = Ledger::open(&dir.path().join("ledger.db")).unwrap();
    (dir, ledger)
}

#[test]
fn what_was_recorded_is_read_back_by_the_next_process() {
    let (dir, mut ledger) = ledger();
    let odd = OsString::from_vec(b"new\nline \xff".to_vec());
    let mut strange = intent("x");
    strange.place.name = odd.clone();
    let entries = ledger.record(&[intent("bash"), strange]).unwrap();
    let copy = PrivateCopy { ino: 5, ctime: Some(Time { secs: -1, nanos: 999_999_999 }) };
    ledger.detached(&[(entries[0].id, Some(copy))], &[]).unwrap();
    drop(ledger);

    let read = Ledger::open(&dir.path().join("ledger.db")).unwrap().entries().unwrap();
    assert_eq!(read.len(), 2);
    assert_eq!(read[0].state, Stage::Detached);
    assert_eq!(read[0].copy, Some(copy));
    assert_eq!(read[0].intent.original, InodeId { dev: u64::MAX, ino: u64::MAX - 1 });
    assert_eq!(read[1].state, Stage::Detaching);
    assert_eq!(read[1].intent.place.name, odd);
}

#[test]
fn a_number_is_never_given_twice() {
    let (_dir, mut ledger) = ledger();
    let first = ledger.record(&[intent("a")]).unwrap()[0].id;
    ledger.forget(&[first]).unwrap();
    assert!(ledger.record(&[intent("b")]).unwrap()[0].id > first);
}

#[test]
fn an_unreadable_ledger_is_kept_aside_and_begun_anew() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ledger.db");
    let mut damaged = b"SQLite format 3\0".to_vec();
    damaged.resize(8192, 0xff);
    for broken in [b"no database at all ".repeat(50), damaged] {
        std::fs::write(&path, &broken).unwrap();
        assert!(Ledger::open(&path).unwrap().is_empty().unwrap());
        assert!(std::fs::read(dir.path().join("ledger.db.unreadable")).unwrap() == broken);
    }
}

#[test]
fn a_ledger_of_a_later_version_is_kept_aside() {
    let (dir, ledger) = ledger();
    ledger.db.pragma_update(None, "user_version", 99).unwrap();
    drop(ledger);
    let path = dir.path().join("ledger.db");
    assert!(Ledger::open(&path).unwrap().is_empty().unwrap());
    assert!(dir.path().join("ledger.db.unreadable").exists());
}

#[test]
fn a_nested_run_joins_the_open_one() {
    let (_dir, mut ledger) = ledger();
    let (outer, new) = ledger.open_run("apt", 10).unwrap();
    assert!(new);
    assert_eq!(ledger.open_run("dpkg", 11).unwrap(), (outer, false));
    ledger.add_to_run(outer, 3, 100, 0).unwrap();
    ledger.settle_run(12, 2, 1).unwrap();
    let run = ledger.last_run().unwrap().unwrap();
    assert_eq!((run.front_end.as_str(), run.settled, run.detached, run.restored), ("apt", Some(12), 3, 2));
    assert_ne!(ledger.open_run("dpkg", 13).unwrap().0, outer);
}

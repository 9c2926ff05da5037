use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use rusqlite::Connection;
use tempfile::TempDir;

use super::*;

/// A database that SQLite writes and this room reads.
struct Written {
    dir: TempDir,
    db: Connection,
}

impl Written {
    fn new(page_size: u32) -> Written {
        let dir = tempfile::tempdir().unwrap();
        let db = Connection::open(dir.path().join("db")).unwrap();
        let sql = format!(
            "PRAGMA page_size = {page_size}; PRAGMA journal_mode = WAL; PRAGMA wal_autocheckpoint = 0;
             CREATE TABLE other (a, b); CREATE TABLE t (id INTEGER PRIMARY KEY, b BLOB); CREATE INDEX i ON t (b)"
        );
        db.execute_batch(&sql).unwrap();
        Written { dir, db }
    }

    fn insert(&self, blobs: impl IntoIterator<Item = Vec<u8>>) {
        self.run("BEGIN");
        for blob in blobs {
            self.db.execute("INSERT INTO t (b) VALUES (?1)", [blob]).unwrap();
        }
        self.run("COMMIT");
    }

    fn run(&self, sql: &str) {
        self.db.execute_batch(sql).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn read(&self) -> Vec<Vec<u8>> {
        read(self.dir.path()).unwrap()
    }

    fn expected(&self) -> Vec<Vec<u8>> {
        let mut query = self.db.prepare("SELECT b FROM t ORDER BY id").unwrap();
        query.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
    }
}

fn read(dir: &Path) -> io::Result<Vec<Vec<u8>>> {
    let log = fs::File::open(dir.join("db-wal")).ok().map(OwnedFd::from);
    SqliteFile::open(fs::File::open(dir.join("db"))?.into(), log)?.blobs("t")?.collect()
}

fn blob(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at * 7 + length) as u8).collect()
}

#[test]
fn rows_of_any_length_are_read_at_any_page_size() {
    for page_size in [512, 1024, 4096, 65536] {
        let written = Written::new(page_size);
        let around = |length: u32| (length - 40..length + 40).map(|length| blob(length as usize));
        written.insert((0..80).map(blob).chain(around(page_size)).chain(around(3 * page_size)));
        written.insert([blob(1 << 20), Vec::new(), blob(70_000)]);
        assert!(written.read() == written.expected(), "in the log, {page_size}");
        written.run("PRAGMA wal_checkpoint(TRUNCATE)");
        assert!(written.read() == written.expected(), "in the file, {page_size}");
    }
}

#[test]
fn tables_of_many_pages_are_read_in_order() {
    let written = Written::new(512);
    written.insert((0..20_000).map(|at: u32| at.to_be_bytes().to_vec()));
    written.run("DELETE FROM t WHERE id % 3 = 0; INSERT INTO t VALUES (-5, x'00'), (1 << 60, x'01')");
    assert!(written.read() == written.expected());
}

#[test]
fn a_table_is_found_among_many() {
    let written = Written::new(512);
    for at in 0..200 {
        written.run(&format!("CREATE TABLE before_{at} (a TEXT DEFAULT '{}')", "x".repeat(at)));
    }
    written.run("ALTER TABLE t RENAME TO t2; CREATE TABLE t (id INTEGER PRIMARY KEY, b BLOB)");
    written.insert([blob(9)]);
    assert_eq!(written.read(), [blob(9)]);
    written.run("DROP TABLE t; CREATE VIEW t AS SELECT * FROM t2");
    assert_eq!(read(written.dir.path()).unwrap_err().to_string(), "there is no table t");
}

#[test]
fn what_was_not_committed_is_not_read() {
    let written = Written::new(1024);
    written.insert([blob(5000)]);
    written.run("PRAGMA cache_size = 2; BEGIN; DELETE FROM t");
    for _ in 0..99 {
        written.db.execute("INSERT INTO t (b) VALUES (?1)", [blob(4000)]).unwrap();
    }
    assert!(fs::metadata(written.path("db-wal")).unwrap().len() > 300_000, "nothing was written");
    assert_eq!(written.read(), [blob(5000)]);
    written.run("ROLLBACK");
    written.insert([blob(1)]);
    assert_eq!(written.read(), [blob(5000), blob(1)]);
}

#[test]
fn frames_of_an_earlier_log_do_not_count() {
    let written = Written::new(1024);
    written.insert((0..50).map(|_| blob(3000)));
    written.run("PRAGMA wal_checkpoint(RESTART)");
    written.run("DELETE FROM t WHERE id > 2");
    assert_eq!(written.read(), [blob(3000), blob(3000)]);
}

#[test]
fn a_log_that_was_cut_off_counts_up_to_its_last_commit() {
    let written = Written::new(512);
    for length in [100, 200, 300] {
        written.insert([blob(length)]);
    }
    let log = fs::read(written.path("db-wal")).unwrap();
    let copy = tempfile::tempdir().unwrap();
    fs::copy(written.path("db"), copy.path().join("db")).unwrap();
    let mut seen = Vec::new();
    for length in (0..=log.len()).rev().step_by(8) {
        fs::write(copy.path().join("db-wal"), &log[..length]).unwrap();
        match read(copy.path()) {
            Ok(blobs) => seen.push(blobs.len()),
            Err(e) => assert_eq!(e.to_string(), "there is no table t"),
        }
    }
    seen.dedup();
    assert_eq!(seen, [3, 2, 1, 0]);
}

#[test]
fn a_log_of_another_page_size_is_an_error() {
    let (one, other) = (Written::new(512), Written::new(1024));
    fs::copy(one.path("db-wal"), other.path("db-wal")).unwrap();
    assert!(read(other.dir.path()).unwrap_err().to_string().contains("write-ahead log"));
}

#[test]
fn what_is_no_database_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    for content in [&b""[..], b"SQLite format 3\0", &[0; 5000]] {
        fs::write(dir.path().join("db"), content).unwrap();
        assert_eq!(read(dir.path()).unwrap_err().to_string(), "not an SQLite database");
    }
    fs::File::create(dir.path().join("db")).unwrap().set_len(1 << 40).unwrap();
    assert_eq!(read(dir.path()).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
}

/// A database without a log, and its bytes.
fn plain() -> (TempDir, Vec<u8>) {
    let Written { dir, db } = Written::new(512);
    for length in [0, 10, 300, 600, 5000] {
        db.execute("INSERT INTO t (b) VALUES (?1)", [blob(length)]).unwrap();
    }
    for at in 0..40 {
        db.execute("INSERT INTO t (b) VALUES (?1)", [blob(50 + at)]).unwrap();
    }
    drop(db);
    let bytes = fs::read(dir.path().join("db")).unwrap();
    (dir, bytes)
}

#[test]
fn pages_in_a_circle_are_an_error() {
    let (dir, sound) = plain();
    assert_eq!(read(dir.path()).unwrap().len(), 45);
    let pages = sound.len() / 512;
    // Whatever refers to a page refers to each page of the file, itself included, and beyond.
    let mut errors = 0;
    for at in (0..sound.len() - 4).filter(|at| sound[*at..at + 3] == [0; 3] && sound[at + 3] > 0) {
        for number in (0..=pages as u32 + 1).step_by(7) {
            let mut bytes = sound.clone();
            bytes[at..at + 4].copy_from_slice(&number.to_be_bytes());
            fs::write(dir.path().join("db"), &bytes).unwrap();
            errors += usize::from(read(dir.path()).is_err());
        }
    }
    assert!(errors > 100, "{errors}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn any_database_is_read_without_panic_and_no_more_than_once(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..20),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        thread_local!(static PLAIN: (TempDir, Vec<u8>) = plain());
        PLAIN.with(|(dir, sound)| {
            let mut bytes = sound.clone();
            for (at, byte) in changes {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            if let Some(cut) = cut {
                bytes.truncate(cut.index(bytes.len()));
            }
            fs::write(dir.path().join("db"), &bytes).unwrap();
            let read = read(dir.path()).map(|blobs| blobs.iter().map(Vec::len).sum::<usize>());
            assert!(read.unwrap_or(0) <= bytes.len());
        });
    }

    #[test]
    fn any_log_is_read_without_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..5),
    ) {
        thread_local!(static WRITTEN: (Written, Vec<u8>) = {
            let written = Written::new(512);
            written.insert([blob(100), blob(2000)]);
            let log = fs::read(written.path("db-wal")).unwrap();
            (written, log)
        });
        WRITTEN.with(|(written, log)| {
            let mut log = log.clone();
            for (at, byte) in changes {
                let at = at.index(log.len());
                log[at] = byte;
            }
            let copy = tempfile::tempdir().unwrap();
            fs::copy(written.path("db"), copy.path().join("db")).unwrap();
            fs::write(copy.path().join("db-wal"), &log).unwrap();
            let _ = read(copy.path());
        });
    }
}

#[test]
fn a_row_is_read_once_however_often_a_page_names_it() {
    let written = Written::new(65536);
    written.insert([blob(10_000), blob(10_001)]);
    written.run("PRAGMA wal_checkpoint(TRUNCATE)");
    let mut file = fs::read(written.path("db")).unwrap();
    // The page of rows that the two blobs are on: it names the longer one as often as it can.
    let is_it = |page: &[u8]| page[0] == LEAF && page[3..5] == [0, 2];
    let page = file.chunks_mut(65536).skip(1).find(|page| is_it(page)).unwrap();
    let (count, cell) = (20_000_u16, [page[10], page[11]]);
    page[3..5].copy_from_slice(&count.to_be_bytes());
    (0..usize::from(count)).for_each(|at| page[8 + 2 * at..][..2].copy_from_slice(&cell));
    fs::write(written.path("db"), &file).unwrap();
    let rows = SqliteFile::open(fs::File::open(written.path("db")).unwrap().into(), None).unwrap();
    let before: Vec<_> = rows.blobs("t").unwrap().take_while(Result::is_ok).collect();
    assert!(before.len() < 7, "{}", before.len());
    let error = read(written.dir.path()).unwrap_err();
    assert!(error.to_string().contains("rows overlap"), "{error}");
}

//! The tables, their version, and how a database is opened.

use std::time::Duration;

use rusqlite::Connection;

/// Version of the tables, kept in `PRAGMA user_version`.
pub const VERSION: i64 = 2;

const TABLES: &str = "
    CREATE TABLE entry (
        id            INTEGER PRIMARY KEY AUTOINCREMENT,
        state         TEXT NOT NULL CHECK (state IN ('detaching', 'detached', 'restoring', 'dropping')),
        dir           BLOB NOT NULL,
        name          BLOB NOT NULL,
        dev           INTEGER NOT NULL,
        ino           INTEGER NOT NULL,
        handle        BLOB,
        immutable     INTEGER NOT NULL,
        size          INTEGER NOT NULL,
        beside        INTEGER NOT NULL,
        keep          INTEGER NOT NULL,
        copy_ino      INTEGER,
        copy_ctime_s  INTEGER,
        copy_ctime_ns INTEGER
    ) STRICT;
    CREATE TABLE run (
        id        INTEGER PRIMARY KEY AUTOINCREMENT,
        front_end TEXT NOT NULL,
        began     INTEGER NOT NULL,
        settled   INTEGER,
        detached  INTEGER NOT NULL DEFAULT 0,
        bytes     INTEGER NOT NULL DEFAULT 0,
        restored  INTEGER NOT NULL DEFAULT 0,
        waiting   INTEGER NOT NULL DEFAULT 0,
        failed    INTEGER NOT NULL DEFAULT 0
    ) STRICT;
    -- Numbers are names of files: those of a ledger that was lost must not come again.
    INSERT INTO sqlite_sequence (name, seq) VALUES ('entry', unixepoch() * 1000000);
";

/// What version 1 did not have.
const WINDOWS: &str = "
    CREATE TABLE window (
        owner   INTEGER NOT NULL,
        started INTEGER NOT NULL,
        dev     INTEGER NOT NULL,
        ino     INTEGER NOT NULL,
        handle  BLOB,
        dir     BLOB NOT NULL,
        name    BLOB NOT NULL
    ) STRICT;
";

/// The version of the tables.
pub fn version(db: &Connection) -> rusqlite::Result<i64> {
    db.pragma_query_value(None, "user_version", |row| row.get(0))
}

/// Does `work`, whose commits are on disk when they return, or soon (<https://sqlite.org/pragma.html#pragma_synchronous>).
///
/// An intent must be, before the window it announces. That something is over need not: recovery sees that for itself.
pub(crate) fn durably<T>(
    db: &mut Connection,
    durably: bool,
    work: impl FnOnce(&mut Connection) -> rusqlite::Result<T>,
) -> rusqlite::Result<T> {
    if !durably {
        return work(db);
    }
    set_durable(db, true)?;
    let done = work(db);
    set_durable(db, false)?;
    done
}

fn set_durable(db: &Connection, durable: bool) -> rusqlite::Result<()> {
    db.pragma_update(None, "synchronous", if durable { "FULL" } else { "NORMAL" })
}

/// Sets the connection up and makes the tables if there are none; returns the version of the tables.
pub fn prepare(db: &Connection) -> rusqlite::Result<i64> {
    db.busy_timeout(Duration::from_secs(10))?;
    db.pragma_update(None, "journal_mode", "WAL")?;
    set_durable(db, false)?;
    let found = version(db)?;
    if found == 0 {
        return make(db, &format!("{TABLES} {WINDOWS}"));
    }
    if found == 1 {
        return make(db, WINDOWS);
    }
    if found == VERSION {
        // A table that is missing or lacks a column fails here, not in the middle of a run.
        db.prepare("SELECT id, state, copy_ctime_ns FROM entry LIMIT 1")?;
        db.prepare("SELECT id, failed FROM run LIMIT 1")?;
        db.prepare("SELECT owner, name FROM window LIMIT 1")?;
    }
    Ok(found)
}

/// Makes tables; their version is the newest then.
fn make(db: &Connection, tables: &str) -> rusqlite::Result<i64> {
    db.execute_batch(&format!("BEGIN IMMEDIATE; {tables} PRAGMA user_version = {VERSION}; COMMIT;"))?;
    Ok(VERSION)
}

//! What the last run saw, so that the next one need not look again. Losing it costs time, nothing else.
//!
//! Names that are the pool's are not kept: whether a directory still has them, its time of change tells.

use std::collections::HashMap;
use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rusqlite::{Connection, OpenFlags, OptionalExtension, Row as SqlRow, Transaction, params};

use super::catalog::{Catalog, DirIndex, PrivateFile};
use super::guest::GuestTree;
use crate::report::Shown;
use crate::sys::file::filesystem;
use crate::unify::pool::identity::Digest;

const SCHEMA_VERSION: i64 = 1;

/// A directory as it was.
#[derive(Debug, Default)]
pub struct CachedDir {
    pub ino: u64,
    /// Time of its last change, in nanoseconds.
    pub ctime: i64,
    /// Its files that are none of the pool's.
    pub private: Vec<CachedFile>,
}

/// A private file as it was.
#[derive(Debug)]
pub struct CachedFile {
    pub name: OsString,
    pub ino: u64,
    /// Time of the last change of the inode, in nanoseconds.
    pub ctime: i64,
    /// What was read of it, if it was.
    pub(crate) digest: Option<Digest>,
    /// It shared the blocks of its object.
    pub shares_blocks: bool,
}

/// The directories of a guest as they were, by path.
pub type CachedDirs = HashMap<PathBuf, CachedDir>;

/// The database.
#[derive(Debug)]
pub struct Cache(Connection);

impl Cache {
    /// Opens the cache, made if it is missing; begun anew if it cannot be used. If there is no room for it, it
    /// lasts as long as this run.
    pub fn open(path: &Path) -> rusqlite::Result<Cache> {
        match Self::open_as_is(path) {
            Ok(cache) => Ok(cache),
            Err(e) if is_full(&e) => {
                log::warn!("{}: {e}; the next run examines everything again", Shown(path));
                Self::open_as_is(Path::new(":memory:"))
            }
            Err(e) => {
                log::warn!("{}: {e}; a new cache is started", Shown(path));
                for suffix in ["", "-wal", "-shm"] {
                    let mut path = path.as_os_str().to_os_string();
                    path.push(suffix);
                    if let (Some(dir), Some(name)) = (Path::new(&path).parent(), Path::new(&path).file_name())
                        && let Ok(dir) = crate::sys::path::root::Root::open(dir)
                    {
                        // What cannot be removed shows when it is opened again.
                        let _ = crate::sys::path::dirfd::remove_file(&dir, name);
                    }
                }
                Self::open_as_is(path)
            }
        }
    }

    /// Opens a cache that is there to read it. If there is no room for what SQLite puts beside a database, it is read as it is
    /// on the disk, without what a killed run has left beside it.
    pub fn open_to_read(path: &Path) -> rusqlite::Result<Cache> {
        match Self::open_as_is(path) {
            Err(e) if is_full(&e) => {
                let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI;
                Connection::open_with_flags(unchanging(path), flags).map(Cache)
            }
            opened => opened,
        }
    }

    fn open_as_is(path: &Path) -> rusqlite::Result<Cache> {
        let db = Connection::open(path)?;
        db.busy_timeout(std::time::Duration::from_secs(10))?;
        db.pragma_update(None, "journal_mode", "WAL")?;
        db.pragma_update(None, "synchronous", "NORMAL")?;
        let version: i64 = db.query_row("PRAGMA user_version", [], |row| row.get(0))?;
        if version != SCHEMA_VERSION {
            db.execute_batch(&format!(
                "BEGIN;
                 DROP TABLE IF EXISTS private; DROP TABLE IF EXISTS directory; DROP TABLE IF EXISTS guest;
                 CREATE TABLE guest (
                     id INTEGER PRIMARY KEY, path BLOB NOT NULL UNIQUE, dev INTEGER NOT NULL, ino INTEGER NOT NULL,
                     fingerprint BLOB NOT NULL);
                 CREATE TABLE directory (
                     id INTEGER PRIMARY KEY, guest INTEGER NOT NULL, path BLOB NOT NULL, ino INTEGER NOT NULL,
                     ctime INTEGER NOT NULL, UNIQUE (guest, path));
                 CREATE TABLE private (
                     directory INTEGER NOT NULL, name BLOB NOT NULL, ino INTEGER NOT NULL, ctime INTEGER NOT NULL,
                     key INTEGER NOT NULL, content BLOB, xattrs INTEGER, shares_blocks INTEGER NOT NULL,
                     PRIMARY KEY (directory, name)) WITHOUT ROWID;
                 CREATE INDEX private_key ON private (key);
                 PRAGMA user_version = {SCHEMA_VERSION};
                 COMMIT;"
            ))?;
        }
        Ok(Cache(db))
    }

    /// The paths of all guests that were ever looked at.
    pub fn guests(&self) -> rusqlite::Result<Vec<PathBuf>> {
        let mut select = self.0.prepare("SELECT path FROM guest")?;
        let mut rows = select.query([])?;
        let mut guests = Vec::new();
        while let Some(row) = rows.next()? {
            guests.push(PathBuf::from(bytes(row, 0)?));
        }
        Ok(guests)
    }

    /// What is remembered of a guest, if it was seen with the same fingerprint; else nothing.
    pub fn load(&self, guest: &GuestTree, fingerprint: &[u8]) -> rusqlite::Result<CachedDirs> {
        let Some(id) = find(&self.0, guest, fingerprint)? else { return Ok(CachedDirs::new()) };
        let mut rows: HashMap<i64, (PathBuf, CachedDir)> = HashMap::new();
        let mut directories =
            self.0.prepare_cached("SELECT id, path, ino, ctime FROM directory WHERE guest = ?1")?;
        let mut found = directories.query([id])?;
        while let Some(row) = found.next()? {
            let path = PathBuf::from(bytes(row, 1)?);
            let dir = CachedDir { ino: unsigned(row, 2)?, ctime: row.get(3)?, private: Vec::new() };
            rows.insert(row.get(0)?, (path, dir));
        }
        let mut private = self.0.prepare_cached(
            "SELECT directory, name, private.ino, private.ctime, content, xattrs, shares_blocks
             FROM directory JOIN private ON directory = id WHERE guest = ?1",
        )?;
        let mut found = private.query([id])?;
        while let Some(row) = found.next()? {
            let Some((_, dir)) = rows.get_mut(&row.get(0)?) else { continue };
            let content: Option<[u8; 32]> = row.get(4)?;
            let xattrs: Option<i64> = row.get(5)?;
            dir.private.push(CachedFile {
                name: bytes(row, 1)?,
                ino: unsigned(row, 2)?,
                ctime: row.get(3)?,
                digest: content
                    .zip(xattrs)
                    .map(|(content, xattrs)| Digest { content, xattrs: xattrs as u64 }),
                shares_blocks: row.get(6)?,
            });
        }
        Ok(rows.into_values().collect())
    }

    /// Remembers what a scan found of each guest, under its fingerprint.
    pub fn store(&mut self, catalog: &Catalog, fingerprints: &[[u8; 32]]) -> rusqlite::Result<()> {
        let transaction = self.0.transaction()?;
        let mut ids = HashMap::new();
        for (at, fingerprint) in catalog.guest_indices().zip(fingerprints) {
            let guest = &catalog[at];
            let id = match find(&transaction, guest, fingerprint)? {
                Some(id) => id,
                None => begin(&transaction, guest, fingerprint)?,
            };
            ids.insert(at, id);
        }
        for (guest, path) in &catalog.gone {
            forget(&transaction, ids[guest], path)?;
        }
        let mut rows: HashMap<DirIndex, i64> = HashMap::new();
        {
            let mut insert = transaction
                .prepare_cached("INSERT INTO directory (guest, path, ino, ctime) VALUES (?1, ?2, ?3, ?4)")?;
            for at in catalog.dir_indices().filter(|at| catalog[*at].fresh) {
                let dir = &catalog[at];
                let id = ids[&dir.guest];
                forget(&transaction, id, &dir.path)?;
                let row = params![id, dir.path.as_os_str().as_bytes(), dir.ino as i64, dir.ctime];
                rows.insert(at, insert.insert(row)?);
            }
            for file in &catalog.files {
                if let Some(row) = rows.get(&file.dir) {
                    keep(&transaction, *row, catalog, file)?;
                }
            }
        }
        transaction.commit()
    }

    /// Remembers private files of directories that were not looked at as a whole: the next scan lists these anew.
    pub fn note(&mut self, catalog: &Catalog) -> rusqlite::Result<()> {
        let transaction = self.0.transaction()?;
        {
            let mut directory = transaction.prepare_cached(
                "INSERT INTO directory (guest, path, ino, ctime) SELECT id, ?2, ?3, 0 FROM guest WHERE path = ?1
                 ON CONFLICT DO UPDATE SET ctime = 0 RETURNING id",
            )?;
            let mut rows: HashMap<DirIndex, Option<i64>> = HashMap::new();
            for file in &catalog.files {
                let row = match rows.get(&file.dir) {
                    Some(row) => *row,
                    None => {
                        let dir = catalog.dir(file);
                        let guest = catalog[dir.guest].root.path().as_os_str().as_bytes();
                        let values = params![guest, dir.path.as_os_str().as_bytes(), dir.ino as i64];
                        // A guest that was never scanned has no row.
                        let row = directory.query_row(values, |row| row.get(0)).optional()?;
                        *rows.entry(file.dir).or_insert(row)
                    }
                };
                if let Some(row) = row {
                    keep(&transaction, row, catalog, file)?;
                }
            }
        }
        transaction.commit()
    }

    /// The private files of all guests that had this key when they were last seen: guest's path, and path in it.
    pub fn with_key(&self, key: u64) -> rusqlite::Result<Vec<(PathBuf, PathBuf)>> {
        let mut select = self.0.prepare_cached(
            "SELECT guest.path, directory.path, name FROM private
             JOIN directory ON directory.id = directory JOIN guest ON guest.id = guest WHERE key = ?1",
        )?;
        let mut rows = select.query([key as i64])?;
        let mut found = Vec::new();
        while let Some(row) = rows.next()? {
            found.push((PathBuf::from(bytes(row, 0)?), PathBuf::from(bytes(row, 1)?).join(bytes(row, 2)?)));
        }
        Ok(found)
    }
}

/// The name by which SQLite takes a file for one that does not change, so that it needs nothing beside it
/// (<https://www.sqlite.org/uri.html>).
fn unchanging(path: &Path) -> PathBuf {
    let mut name = b"file:".to_vec();
    for &byte in path.as_os_str().as_bytes() {
        match byte {
            b'%' | b'?' | b'#' => name.extend(format!("%{byte:02x}").bytes()),
            byte => name.push(byte),
        }
    }
    name.extend(b"?immutable=1");
    PathBuf::from(OsString::from_vec(name))
}

/// Whether there is no room for the database, or for what it needs beside it.
fn is_full(error: &rusqlite::Error) -> bool {
    use rusqlite::ErrorCode::{CannotOpen, DiskFull, OutOfMemory, SystemIoFailure};
    matches!(error.sqlite_error_code(), Some(CannotOpen | DiskFull | OutOfMemory | SystemIoFailure))
}

/// Remembers one private file.
fn keep(
    transaction: &Transaction<'_>,
    row: i64,
    catalog: &Catalog,
    file: &PrivateFile,
) -> rusqlite::Result<()> {
    let digest = catalog.digest(file);
    transaction
        .prepare_cached("INSERT OR REPLACE INTO private VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)")?
        .execute(params![
            row,
            catalog.name(file).as_bytes(),
            file.ino as i64,
            file.ctime,
            file.key as i64,
            digest.map(|digest| digest.content),
            digest.map(|digest| digest.xattrs as i64),
            file.shares_blocks,
        ])?;
    Ok(())
}

/// The row of a guest that was seen as it is, under this fingerprint.
fn find(db: &Connection, guest: &GuestTree, fingerprint: &[u8]) -> rusqlite::Result<Option<i64>> {
    let (dev, ino) = identity(guest);
    db.prepare_cached("SELECT id FROM guest WHERE path = ?1 AND dev = ?2 AND ino = ?3 AND fingerprint = ?4")?
        .query_row(
            params![guest.root.path().as_os_str().as_bytes(), dev as i64, ino as i64, fingerprint],
            |row| row.get(0),
        )
        .optional()
}

/// What a guest's root is, also when its filesystem is mounted again.
fn identity(guest: &GuestTree) -> (u64, u64) {
    let filesystem = guest.root.open_dir(Path::new("/")).and_then(filesystem::identity);
    (filesystem.unwrap_or(guest.inode.id.dev), guest.inode.id.ino)
}

/// Forgets what is known under a guest's path, and begins anew.
fn begin(transaction: &Transaction<'_>, guest: &GuestTree, fingerprint: &[u8]) -> rusqlite::Result<i64> {
    let path = guest.root.path().as_os_str().as_bytes();
    let old = "(SELECT id FROM guest WHERE path = ?1)";
    for statement in [
        format!("DELETE FROM private WHERE directory IN (SELECT id FROM directory WHERE guest = {old})"),
        format!("DELETE FROM directory WHERE guest = {old}"),
        "DELETE FROM guest WHERE path = ?1".to_owned(),
    ] {
        transaction.execute(&statement, [path])?;
    }
    let (dev, ino) = identity(guest);
    transaction.execute(
        "INSERT INTO guest (path, dev, ino, fingerprint) VALUES (?1, ?2, ?3, ?4)",
        params![path, dev as i64, ino as i64, fingerprint],
    )?;
    Ok(transaction.last_insert_rowid())
}

fn forget(transaction: &Transaction<'_>, guest: i64, path: &Path) -> rusqlite::Result<()> {
    let path = path.as_os_str().as_bytes();
    let row: Option<i64> = transaction
        .prepare_cached("DELETE FROM directory WHERE guest = ?1 AND path = ?2 RETURNING id")?
        .query_row(params![guest, path], |row| row.get(0))
        .optional()?;
    if let Some(row) = row {
        transaction.prepare_cached("DELETE FROM private WHERE directory = ?1")?.execute([row])?;
    }
    Ok(())
}

fn bytes(row: &SqlRow<'_>, column: usize) -> rusqlite::Result<OsString> {
    Ok(OsString::from_vec(row.get(column)?))
}

fn unsigned(row: &SqlRow<'_>, column: usize) -> rusqlite::Result<u64> {
    Ok(row.get::<_, i64>(column)? as u64)
}

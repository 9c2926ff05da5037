//! Records as rows of the tables.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use rusqlite::{Connection, Row, params};

use super::records::{Entry, Intent, PrivateCopy, Stage};
use crate::sys::file::inode::{InodeId, Time};
use crate::sys::path::resolve::Place;

pub(super) fn insert(db: &Connection, intent: &Intent, state: Stage) -> rusqlite::Result<Entry> {
    let mut insert = db.prepare_cached(
        "INSERT INTO entry (state, dir, name, dev, ino, handle, immutable, size, beside, keep)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
    )?;
    insert.execute(params![
        state.as_str(),
        intent.place.dir.as_os_str().as_bytes(),
        intent.place.name.as_bytes(),
        intent.original.dev as i64,
        intent.original.ino as i64,
        intent.handle,
        intent.immutable,
        intent.size as i64,
        intent.beside,
        intent.keep,
    ])?;
    Ok(Entry { id: db.last_insert_rowid(), state, intent: intent.clone(), copy: None })
}

pub(crate) fn read_place(row: &Row<'_>) -> rusqlite::Result<Place> {
    let bytes = |name: &str| row.get::<_, Vec<u8>>(name).map(OsString::from_vec);
    Ok(Place { dir: PathBuf::from(bytes("dir")?), name: bytes("name")? })
}

pub(crate) fn read_inode(row: &Row<'_>) -> rusqlite::Result<InodeId> {
    Ok(InodeId { dev: row.get::<_, i64>("dev")? as u64, ino: row.get::<_, i64>("ino")? as u64 })
}

pub(crate) fn read_entry(row: &Row<'_>) -> rusqlite::Result<Entry> {
    let word: String = row.get("state")?;
    let state = Stage::parse(&word).ok_or(rusqlite::Error::InvalidQuery)?;
    let copy = match row.get::<_, Option<i64>>("copy_ino")? {
        None => None,
        Some(ino) => {
            let ctime = row.get::<_, Option<i64>>("copy_ctime_s")?.zip(row.get("copy_ctime_ns")?);
            Some(PrivateCopy { ino: ino as u64, ctime: ctime.map(|(secs, nanos)| Time { secs, nanos }) })
        }
    };
    let intent = Intent {
        place: read_place(row)?,
        original: read_inode(row)?,
        handle: row.get("handle")?,
        immutable: row.get("immutable")?,
        size: row.get::<_, i64>("size")? as u64,
        beside: row.get("beside")?,
        keep: row.get("keep")?,
    };
    Ok(Entry { id: row.get("id")?, state, intent, copy })
}

//! The guest's SQLite database of transactions: which names are about to change their inode, which have, and what
//! is still owed to them.
//!
//! An entry is durable before the name it speaks of is touched, and forgotten when nothing is owed any more.

mod schema;

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rusqlite::{Connection, OpenFlags, Row, params};

use crate::report::{Reason, Shown};
use crate::sys::file::inode::{InodeId, Time};
use crate::sys::path::resolve::Place;
use crate::sys::process::ProcessId;

/// What went wrong with the ledger.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// SQLite's word.
    #[error("ledger {}: {source}", Shown(path))]
    Database {
        /// The database.
        path: PathBuf,
        /// What SQLite says.
        source: rusqlite::Error,
    },
    /// Its tables are of another version of this program.
    #[error("ledger {}: its tables are of version {found}", Shown(path))]
    Version {
        /// The database.
        path: PathBuf,
        /// The version it holds.
        found: i64,
    },
    /// The database could not be put aside.
    #[error("ledger {}: {}", Shown(path), Reason(source))]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

impl Error {
    /// Whether a fresh ledger in this one's place would do better: damaged, foreign, or of another version.
    fn is_unreadable(&self) -> bool {
        use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase, Unknown};
        match self {
            // Unknown is SQLite's plain "SQL error": a table or column is not there.
            Error::Database { source: rusqlite::Error::SqliteFailure(e, _), .. } => {
                matches!(e.code, DatabaseCorrupt | NotADatabase | Unknown)
            }
            Error::Version { .. } => true,
            _ => false,
        }
    }
}

/// Where a name stands between its shared inode and its private copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// The private copy is being made, or about to take the name.
    Detaching,
    /// The name has its private copy; the stash holds the original.
    Detached,
    /// The original is about to take its name back.
    Restoring,
    /// The original is about to lose its name in the stash.
    Dropping,
}

impl State {
    /// The word the database holds.
    pub fn as_str(self) -> &'static str {
        match self {
            State::Detaching => "detaching",
            State::Detached => "detached",
            State::Restoring => "restoring",
            State::Dropping => "dropping",
        }
    }

    fn parse(word: &str) -> Option<State> {
        [State::Detaching, State::Detached, State::Restoring, State::Dropping]
            .into_iter()
            .find(|state| state.as_str() == word)
    }
}

/// What is recorded before a name is touched.
#[derive(Clone, Debug)]
pub struct Intent {
    /// The name.
    pub place: Place,
    /// The shared inode.
    pub original: InodeId,
    /// Its file handle, where the filesystem has handles.
    pub handle: Option<Vec<u8>>,
    /// It was immutable.
    pub immutable: bool,
    /// Its length in bytes.
    pub size: u64,
    /// The private copy waits in the directory of the place, not in the stash.
    pub beside: bool,
    /// The original stays in the stash.
    pub keep: bool,
}

/// A private copy as it was when the name had just got it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Copy {
    /// Its inode number.
    pub ino: u64,
    /// When its inode last changed; none where more of its names were to come.
    pub ctime: Option<Time>,
}

/// One name the ledger knows.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Number of the entry, never used again; names the file in the stash.
    pub id: i64,
    /// How far things are.
    pub state: State,
    /// What was recorded first.
    pub intent: Intent,
    /// The private copy, once it has the name.
    pub copy: Option<Copy>,
}

impl Entry {
    /// The name under which the private copy waits, beside the place or in the stash.
    pub fn temporary(&self) -> OsString {
        temporary(self.id, self.intent.beside)
    }

    /// The name of the original in the stash.
    pub fn stashed(&self) -> OsString {
        OsString::from(self.id.to_string())
    }
}

/// The name under which the private copy of entry `id` waits.
pub fn temporary(id: i64, beside: bool) -> OsString {
    OsString::from(if beside { format!(".cow-{id}") } else { format!("{id}.copy") })
}

/// A shared inode whose flag a living process may clear at any time, for a moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    /// The process.
    pub owner: ProcessId,
    /// The inode.
    pub inode: InodeId,
    /// Its file handle, where the filesystem has handles.
    pub handle: Option<Vec<u8>>,
    /// A name it had.
    pub place: Place,
}

/// How a run of a package manager began and ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// Number of the run.
    pub id: i64,
    /// Who asked: `apt`, `dpkg`, `cow-prepare`.
    pub front_end: String,
    /// When it began, seconds since 1970.
    pub began: i64,
    /// When it was settled; none while it is open.
    pub settled: Option<i64>,
    /// Names made private.
    pub detached: u64,
    /// Bytes copied for them.
    pub bytes: u64,
    /// Names that share the original again.
    pub restored: u64,
    /// Names whose new content waits for the host.
    pub waiting: u64,
    /// Names that could not be made private.
    pub failed: u64,
}

/// The open database.
#[derive(Debug)]
pub struct Ledger {
    db: Connection,
    path: PathBuf,
}

impl Ledger {
    /// Opens the ledger at `path`, made where it is missing.
    ///
    /// One that cannot be read is put aside under another name with a warning, and a fresh one is begun:
    /// a lost ledger must never stop a package manager.
    pub fn open(path: &Path) -> Result<Ledger, Error> {
        match Self::try_open(path) {
            Ok(ledger) => Ok(ledger),
            Err(e) if e.is_unreadable() => {
                let aside = put_aside(path)?;
                log::warn!("{e}; kept as {}, begun anew", Shown(&aside));
                Self::try_open(path)
            }
            Err(e) => Err(e),
        }
    }

    /// Opens the ledger at `path`, as it is, to be read only.
    pub fn view(path: &Path) -> Result<Ledger, Error> {
        let at = |source| Error::Database { path: path.to_path_buf(), source };
        let db = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY).map_err(at)?;
        match schema::version(&db).map_err(at)? {
            schema::VERSION => Ok(Ledger { db, path: path.to_path_buf() }),
            found => Err(Error::Version { path: path.to_path_buf(), found }),
        }
    }

    fn try_open(path: &Path) -> Result<Ledger, Error> {
        let at = |source| Error::Database { path: path.to_path_buf(), source };
        let db = Connection::open(path).map_err(at)?;
        match schema::prepare(&db).map_err(at)? {
            schema::VERSION => Ok(Ledger { db, path: path.to_path_buf() }),
            found => Err(Error::Version { path: path.to_path_buf(), found }),
        }
    }

    fn error(&self, source: rusqlite::Error) -> Error {
        Error::Database { path: self.path.clone(), source }
    }

    /// Makes changes together: all of them are there afterwards, or none.
    fn change<T>(
        &mut self,
        durably: bool,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T, Error> {
        let changed = schema::durably(&mut self.db, durably, |db| {
            let transaction = db.transaction()?;
            let done = work(&transaction)?;
            transaction.commit()?;
            Ok(done)
        });
        changed.map_err(|e| self.error(e))
    }

    /// Records intents, durably, and numbers them.
    pub fn record(&mut self, intents: &[Intent]) -> Result<Vec<Entry>, Error> {
        self.change(true, |db| intents.iter().map(|intent| insert(db, intent, State::Detaching)).collect())
    }

    /// Records a name whose original is about to go to the stash, while another file takes the name.
    ///
    /// Not durable: where the machine dies the stash is emptied, and the name has its new file or the old one.
    pub fn record_replaced(&mut self, intent: &Intent) -> Result<Entry, Error> {
        self.change(false, |db| insert(db, intent, State::Detached))
    }

    /// Records that these names have their private copies, and forgets the entries `forgotten`.
    pub fn detached(&mut self, copies: &[(i64, Option<Copy>)], forgotten: &[i64]) -> Result<(), Error> {
        self.change(false, |db| {
            let mut update = db.prepare(
                "UPDATE entry SET state = 'detached', copy_ino = ?2, copy_ctime_s = ?3, copy_ctime_ns = ?4
                 WHERE id = ?1",
            )?;
            for (id, copy) in copies {
                update.execute(params![
                    id,
                    copy.map(|c| c.ino as i64),
                    copy.and_then(|c| c.ctime).map(|time| time.secs),
                    copy.and_then(|c| c.ctime).map(|time| time.nanos),
                ])?;
            }
            let mut delete = db.prepare("DELETE FROM entry WHERE id = ?1")?;
            for id in forgotten {
                delete.execute([id])?;
            }
            Ok(())
        })
    }

    /// Forgets entries: nothing is owed to them any more.
    pub fn forget(&mut self, ids: &[i64]) -> Result<(), Error> {
        if ids.is_empty() { Ok(()) } else { self.detached(&[], ids) }
    }

    /// Records, durably, that these entries are about to be restored or dropped.
    pub fn set_state(&mut self, changes: &[(i64, State)]) -> Result<(), Error> {
        if changes.is_empty() {
            return Ok(());
        }
        self.change(true, |db| {
            let mut update = db.prepare("UPDATE entry SET state = ?2 WHERE id = ?1")?;
            for (id, state) in changes {
                update.execute(params![id, state.as_str()])?;
            }
            Ok(())
        })
    }

    /// Records, durably, which inodes' flags may be cleared.
    pub fn announce(&mut self, windows: &[Window]) -> Result<(), Error> {
        self.change(true, |db| {
            let mut insert = db.prepare_cached(
                "INSERT INTO window (owner, started, dev, ino, handle, dir, name)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
            )?;
            for window in windows {
                insert.execute(params![
                    window.owner.pid,
                    window.owner.start as i64,
                    window.inode.dev as i64,
                    window.inode.ino as i64,
                    window.handle,
                    window.place.dir.as_os_str().as_bytes(),
                    window.place.name.as_bytes(),
                ])?;
            }
            Ok(())
        })
    }

    /// Every window that was announced.
    pub fn windows(&self) -> Result<Vec<Window>, Error> {
        let work = || -> rusqlite::Result<Vec<Window>> {
            let mut select = self.db.prepare("SELECT * FROM window")?;
            let rows = select.query_map([], |row| {
                Ok(Window {
                    owner: ProcessId { pid: row.get("owner")?, start: row.get::<_, i64>("started")? as u64 },
                    inode: read_inode(row)?,
                    handle: row.get("handle")?,
                    place: read_place(row)?,
                })
            })?;
            rows.collect()
        };
        work().map_err(|e| self.error(e))
    }

    /// Forgets what a process has announced: its windows are closed, and that is on disk.
    pub fn withdraw(&mut self, owner: ProcessId) -> Result<(), Error> {
        let delete = self.db.execute(
            "DELETE FROM window WHERE owner = ?1 AND started = ?2",
            params![owner.pid, owner.start as i64],
        );
        delete.map(drop).map_err(|e| self.error(e))
    }

    /// Every entry, oldest first.
    pub fn entries(&self) -> Result<Vec<Entry>, Error> {
        let work = || -> rusqlite::Result<Vec<Entry>> {
            let mut select = self.db.prepare("SELECT * FROM entry ORDER BY id")?;
            let rows = select.query_map([], read_entry)?;
            rows.collect()
        };
        work().map_err(|e| self.error(e))
    }

    /// How many entries there are.
    pub fn len(&self) -> Result<u64, Error> {
        let count = self.db.query_row("SELECT count(*) FROM entry", [], |row| row.get::<_, i64>(0));
        count.map(|n| n as u64).map_err(|e| self.error(e))
    }

    /// Whether there is no entry.
    pub fn is_empty(&self) -> Result<bool, Error> {
        Ok(self.len()? == 0)
    }

    /// The run that is open, or a new one of `front_end` begun at `now`; and whether it is new.
    pub fn open_run(&mut self, front_end: &str, now: i64) -> Result<(i64, bool), Error> {
        if let Some(run) = self.last_run()?.filter(|run| run.settled.is_none()) {
            return Ok((run.id, false));
        }
        let insert =
            self.db.execute("INSERT INTO run (front_end, began) VALUES (?1, ?2)", params![front_end, now]);
        insert.map_err(|e| self.error(e))?;
        Ok((self.db.last_insert_rowid(), true))
    }

    /// Forgets a run that came to nothing.
    pub fn forget_run(&mut self, id: i64) -> Result<(), Error> {
        self.db.execute("DELETE FROM run WHERE id = ?1", [id]).map(drop).map_err(|e| self.error(e))
    }

    /// Adds to what the run has detached.
    pub fn add_to_run(&mut self, id: i64, detached: u64, bytes: u64, failed: u64) -> Result<(), Error> {
        let update = self.db.execute(
            "UPDATE run SET detached = detached + ?2, bytes = bytes + ?3, failed = failed + ?4 WHERE id = ?1",
            params![id, detached as i64, bytes as i64, failed as i64],
        );
        update.map(drop).map_err(|e| self.error(e))
    }

    /// Ends the open run, and forgets all but the last hundred.
    pub fn settle_run(&mut self, now: i64, restored: u64, waiting: u64) -> Result<(), Error> {
        let work = || -> rusqlite::Result<()> {
            self.db.execute(
                "UPDATE run SET settled = ?1, restored = ?2, waiting = ?3 WHERE settled IS NULL",
                params![now, restored as i64, waiting as i64],
            )?;
            self.db.execute("DELETE FROM run WHERE id <= (SELECT max(id) - 100 FROM run)", [])?;
            Ok(())
        };
        work().map_err(|e| self.error(e))
    }

    /// The newest run.
    pub fn last_run(&self) -> Result<Option<Run>, Error> {
        let select = self.db.query_row("SELECT * FROM run ORDER BY id DESC LIMIT 1", [], |row| {
            let count = |name: &str| row.get::<_, i64>(name).map(|n| n as u64);
            Ok(Run {
                id: row.get("id")?,
                front_end: row.get("front_end")?,
                began: row.get("began")?,
                settled: row.get("settled")?,
                detached: count("detached")?,
                bytes: count("bytes")?,
                restored: count("restored")?,
                waiting: count("waiting")?,
                failed: count("failed")?,
            })
        });
        match select {
            Ok(run) => Ok(Some(run)),
            Err(rusqlite::Error::QueryReturnedNoRows) => Ok(None),
            Err(e) => Err(self.error(e)),
        }
    }
}

fn insert(db: &Connection, intent: &Intent, state: State) -> rusqlite::Result<Entry> {
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

fn read_place(row: &Row<'_>) -> rusqlite::Result<Place> {
    let bytes = |name: &str| row.get::<_, Vec<u8>>(name).map(OsString::from_vec);
    Ok(Place { dir: PathBuf::from(bytes("dir")?), name: bytes("name")? })
}

fn read_inode(row: &Row<'_>) -> rusqlite::Result<InodeId> {
    Ok(InodeId { dev: row.get::<_, i64>("dev")? as u64, ino: row.get::<_, i64>("ino")? as u64 })
}

fn read_entry(row: &Row<'_>) -> rusqlite::Result<Entry> {
    let word: String = row.get("state")?;
    let state = State::parse(&word).ok_or(rusqlite::Error::InvalidQuery)?;
    let copy = match row.get::<_, Option<i64>>("copy_ino")? {
        None => None,
        Some(ino) => {
            let ctime = row.get::<_, Option<i64>>("copy_ctime_s")?.zip(row.get("copy_ctime_ns")?);
            Some(Copy { ino: ino as u64, ctime: ctime.map(|(secs, nanos)| Time { secs, nanos }) })
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

fn put_aside(path: &Path) -> Result<PathBuf, Error> {
    let at = |source| Error::Io { path: path.to_path_buf(), source };
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(at(io::ErrorKind::InvalidInput.into()));
    };
    let with = |suffix: &str| {
        let mut name = name.to_os_string();
        name.push(suffix);
        name
    };
    let dir_fd = std::fs::File::open(dir).map_err(at)?;
    // The write-ahead log belongs to the database it lies beside.
    for (from, to) in [("", ".unreadable"), ("-wal", ".unreadable-wal"), ("-shm", ".unreadable-shm")] {
        match crate::sys::path::own_files::rename(&dir_fd, &with(from), &with(to)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(at(e)),
            _ => {}
        }
    }
    Ok(dir.join(with(".unreadable")))
}

#[cfg(test)]
mod tests;

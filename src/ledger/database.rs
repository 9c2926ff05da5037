//! The open database: what is recorded, read back and forgotten.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, OpenFlags, params};

use super::aside::put_aside;
use super::error::Error;
use super::records::{Entry, Intent, PrivateCopy, Run, Stage, Window};
use super::rows::{insert, read_entry, read_inode, read_place};
use super::schema;
use crate::report::Shown;
use crate::state::store::Store;
use crate::sys::path::dirfd;
use crate::sys::process::ProcessId;

/// The open database.
#[derive(Debug)]
pub struct Ledger {
    pub(super) db: Connection,
    path: PathBuf,
}

impl Ledger {
    /// Opens the ledger of a store; made if it is missing.
    pub fn of(store: &Store) -> Result<Ledger, Error> {
        Ledger::open(store.ledger_path())
    }

    /// Opens the ledger of a store if there is one; a fresh one if it was lost and the stash still holds what it knew of.
    pub fn existing(store: &Store) -> Result<Option<Ledger>, Error> {
        let path = store.ledger_path();
        if !is_there(path) {
            if dirfd::is_empty(store.stash()).unwrap_or(true) {
                return Ok(None);
            }
            log::warn!(
                "ledger {}: missing while original files are in the stash; a new ledger is started",
                Shown(path)
            );
        }
        Ledger::open(path).map(Some)
    }

    /// The ledger of a store as it is, to be read only; none if it is missing or cannot be read.
    pub fn view(store: &Store) -> Option<Ledger> {
        let path = store.ledger_path();
        if !is_there(path) {
            return None;
        }
        Ledger::open_to_read(path).inspect_err(|e| log::warn!("{e}")).ok()
    }

    /// Opens the ledger at `path`, made if it is missing.
    ///
    /// One that cannot be read is put aside under another name with a warning, and a fresh one is begun:
    /// a lost ledger must never stop a package manager.
    pub(super) fn open(path: &Path) -> Result<Ledger, Error> {
        match Self::try_open(path) {
            Ok(ledger) => Ok(ledger),
            Err(e) if e.is_unreadable() => {
                let aside = put_aside(path)?;
                log::warn!("{e}; it is kept as {}, and a new ledger is started", Shown(&aside));
                Self::try_open(path)
            }
            Err(e) => Err(e),
        }
    }

    pub(crate) fn open_to_read(path: &Path) -> Result<Ledger, Error> {
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
        self.change(true, |db| intents.iter().map(|intent| insert(db, intent, Stage::Detaching)).collect())
    }

    /// Records a name whose original is about to go to the stash, while another file takes the name.
    ///
    /// Not durable: if the machine dies the stash is emptied, and the name has its new file or the old one.
    pub fn record_replaced(&mut self, intent: &Intent) -> Result<Entry, Error> {
        self.change(false, |db| insert(db, intent, Stage::Detached))
    }

    /// Records that these names have their private copies, and forgets the entries `forgotten`.
    pub fn detached(
        &mut self,
        copies: &[(i64, Option<PrivateCopy>)],
        forgotten: &[i64],
    ) -> Result<(), Error> {
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
    pub fn set_state(&mut self, changes: &[(i64, Stage)]) -> Result<(), Error> {
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

/// Whether something has this path. The standard library asks by `statx(2)`, which a filter may forbid.
fn is_there(path: &Path) -> bool {
    rustix::fs::stat(path).is_ok()
}

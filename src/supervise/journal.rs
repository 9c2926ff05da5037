//! What a supervisor records before it changes names, in the guest's ledger.
//!
//! A private copy is an intent like any other. A window without a copy is announced, durably, before it first opens:
//! one flush an inode would cost more than the window, so what the run of a package manager is going to change is
//! announced with the first of it, and from the second file of a directory on all that are shared there.

use std::collections::hash_map::Entry as Slot;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::links::Links;
use crate::detach::apply::{DetachMode, Detacher, Outcome};
use crate::detach::survey::Found;
use crate::detach::{self, recover};
use crate::ledger::{Entry, Intent, Ledger, Window};
use crate::report::{Reason, Shown, Silent};
use crate::state::hard_links;
use crate::state::store::Store;
use crate::sys::file::filesystem;
use crate::sys::file::handle::Handle;
use crate::sys::file::inode::{Inode, InodeId, Kind};
use crate::sys::path::resolve::Place;
use crate::sys::path::root::Root;
use crate::sys::path::{dirfd, tree};
use crate::sys::process::ProcessId;
use crate::sys::share::gate;
use crate::sys::share::swap::SHARED_LOCK_TIMEOUT;

/// How long the lock on the guest's state is waited for.
pub(crate) const STATE_LOCK_TIMEOUT: Duration = Duration::from_millis(500);

/// A directory that has not changed for so long has a new time of modification after its next change.
const SETTLED_MTIME_AGE: Duration = Duration::from_secs(1);

/// Why something was not recorded, and so must not be done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The database.
    #[error(transparent)]
    Ledger(#[from] crate::ledger::Error),
    /// No private copy was made.
    #[error(transparent)]
    Refused(#[from] detach::Error),
    /// A file or directory of ours.
    #[error("{}", Reason(.0))]
    Io(#[from] io::Error),
    /// Something that was begun could not be ended.
    #[error(transparent)]
    Recovery(#[from] recover::Error),
}

/// Ends what a worker of `owner` had begun when it died: until then a shared inode may be without its protection.
pub(crate) fn put_in_order(root: &Root, owner: ProcessId, patience: Duration) -> Result<(), Error> {
    if Store::existing(root)?.is_none() {
        return Ok(());
    }
    // Windows are closed by whoever opens the journal, private copies by whoever has the lock.
    let mut journal = Journal::open(root, owner, patience)?;
    let mut failed = Vec::new();
    if journal.ledger.windows()?.iter().any(|window| window.owner == owner) {
        failed.push("a shared file could not be protected again".to_owned());
    }
    let _lock = journal.store.lock(patience)?;
    failed.extend(recover::recover(root, &journal.store, &mut journal.ledger, patience)?.failed);
    if failed.is_empty() { Ok(()) } else { Err(io::Error::other(failed.join("; ")).into()) }
}

impl From<Error> for io::Error {
    /// Keeps the number of the system's error, if that is the reason.
    fn from(error: Error) -> io::Error {
        let number = match &error {
            Error::Io(e)
            | Error::Refused(
                detach::Error::Copy { source: e, .. } | detach::Error::State { source: e, .. },
            ) => e.raw_os_error(),
            _ => None,
        };
        number.map_or_else(|| io::Error::other(error), io::Error::from_raw_os_error)
    }
}

/// The open ledger of a supervisor.
#[derive(Debug)]
pub struct Journal {
    root: Root,
    store: Store,
    ledger: Ledger,
    owner: ProcessId,
    patience: Duration,
    announced: HashSet<InodeId>,
    /// Directories in which one inode was announced.
    seen: HashSet<InodeId>,
    /// Filesystems that windows were opened on.
    filesystems: HashMap<u64, OwnedFd>,
    /// The directory of members as it was seen last, and whether there were any.
    awaited: Option<(Inode, bool)>,
    /// What the open transaction is going to change was announced.
    has_planned: bool,
}

impl Journal {
    /// Opens the ledger of the guest at `root`. The windows are recorded as those of `owner`.
    ///
    /// What a process of the same owner has left is put in order.
    pub fn open(root: &Root, owner: ProcessId, patience: Duration) -> Result<Journal, Error> {
        let store = Store::open(root)?;
        let ledger = Ledger::of(&store)?;
        let mut journal = Journal {
            root: root.try_clone()?,
            store,
            ledger,
            owner,
            patience,
            announced: HashSet::new(),
            seen: HashSet::new(),
            filesystems: HashMap::new(),
            awaited: None,
            has_planned: false,
        };
        journal.recover()?;
        Ok(journal)
    }

    fn recover(&mut self) -> Result<(), Error> {
        let left = self.ledger.windows()?.into_iter().filter(|window| window.owner == self.owner);
        let mut all_closed = true;
        for window in left {
            if let Err(e) = recover::close(&self.root, self.store.stash(), &window, self.patience) {
                log::warn!("{}: {}", Shown(&window.place.path()), Reason(e));
                all_closed = false;
            }
        }
        // A window that stays open must stay known.
        if all_closed { Ok(self.ledger.withdraw(self.owner)?) } else { Ok(()) }
    }

    /// Whether an original is to be kept in the stash: somebody will settle it, and it is within reach.
    pub fn keeps(&mut self, inode: &Inode) -> bool {
        self.store.reaches(inode) && self.is_awaited()
    }

    /// Whether a transaction is open. A daemon that was started in one may outlive it.
    fn is_awaited(&mut self) -> bool {
        let Ok(dir) = self.store.members_inode() else { return false };
        if let Some((seen, awaited)) = self.awaited
            && (seen.id, seen.mtime) == (dir.id, dir.mtime)
        {
            return awaited;
        }
        let members = self.store.members().and_then(|members| dirfd::names(&members));
        let awaited = members.is_ok_and(|members| !members.is_empty());
        // What was changed just now may be changed once more without another time to tell of it.
        self.awaited = dir.mtime.is_past(SETTLED_MTIME_AGE).then_some((dir, awaited));
        awaited
    }

    /// The directory of originals.
    pub fn stash(&self) -> BorrowedFd<'_> {
        self.store.stash()
    }

    /// Gives these names private copies: all names of one inode one copy. Tells whether the original was kept.
    pub fn detach(&mut self, root: &Root, names: Vec<Found>) -> Result<(Outcome, bool), Error> {
        let keep = self.is_awaited();
        // Others take intents that nobody holds the lock for to be left by the dead.
        let _lock = self.store.lock(self.patience)?;
        let detacher = Detacher {
            root,
            store: &self.store,
            patience: SHARED_LOCK_TIMEOUT,
            keep,
            mode: DetachMode::Single,
            progress: &Silent,
        };
        let outcome = detacher.detach(&mut self.ledger, names)?;
        if let Some(run) = self.ledger.last_run()?.filter(|run| keep && run.settled.is_none()) {
            let (detached, failed) = (outcome.detached.len() as u64, outcome.failed.len() as u64);
            self.ledger.add_to_run(run.id, detached, outcome.bytes, failed)?;
        }
        Ok((outcome, keep))
    }

    /// Records that `inode`, named `name` in `dir`, may lose its protection for a moment. `path` is that of `dir`.
    pub fn announce(
        &mut self,
        dir: BorrowedFd<'_>,
        path: impl FnOnce() -> PathBuf,
        name: &OsStr,
        inode: &Inode,
    ) -> Result<(), Error> {
        if self.announced.contains(&inode.id) {
            return Ok(());
        }
        let path = path();
        let mut windows = vec![self.window(dir, &path, name, inode)?];
        let mut known = HashSet::from([inode.id]);
        if self.is_awaited() && !std::mem::replace(&mut self.has_planned, true) {
            windows.extend(self.planned(&mut known).unwrap_or_default());
        }
        if !self.seen.insert(Inode::of(dir)?.id) {
            for (name, other) in shared_in(dir).unwrap_or_default() {
                if !self.announced.contains(&other.id) && known.insert(other.id) {
                    windows.push(self.window(dir, &path, &name, &other)?);
                }
            }
        }
        self.ledger.announce(&windows)?;
        self.announced.extend(windows.iter().map(|window| window.inode));
        Ok(())
    }

    /// A window of `inode`, named `name` in `dir`, whose path is `path`.
    fn window(
        &mut self,
        dir: BorrowedFd<'_>,
        path: &Path,
        name: &OsStr,
        inode: &Inode,
    ) -> io::Result<Window> {
        if let Slot::Vacant(slot) = self.filesystems.entry(inode.id.dev) {
            slot.insert(readable(dir)?);
        }
        Ok(Window {
            owner: self.owner,
            inode: inode.id,
            handle: Handle::at(dir, name).ok().map(|handle| handle.as_bytes().to_vec()),
            place: Place { dir: path.to_path_buf(), name: name.to_os_string() },
        })
    }

    /// The windows of what the open transaction is going to change, but for those that are announced or `known`; they
    /// are then.
    fn planned(&mut self, known: &mut HashSet<InodeId>) -> io::Result<Vec<Window>> {
        let mut windows = Vec::new();
        let mut open: Option<(PathBuf, OwnedFd)> = None;
        for path in self.store.planned()? {
            let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else { continue };
            if open.as_ref().is_none_or(|(opened, _)| opened != dir) {
                open = self.root.open_dir(dir).ok().map(|fd| (dir.to_path_buf(), fd));
            }
            let Some((_, fd)) = &open else { continue };
            let Ok(inode) = Inode::at(fd, name) else { continue };
            if is_shared(&inode) && !self.announced.contains(&inode.id) && known.insert(inode.id) {
                windows.push(self.window(fd.as_fd(), dir, name, &inode)?);
            }
        }
        Ok(windows)
    }

    /// Records that another file takes the name of a shared one, which goes to the stash under the entry's name.
    pub fn replace(&mut self, place: Place, inode: &Inode) -> Result<Entry, Error> {
        let intent = Intent {
            place,
            original: inode.id,
            handle: None,
            immutable: inode.immutable,
            size: inode.size,
            beside: false,
            keep: true,
        };
        Ok(self.ledger.record_replaced(&intent)?)
    }

    /// Writes down which names of shared files are one file now, unless others keep the lock.
    pub(crate) fn write_links(&mut self, links: &mut Links, patience: Duration) -> Result<(), Error> {
        let _lock = self.store.lock(patience)?;
        Ok(links.write_down()?)
    }

    /// Forgets what is written down of names that are not shared any more.
    pub(crate) fn prune_links(&mut self) -> Result<(), Error> {
        let _lock = self.store.lock(self.patience)?;
        hard_links::prune(&self.root, &self.store);
        Ok(())
    }

    /// All windows are closed for good: that becomes durable, and is forgotten. `changed` is handed to the host.
    pub fn close(&mut self, changed: &BTreeSet<PathBuf>) -> Result<(), Error> {
        gate::wait_for_late_openers();
        for filesystem in self.filesystems.values() {
            filesystem::sync(filesystem)?;
        }
        self.ledger.withdraw(self.owner)?;
        let _lock = self.store.lock(self.patience)?;
        Ok(self.store.spool(changed)?)
    }
}

fn readable(dir: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    use rustix::fs::{Mode, OFlags};
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(dir, ".", flags, Mode::empty())?)
}

/// The names of shared, immutable files in a directory.
fn shared_in(dir: BorrowedFd<'_>) -> io::Result<Vec<(OsString, Inode)>> {
    let names = dirfd::names(&readable(dir)?)?;
    let look = |name: OsString| Inode::at(dir.as_fd(), &name).ok().map(|inode| (name, inode));
    Ok(names.into_iter().filter_map(look).filter(|(_, inode)| is_shared(inode)).collect())
}

fn is_shared(inode: &Inode) -> bool {
    inode.kind == Kind::Regular && inode.immutable && inode.nlink > 1
}

/// The names in `dir` that `ino` has.
pub fn names_of(dir: BorrowedFd<'_>, ino: u64) -> io::Result<Vec<OsString>> {
    let mut names = Vec::new();
    tree::entries(&readable(dir)?, &mut tree::listing_buffer(), |name, _, at| {
        if at == ino {
            names.push(name.to_os_string());
        }
    })?;
    Ok(names)
}

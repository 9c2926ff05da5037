//! Ends what a killed process began: every intent becomes done or undone, every shared inode is protected again, no
//! temporary name is left.
//!
//! Names of one file end together. The private copies of such names are links of one inode: if one of the names has it, a
//! process may have used it since, and the others get it, too. If none has it, none gets it.

use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use rustix::io::Errno;

use crate::ledger::{Entry, Intent, Ledger, PrivateCopy, Stage, Window};
use crate::report::{Reason, Shown};
use crate::state::store::{STATE_DIR, Store};
use crate::sys::file::filesystem;
use crate::sys::file::handle::Handle;
use crate::sys::file::inode::{Inode, InodeId};
use crate::sys::path::dirfd;
use crate::sys::path::resolve::is_absent;
use crate::sys::path::root::Root;
use crate::sys::process::{ProcessId, Processes};
use crate::sys::share::gate;
use crate::sys::share::swap::{self, Name, Shared};

/// Why nothing could be recovered.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The ledger could not be read or written.
    #[error(transparent)]
    Ledger(#[from] crate::ledger::Error),
    /// The stash could not be listed or flushed.
    #[error("{STATE_DIR}/stash: {}", Reason(.0))]
    Stash(#[source] io::Error),
}

/// What recovery found and did.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// Intents carried through.
    pub done: u64,
    /// Intents taken back.
    pub undone: u64,
    /// Shared inodes whose protection was set again.
    pub protected: u64,
    /// Files in the stash that no ledger knew of.
    pub orphans: u64,
    /// Names that got the private copy only now, since other names of their file had it.
    pub joined: Vec<PathBuf>,
    /// Intents that could not be ended, each with its reason.
    pub failed: Vec<String>,
}

impl Recovered {
    /// Whether there was nothing to do.
    pub fn is_nothing(&self) -> bool {
        *self == Recovered::default()
    }
}

/// Ends every intent that a dead process left. The caller holds the store's lock.
pub fn recover(
    root: &Root,
    store: &Store,
    ledger: &mut Ledger,
    patience: Duration,
) -> Result<Recovered, Error> {
    // Names first: a supervisor records what it is about to put there, without the lock.
    let names = dirfd::names(store.stash()).map_err(Error::Stash)?;
    let entries = ledger.entries()?;
    let in_stash = entries.iter().filter(|entry| !entry.intent.beside);
    let known: HashSet<_> = in_stash.flat_map(|entry| [entry.temporary(), entry.stashed()]).collect();
    let mut recovered = Recovered::default();
    let (mut over, mut detached) = (Vec::new(), Vec::new());
    let pending: Vec<&Entry> = entries.iter().filter(|entry| entry.state != Stage::Detached).collect();
    let taken = Taken::look(root, &entries, &pending);
    let mut ended = Vec::new();
    let mut unended = HashSet::new();
    for entry in pending {
        match end(root, store, entry, &taken, patience, &mut recovered) {
            Ok(state) => ended.push((entry, state)),
            Err(e) => {
                unended.insert(entry.intent.original.ino);
                recovered.failed.push(format!("{}: {}", Shown(&entry.intent.place.path()), Reason(e)));
            }
        }
    }
    // Whoever ends a name later must know which other names have its copy.
    ended.retain(|(entry, _)| !unended.contains(&entry.intent.original.ino));
    for (entry, state) in ended {
        match state {
            IntentState::Over => over.push(entry.id),
            IntentState::Detached => detached.push((entry.id, private_copy(root, entry))),
        }
    }
    let dead = close_all(root, store, ledger, patience, &mut recovered)?;
    for name in names.into_iter().filter(|name| !known.contains(name)) {
        match swap::unlink_shared(Name { dir: store.stash(), name: &name }, patience) {
            Ok(_) => recovered.orphans += 1,
            Err(e) => recovered.failed.push(format!("stash/{}: {}", Shown(name.as_ref()), Reason(e))),
        }
    }
    if !over.is_empty() || !detached.is_empty() || !dead.is_empty() {
        filesystem::sync(store.stash()).map_err(Error::Stash)?;
        ledger.detached(&detached, &over)?;
        dead.into_iter().try_for_each(|owner| ledger.withdraw(owner))?;
    }
    gate::wait_for_late_openers();
    Ok(recovered)
}

enum IntentState {
    /// Nothing is owed any more.
    Over,
    /// The name has its private copy, the stash the original.
    Detached,
}

/// The files that names of the ledger have now, but for those they shared.
#[derive(Default)]
struct Taken {
    files: HashSet<InodeId>,
    /// Numbers of the shared inodes that have names which could not be looked at.
    unseen: HashSet<u64>,
}

impl Taken {
    /// Looks at all names of each inode that has names to be ended.
    fn look(root: &Root, entries: &[Entry], pending: &[&Entry]) -> Taken {
        let shared: HashSet<u64> = pending.iter().map(|entry| entry.intent.original.ino).collect();
        let mut taken = Taken::default();
        for Entry { intent, .. } in entries.iter().filter(|entry| shared.contains(&entry.intent.original.ino))
        {
            let found = root.open_dir(&intent.place.dir).and_then(|dir| Inode::at(dir, &intent.place.name));
            match found {
                Ok(inode) if inode.id.ino == intent.original.ino => {}
                Ok(inode) => drop(taken.files.insert(inode.id)),
                Err(e) if is_absent(&e) => {}
                Err(_) => drop(taken.unseen.insert(intent.original.ino)),
            }
        }
        taken
    }

    /// Whether one of the other names of the file has this copy.
    fn holds(&self, copy: &Inode, intent: &Intent) -> io::Result<bool> {
        if self.unseen.contains(&intent.original.ino) {
            return Err(io::Error::other("not all names of this file could be looked at; try again"));
        }
        Ok(self.files.contains(&copy.id))
    }
}

fn end(
    root: &Root,
    store: &Store,
    entry: &Entry,
    taken: &Taken,
    patience: Duration,
    recovered: &mut Recovered,
) -> Result<IntentState, swap::Error> {
    let intent = &entry.intent;
    let dir = match root.open_dir(&intent.place.dir) {
        Ok(dir) => Some(dir),
        Err(e) if is_absent(&e) => None,
        Err(e) => return Err(e.into()),
    };
    let name = dir.as_ref().map(|dir| Name { dir: dir.as_fd(), name: &intent.place.name });
    let (copy_name, stashed_name) = (entry.temporary(), entry.stashed());
    let copy_dir = if intent.beside { dir.as_ref().map(OwnedFd::as_fd) } else { Some(store.stash()) };
    let copy = copy_dir.map(|dir| Name { dir, name: &copy_name });
    let stashed = Name { dir: store.stash(), name: &stashed_name };
    // Device numbers may have changed since, with a reboot: within its filesystem the number is enough.
    let original = |name: Option<Name<'_>>| -> io::Result<Option<Inode>> {
        Ok(name.map_or(Ok(None), Name::inode)?.filter(|inode| inode.id.ino == intent.original.ino))
    };
    let (mut in_place, mut set_aside) =
        (original(name)?, original(Some(stashed).filter(|_| !intent.beside))?);

    let holder = if in_place.is_some() { name } else { Some(stashed).filter(|_| set_aside.is_some()) };
    if intent.immutable && protect(intent.handle.as_deref(), holder, copy_dir, in_place.as_ref(), patience)? {
        recovered.protected += 1;
    }
    let waiting = copy.map_or(Ok(None), Name::inode)?;
    let mut has_copy = waiting.is_some();
    if let (Some(now), Some(waiting), Some(name), Some(copy)) = (in_place, waiting, name, copy)
        && taken.holds(&waiting, intent)?
        && join(name, copy, Some(stashed).filter(|_| intent.keep && set_aside.is_none()), now.id, patience)?
    {
        recovered.joined.push(intent.place.path());
        (in_place, has_copy) = (None, false);
        set_aside = original(Some(stashed).filter(|_| !intent.beside))?;
    }
    let is_detached = set_aside.is_some()
        && in_place.is_none()
        && match entry.state {
            // A copy that is still there has not taken the name: another file has.
            Stage::Detaching => !has_copy,
            Stage::Restoring => true,
            Stage::Detached | Stage::Dropping => false,
        };
    if set_aside.is_some() && !is_detached {
        swap::unlink_shared(stashed, patience)?;
    }
    match copy.filter(|_| has_copy).map(Name::unlink) {
        None | Some(Ok(()) | Err(Errno::NOENT)) => {}
        Some(Err(e)) => return Err(io::Error::from(e).into()),
    }
    let as_before = if is_detached { Stage::Restoring } else { Stage::Detaching };
    if entry.state == as_before && (is_detached || in_place.is_some()) {
        recovered.undone += 1;
    } else {
        recovered.done += 1;
    }
    Ok(if is_detached { IntentState::Detached } else { IntentState::Over })
}

/// Gives a name the copy that other names of its file have. With `kept`, the original has that name afterwards.
///
/// `false` if no rename leads from the copy to the name (XFS project quota): the name keeps the shared inode.
fn join(
    name: Name<'_>,
    copy: Name<'_>,
    kept: Option<Name<'_>>,
    original: InodeId,
    patience: Duration,
) -> Result<bool, swap::Error> {
    let shared = Shared::try_lock_at(name.dir, name.name, patience)?;
    let displaced = shared.persist(|| match copy.displace(name, original, kept) {
        // It can have no more names: then the stash goes without.
        Err(Errno::MLINK) => copy.displace(name, original, None),
        displaced => displaced,
    });
    match displaced {
        Err(swap::Error::Unchanged(e)) if e.raw_os_error() == Some(libc::EXDEV) => Ok(false),
        displaced => displaced.map(|_| true),
    }
}

/// The file that has the name now: what is written down of its hard links is true of it.
fn private_copy(root: &Root, entry: &Entry) -> Option<PrivateCopy> {
    let dir = root.open_dir(&entry.intent.place.dir).ok()?;
    let inode = Inode::at(dir, &entry.intent.place.name).ok()?;
    Some(PrivateCopy { ino: inode.id.ino, ctime: None })
}

/// Closes the windows that dead supervisors announced; returns the supervisors that are owed nothing any more.
fn close_all(
    root: &Root,
    store: &Store,
    ledger: &Ledger,
    patience: Duration,
    recovered: &mut Recovered,
) -> Result<Vec<ProcessId>, Error> {
    let processes = Processes::open().ok();
    let mut dead: Vec<(ProcessId, bool)> = Vec::new();
    for window in ledger.windows()? {
        let owner = match dead.iter().position(|(owner, _)| *owner == window.owner) {
            Some(at) => at,
            None if window.owner.is_alive(processes.as_ref()) => continue,
            None => {
                dead.push((window.owner, true));
                dead.len() - 1
            }
        };
        match close(root, store.stash(), &window, patience) {
            Ok(was_open) => recovered.protected += u64::from(was_open),
            Err(e) => {
                recovered.failed.push(format!("{}: {}", Shown(&window.place.path()), Reason(e)));
                dead[owner].1 = false;
            }
        }
    }
    Ok(dead.into_iter().filter(|(_, settled)| *settled).map(|(owner, _)| owner).collect())
}

/// Sets the flag again of an inode whose window was left open. Returns whether it was.
///
/// `on` is any open file of the guest, in case none of the inode's names is known.
pub fn close(root: &Root, on: BorrowedFd<'_>, window: &Window, patience: Duration) -> io::Result<bool> {
    let dir = match root.open_dir(&window.place.dir) {
        Ok(dir) => Some(dir),
        Err(e) if is_absent(&e) => None,
        Err(e) => return Err(e),
    };
    let name = dir.as_ref().map(|dir| Name { dir: dir.as_fd(), name: &window.place.name });
    let in_place = name.map_or(Ok(None), Name::inode)?.filter(|inode| inode.id.ino == window.inode.ino);
    let holder = name.filter(|_| in_place.is_some());
    let on = dir.as_ref().map_or(on, AsFd::as_fd);
    protect(window.handle.as_deref(), holder, Some(on), in_place.as_ref(), patience)
}

/// Sets the original's flag again if a window was left open. Returns whether it was.
fn protect(
    handle: Option<&[u8]>,
    holder: Option<Name<'_>>,
    on: Option<BorrowedFd<'_>>,
    in_place: Option<&Inode>,
    patience: Duration,
) -> io::Result<bool> {
    let fd = match (holder, handle, on) {
        (Some(name), _, _) => name.open()?,
        (None, Some(handle), Some(on)) => match Handle::from_bytes(handle).open(on) {
            Ok(fd) => fd,
            Err(e) => match e.raw_os_error() {
                // The last link went, and the inode with it.
                Some(libc::ESTALE | libc::ENOENT) => return Ok(false),
                // Only a kill within the microseconds of a window could have left it open; the host's check finds it.
                Some(libc::EPERM | libc::EOPNOTSUPP | libc::EINVAL) => return Ok(false),
                _ => return Err(e),
            },
        },
        _ => return Ok(false),
    };
    // Any guest's user may hold the lock for ever: the last act is to protect, with the lock or without.
    let shared = Shared::try_lock(fd, patience)?;
    let now = shared.inode()?;
    // A last link in this guest's own tree is private by now: nobody is left to protect it for.
    let ours_alone = now.nlink <= 1 && in_place.is_some();
    if now.immutable || ours_alone || now.nlink == 0 {
        return Ok(false);
    }
    shared.protect().map(|()| true)
}

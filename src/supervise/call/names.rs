//! Calls that change the names of a shared file: they need no copy, so they are carried out for the caller.
//!
//! Only for callers who may do all that we may. For others the file is made private, and the kernel judges.

use std::cell::Cell;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::atomic::Ordering;

use rustix::fs::RenameFlags;
use rustix::io::Errno;
use rustix::thread::CapabilitySet;

use super::caller::Caller;
use super::change::{may_be_in_window, outside_window};
use super::lookup::Entry;
use crate::report::{Reason, Shown};
use crate::sys::file::inode::{Inode, InodeId, Kind};
use crate::sys::file::layer;
use crate::sys::path::resolve::Place;
use crate::sys::process::Status;
use crate::sys::seccomp::Response;
use crate::sys::share::swap::{self, Name, SHARED_LOCK_TIMEOUT, Shared};

/// How often a change is tried that others come in the way of: by a window of theirs, or by moving the name.
const TRIES: u32 = 64;

impl Entry {
    fn name(&self) -> Name<'_> {
        Name { dir: self.dir.as_fd(), name: &self.name }
    }
}

impl Caller<'_> {
    /// Removes a name.
    pub(super) fn unlink(&mut self, entry: &Entry) -> io::Result<Response> {
        persist(|| {
            let Some(inode) = self.protected(entry)? else { return Ok(Tried::Answered(Response::Continue)) };
            if let Some(answer) = self.answer_without_windows(&[entry], &[(entry, inode)])? {
                return Ok(Tried::Answered(answer));
            }
            let path = self.announce(entry, &inode)?;
            let tried = self.change_names(&[(entry, inode)], &|| entry.name().unlink())?;
            if matches!(tried, Tried::Answered(Response::Done(_))) {
                self.supervisor.links().removed(&inode, &path);
            }
            Ok(tried)
        })
    }

    /// Moves a name.
    pub(super) fn rename(&mut self, from: &Entry, to: &Entry, flags: u32) -> io::Result<Response> {
        persist(|| self.try_to_rename(from, to, RenameFlags::from_bits_retain(flags)))
    }

    fn try_to_rename(&mut self, from: &Entry, to: &Entry, flags: RenameFlags) -> io::Result<Tried> {
        let (old, new) = (from.name().inode()?, to.name().inode()?);
        if is_directory(&old) {
            self.follow_directory(from, to);
        }
        if flags.contains(RenameFlags::EXCHANGE) && is_directory(&new) {
            self.follow_directory(to, from);
        }
        let (moved, replaced) = (self.protected_now(from, old)?, self.protected_now(to, new)?);
        if moved.is_none() && replaced.is_none() {
            return Ok(Tried::Answered(Response::Continue));
        }
        let mut shared: Vec<(&Entry, Inode)> = moved.map(|inode| (from, inode)).into_iter().collect();
        shared.extend(replaced.map(|inode| (to, inode)));
        if self.is_refused((from, old), (to, new), flags)? {
            return Ok(Tried::Answered(Response::Continue));
        }
        let layered = layer::is_layered(&*from.dir)?;
        if !layered && moved.zip(replaced).is_some_and(|(moved, replaced)| moved.id == replaced.id) {
            return self.rename_within(from, to, flags);
        }
        if let Some(answer) = self.answer_without_windows(&[from, to], &shared)? {
            return Ok(Tried::Answered(answer));
        }
        for (entry, inode) in &shared {
            self.announce(entry, inode)?;
        }
        // Two that exchange the same names wait for each other's locks in one order.
        shared.sort_by_key(|(_, inode)| inode.id);
        let rename = || from.name().rename(to.name(), flags);
        let tried = match replaced.filter(|_| !flags.contains(RenameFlags::EXCHANGE)) {
            Some(inode) => self.replace(to, &inode, &shared, &rename)?,
            None => self.change_names(&shared, &rename)?,
        };
        if matches!(tried, Tried::Answered(Response::Done(_))) {
            let old = self.path_of_dir(from)?.join(&from.name);
            let new = self.path_of_dir(to)?.join(&to.name);
            let mut links = self.supervisor.links();
            match (moved, replaced) {
                (Some(moved), Some(replaced)) if flags.contains(RenameFlags::EXCHANGE) => {
                    links.exchanged((&moved, &old), (&replaced, &new));
                }
                (None, Some(replaced)) if flags.contains(RenameFlags::EXCHANGE) => {
                    links.moved(&replaced, &new, old);
                }
                _ => {
                    if let Some(inode) = replaced {
                        links.removed(&inode, &new);
                    }
                    if let Some(inode) = moved {
                        links.moved(&inode, &old, new);
                    }
                }
            }
        }
        Ok(tried)
    }

    /// Moves a name over another of the same inode. For the kernel these are one file, and it does nothing; where they
    /// only are equal files, the one that moves gets a private copy first.
    fn rename_within(&mut self, from: &Entry, to: &Entry, flags: RenameFlags) -> io::Result<Tried> {
        let locked = Shared::try_lock_at(from.dir.as_fd(), &from.name, SHARED_LOCK_TIMEOUT)?;
        let inode = locked.inode()?;
        let is_it =
            |entry: &Entry| Ok::<_, io::Error>(entry.name().inode()?.is_some_and(|i| i.id == inode.id));
        // Somebody may have moved it from one name to the other while we looked at both.
        if !(is_it(from)? && is_it(to)?) {
            return Ok(Tried::Again);
        }
        drop(locked);
        let (old, new) = (self.path_of_dir(from)?.join(&from.name), self.path_of_dir(to)?.join(&to.name));
        let mut links = self.supervisor.links();
        let is_one = old == new || !links.are_known() || links.names(&inode, &old).contains(&new);
        drop(links);
        if is_one || flags.contains(RenameFlags::EXCHANGE) {
            return Ok(Tried::Answered(Response::Continue));
        }
        let file = from.name().open()?;
        self.private_copy(&file, &inode, None)?;
        Ok(Tried::Again)
    }

    /// Whether the kernel refuses to rename, whatever is protected and whoever calls.
    fn is_refused(
        &mut self,
        (from, moved): (&Entry, Option<Inode>),
        (to, replaced): (&Entry, Option<Inode>),
        flags: RenameFlags,
    ) -> io::Result<bool> {
        let (no_replace, exchange) =
            (flags.contains(RenameFlags::NOREPLACE), flags.contains(RenameFlags::EXCHANGE));
        let slash = from.is_directory && !is_directory(&moved)
            || to.is_directory && !is_directory(if exchange { &replaced } else { &moved });
        let crosses =
            !Rc::ptr_eq(&from.dir, &to.dir) && Inode::of(&*from.dir)?.mount != Inode::of(&*to.dir)?.mount;
        let taken = if no_replace { replaced.is_some() } else { exchange && replaced.is_none() };
        let mut is_within = |inner: &Entry, outer: &Entry| {
            Ok::<_, io::Error>(
                self.path_of_dir(inner)?.starts_with(self.path_of_dir(outer)?.join(&outer.name)),
            )
        };
        let within =
            is_directory(&replaced) && is_within(from, to)? || is_directory(&moved) && is_within(to, from)?;
        Ok(moved.is_none() || slash || crosses || taken || within)
    }

    /// Gives a shared file one more name. `source` is the one that the caller has told, unless that was a descriptor.
    pub(super) fn link(&mut self, from: &OwnedFd, source: Option<Entry>, to: &Entry) -> io::Result<Response> {
        let inode = self.look(from)?;
        let shared = inode.immutable && self.supervisor.is_shared(&inode);
        if to.name().inode()?.is_some() {
            return Ok(Response::Continue);
        }
        if !shared && !self.is_left_open(from, &inode)? {
            return Ok(Response::Continue);
        }
        if !self.is_privileged() {
            let (status, dir) = (self.task.status()?, Inode::of(&to.dir)?);
            // What `protected_hardlinks` of proc_sys_fs(5) lets everybody link.
            let is_safe = inode.mode & 0o4000 == 0 && inode.mode & 0o2010 != 0o2010;
            let owns = status.uid == inode.uid || self.may(&status, CapabilitySet::FOWNER);
            let may = owns || is_safe && status.may_write(&inode);
            if !may || dir.mount != inode.mount {
                return Ok(Response::Continue);
            }
            if !self.may_write(&status, &to.dir, &dir) {
                return Ok(Response::Failed(Errno::ACCESS));
            }
            self.private_copy(from, &inode, None)?;
            return Ok(Response::Continue);
        }
        let source = match source {
            Some(source) => source,
            None => match self.place_of(from, &inode)? {
                Some((root, place)) => Entry::new(root.open_dir(&place.dir)?, place.name),
                None => return Ok(Response::Failed(Errno::NOENT)),
            },
        };
        self.waits()?;
        if layer::is_layered(from)? {
            self.lift(from)?;
            return Ok(Response::Continue);
        }
        let path = self.announce(&source, &inode)?;
        let link = || to.name().give_to(from);
        let answer = persist(|| self.change_names(&[(&source, inode)], &link))?;
        if matches!(answer, Response::Failed(Errno::MLINK)) {
            // All guests together have as many names for it as there can be; a file of this guest's own has room.
            self.private_copy(from, &inode, None)?;
            return Ok(Response::Continue);
        }
        if matches!(answer, Response::Done(_)) {
            let new = self.path_of_dir(to)?.join(&to.name);
            self.supervisor.links().linked(&inode, &path, new);
        }
        Ok(answer)
    }

    /// The file a name has, if it is one that the kernel protects from losing it.
    pub(super) fn protected(&self, entry: &Entry) -> io::Result<Option<Inode>> {
        self.protected_now(entry, entry.name().inode()?)
    }

    /// As [`Caller::protected`], of a name that has just been looked at.
    fn protected_now(&self, entry: &Entry, found: Option<Inode>) -> io::Result<Option<Inode>> {
        let Some(mut inode) = found else { return Ok(None) };
        if may_be_in_window(&inode) {
            inode = outside_window(entry.name().open()?)?;
        }
        Ok(Some(inode).filter(|inode| inode.immutable && self.supervisor.is_shared(inode)))
    }

    /// What callers get who may not do all that we may: for them the files are made private, where the directories are
    /// theirs to change. Files in layers are made private for everybody: the kernel does the rest. `None` for others; the
    /// call is to be carried out for them.
    fn answer_without_windows(
        &mut self,
        entries: &[&Entry],
        shared: &[(&Entry, Inode)],
    ) -> io::Result<Option<Response>> {
        let is_privileged = self.is_privileged();
        self.waits()?;
        let layered =
            shared.iter().map(|(entry, _)| layer::is_layered(&*entry.dir)).collect::<Result<Vec<_>, _>>()?;
        if is_privileged && !layered.contains(&true) {
            return Ok(None);
        }
        let status = self.task.status()?;
        for entry in entries.iter().filter(|_| !is_privileged) {
            if let Some(errno) = self.denial_of_name(&status, entry)? {
                return Ok(Some(Response::Failed(errno)));
            }
        }
        for (entry, inode) in shared {
            self.private_copy(&entry.open()?, inode, None)?;
        }
        Ok(Some(Response::Continue))
    }

    /// What the kernel would answer to a caller who may not change a name.
    pub(super) fn denial_of_name(&self, status: &Status, entry: &Entry) -> io::Result<Option<Errno>> {
        let dir = Inode::of(&entry.dir)?;
        if !self.may_write(status, &entry.dir, &dir) {
            return Ok(Some(Errno::ACCESS));
        }
        let owns = || entry.name().inode().is_ok_and(|i| i.is_none_or(|i| i.uid == status.uid));
        let is_sticky = dir.mode & 0o1000 != 0 && dir.uid != status.uid;
        Ok((is_sticky && !self.may(status, CapabilitySet::FOWNER) && !owns()).then_some(Errno::PERM))
    }

    /// Records that the file may lose its protection for a moment; returns the path of its name.
    fn announce(&mut self, entry: &Entry, inode: &Inode) -> io::Result<PathBuf> {
        let dir = self.path_of_dir(entry)?;
        let path = dir.join(&entry.name);
        let announced = self
            .supervisor
            .with_journal(|journal| journal.announce(entry.dir.as_fd(), || dir, &entry.name, inode));
        announced.map_err(|e| {
            log::warn!("{}: {}", Shown(&path), Reason(&e));
            io::Error::other(e)
        })?;
        Ok(path)
    }

    /// The path of the directory, from our own root; nothing where it is too long to have one. The calling thread is at
    /// home afterwards.
    fn path_of_dir(&mut self, entry: &Entry) -> io::Result<PathBuf> {
        self.thread_root.leave()?;
        let path = || self.thread_root.path_of(&self.supervisor.processes, &entry.dir).unwrap_or_default();
        Ok(entry.dir.path.get_or_init(path).clone())
    }

    /// As [`Caller::change_names`], while another file takes the name `to`: the one that loses it goes to the stash,
    /// where originals are kept.
    fn replace(
        &mut self,
        to: &Entry,
        inode: &Inode,
        shared: &[(&Entry, Inode)],
        rename: &dyn Fn() -> rustix::io::Result<()>,
    ) -> io::Result<Tried> {
        let supervisor = self.supervisor;
        let dir = self.path_of_dir(to)?;
        let is_stashed = Cell::new(false);
        let stashed = supervisor.with_journal(|journal| {
            if !journal.keeps(inode) {
                return Ok(None);
            }
            let entry = journal.replace(Place { dir, name: to.name.clone() }, inode)?;
            Ok(Some((entry.stashed(), journal.stash().try_clone_to_owned()?)))
        });
        // Without the original the new file waits for the host, like any other.
        let stashed = stashed.inspect_err(|e| log::debug!("{}", Reason(e))).unwrap_or_default();
        self.change_names(shared, &|| {
            if let Some((name, stash)) = stashed.as_ref().filter(|_| !is_stashed.get()) {
                match to.name().link(Name { dir: stash.as_fd(), name }) {
                    Ok(()) => is_stashed.set(true),
                    Err(Errno::PERM) => return Err(Errno::PERM),
                    Err(e) => log::debug!("{}: not kept: {e}", Shown(name.as_ref())),
                }
            }
            rename()
        })
    }

    /// Opens and locks the inode that the entry names; `None` where that is not `inode` any more.
    fn lock(&self, entry: &Entry, inode: InodeId) -> io::Result<Option<Shared>> {
        let known = self.supervisor.recent().take(inode);
        let (locked, named) = match known {
            Some(file) => (Shared::try_lock(file, SHARED_LOCK_TIMEOUT)?, entry.name().inode()?),
            None => match Shared::try_lock_at(entry.dir.as_fd(), &entry.name, SHARED_LOCK_TIMEOUT) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
                locked => {
                    let locked = locked?;
                    let named = locked.inode()?;
                    (locked, Some(named))
                }
            },
        };
        Ok(named.is_some_and(|named| named.id == inode).then_some(locked))
    }

    /// Changes names of protected files, with all their windows open if need be.
    fn change_names(
        &self,
        shared: &[(&Entry, Inode)],
        change: &dyn Fn() -> rustix::io::Result<()>,
    ) -> io::Result<Tried> {
        let Some(((entry, inode), rest)) = shared.split_first() else {
            return Ok(Tried::Answered(answer_of(change())));
        };
        let Some(locked) = self.lock(entry, inode.id)? else { return Ok(Tried::Again) };
        let inner = Cell::new(Ok(Tried::Again));
        let changed = locked.change_names(|| {
            let tried = self.change_names(rest, change);
            let result = match &tried {
                Ok(Tried::Answered(Response::Failed(errno))) => Err(*errno),
                Ok(Tried::Answered(_)) => Ok(()),
                Ok(Tried::Again) => Err(Errno::AGAIN),
                Err(e) => Err(Errno::from_io_error(e).unwrap_or(Errno::IO)),
            };
            inner.set(tried.map_err(drop));
            result
        });
        if let Ok(file) = locked.unlock() {
            self.supervisor.recent().keep(inode.id, file);
        }
        let path = || Shown(entry.name.as_ref()).to_string();
        match changed {
            Ok(change) => {
                if change.leaked {
                    log::warn!(
                        "{}: somebody may have changed the shared file; let the host verify it",
                        path()
                    );
                }
                self.supervisor.tally.names.fetch_add(1, Ordering::Relaxed);
                Ok(inner.into_inner().unwrap_or(Tried::Answered(Response::Continue)))
            }
            Err(swap::Error::Unchanged(e)) => Ok(match Errno::from_io_error(&e).unwrap_or(Errno::IO) {
                Errno::AGAIN => Tried::Again,
                errno => Tried::Answered(Response::Failed(errno)),
            }),
            Err(e @ swap::Error::Unprotected(_)) => {
                log::error!("{}: {e}; run cow-prepare --recover", path());
                Ok(inner.into_inner().unwrap_or(Tried::Answered(Response::Failed(Errno::IO))))
            }
        }
    }

    /// A directory may be about to move, with names that are known by their paths.
    fn follow_directory(&mut self, from: &Entry, to: &Entry) {
        if let (Ok(old), Ok(new)) = (self.path_of_dir(from), self.path_of_dir(to)) {
            self.supervisor.links().directory_moved(&old.join(&from.name), &new.join(&to.name));
        }
    }
}

fn is_directory(inode: &Option<Inode>) -> bool {
    inode.is_some_and(|inode| inode.kind == Kind::Directory)
}

/// What came of one try to change names.
#[derive(Clone, Copy, Debug)]
enum Tried {
    /// This is what the caller gets.
    Answered(Response),
    /// Somebody was quicker: it may be another file by now.
    Again,
}

/// Tries until there is an answer. After [`TRIES`] the kernel judges.
fn persist(mut attempt: impl FnMut() -> io::Result<Tried>) -> io::Result<Response> {
    for _ in 0..TRIES {
        match attempt()? {
            // Somebody else may have closed a window of ours, with one of the same inode.
            Tried::Again | Tried::Answered(Response::Failed(Errno::PERM)) => std::thread::yield_now(),
            Tried::Answered(answer) => return Ok(answer),
        }
    }
    Ok(Response::Continue)
}

fn answer_of(result: rustix::io::Result<()>) -> Response {
    match result {
        Ok(()) => Response::Done(0),
        Err(errno) => Response::Failed(errno),
    }
}

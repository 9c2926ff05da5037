//! Calls that change the names of a shared file: they need no copy, so they are carried out for the caller.
//!
//! Only for callers who may do all that we may. For others the file is made private, and the kernel judges.

use std::cell::Cell;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use rustix::fs::RenameFlags;
use rustix::io::Errno;

use super::lookup::OwnedName;
use super::rights::{SEARCH, WRITE};
use super::waiting::WaitingCall;
use super::windows::{Tried, persist};
use crate::report::{Reason, Shown};
use crate::sys::file::inode::{Inode, Kind};
use crate::sys::file::{filesystem, layer};
use crate::sys::path::resolve::Place;
use crate::sys::seccomp::Response;
use crate::sys::share::swap::{Name, SHARED_LOCK_TIMEOUT, Shared};

impl WaitingCall<'_> {
    /// Removes a name.
    pub(super) fn unlink(&mut self, entry: &OwnedName) -> io::Result<Response> {
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

    /// Removes a directory: what is none must not fail for being protected.
    pub(super) fn remove_directory(&self, at: bool) -> io::Result<Response> {
        let (dir, path) = self.path(at, 0)?;
        let Some(entry) = self.lookup.entry(dir, &path)? else { return Ok(Response::Continue) };
        let Some(_) = self.protected(&entry)? else { return Ok(Response::Continue) };
        let denied = if self.is_privileged() { None } else { self.denial_of_name(self.status()?, &entry)? };
        Ok(Response::Failed(denied.unwrap_or(Errno::NOTDIR)))
    }

    /// Moves a name.
    pub(super) fn rename(&mut self, from: &OwnedName, to: &OwnedName, flags: u32) -> io::Result<Response> {
        persist(|| self.try_to_rename(from, to, RenameFlags::from_bits_retain(flags)))
    }

    fn try_to_rename(&mut self, from: &OwnedName, to: &OwnedName, flags: RenameFlags) -> io::Result<Tried> {
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
        let mut shared: Vec<(&OwnedName, Inode)> = moved.map(|inode| (from, inode)).into_iter().collect();
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

    /// Moves a name over another of the same inode. For the kernel these are one file, and it does nothing; if they
    /// only are equal files, the one that moves gets a private copy first.
    fn rename_within(&mut self, from: &OwnedName, to: &OwnedName, flags: RenameFlags) -> io::Result<Tried> {
        let locked = Shared::try_lock_at(from.dir.as_fd(), &from.name, SHARED_LOCK_TIMEOUT)?;
        let inode = locked.inode()?;
        let is_it =
            |entry: &OwnedName| Ok::<_, io::Error>(entry.name().inode()?.is_some_and(|i| i.id == inode.id));
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
        if !self.is_privileged() {
            let status = self.status()?;
            for entry in [from, to] {
                if let Some(errno) = self.denial_of_name(status, entry)? {
                    return Ok(Tried::Answered(Response::Failed(errno)));
                }
            }
        }
        let file = from.name().open()?;
        self.private_copy(&file, &inode, None)?;
        Ok(Tried::Again)
    }

    /// Whether the kernel refuses to rename, whatever is protected and whoever calls.
    fn is_refused(
        &mut self,
        (from, moved): (&OwnedName, Option<Inode>),
        (to, replaced): (&OwnedName, Option<Inode>),
        flags: RenameFlags,
    ) -> io::Result<bool> {
        let (no_replace, exchange) =
            (flags.contains(RenameFlags::NOREPLACE), flags.contains(RenameFlags::EXCHANGE));
        let slash = from.is_directory && !is_directory(&moved)
            || to.is_directory && !is_directory(if exchange { &replaced } else { &moved });
        let crosses =
            !Rc::ptr_eq(&from.dir, &to.dir) && Inode::of(&*from.dir)?.mount != Inode::of(&*to.dir)?.mount;
        let taken = if no_replace { replaced.is_some() } else { exchange && replaced.is_none() };
        let mut is_within = |inner: &OwnedName, outer: &OwnedName| {
            Ok::<_, io::Error>(
                self.path_of_dir(inner)?.starts_with(self.path_of_dir(outer)?.join(&outer.name)),
            )
        };
        let within =
            is_directory(&replaced) && is_within(from, to)? || is_directory(&moved) && is_within(to, from)?;
        let alone = RenameFlags::NOREPLACE | RenameFlags::WHITEOUT;
        let invalid = !(alone | RenameFlags::EXCHANGE).contains(flags) || exchange && flags.intersects(alone);
        Ok(moved.is_none() || slash || crosses || taken || within || invalid)
    }

    /// Gives a shared file one more name. `source` is the one that the caller has told, unless that was a descriptor.
    pub(super) fn link(
        &mut self,
        from: &OwnedFd,
        source: Option<OwnedName>,
        to: &OwnedName,
    ) -> io::Result<Response> {
        let inode = self.look(from)?;
        let shared = inode.immutable && self.supervisor.is_shared(&inode);
        if to.name().inode()?.is_some() {
            return Ok(Response::Continue);
        }
        if !shared && !self.is_left_open(from, &inode)? {
            return Ok(Response::Continue);
        }
        if !self.is_privileged() {
            let (status, dir) = (self.status()?, Inode::of(&to.dir)?);
            if dir.mount != inode.mount || dir.immutable || !self.may_link(status, from, &inode) {
                return Ok(Response::Continue);
            }
            let reaches_source =
                || source.as_ref().map_or(Ok(true), |source| self.reaches_directory(status, source));
            if !reaches_source()? || !self.reaches_directory(status, to)? {
                return Ok(Response::Failed(Errno::ACCESS));
            }
            if filesystem::is_read_only(&*to.dir)? {
                return Ok(Response::Failed(Errno::ROFS));
            }
            if !self.has_access(status, &to.dir, &dir, WRITE | SEARCH) {
                return Ok(Response::Failed(Errno::ACCESS));
            }
            self.private_copy(from, &inode, None)?;
            return Ok(Response::Continue);
        }
        let source = match source {
            Some(source) => source,
            None => match self.place_of(from, &inode)? {
                Some((root, place)) => OwnedName::new(root.open_dir(&place.dir)?, place.name),
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

    /// What callers get who may not do all that we may: for them the files are made private, if the directories are
    /// theirs to change. Files in layers are made private for everybody: the kernel does the rest. `None` for others; the
    /// call is to be carried out for them.
    fn answer_without_windows(
        &mut self,
        entries: &[&OwnedName],
        shared: &[(&OwnedName, Inode)],
    ) -> io::Result<Option<Response>> {
        let is_privileged = self.is_privileged();
        self.waits()?;
        let layered =
            shared.iter().map(|(entry, _)| layer::is_layered(&*entry.dir)).collect::<Result<Vec<_>, _>>()?;
        if is_privileged && !layered.contains(&true) {
            return Ok(None);
        }
        let status = self.status()?;
        for entry in entries.iter().filter(|_| !is_privileged) {
            if let Some(errno) = self.denial_of_name(status, entry)? {
                return Ok(Some(Response::Failed(errno)));
            }
        }
        for (entry, inode) in shared {
            self.private_copy(&entry.open()?, inode, None)?;
        }
        Ok(Some(Response::Continue))
    }

    /// As [`WaitingCall::change_names`], while another file takes the name `to`: the one that loses it goes to the stash,
    /// where originals are kept.
    fn replace(
        &mut self,
        to: &OwnedName,
        inode: &Inode,
        shared: &[(&OwnedName, Inode)],
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

    /// A directory may be about to move, with names that are known by their paths.
    fn follow_directory(&mut self, from: &OwnedName, to: &OwnedName) {
        if let (Ok(old), Ok(new)) = (self.path_of_dir(from), self.path_of_dir(to)) {
            self.supervisor.links().directory_moved(&old.join(&from.name), &new.join(&to.name));
        }
    }
}

fn is_directory(inode: &Option<Inode>) -> bool {
    inode.is_some_and(|inode| inode.kind == Kind::Directory)
}

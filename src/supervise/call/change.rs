//! Calls that change a file: its names in the guest get a private copy first, and so do the caller's descriptors.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::OsStr;
use std::io;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::Ordering;

use rustix::fs::{FlockOperation, Mode, OFlags, SeekFrom, flock};
use rustix::io::Errno;

use super::rights::READ;
use super::waiting::WaitingCall;
use super::windows::may_be_shared;
use crate::detach::guarded;
use crate::detach::survey::Found;
use crate::inspect::VisibleFence;
use crate::report::{Reason, Shown, warn_of_possible_write};
use crate::state::store::STATE_DIR;
use crate::supervise::journal::names_of;
use crate::supervise::shared;
use crate::sys::file::flags::{FlagsArgument, FlagsCall};
use crate::sys::file::inode::{Inode, Kind};
use crate::sys::file::{filesystem, layer};
use crate::sys::path::resolve::Place;
use crate::sys::path::root::Root;
use crate::sys::process::task::{FileLock, OpenFile};
use crate::sys::seccomp::Response;
use crate::sys::seccomp::calls::Right;
use crate::sys::share::copy::Copier;
use crate::sys::share::mark;
use crate::sys::share::swap::Name;

/// Flags that stay with an open file and mean the same when it is opened again.
const KEPT: OFlags = OFlags::APPEND
    .union(OFlags::NOATIME)
    .union(OFlags::NONBLOCK)
    .union(OFlags::DIRECT)
    .union(OFlags::DSYNC)
    .union(OFlags::SYNC);

impl WaitingCall<'_> {
    /// Makes private what is open as `file`, if it is shared and the caller may change it. `number` is the caller's
    /// own descriptor, if the call uses that.
    pub(super) fn make_private(
        &mut self,
        file: &OwnedFd,
        right: Right,
        number: Option<i32>,
    ) -> io::Result<Response> {
        Ok(match self.privatize(file, right, number)? {
            ControlFlow::Break(answer) => answer,
            ControlFlow::Continue(_) => Response::Continue,
        })
    }

    /// As [`WaitingCall::make_private`]; goes on with the private file, if there is one to be made.
    pub(super) fn privatize(
        &mut self,
        file: &OwnedFd,
        right: Right,
        number: Option<i32>,
    ) -> io::Result<ControlFlow<Response, OwnedFd>> {
        let inode = self.look(file)?;
        if !self.is_shared(file, &inode) && !self.is_left_open(file, &inode)? {
            return Ok(ControlFlow::Break(Response::Continue));
        }
        if !inode.immutable && layer::is_layered(file)? {
            return Ok(ControlFlow::Break(Response::Continue));
        }
        if let Some(answer) = self.denial(right, file, &inode)? {
            return Ok(ControlFlow::Break(answer));
        }
        if filesystem::is_read_only(file)? {
            return Ok(ControlFlow::Break(Response::Failed(Errno::ROFS)));
        }
        if let Some(answer) = self.change_of_nothing(right, file, &inode)? {
            return Ok(ControlFlow::Break(answer));
        }
        Ok(ControlFlow::Continue(self.private_copy(file, &inode, number)?))
    }

    /// Whether what is open as `file` is shared with others, so that it must be made private before it changes.
    fn is_shared(&self, file: &OwnedFd, inode: &Inode) -> bool {
        let is_marked = || {
            let file = self.supervisor.processes.reopen(file, OFlags::RDONLY);
            file.and_then(mark::is_set).unwrap_or(false)
        };
        let may_be_marked = self.supervisor.options.guarded && guarded::may_be_marked(inode);
        self.supervisor.is_shared(inode) || may_be_marked && is_marked()
    }

    /// What protects a shared file.
    fn fence(&self, inode: &Inode) -> VisibleFence {
        match VisibleFence::of(inode) {
            VisibleFence::None if self.supervisor.options.guarded => VisibleFence::Guard,
            fence => fence,
        }
    }

    /// Flags that a program has read from a shared file say that it is immutable, which its copy is not to become,
    /// unless that is all that the program can have wanted: it brings nothing else.
    pub(super) fn set_flags(
        &mut self,
        file: &OwnedFd,
        number: Option<i32>,
        call: FlagsCall,
        argument: u8,
    ) -> io::Result<Response> {
        // A FIFO would wait for a writer when it is opened again.
        if Inode::of(file)?.kind != Kind::Regular {
            return Ok(Response::Continue);
        }
        let before = self.supervisor.processes.reopen(file, OFlags::RDONLY);
        let before = before.and_then(|file| Ok(rustix::fs::ioctl_getflags(file)?.bits()));
        let mut bytes = vec![0; call.size()];
        self.task.memory(self.call.arguments[usize::from(argument)], &mut bytes)?;
        let mut flags = FlagsArgument::new(call, bytes);
        let are_same = before.is_ok_and(|before| flags.equals(before));
        // Whoever may not set the flag asks for no change; the kernel says so.
        if are_same && !self.is_privileged() {
            return Ok(Response::Continue);
        }
        let private = match self.privatize(file, Right::Own, number)? {
            ControlFlow::Break(answer) => return Ok(answer),
            ControlFlow::Continue(private) => private,
        };
        if are_same || !flags.clear_immutable() {
            return Ok(Response::Continue);
        }
        let file = self.supervisor.processes.reopen(&private, OFlags::RDONLY)?;
        let may = self.is_privileged()
            || self.status()?.uid == Inode::of(&file)?.uid
                && rustix::fs::ioctl_getflags(&file).is_ok_and(|now| flags.needs_no_capability(now.bits()));
        // Of others the kernel judges.
        if !may {
            return Ok(Response::Continue);
        }
        Ok(match flags.set(file) {
            Ok(()) => Response::Done(0),
            Err(e) => Response::Failed(Errno::from_io_error(&e).unwrap_or(Errno::IO)),
        })
    }

    pub(super) fn change_open(&mut self, number: i32, right: Right) -> io::Result<Response> {
        // Most are nobody else's, and need not be opened to see that.
        if !may_be_shared(&self.task.descriptor_inode(number)?) {
            return Ok(Response::Continue);
        }
        match self.open_descriptor(number)? {
            Some(file) => self.make_private(&file, right, Some(number)),
            None => Ok(Response::Continue),
        }
    }

    /// Gives what is open as `file` a private copy, and opens that in the place of the caller's descriptors.
    pub(super) fn private_copy(
        &mut self,
        file: &OwnedFd,
        inode: &Inode,
        number: Option<i32>,
    ) -> io::Result<OwnedFd> {
        self.waits()?;
        if layer::is_layered(file)? {
            return self.lift(file);
        }
        let private = match self.detach(file, inode)? {
            Some((root, place)) => {
                let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                rustix::fs::openat(root.open_dir(&place.dir)?, &place.name, flags, Mode::empty())?
            }
            None => self.nameless(file, inode)?,
        };
        self.replace_descriptors(inode, &private, number)?;
        Ok(private)
    }

    /// Has the kernel copy up a file in layers: its names and the caller's descriptors are what they were.
    pub(super) fn lift(&self, file: &OwnedFd) -> io::Result<OwnedFd> {
        layer::lift(self.supervisor.processes.reopen(file, OFlags::RDONLY)?)?;
        self.supervisor.counts.detached.fetch_add(1, Ordering::Relaxed);
        file.try_clone()
    }

    /// Gives the file's name, and its other names in the guest, a private copy; returns where it is. `None` where it
    /// has lost the name it was opened by.
    fn detach(&mut self, file: &OwnedFd, inode: &Inode) -> io::Result<Option<(Root, Place)>> {
        let Some((root, place)) = self.place_of(file, inode)? else { return Ok(None) };
        if self.supervisor.options.policy.never_touch.matches(&place.path()) {
            return Err(Errno::PERM.into());
        }
        let names = self.names(&root, &place, inode);
        self.thread_root.leave()?;
        let supervisor = self.supervisor;
        let detached = supervisor.with_journal(|journal| journal.detach(&root, names));
        let (outcome, kept) = detached.map_err(|e| {
            log::warn!("{}: {}", Shown(&place.path()), Reason(&e));
            io::Error::from(e)
        })?;
        if !outcome.detached.is_empty() {
            supervisor.links().detached(inode.id);
        }
        for failure in &outcome.failed {
            log::warn!("{}: {}", Shown(&failure.path), failure.reason);
        }
        // Nothing else keeps the kernel from changing the file of all guests.
        if supervisor.options.unprotected && !outcome.failed.is_empty() {
            return Err(Errno::IO.into());
        }
        for path in &outcome.leaked {
            warn_of_possible_write(path);
        }
        for path in &outcome.detached {
            log::debug!("{}: made private for process {}", Shown(path), self.call.tid);
        }
        supervisor.counts.detached.fetch_add(outcome.detached.len() as u64, Ordering::Relaxed);
        supervisor.counts.bytes.fetch_add(outcome.bytes, Ordering::Relaxed);
        if !kept {
            shared::lock(&supervisor.changed).extend(outcome.detached);
        }
        Ok(Some((root, place)))
    }

    /// Where an open file is: as we name it if we can, else as the caller does.
    pub(super) fn place_of(&mut self, file: &OwnedFd, inode: &Inode) -> io::Result<Option<(Root, Place)>> {
        self.thread_root.leave()?;
        let ours = self.supervisor.home.try_clone()?;
        let path = self.thread_root.path_of(&self.supervisor.processes, file)?;
        // What has lost the name it was opened by may have another.
        let name = path.as_os_str().as_bytes();
        let name = OsStr::from_bytes(name.strip_suffix(b" (deleted)").unwrap_or(name));
        let others = self.supervisor.links().names(inode, Path::new(name));
        // An original in the stash has lost its name.
        let is_stashed = path.starts_with(STATE_DIR);
        let named = others.iter().find_map(|path| verified(&ours, path, inode));
        let named = if is_stashed { named } else { verified(&ours, &path, inode).or(named) };
        if named.is_some() || is_stashed {
            return Ok(named.map(|place| (ours, place)));
        }
        self.thread_root.enter()?;
        let theirs = self.lookup.root()?;
        let path = self.thread_root.path_of(&self.supervisor.processes, file)?;
        Ok(verified(&theirs, &path, inode).map(|place| (theirs, place)))
    }

    /// Whether a file that others share is without a name here, and has only one elsewhere.
    pub(super) fn is_left_open(&mut self, file: &OwnedFd, inode: &Inode) -> io::Result<bool> {
        let lost = inode.immutable && self.supervisor.links().has_lost(inode.id);
        Ok(lost && self.place_of(file, inode)?.is_none())
    }

    /// The names that are one file to the caller.
    fn names(&self, root: &Root, place: &Place, inode: &Inode) -> Vec<Found> {
        let fence = self.fence(inode);
        let mut names = vec![Found { place: place.clone(), inode: *inode, fence }];
        let mut add = |path: &Path| {
            let is_known = |known: &Found| known.place.path() == path;
            if let Some(place) = verified(root, path, inode).filter(|_| !names.iter().any(is_known)) {
                names.push(Found { place, inode: *inode, fence });
            }
        };
        let mut links = self.supervisor.links();
        links.names(inode, &place.path()).iter().for_each(|path| add(path));
        if !links.are_known() {
            // Other guests have theirs in directories of their own.
            let beside = root.open_dir(&place.dir).and_then(|dir| names_of(dir.as_fd(), inode.id.ino));
            beside.unwrap_or_default().iter().for_each(|name| add(&place.dir.join(name)));
        }
        names
    }

    /// A private copy without a name.
    fn nameless(&mut self, file: &OwnedFd, inode: &Inode) -> io::Result<OwnedFd> {
        self.thread_root.leave()?;
        let source = self.supervisor.processes.reopen(file, OFlags::RDONLY)?;
        let name = format!("nameless-{}", self.call.id);
        let copied = self.supervisor.with_journal(|journal| {
            let to = Name { dir: journal.stash(), name: name.as_ref() };
            let copied = Copier::default().copy(&source, inode, to.dir, to.name);
            let (copy, _) = copied?;
            to.unlink().map_err(io::Error::from)?;
            Ok(copy)
        });
        copied.map_err(io::Error::other)
    }

    /// Opens the private file in the place of the caller's descriptors that are open on the shared one.
    ///
    /// The one in use is replaced in any case; another one stays if a lock on it belongs to the process. What was open as a
    /// place only (`O_PATH`) is open for reading then: the kernel hands over nothing less. So a place stays if the caller
    /// may not read the file.
    fn replace_descriptors(&self, shared: &Inode, private: &OwnedFd, in_use: Option<i32>) -> io::Result<()> {
        let is_shared = |fd: OwnedFd| Inode::of(fd).is_ok_and(|inode| inode.id == shared.id);
        let mut found: Vec<(i32, OpenFile, usize)> = Vec::new();
        let status = self.status()?;
        for number in self.task.descriptors()? {
            if !self.task.descriptor(number).is_ok_and(is_shared) {
                continue;
            }
            let open = self.task.open_file(number)?;
            let flags = OFlags::from_bits_truncate(open.flags);
            let writes = flags.intersects(OFlags::WRONLY | OFlags::RDWR) && !flags.contains(OFlags::PATH);
            if flags.contains(OFlags::PATH) && !self.has_access(status, private, shared, READ) {
                continue;
            }
            if !writes && (open.lock != FileLock::Other || in_use == Some(number)) {
                let twin = found.iter().find(|(other, ..)| self.task.is_one_file(*other, number));
                let group = twin.map_or(found.len(), |(.., group)| *group);
                found.push((number, open, group));
            }
        }
        let mut opened: HashMap<usize, OwnedFd> = HashMap::new();
        for (number, open, group) in found {
            let flags = OFlags::from_bits_truncate(open.flags);
            let file = match opened.entry(group) {
                Entry::Occupied(known) => known.into_mut(),
                Entry::Vacant(slot) => {
                    let file = self.supervisor.processes.reopen(private, flags & KEPT)?;
                    rustix::fs::seek(&file, SeekFrom::Start(open.position))?;
                    let taken = match open.lock {
                        FileLock::Shared => flock(&file, FlockOperation::NonBlockingLockShared),
                        FileLock::Exclusive => flock(&file, FlockOperation::NonBlockingLockExclusive),
                        FileLock::None | FileLock::Other => Ok(()),
                    };
                    taken.unwrap_or_else(|e| log::debug!("descriptor {number}: its lock is lost: {e}"));
                    slot.insert(file)
                }
            };
            let close_on_exec = flags.contains(OFlags::CLOEXEC);
            self.supervisor.listener.replace_fd(self.call.id, file.as_fd(), number, close_on_exec)?;
        }
        Ok(())
    }
}

/// The place that `path` names, if that is the inode.
fn verified(root: &Root, path: &Path, inode: &Inode) -> Option<Place> {
    let (dir, name) = (path.parent()?, path.file_name()?);
    let found = Inode::at(root.open_dir(dir).ok()?, name).ok()?;
    let place = Place { dir: dir.to_path_buf(), name: name.to_os_string() };
    (path.is_absolute() && found.id == inode.id).then_some(place)
}

//! One call of one thread: which file its arguments name, and what is to be done about it.

use std::io;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::thread::CapabilitySet;

use super::change::may_be_shared;
use super::lookup::{Entry, Lookup};
use crate::supervise::worker::Supervisor;
use crate::sys::file::flags::{FlagsArgument, FlagsCall};
use crate::sys::file::inode::{Inode, Kind};
use crate::sys::process::Status;
use crate::sys::process::task::Task;
use crate::sys::process::thread_root::ThreadRoot;
use crate::sys::seccomp::calls::{Follow, Right, Shape, shape};
use crate::sys::seccomp::{Call, Response};

/// `AUDIT_ARCH_I386` of `linux/audit.h`.
const I386_AUDIT: u32 = 0x4000_0003;
/// Number of `utimensat_time64` for 32-bit programs.
const UTIMENSAT_TIME64: u32 = 412;

/// Size of `struct open_how` (`openat2(2)`), and what the kernel takes at most.
const KNOWN: usize = 24;
const PAGE: usize = 4096;

/// Numbers of `lchown`, `fchown` and `chown` with ids of 16 bits for 32-bit programs.
const CHOWN16: [u32; 3] = [16, 95, 182];

/// The attribute that holds an access control list (`acl(5)`).
const ACCESS_LIST: &str = "system.posix_acl_access";

/// What a call that sets times is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Times {
    /// Both become the time of the call.
    Now,
    /// They are in the arguments.
    Given,
    /// Nothing: they stay, or the kernel will refuse them.
    Kept,
}

/// A call that waits, and what the thread that made it sees.
#[derive(Debug)]
pub struct Caller<'a> {
    pub(super) supervisor: &'a Supervisor<'a>,
    pub(super) call: &'a Call,
    pub(super) task: &'a Task,
    pub(super) lookup: Lookup<'a>,
    pub(super) thread_root: &'a mut ThreadRoot,
}

impl<'a> Caller<'a> {
    /// For a `call` of `task`, to whose `root` the calling thread was moved; `thread_root` is the root of the calling thread.
    pub fn new(
        supervisor: &'a Supervisor<'a>,
        call: &'a Call,
        task: &'a Task,
        root: Arc<OwnedFd>,
        thread_root: &'a mut ThreadRoot,
    ) -> Caller<'a> {
        Caller { supervisor, call, task, lookup: Lookup::new(task, root), thread_root }
    }

    /// Does what the call needs.
    ///
    /// # Errors
    /// Where its arguments lead nowhere: the kernel will say so to the caller.
    pub fn answer(&mut self, shape: Shape) -> io::Result<Response> {
        match shape {
            Shape::Open { at, flags } => self.open(at, self.number(flags) as u64, ResolveFlags::empty()),
            Shape::Creat => self.open(
                false,
                (libc::O_CREAT | libc::O_WRONLY | libc::O_TRUNC) as u64,
                ResolveFlags::empty(),
            ),
            Shape::Openat2 => match self.how()? {
                Some((flags, resolve)) => self.open(true, flags, resolve),
                None => Ok(Response::Continue),
            },
            Shape::Change { at, follow, right } => self.change(at, follow, right),
            Shape::ChangeOpen { right } => self.change_open(self.number(0), right),
            Shape::Ioctl => {
                let call = FlagsCall::of_request(self.call.arguments[1] as u32);
                match call.zip(self.open_descriptor(self.number(0))?) {
                    Some((call, file)) => self.set_flags(&file, Some(self.number(0)), call, 2),
                    None => Ok(Response::Continue),
                }
            }
            Shape::FileSetattr => {
                let flags = self.number(4);
                let (file, number) = self.subject(flags, flags & libc::AT_SYMLINK_NOFOLLOW == 0)?;
                let file = match number {
                    Some(number) => self.open_descriptor(number)?,
                    None => Some(file),
                };
                match file {
                    Some(file) => self.set_flags(&file, number, FlagsCall::FileSetattr, 2),
                    None => Ok(Response::Continue),
                }
            }
            Shape::Unlink { at } => {
                let flags = if at { self.number(2) } else { 0 };
                let directory = flags & libc::AT_REMOVEDIR != 0;
                if flags & !libc::AT_REMOVEDIR != 0 {
                    return Ok(Response::Continue);
                }
                if directory {
                    return self.remove_directory(at);
                }
                match self.entry(at, 0)? {
                    Some(entry) if !entry.is_directory => self.unlink(&entry),
                    _ => Ok(Response::Continue),
                }
            }
            Shape::Rmdir => self.remove_directory(false),
            Shape::Rename { at, flags } => {
                let flags = flags.map_or(0, |index| self.number(index) as u32);
                let (old, new) = (self.path(at, 0)?, self.path(at, if at { 2 } else { 1 })?);
                match self.lookup.entries((old.0, &old.1), (new.0, &new.1))? {
                    Some([from, to]) => self.rename(&from, &to, flags),
                    None => Ok(Response::Continue),
                }
            }
            Shape::Link { at } => self.link_call(at),
            Shape::Absent => Ok(Response::Failed(Errno::NOSYS)),
        }
    }

    fn open(&mut self, at: bool, flags: u64, resolve: ResolveFlags) -> io::Result<Response> {
        let has = |bits: i32| flags & bits as u64 == bits as u64;
        let writes = flags & (libc::O_ACCMODE | libc::O_TRUNC) as u64 != 0;
        let new = has(libc::O_CREAT | libc::O_EXCL) || has(libc::O_TMPFILE);
        if !writes || new || has(libc::O_PATH) || has(libc::O_DIRECTORY) {
            return Ok(Response::Continue);
        }
        let (dir, path) = self.path(at, 0)?;
        let file = self.lookup.file(dir, &path, !has(libc::O_NOFOLLOW), resolve)?;
        self.make_private(&file, Right::Write, None)
    }

    /// Flags and restrictions of `openat2(2)`; `None` for what the kernel will refuse, as far as we know.
    fn how(&self) -> io::Result<Option<(u64, ResolveFlags)>> {
        // A longer structure is a newer one: known, where all that we do not know of it is zero.
        let (mut how, size) = ([0; PAGE], self.call.arguments[3] as usize);
        if !(KNOWN..=PAGE).contains(&size)
            || self.task.memory(self.call.arguments[2], &mut how[..size])? < size
            || how[KNOWN..].iter().any(|&byte| byte != 0)
        {
            return Ok(None);
        }
        let word =
            |at: usize| how[at..at + 8].iter().rev().fold(0, |word, &byte| word << 8 | u64::from(byte));
        let (flags, mode, resolve) = (word(0), word(8), ResolveFlags::from_bits(word(16)));
        let makes = flags & (libc::O_CREAT | libc::O_TMPFILE) as u64 != 0;
        let valid = flags <= u64::from(u32::MAX) && (mode == 0 || makes && mode <= 0o7777);
        Ok(resolve.filter(|_| valid).map(|resolve| (flags, resolve)))
    }

    fn change(&mut self, at: bool, follow: Follow, right: Right) -> io::Result<Response> {
        let flags = match follow {
            Follow::Flags(index) => self.number(index),
            _ => 0,
        };
        if flags & !(libc::AT_SYMLINK_NOFOLLOW | libc::AT_EMPTY_PATH) != 0 {
            return Ok(Response::Continue);
        }
        let follow = follow != Follow::No && flags & libc::AT_SYMLINK_NOFOLLOW == 0;
        let nameless = at && self.call.arguments[1] == 0;
        if nameless && (matches!(right, Right::OwnOrTouch(_)) || flags & libc::AT_EMPTY_PATH != 0) {
            return match right {
                Right::OwnOrTouch(_) => self.change_open(self.number(0), right),
                _ => self.make_private(&self.task.descriptor(self.number(0))?, right, Some(self.number(0))),
            };
        }
        if matches!(right, Right::OwnOrTouch(argument) if self.times(argument)? == Times::Kept) {
            return Ok(Response::Continue);
        }
        if at {
            let (file, number) = self.subject(flags, follow)?;
            // Calls on attributes refuse places, as calls on descriptors do.
            return match (number, right) {
                (Some(number), Right::OwnOrAttribute(_) | Right::OwnOrRemove(_)) => {
                    self.change_open(number, right)
                }
                _ => self.make_private(&file, right, number),
            };
        }
        let (dir, path) = self.path(false, 0)?;
        let file = self.lookup.file(dir, &path, follow, ResolveFlags::empty())?;
        self.make_private(&file, right, None)
    }

    /// What a call that sets times is to do.
    fn times(&self, argument: u8) -> io::Result<Times> {
        const NOW: u32 = libc::UTIME_NOW as u32;
        const OMIT: u32 = libc::UTIME_OMIT as u32;
        let is_utimensat = matches!(
            shape(self.call.audit, self.call.number),
            Some(Shape::Change { follow: Follow::Flags(_), .. })
        );
        let address = self.call.arguments[usize::from(argument)];
        if address == 0 {
            return Ok(Times::Now);
        }
        if !is_utimensat {
            return Ok(Times::Given);
        }
        // Two pairs of seconds and nanoseconds, of 32 bits each in the older of the calls of 32-bit x86.
        let size = if self.call.audit == I386_AUDIT && self.call.number != UTIMENSAT_TIME64 { 8 } else { 16 };
        let mut times = vec![0; 2 * size];
        self.task.memory(address, &mut times)?;
        let nanoseconds =
            |at: usize| u32::from_ne_bytes([times[at], times[at + 1], times[at + 2], times[at + 3]]);
        Ok(match [nanoseconds(size / 2), nanoseconds(size + size / 2)] {
            [NOW, NOW] => Times::Now,
            [OMIT, OMIT] => Times::Kept,
            pair if pair.iter().all(|time| matches!(*time, 0..1_000_000_000 | NOW | OMIT)) => Times::Given,
            _ => Times::Kept,
        })
    }

    /// Whether `chown(2)` and its like are to leave owner and group as they are.
    fn keeps_owner(&self, first: u8) -> bool {
        let is_narrow = self.call.audit == I386_AUDIT && CHOWN16.contains(&self.call.number);
        let kept = |id: u64| if is_narrow { id as u16 == u16::MAX } else { id as u32 == u32::MAX };
        self.call.arguments[usize::from(first)..].iter().take(2).all(|id| kept(*id))
    }

    /// What directory and path of a `*at` call lead to; with the descriptor, where `AT_EMPTY_PATH` makes that the file.
    fn subject(&self, flags: i32, follow: bool) -> io::Result<(OwnedFd, Option<i32>)> {
        let (dir, path) = self.path(true, 0)?;
        if path.is_empty() && flags & libc::AT_EMPTY_PATH != 0 {
            return Ok((self.task.descriptor(dir)?, Some(dir)));
        }
        Ok((self.lookup.file(dir, &path, follow, ResolveFlags::empty())?, None))
    }

    /// Flags that a program has read from a shared file say that it is immutable, which its copy is not to become,
    /// unless that is all that the program can have wanted: it brings nothing else.
    fn set_flags(
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
        let private = match self.privatize(file, Right::Own, number)? {
            ControlFlow::Break(answer) => return Ok(answer),
            ControlFlow::Continue(private) => private,
        };
        let mut bytes = vec![0; call.size()];
        self.task.memory(self.call.arguments[usize::from(argument)], &mut bytes)?;
        let mut flags = FlagsArgument::new(call, bytes);
        if before.is_ok_and(|before| flags.equals(before)) || !flags.clear_immutable() {
            return Ok(Response::Continue);
        }
        let file = self.supervisor.processes.reopen(&private, OFlags::RDONLY)?;
        let may = self.is_privileged()
            || self.task.status()?.uid == Inode::of(&file)?.uid
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

    fn change_open(&mut self, number: i32, right: Right) -> io::Result<Response> {
        // Most are nobody else's, and need not be opened to see that.
        if !may_be_shared(&self.task.descriptor_inode(number)?) {
            return Ok(Response::Continue);
        }
        match self.open_descriptor(number)? {
            Some(file) => self.make_private(&file, right, Some(number)),
            None => Ok(Response::Continue),
        }
    }

    /// What a descriptor is open on; `None` for a place only (`O_PATH`), which calls on descriptors refuse.
    fn open_descriptor(&self, number: i32) -> io::Result<Option<OwnedFd>> {
        if self.task.open_file(number)?.flags & libc::O_PATH as u32 != 0 {
            return Ok(None);
        }
        self.task.descriptor(number).map(Some)
    }

    fn link_call(&mut self, at: bool) -> io::Result<Response> {
        let flags = if at { self.number(4) } else { 0 };
        if flags & !(libc::AT_SYMLINK_FOLLOW | libc::AT_EMPTY_PATH) != 0 {
            return Ok(Response::Continue);
        }
        let ((dir, path), new) = (self.path(at, 0)?, self.path(at, if at { 2 } else { 1 })?);
        let (from, source, to) = if path.is_empty() && flags & libc::AT_EMPTY_PATH != 0 {
            if !self.is_privileged() {
                return Ok(Response::Continue);
            }
            (self.task.descriptor(dir)?, None, self.lookup.entry(new.0, &new.1)?)
        } else if flags & libc::AT_SYMLINK_FOLLOW != 0 {
            let from = self.lookup.file(dir, &path, true, ResolveFlags::empty())?;
            (from, None, self.lookup.entry(new.0, &new.1)?)
        } else {
            match self.lookup.entries((dir, &path), (new.0, &new.1))? {
                Some([source, to]) if !source.is_directory => (source.open()?, Some(source), Some(to)),
                _ => return Ok(Response::Continue),
            }
        };
        match to {
            Some(to) if !to.is_directory => self.link(&from, source, &to),
            _ => Ok(Response::Continue),
        }
    }

    /// The directory's descriptor and the path that begin at argument `first`.
    fn path(&self, at: bool, first: u8) -> io::Result<(i32, Vec<u8>)> {
        let dir = if at { self.number(first) } else { libc::AT_FDCWD };
        let path = self.task.string(self.call.arguments[usize::from(first) + usize::from(at)])?;
        Ok((dir, path))
    }

    /// Removes a directory: what is none must not fail for being protected.
    fn remove_directory(&self, at: bool) -> io::Result<Response> {
        let (dir, path) = self.path(at, 0)?;
        let Some(entry) = self.lookup.entry(dir, &path)? else { return Ok(Response::Continue) };
        let Some(_) = self.protected(&entry)? else { return Ok(Response::Continue) };
        let denied =
            if self.is_privileged() { None } else { self.denial_of_name(&self.task.status()?, &entry)? };
        Ok(Response::Failed(denied.unwrap_or(Errno::NOTDIR)))
    }

    fn entry(&self, at: bool, first: u8) -> io::Result<Option<Entry>> {
        let (dir, path) = self.path(at, first)?;
        self.lookup.entry(dir, &path)
    }

    fn number(&self, index: u8) -> i32 {
        self.call.arguments[usize::from(index)] as i32
    }

    /// Whether the caller still waits: else all we know of it may be another's.
    pub(super) fn waits(&self) -> io::Result<()> {
        if self.supervisor.listener.waits(self.call.id) { Ok(()) } else { Err(Errno::SRCH.into()) }
    }

    /// Whether the caller may do with names what we may.
    pub(super) fn is_privileged(&self) -> bool {
        self.task.may_change_all_files() && self.is_here()
    }

    /// Whether the caller's capabilities are capabilities here.
    fn is_here(&self) -> bool {
        self.task.user_namespace().is_ok_and(|theirs| theirs == self.supervisor.user_namespace)
    }

    fn is_attribute_of_users(&self, name: u8) -> io::Result<bool> {
        Ok(self.task.string(self.call.arguments[usize::from(name)])?.starts_with(b"user."))
    }

    /// Whether the call is to remove what is not there: rpm removes the capabilities of each program that it replaces.
    ///
    /// Of callers who may, and of the attributes that all filesystems answer alike for.
    pub(super) fn removes_nothing(&self, right: Right, file: &OwnedFd) -> io::Result<bool> {
        let Right::OwnOrRemove(name) = right else { return Ok(false) };
        let name = self.task.string(self.call.arguments[usize::from(name)])?;
        let is_plain = name.starts_with(b"user.") || name == b"security.capability";
        if !is_plain || !self.is_privileged() || !self.task.capabilities()?.contains(CapabilitySet::SETFCAP) {
            return Ok(false);
        }
        let file = self.supervisor.processes.reopen(file, OFlags::RDONLY)?;
        let found = rustix::fs::fgetxattr(file, name.as_slice(), &mut [0u8; 0][..]);
        Ok(found == Err(Errno::NODATA))
    }

    /// Whether the caller has a capability here.
    pub(super) fn may(&self, status: &Status, capability: CapabilitySet) -> bool {
        self.is_here() && status.capabilities.contains(capability)
    }

    /// Whether the caller may write to what is open as `file`; yes, where an access control list decides.
    pub(super) fn may_write(&self, status: &Status, file: impl AsFd, inode: &Inode) -> bool {
        let has_list = || {
            let file = self.supervisor.processes.reopen(&file, OFlags::RDONLY);
            file.is_ok_and(|file| rustix::fs::fgetxattr(file, ACCESS_LIST, &mut [0u8; 0][..]).is_ok())
        };
        self.may(status, CapabilitySet::DAC_OVERRIDE) || status.may_write(inode) || has_list()
    }

    /// What the kernel would answer to a caller who may not change a private file; `None` where it may.
    pub(super) fn denial(&self, right: Right, file: &OwnedFd, inode: &Inode) -> io::Result<Option<Response>> {
        let status = self.task.status()?;
        let writes = || self.may_write(&status, file, inode);
        let owns = || {
            let any = [CapabilitySet::CHOWN, CapabilitySet::FOWNER, CapabilitySet::SYS_ADMIN];
            status.uid == inode.uid || any.iter().any(|capability| self.may(&status, *capability))
        };
        let denied = Response::Failed(Errno::ACCESS);
        Ok(match right {
            Right::Write => (!writes()).then_some(denied),
            Right::OwnOrKeep(first) if self.keeps_owner(first) => None,
            Right::OwnOrTouch(times) if !owns() && self.times(times)? == Times::Now => {
                (!writes()).then_some(denied)
            }
            Right::OwnOrAttribute(name) | Right::OwnOrRemove(name) if self.is_attribute_of_users(name)? => {
                (!writes()).then_some(denied)
            }
            // The kernel says to everybody but the owner what it says of a protected file.
            _ => (!owns()).then_some(Response::Continue),
        })
    }
}

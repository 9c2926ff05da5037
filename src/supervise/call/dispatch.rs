//! Which file the arguments of a call name, and what is to be done about it.

use std::io;

use rustix::fs::ResolveFlags;
use rustix::io::Errno;

use super::arguments::Times;
use super::waiting::WaitingCall;
use super::windows::may_be_shared;
use crate::sys::file::flags::FlagsCall;
use crate::sys::file::inode::Inode;
use crate::sys::seccomp::Response;
use crate::sys::seccomp::calls::{Follow, Right, Shape};
use crate::sys::share::gate;

impl WaitingCall<'_> {
    /// Does what the call needs.
    ///
    /// # Errors
    /// If its arguments lead nowhere: the kernel will say so to the caller.
    pub fn answer(&mut self, shape: Shape) -> io::Result<Response> {
        match shape {
            Shape::Open { at, flags } => self.open(at, self.number(flags) as u64, ResolveFlags::empty()),
            Shape::Creat => self.open(
                false,
                (libc::O_CREAT | libc::O_WRONLY | libc::O_TRUNC) as u64,
                ResolveFlags::empty(),
            ),
            Shape::Openat2 => match self.how()? {
                Some((flags, resolve)) => {
                    let answer = self.open(true, flags, resolve)?;
                    if matches!(answer, Response::Continue) && flags & libc::O_PATH as u64 == 0 {
                        self.wait_for_gate(flags, resolve);
                    }
                    Ok(answer)
                }
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
        let file = self.file(dir, &path, !has(libc::O_NOFOLLOW), resolve)?;
        let only_writes = flags & libc::O_ACCMODE as u64 == libc::O_WRONLY as u64;
        let right = if only_writes { Right::Write } else { Right::ReadAndWrite };
        if has(libc::O_NOATIME) {
            let inode = Inode::of(&file)?;
            // Who is not to leave a time of access must own the file; that is asked last.
            if may_be_shared(&inode) && !self.owns(self.status()?, &inode) {
                let denial = if inode.immutable { self.denial(right, &file, &inode)? } else { None };
                return Ok(denial.unwrap_or(Response::Continue));
            }
        }
        if has(libc::O_CREAT) && self.is_kept_from_creating(&file)? {
            return Ok(Response::Continue);
        }
        self.make_private(&file, right, None)
    }

    /// An opener whose flags are in memory would be turned away shortly after a window of the file.
    fn wait_for_gate(&self, flags: u64, resolve: ResolveFlags) {
        let follow = flags & libc::O_NOFOLLOW as u64 == 0;
        gate::wait_until_opens_pass(|| {
            let (dir, path) = self.path(true, 0).ok()?;
            let file = self.lookup.file(dir, &path, follow, resolve).ok()?;
            Some(Inode::of(&file).ok()?.id)
        });
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
        if right == Right::Write && self.is_length_negative() {
            return Ok(Response::Continue);
        }
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
        let file = self.file(dir, &path, follow, ResolveFlags::empty())?;
        self.make_private(&file, right, None)
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
            let from = self.file(dir, &path, true, ResolveFlags::empty())?;
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
}

//! The process that keeps the gates: it alone has the fanotify groups, and answers whoever comes to a closed gate.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::sys::fanotify::{
    EventFFlags, Fanotify, FanotifyEvent, FanotifyResponse, InitFlags, MarkFlags, MaskFlags, Response,
};
use nix::sys::signal::SigSet;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::message::{self, Request};
use super::{GRACE_PERIOD, NO, YES};
use crate::sys::file::inode::{Inode, InodeId};
use crate::sys::process::{self, Processes, SystemCall};
use crate::sys::share::lease::Lease;

/// Marks a group has before the other group takes the next ones, so that the first can forget its own.
const MAX_MARKS: usize = 1024;

/// `FAN_PRE_ACCESS` of `linux/fanotify.h`: content is about to be read, written or cut off.
const FAN_PRE_ACCESS: MaskFlags = MaskFlags::from_bits_retain(0x0010_0000);
/// `truncate` and `truncate64` of 32-bit programs on both architectures; in 64-bit numbering these access no content.
const TRUNCATE_32: [libc::c_long; 2] = [92, 193];

/// Keeps the gates of the process at the other end of `socket`, until that ends. In a process of its own, in which
/// `program` is where its code is.
pub(super) fn keep(socket: &OwnedFd, program: &[(usize, usize)]) {
    // In a session of its own it is not stopped with its owner from a terminal.
    let _ = nix::unistd::setsid();
    let _ = rustix::thread::set_name(c"cow-gate");
    let _ = SigSet::all().thread_block();
    let _ = rustix::process::chdir("/");
    process::close_all_but(&[socket.as_fd()], false);
    let keeper = Keeper::new(program);
    let ready = if keeper.is_ok() { YES } else { NO };
    if message::answer(socket, ready).is_ok()
        && let Ok(mut keeper) = keeper
    {
        let _ = keeper.serve(socket);
    }
}

/// Two groups of marks, of which one can be emptied while the other takes new ones.
#[derive(Debug)]
struct Keeper {
    groups: [Fanotify; 2],
    generations: [Generation; 2],
    current: usize,
    mask: MaskFlags,
    processes: Option<Processes>,
    /// The inodes of open windows.
    windows: HashMap<InodeId, Window>,
}

/// The marks of one group.
#[derive(Debug, Default)]
struct Generation {
    marks: usize,
    open: usize,
    last: Option<Instant>,
}

/// The windows that are open on an inode: another thread may have opened one, too.
#[derive(Debug, Default)]
struct Window {
    generations: Vec<usize>,
    /// Somebody was turned away.
    tried: bool,
}

impl Keeper {
    fn new(program: &[(usize, usize)]) -> io::Result<Keeper> {
        let group = || {
            let flags = InitFlags::FAN_CLASS_PRE_CONTENT
                | InitFlags::FAN_CLOEXEC
                | InitFlags::FAN_NONBLOCK
                | InitFlags::FAN_UNLIMITED_QUEUE
                | InitFlags::FAN_UNLIMITED_MARKS
                | InitFlags::FAN_REPORT_TID;
            // Non-blocking: not to wait for the holder of a write lease.
            let event = EventFFlags::O_LARGEFILE | EventFFlags::O_CLOEXEC | EventFFlags::O_NONBLOCK;
            Fanotify::init(flags, event)
        };
        let groups = [group()?, group()?];
        // Pages of a program that was itself opened at a closed gate ask FAN_PRE_ACCESS when they are read in.
        let mask = match process::lock_memory(program) {
            Ok(()) => MaskFlags::FAN_OPEN_PERM | FAN_PRE_ACCESS,
            Err(_) => MaskFlags::FAN_OPEN_PERM,
        };
        Ok(Keeper {
            groups,
            generations: Default::default(),
            current: 0,
            mask,
            processes: Processes::open().ok(),
            windows: HashMap::new(),
        })
    }

    /// Answers for as long as the owner lives, until the error that says that it does not. The kernel then allows
    /// whatever has not been answered.
    fn serve(&mut self, socket: &OwnedFd) -> io::Result<()> {
        loop {
            let has_marks = self.generations.iter().any(|generation| generation.marks > 0);
            let pause = if has_marks { Timespec::try_from(GRACE_PERIOD).ok() } else { None };
            let [first, second] = &self.groups;
            let mut ready = [
                PollFd::new(first, PollFlags::IN),
                PollFd::new(second, PollFlags::IN),
                PollFd::new(socket, PollFlags::IN),
            ];
            let _ = poll(&mut ready, pause.as_ref());
            for group in 0..self.groups.len() {
                // The kernel itself turns away whom it cannot tell us of, and lets the read fail.
                for event in self.groups[group].read_events().into_iter().flatten() {
                    if let Some(file) = event.fd() {
                        self.answer(group, &event, file);
                    }
                    // The owner waits for one asker at most, however many there are.
                    self.handle_all(socket)?;
                }
            }
            self.handle_all(socket)?;
            self.forget();
        }
    }

    /// Does what the owner has asked for.
    fn handle_all(&mut self, socket: &OwnedFd) -> io::Result<()> {
        const NOW: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };
        while poll(&mut [PollFd::new(socket, PollFlags::IN)], Some(&NOW)).is_ok_and(|ready| ready > 0) {
            self.handle(socket)?;
        }
        Ok(())
    }

    fn handle(&mut self, socket: &OwnedFd) -> io::Result<()> {
        match message::receive(socket)? {
            (Request::Close(inode), Some(file)) => {
                let closed = if self.close(file.as_fd(), inode) { YES } else { NO };
                message::answer(socket, closed)
            }
            (Request::Close(_), None) => message::answer(socket, NO),
            (Request::WasTried(inode), _) => {
                let tried = self.windows.get(&inode).is_none_or(|window| window.tried);
                message::answer(socket, if tried { YES } else { NO })
            }
            (Request::Open(inode), _) => {
                self.open(inode);
                Ok(())
            }
        }
    }

    fn close(&mut self, file: BorrowedFd<'_>, inode: InodeId) -> bool {
        let other = 1 - self.current;
        if self.generations[self.current].marks >= MAX_MARKS && self.generations[other].marks == 0 {
            self.current = other;
        }
        let group = &self.groups[self.current];
        let mark = |mask| group.mark(MarkFlags::FAN_MARK_ADD, mask, file, None::<&OsStr>);
        // EINVAL before Linux 6.14, EOPNOTSUPP if the filesystem does not ask.
        if mark(self.mask).or_else(|_| mark(MaskFlags::FAN_OPEN_PERM)).is_err() {
            return false;
        }
        let generation = &mut self.generations[self.current];
        generation.marks += 1;
        generation.open += 1;
        self.windows.entry(inode).or_default().generations.push(self.current);
        true
    }

    fn open(&mut self, inode: InodeId) {
        let Some(window) = self.windows.get_mut(&inode) else { return };
        if let Some(generation) = window.generations.pop() {
            let generation = &mut self.generations[generation];
            generation.open -= 1;
            generation.last = Some(Instant::now());
        }
        if window.generations.is_empty() {
            self.windows.remove(&inode);
        }
    }

    /// Removes the marks that nobody can need any more.
    fn forget(&mut self) {
        for (group, generation) in self.groups.iter().zip(&mut self.generations) {
            let over = generation.last.is_some_and(|last| last.elapsed() >= GRACE_PERIOD);
            if generation.open == 0 && generation.marks > 0 && over {
                // The descriptor only has to be one.
                let flushed =
                    group.mark(MarkFlags::FAN_MARK_FLUSH, MaskFlags::empty(), group, None::<&OsStr>);
                if flushed.is_ok() {
                    generation.marks = 0;
                }
            }
        }
    }

    fn answer(&mut self, group: usize, event: &FanotifyEvent, file: BorrowedFd<'_>) {
        let allowed = self.allows(event, file);
        if !allowed
            && let Ok(inode) = Inode::of(file)
            && let Some(window) = self.windows.get_mut(&inode.id)
        {
            window.tried = true;
        }
        let response = if allowed { Response::FAN_ALLOW } else { Response::FAN_DENY };
        // It fails if the asker has been killed.
        let _ = self.groups[group].write_response(FanotifyResponse::new(file, response));
    }

    fn allows(&self, event: &FanotifyEvent, file: BorrowedFd<'_>) -> bool {
        let call = self.processes.as_ref().and_then(|processes| asker(processes, event.pid()));
        if !event.mask().contains(MaskFlags::FAN_OPEN_PERM) {
            // FAN_PRE_ACCESS. Whoever reads, or cuts off through a descriptor, has been asked when it was opened.
            return call.is_none_or(|call| !truncates(call));
        }
        match call.and_then(opens_for_writing) {
            Some(writes) => !writes,
            // The asker is counted as a writer already, if it is one: then there can be no lease.
            None => matches!(Lease::take(file), Ok(Some(_))),
        }
    }
}

/// The system call in which the thread waits for us; on a busy machine it may still be on its way to sleep.
fn asker(processes: &Processes, tid: i32) -> Option<SystemCall> {
    const SOON: Duration = Duration::from_millis(1);
    const PATIENCE: Duration = Duration::from_millis(200);
    let begun = Instant::now();
    loop {
        match processes.system_call(tid) {
            Ok(None) if begun.elapsed() < SOON => std::thread::yield_now(),
            Ok(None) if begun.elapsed() < PATIENCE => std::thread::sleep(SOON / 2),
            call => return call.ok().flatten(),
        }
    }
}

/// Whether a system call opens for writing; `None` if its registers do not say.
fn opens_for_writing(call: SystemCall) -> Option<bool> {
    let flags = match call.number {
        #[cfg(target_arch = "x86_64")]
        libc::SYS_open => call.arguments[1],
        libc::SYS_openat | libc::SYS_open_by_handle_at => call.arguments[2],
        libc::SYS_execve | libc::SYS_execveat => return Some(false),
        _ => return None,
    };
    let (access, truncate) = (libc::O_ACCMODE as u64, libc::O_TRUNC as u64);
    Some(flags & access != libc::O_RDONLY as u64 || flags & truncate != 0)
}

/// Whether a system call truncates a file that need not be open.
fn truncates(call: SystemCall) -> bool {
    call.number == libc::SYS_truncate || TRUNCATE_32.contains(&call.number)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(number: libc::c_long, arguments: [u64; 6]) -> SystemCall {
        SystemCall { number, arguments }
    }

    #[test]
    fn registers_tell_readers_from_writers() {
        let openat = |flags: i32| opens_for_writing(call(libc::SYS_openat, [0, 0, flags as u64, 0, 0, 0]));
        assert_eq!(openat(libc::O_RDONLY | libc::O_CLOEXEC), Some(false));
        for flags in [libc::O_WRONLY, libc::O_RDWR, libc::O_RDONLY | libc::O_TRUNC, libc::O_ACCMODE] {
            assert_eq!(openat(flags), Some(true), "{flags:o}");
        }
        assert_eq!(opens_for_writing(call(libc::SYS_execve, [0; 6])), Some(false));
        assert_eq!(opens_for_writing(call(libc::SYS_openat2, [0; 6])), None);
        assert_eq!(opens_for_writing(call(libc::SYS_io_uring_enter, [0; 6])), None);
    }
}

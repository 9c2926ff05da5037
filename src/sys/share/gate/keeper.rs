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
use rustix::thread::CapabilitySet;

use super::message::{self, AFTER_OTHERS, GRACE_PERIOD, LONGEST_WINDOW, NO, Request, YES};
use crate::sys::file::inode::{Inode, InodeId};
use crate::sys::file::metadata::Metadata;
use crate::sys::file::traits;
use crate::sys::process::{self, Processes, SystemCall};
use crate::sys::share::lease::Lease;

/// Marks a group has before the other group takes the next ones, so that the first can forget its own.
const MAX_MARKS: usize = 1024;

/// Whoever opens, and of these whoever executes.
const OPENERS: MaskFlags = MaskFlags::FAN_OPEN_PERM.union(MaskFlags::FAN_OPEN_EXEC_PERM);

/// `FAN_PRE_ACCESS` of `linux/fanotify.h`: content is about to be read, written or cut off.
const FAN_PRE_ACCESS: MaskFlags = MaskFlags::from_bits_retain(0x0010_0000);

/// A 32-bit program's system calls that open or truncate: `open`, `execve`, `truncate`, `truncate64`, and below, as they
/// differ, `openat` and `open_by_handle_at`, `execveat` (`syscall_32.tbl` of the kernel's x86, `syscall.tbl` of its arm).
///
/// What has the same number in 64-bit programs neither opens a file nor accesses content, and the reverse: so the number
/// alone tells which call it is.
const OPEN_32: libc::c_long = 5;
const EXECVE_32: libc::c_long = 11;
const TRUNCATES_32: [libc::c_long; 2] = [92, 193];
#[cfg(target_arch = "x86_64")]
const OPENATS_32: [libc::c_long; 2] = [295, 342];
#[cfg(target_arch = "x86_64")]
const EXECVEAT_32: libc::c_long = 358;
#[cfg(target_arch = "aarch64")]
const OPENATS_32: [libc::c_long; 2] = [322, 371];
#[cfg(target_arch = "aarch64")]
const EXECVEAT_32: libc::c_long = 387;
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
const OPENATS_32: [libc::c_long; 2] = [-1, -1];
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
const EXECVEAT_32: libc::c_long = -1;

/// Keeps the gates of the process at the other end of `socket`, until that ends. In a process of its own, in which
/// `program` is where its code is; both count the time from `begun` on.
pub(super) fn keep(socket: &OwnedFd, program: &[(usize, usize)], begun: Instant) {
    // In a session of its own it is not stopped with its owner from a terminal.
    let _ = nix::unistd::setsid();
    let _ = rustix::thread::set_name(c"cow-gate");
    let _ = SigSet::all().thread_block();
    let _ = rustix::process::chdir("/");
    process::close_all_but(&[socket.as_fd()], false);
    let keeper = Keeper::new(program, begun);
    let ready = if keeper.is_ok() { YES } else { NO };
    if message::answer(socket, ready).is_ok()
        && let Ok(mut keeper) = keeper
    {
        let _ = keeper.serve(socket);
    }
}

/// Two groups of marks: one can be emptied while the other takes new ones.
#[derive(Debug)]
struct Keeper {
    begun: Instant,
    groups: [Fanotify; 2],
    generations: [Generation; 2],
    current: usize,
    mask: MaskFlags,
    processes: Option<Processes>,
    /// The inodes of open windows.
    windows: HashMap<InodeId, Window>,
    /// When the last window of an inode was closed, for the grace period. The marks may stay for longer.
    late: HashMap<InodeId, Instant>,
    /// When the last of those was let through who have to be out of the way of the next window.
    passed: HashMap<InodeId, Instant>,
}

/// The marks of one group.
#[derive(Debug, Default)]
struct Generation {
    marks: usize,
    open: usize,
    last: Option<Instant>,
}

/// The windows that are open on an inode: another thread may have opened one, too.
#[derive(Debug)]
struct Window {
    generations: Vec<usize>,
    /// Somebody was turned away.
    tried: bool,
    since: Instant,
    /// Since it was open too long, and the file is immutable again.
    is_over: bool,
    file: OwnedFd,
    before: Metadata,
    waiting: Vec<Waiting>,
}

/// An opener that is answered once the window is closed.
#[derive(Debug)]
struct Waiting {
    group: usize,
    event: FanotifyEvent,
    may_truncate: bool,
}

/// What an asker is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Pass,
    TurnedAway,
    /// Once the window is closed, unless it might truncate the file then.
    Wait {
        may_truncate: bool,
    },
}

impl Keeper {
    fn new(program: &[(usize, usize)], begun: Instant) -> io::Result<Keeper> {
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
            Ok(()) => OPENERS | FAN_PRE_ACCESS,
            Err(_) => OPENERS,
        };
        Ok(Keeper {
            begun,
            groups,
            generations: Default::default(),
            current: 0,
            mask,
            processes: Processes::open().ok(),
            windows: HashMap::new(),
            late: HashMap::new(),
            passed: HashMap::new(),
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
                    // What the owner has said before somebody came counts for the answer; and the owner waits for one
                    // asker at most, however many there are.
                    self.handle_all(socket)?;
                    self.answer(group, event);
                }
            }
            self.handle_all(socket)?;
            self.end_long_windows();
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
                let has_passed = is_recent(&self.passed, inode);
                let answer = match self.close(file, inode) {
                    Err(_) => NO,
                    Ok(()) if has_passed => AFTER_OTHERS,
                    Ok(()) => YES,
                };
                message::answer(socket, answer)
            }
            (Request::Close(_), None) => message::answer(socket, NO),
            (Request::WasTried(inode), _) => {
                let tried = self.windows.get(&inode).is_none_or(|window| window.tried);
                message::answer(socket, if tried { YES } else { NO })
            }
            (Request::Open(inode, when), _) => {
                self.open(inode, self.begun + when);
                Ok(())
            }
        }
    }

    fn close(&mut self, file: OwnedFd, inode: InodeId) -> io::Result<()> {
        let other = 1 - self.current;
        if self.generations[self.current].marks >= MAX_MARKS && self.generations[other].marks == 0 {
            self.current = other;
        }
        let before = Metadata::of(&file)?;
        let group = &self.groups[self.current];
        let mark = |mask| group.mark(MarkFlags::FAN_MARK_ADD, mask, &file, None::<&OsStr>);
        // EINVAL before Linux 6.14, EOPNOTSUPP if the filesystem does not ask.
        mark(self.mask).or_else(|_| mark(OPENERS))?;
        let generation = &mut self.generations[self.current];
        generation.marks += 1;
        generation.open += 1;
        let window = self.windows.entry(inode).or_insert_with(|| Window {
            generations: Vec::new(),
            tried: false,
            since: Instant::now(),
            is_over: false,
            file,
            before,
            waiting: Vec::new(),
        });
        window.generations.push(self.current);
        Ok(())
    }

    /// The owner has set the flag again before `when`: its own time, as it waits by that for who comes late.
    fn open(&mut self, inode: InodeId, when: Instant) {
        let Some(window) = self.windows.get_mut(&inode) else { return };
        if let Some(generation) = window.generations.pop() {
            let generation = &mut self.generations[generation];
            generation.open -= 1;
            generation.last = Some(Instant::now());
        }
        if window.generations.is_empty()
            && let Some(window) = self.windows.remove(&inode)
        {
            self.late.insert(inode, when);
            let is_as_before = window.waiting.is_empty() || window.is_as_before();
            self.answer_all(inode, window.waiting, is_as_before);
        }
    }

    /// Protects files whose windows are open for too long, and answers those who wait for that.
    ///
    /// The owner, once it goes on, makes its change in a new window.
    fn end_long_windows(&mut self) {
        let is_long = |window: &Window| !window.is_over && window.since.elapsed() >= LONGEST_WINDOW;
        let long: Vec<InodeId> =
            self.windows.iter().filter(|(_, window)| is_long(window)).map(|(inode, _)| *inode).collect();
        for inode in long {
            let Some(window) = self.windows.get_mut(&inode) else { continue };
            window.is_over = traits::set_immutable(&window.file, true).is_ok();
            let waiting = std::mem::take(&mut window.waiting);
            let is_as_before = window.is_as_before();
            self.answer_all(inode, waiting, is_as_before);
        }
    }

    fn answer_all(&mut self, inode: InodeId, waiting: Vec<Waiting>, is_as_before: bool) {
        for Waiting { group, event, may_truncate } in waiting {
            let Some(file) = event.fd() else { continue };
            if is_as_before {
                self.let_through(group, file, inode, may_truncate);
            } else {
                self.respond(group, file, Response::FAN_DENY);
            }
        }
    }

    /// Removes the marks that nobody can need any more.
    fn forget(&mut self) {
        for times in [&mut self.late, &mut self.passed] {
            times.retain(|_, time| time.elapsed() < GRACE_PERIOD);
        }
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

    fn answer(&mut self, group: usize, event: FanotifyEvent) {
        let Some(file) = event.fd() else { return };
        let Ok(inode) = Inode::of(file) else { return self.respond(group, file, Response::FAN_DENY) };
        match (self.judge(&event, file, &inode), self.windows.get_mut(&inode.id)) {
            (Verdict::Pass, _) => self.respond(group, file, Response::FAN_ALLOW),
            (Verdict::TurnedAway, window) => {
                window.into_iter().for_each(|window| window.tried = true);
                self.respond(group, file, Response::FAN_DENY);
            }
            (Verdict::Wait { may_truncate }, Some(window)) if !window.is_over => {
                window.waiting.push(Waiting { group, event, may_truncate });
            }
            (Verdict::Wait { .. }, Some(window)) if !window.is_as_before() => {
                self.respond(group, file, Response::FAN_DENY);
            }
            (Verdict::Wait { may_truncate }, window) => {
                let came_in_window = window.is_some() || is_recent(&self.late, inode.id);
                self.let_through(group, file, inode.id, may_truncate && came_in_window);
            }
        }
    }

    /// Answers somebody for whom the window had to be closed first.
    fn let_through(&mut self, group: usize, file: BorrowedFd<'_>, inode: InodeId, may_truncate: bool) {
        if may_truncate && !asks_before_truncating(file) {
            return self.respond(group, file, Response::FAN_DENY);
        }
        self.passed.insert(inode, Instant::now());
        self.respond(group, file, Response::FAN_ALLOW);
    }

    fn respond(&self, group: usize, file: BorrowedFd<'_>, response: Response) {
        // It fails if the asker has been killed.
        let _ = self.groups[group].write_response(FanotifyResponse::new(file, response));
    }

    fn judge(&self, event: &FanotifyEvent, file: BorrowedFd<'_>, inode: &Inode) -> Verdict {
        if event.mask().contains(MaskFlags::FAN_OPEN_EXEC_PERM) {
            return Verdict::Wait { may_truncate: false };
        }
        let call = self.processes.as_ref().and_then(|processes| asker(processes, event.pid()));
        if !event.mask().contains(MaskFlags::FAN_OPEN_PERM) {
            // FAN_PRE_ACCESS. Whoever reads, or cuts off through a descriptor, has been asked when it was opened.
            return if call.is_some_and(truncates) { Verdict::TurnedAway } else { Verdict::Pass };
        }
        match call.and_then(opening) {
            Some(Opening::Reads) => Verdict::Pass,
            Some(Opening::Writes) => Verdict::TurnedAway,
            Some(Opening::Executes) => Verdict::Wait { may_truncate: false },
            // The asker is counted as a writer already, if it is one: then there can be no lease.
            None if !matches!(Lease::take(file), Ok(Some(_))) => Verdict::TurnedAway,
            None if self.may_write(event.pid(), inode) => Verdict::Wait { may_truncate: true },
            None => Verdict::Pass,
        }
    }

    /// Whether the kernel may have let this thread truncate the file; not known of threads of other process namespaces.
    fn may_write(&self, tid: i32, inode: &Inode) -> bool {
        let status = self.processes.as_ref().and_then(|processes| processes.status(tid).ok());
        // An access control list can give more than the bits that are looked at: those of the group are its mask.
        status.is_some_and(|status| {
            status.capabilities.contains(CapabilitySet::DAC_OVERRIDE)
                || inode.mode & 0o022 != 0
                || status.has_access(inode, 2, || None)
        })
    }
}

impl Window {
    /// Whether nobody has changed the file's metadata meanwhile.
    fn is_as_before(&self) -> bool {
        Metadata::of(&self.file).is_ok_and(|now| now.same_as(&self.before))
    }
}

/// Whether the time of this inode is within the grace period.
fn is_recent(times: &HashMap<InodeId, Instant>, inode: InodeId) -> bool {
    times.get(&inode).is_some_and(|time| time.elapsed() < GRACE_PERIOD)
}

/// Whether the filesystem looks at the immutable flag once more before it truncates an open file.
fn asks_before_truncating(file: BorrowedFd<'_>) -> bool {
    rustix::fs::fstatfs(file).is_ok_and(|filesystem| filesystem.f_type == libc::EXT4_SUPER_MAGIC)
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

/// What a system call opens a file for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Opening {
    Reads,
    Writes,
    Executes,
}

/// What a system call opens for; `None` if its registers do not say.
fn opening(call: SystemCall) -> Option<Opening> {
    let flags = match call.number {
        #[cfg(target_arch = "x86_64")]
        libc::SYS_open => call.arguments[1],
        OPEN_32 => call.arguments[1],
        libc::SYS_openat | libc::SYS_open_by_handle_at => call.arguments[2],
        number if OPENATS_32.contains(&number) => call.arguments[2],
        libc::SYS_execve | libc::SYS_execveat | EXECVE_32 | EXECVEAT_32 => {
            return Some(Opening::Executes);
        }
        _ => return None,
    };
    let (access, truncate) = (libc::O_ACCMODE as u64, libc::O_TRUNC as u64);
    let writes = flags & access != libc::O_RDONLY as u64 || flags & truncate != 0;
    Some(if writes { Opening::Writes } else { Opening::Reads })
}

/// Whether a system call truncates a file that need not be open.
fn truncates(call: SystemCall) -> bool {
    call.number == libc::SYS_truncate || TRUNCATES_32.contains(&call.number)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(number: libc::c_long, arguments: [u64; 6]) -> SystemCall {
        SystemCall { number, arguments }
    }

    #[test]
    fn registers_tell_readers_from_writers() {
        let openat = |flags: i32| opening(call(libc::SYS_openat, [0, 0, flags as u64, 0, 0, 0]));
        assert_eq!(openat(libc::O_RDONLY | libc::O_CLOEXEC), Some(Opening::Reads));
        for flags in [libc::O_WRONLY, libc::O_RDWR, libc::O_RDONLY | libc::O_TRUNC, libc::O_ACCMODE] {
            assert_eq!(openat(flags), Some(Opening::Writes), "{flags:o}");
        }
        assert_eq!(opening(call(libc::SYS_execve, [0; 6])), Some(Opening::Executes));
        let openat_32 = |flags: i32| opening(call(OPENATS_32[0], [0, 0, flags as u64, 0, 0, 0]));
        assert_eq!(openat_32(libc::O_RDONLY | libc::O_NOFOLLOW), Some(Opening::Reads));
        assert_eq!(openat_32(libc::O_RDONLY | libc::O_TRUNC), Some(Opening::Writes));
        assert_eq!(opening(call(libc::SYS_openat2, [0; 6])), None);
        assert_eq!(opening(call(libc::SYS_io_uring_enter, [0; 6])), None);
    }
}

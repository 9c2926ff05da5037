//! Keeps writers away from an inode whose immutable flag is clear (`fanotify(7)`).
//!
//! An open asks three things in this order (`do_open` of `fs/namei.c`, `do_dentry_open` of `fs/open.c`): whether the
//! file is immutable, whether an `FAN_OPEN_PERM` listener allows it, whether a lease must be broken. So who found the
//! flag clear comes to us next, and is suspended until we answer: readers may pass, writers get `EPERM`, as from the
//! flag itself. `truncate(2)` opens nothing; since Linux 6.14 it asks `FAN_PRE_ACCESS` listeners in the same place.
//!
//! Somebody may be preempted between the first question and the second. So an inode stays marked for some time
//! ([`GRACE_PERIOD`]) after its flag is set again.
//!
//! Two kinds of openers wait until the window is closed and the metadata are as before: whoever executes the file, who
//! would get the rights that another process gives it in the window (`bprm_fill_uid` of `fs/exec.c` comes after the
//! open); and whoever opens it by a call whose registers do not tell the flags, such as `openat2(2)`: that may be
//! `O_RDONLY | O_TRUNC`, which no lease sees. ext4 asks for the flag once more before it truncates (`ext4_setattr` of
//! `fs/ext4/inode.c`); on other filesystems such an opener is turned away if it could write to the file. Both may be
//! under way when the next window of the inode is wanted, which therefore waits for the grace period.
//!
//! One thread of the process answers, from what each asker does alone: no window waits for it, and it
//! waits for nobody. It opens nothing but procfs, and all of its code is in memory before the first mark: else it might
//! have to answer itself. Several processes that mark one inode each answer for themselves, one after the other.
//! If this process dies, the kernel allows whatever has not been answered (`fanotify_release`), and recovery has
//! to set the flag again. If it is stopped, who opens a marked file waits until it goes on or is killed.
//!
//! Not kept away: who truncates so that we cannot see it: before Linux 6.14 and on filesystems without
//! `FAN_PRE_ACCESS` (tmpfs) by `truncate(2)`; from another process namespace by that or by `O_RDONLY | O_TRUNC`; by the
//! latter also through `openat2(2)`, io_uring or the 32-bit calls.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::fanotify::{
    EventFFlags, Fanotify, FanotifyEvent, FanotifyResponse, InitFlags, MarkFlags, MaskFlags, Response,
};
use nix::sys::signal::SigSet;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use rustix::thread::CapabilitySet;

use super::lease::Lease;
use crate::sys::file::inode::{Inode, InodeId};
use crate::sys::process::{Processes, SystemCall};
use crate::sys::seccomp::filter;

/// How long an opener may take from the kernel's first question to the second.
const GRACE_PERIOD: Duration = Duration::from_millis(50);

/// Marks a group has before the other group takes the next ones, so that the first can forget its own.
const MAX_MARKS: usize = 1024;

/// `FAN_PRE_ACCESS` of `linux/fanotify.h`: content is about to be read, written or cut off.
const FAN_PRE_ACCESS: MaskFlags = MaskFlags::from_bits_retain(0x0010_0000);
/// Whoever opens, and of these whoever executes.
const OPENERS: MaskFlags = MaskFlags::FAN_OPEN_PERM.union(MaskFlags::FAN_OPEN_EXEC_PERM);
/// `truncate` and `truncate64` of 32-bit programs on both architectures; in 64-bit numbering these access no content.
const TRUNCATE_32: [libc::c_long; 2] = [92, 193];

static GATE: OnceLock<Option<Gate>> = OnceLock::new();

/// Closes the gate of an open inode, until some time after the result is dropped.
///
/// `None` if there can be no gate: no `CAP_SYS_ADMIN` in the first user namespace, or a kernel without
/// `CONFIG_FANOTIFY_ACCESS_PERMISSIONS`.
pub fn close(fd: BorrowedFd<'_>, inode: InodeId) -> Option<ClosedGate> {
    let gate = GATE.get_or_init(|| Gate::new().ok()).as_ref()?;
    // Started by whoever finds it not running: a thread cannot borrow what is still being made.
    static SERVED: OnceLock<bool> = OnceLock::new();
    let serve = || std::thread::Builder::new().name("gate".into()).spawn(|| gate.serve()).is_ok();
    if !SERVED.get_or_init(serve) {
        return None;
    }
    gate.close(fd, inode)
}

/// Waits until nobody is under way any more who found a flag clear that this process had cleared.
///
/// To be called before the process ends, for its marks end with it.
pub fn wait_for_late_openers() {
    let Some(Some(gate)) = GATE.get() else { return };
    let closed = gate.state().generations.iter().filter_map(|generation| generation.last).max();
    if let Some(closed) = closed {
        std::thread::sleep(GRACE_PERIOD.saturating_sub(closed.elapsed()));
    }
}

/// A closed gate.
#[derive(Debug)]
pub struct ClosedGate {
    gate: &'static Gate,
    inode: InodeId,
    generation: usize,
}

impl ClosedGate {
    /// Whether somebody was turned away since it was closed.
    pub(crate) fn was_tried(&self) -> bool {
        self.gate.state().windows.get(&self.inode).is_some_and(|window| window.tried)
    }
}

impl Drop for ClosedGate {
    fn drop(&mut self) {
        let mut state = self.gate.state();
        let window = state.windows.remove(&self.inode);
        let generation = &mut state.generations[self.generation];
        generation.open -= 1;
        generation.last = Some(Instant::now());
        drop(state);
        for Waiting { group, event, may_truncate } in window.into_iter().flat_map(|window| window.waiting) {
            if let Some(file) = event.fd() {
                self.gate.let_through(group, file, self.inode, may_truncate);
            }
        }
    }
}

/// Two groups of marks, of which one can be emptied while the other takes new ones.
#[derive(Debug)]
struct Gate {
    groups: [Fanotify; 2],
    mask: MaskFlags,
    processes: Option<Processes>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    current: usize,
    generations: [Generation; 2],
    /// The inodes of open windows.
    windows: HashMap<InodeId, OpenWindow>,
    /// When the last of those who have to be out of the way of the next window was let through.
    passed: HashMap<InodeId, Instant>,
}

/// Who has come in an open window.
#[derive(Debug, Default)]
struct OpenWindow {
    /// Somebody was turned away.
    tried: bool,
    waiting: Vec<Waiting>,
}

/// An opener that is answered once the window is closed.
#[derive(Debug)]
struct Waiting {
    group: usize,
    event: FanotifyEvent,
    /// It may truncate.
    may_truncate: bool,
}

/// What an asker is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Pass,
    TurnedAway,
    Wait { may_truncate: bool },
}

/// The marks of one group.
#[derive(Debug, Default)]
struct Generation {
    marks: usize,
    open: usize,
    last: Option<Instant>,
}

impl Gate {
    fn new() -> io::Result<Gate> {
        let needed = [
            libc::SYS_fanotify_init,
            libc::SYS_fanotify_mark,
            libc::SYS_mlockall,
            libc::SYS_clone3,
            libc::SYS_prctl,
        ];
        if !needed.into_iter().all(filter::permits) {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
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
        let mask = match rustix::mm::mlockall(rustix::mm::MlockAllFlags::CURRENT) {
            Ok(()) => OPENERS | FAN_PRE_ACCESS,
            Err(_) => OPENERS,
        };
        Ok(Gate { groups, mask, processes: Processes::open().ok(), state: Mutex::default() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn close(&'static self, fd: BorrowedFd<'_>, inode: InodeId) -> Option<ClosedGate> {
        let mut state = self.state();
        let other = 1 - state.current;
        if state.generations[state.current].marks >= MAX_MARKS && state.generations[other].marks == 0 {
            state.current = other;
        }
        let generation = state.current;
        let mark = |mask| self.groups[generation].mark(MarkFlags::FAN_MARK_ADD, mask, fd, None::<&OsStr>);
        // EINVAL before Linux 6.14, EOPNOTSUPP if the filesystem does not ask.
        mark(self.mask).or_else(|_| mark(OPENERS)).ok()?;
        state.generations[generation].marks += 1;
        state.generations[generation].open += 1;
        state.windows.insert(inode, OpenWindow::default());
        let under_way = state.passed.get(&inode).map(|passed| GRACE_PERIOD.saturating_sub(passed.elapsed()));
        drop(state);
        // Nobody else is let through meanwhile.
        under_way.into_iter().for_each(std::thread::sleep);
        Some(ClosedGate { gate: self, inode, generation })
    }

    /// Answers for as long as the process lives.
    fn serve(&self) {
        let _ = SigSet::all().thread_block();
        loop {
            let mut ready = self.groups.each_ref().map(|group| PollFd::new(group, PollFlags::IN));
            let _ = poll(&mut ready, Timespec::try_from(GRACE_PERIOD).ok().as_ref());
            for (at, group) in self.groups.iter().enumerate() {
                // The kernel itself turns away whom it cannot tell us of, and lets the read fail.
                for event in group.read_events().into_iter().flatten() {
                    self.answer(at, event);
                }
            }
            self.forget();
        }
    }

    /// Removes the marks that nobody can need any more.
    fn forget(&self) {
        let mut state = self.state();
        state.passed.retain(|_, passed| passed.elapsed() < GRACE_PERIOD);
        for (group, generation) in self.groups.iter().zip(&mut state.generations) {
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

    fn answer(&self, group: usize, event: FanotifyEvent) {
        let Some(file) = event.fd() else { return };
        let Ok(inode) = Inode::of(file) else { return self.respond(group, file, Response::FAN_DENY) };
        let verdict = self.judge(&event, file, &inode);
        let mut state = self.state();
        let window = state.windows.get_mut(&inode.id);
        match (verdict, window) {
            (Verdict::Wait { may_truncate }, Some(window)) => {
                return window.waiting.push(Waiting { group, event, may_truncate });
            }
            (Verdict::TurnedAway, Some(window)) => window.tried = true,
            _ => {}
        }
        drop(state);
        match verdict {
            Verdict::Pass => self.respond(group, file, Response::FAN_ALLOW),
            Verdict::TurnedAway => self.respond(group, file, Response::FAN_DENY),
            Verdict::Wait { may_truncate } => self.let_through(group, file, inode.id, may_truncate),
        }
    }

    fn respond(&self, group: usize, file: BorrowedFd<'_>, response: Response) {
        // It fails if the asker has been killed.
        let _ = self.groups[group].write_response(FanotifyResponse::new(file, response));
    }

    /// Answers somebody for whom the window had to be closed first.
    fn let_through(&self, group: usize, file: BorrowedFd<'_>, inode: InodeId, may_truncate: bool) {
        if may_truncate && !asks_before_truncating(file) {
            return self.respond(group, file, Response::FAN_DENY);
        }
        self.state().passed.insert(inode, Instant::now());
        self.respond(group, file, Response::FAN_ALLOW);
    }

    fn judge(&self, event: &FanotifyEvent, file: BorrowedFd<'_>, inode: &Inode) -> Verdict {
        if event.mask().contains(MaskFlags::FAN_OPEN_EXEC_PERM) {
            return Verdict::Wait { may_truncate: false };
        }
        let call = self.processes.as_ref().and_then(|processes| asker(processes, event.pid()));
        let verdict = |passes| if passes { Verdict::Pass } else { Verdict::TurnedAway };
        if !event.mask().contains(MaskFlags::FAN_OPEN_PERM) {
            // FAN_PRE_ACCESS. Whoever reads, or cuts off through a descriptor, has been asked when it was opened.
            return verdict(call.is_none_or(|call| !truncates(call)));
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
                || status.may_write(inode)
        })
    }
}

/// Whether the filesystem looks at the immutable flag once more before it truncates an open file.
fn asks_before_truncating(file: BorrowedFd<'_>) -> bool {
    rustix::fs::fstatfs(file).is_ok_and(|filesystem| filesystem.f_type == libc::EXT4_SUPER_MAGIC)
}

/// The system call in which the thread waits for us; it may still be on its way to sleep.
fn asker(processes: &Processes, tid: i32) -> Option<SystemCall> {
    let patience = Duration::from_millis(20);
    let begun = Instant::now();
    loop {
        match processes.system_call(tid) {
            Ok(None) if begun.elapsed() < patience => std::thread::yield_now(),
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
        libc::SYS_openat | libc::SYS_open_by_handle_at => call.arguments[2],
        libc::SYS_execve | libc::SYS_execveat => return Some(Opening::Executes),
        _ => return None,
    };
    let (access, truncate) = (libc::O_ACCMODE as u64, libc::O_TRUNC as u64);
    let writes = flags & access != libc::O_RDONLY as u64 || flags & truncate != 0;
    Some(if writes { Opening::Writes } else { Opening::Reads })
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
        let openat = |flags: i32| opening(call(libc::SYS_openat, [0, 0, flags as u64, 0, 0, 0]));
        assert_eq!(openat(libc::O_RDONLY | libc::O_CLOEXEC), Some(Opening::Reads));
        for flags in [libc::O_WRONLY, libc::O_RDWR, libc::O_RDONLY | libc::O_TRUNC, libc::O_ACCMODE] {
            assert_eq!(openat(flags), Some(Opening::Writes), "{flags:o}");
        }
        assert_eq!(opening(call(libc::SYS_execve, [0; 6])), Some(Opening::Executes));
        assert_eq!(opening(call(libc::SYS_openat2, [0; 6])), None);
        assert_eq!(opening(call(libc::SYS_io_uring_enter, [0; 6])), None);
    }
}

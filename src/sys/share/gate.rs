//! Keeps writers away from an inode whose immutable flag is clear (`fanotify(7)`).
//!
//! An open asks three things in this order (`do_open` of `fs/namei.c`, `do_dentry_open` of `fs/open.c`): whether the
//! file is immutable, whether an `FAN_OPEN_PERM` listener allows it, whether a lease must be broken. So who found the
//! flag clear comes to the listener next, and is suspended until it answers: readers may pass, writers get `EPERM`, as from
//! the flag itself. `truncate(2)` opens nothing; since Linux 6.14 it asks `FAN_PRE_ACCESS` listeners in the same place.
//!
//! Somebody may be preempted between the first question and the second. So an inode stays marked for some time
//! ([`message::GRACE_PERIOD`]) after its flag is set again.
//!
//! The listener is a process of its own, the *keeper* (`keeper`): if the process that opens windows is stopped in one, by
//! a signal or a debugger, others still get their answers. The keeper answers at once and from what each asker does alone:
//! it waits for nobody, and a window waits for one answer at most. It opens nothing but procfs, and all of its code is in
//! memory before the first mark: else it might have to answer itself. Several processes that mark one inode have a keeper each, which
//! answer one after the other. If the keeper dies, the kernel allows whatever has not been answered
//! (`fanotify_release`), and the next window has a new one; it ends with its owner. If it does not answer its owner, it is
//! killed. If both are stopped, as by the freezer of their control group, who opens a marked file waits until they go on
//! or are killed.
//!
//! Two kinds of openers wait until the window is closed and the metadata are as before: whoever executes the file, who
//! would get the rights that another process gives it in the window (`bprm_fill_uid` of `fs/exec.c` comes after the
//! open); and whoever opens it by a call whose registers do not tell the flags, such as `openat2(2)`: that may be
//! `O_RDONLY | O_TRUNC`, which no lease sees. ext4 asks for the flag once more before it truncates (`ext4_setattr` of
//! `fs/ext4/inode.c`); on other filesystems such an opener is turned away if it could write to the file, also in the
//! grace period ([`wait_until_opens_pass`] spares it that). Both may be
//! under way when the next window of the inode is wanted, which therefore waits for the grace period. The keeper itself
//! closes a window that is open for a second.
//!
//! Who had opened the file before, to execute it, is nowhere to be seen. If somebody has it open, a window of an executable
//! file begins after the grace period.
//!
//! Not kept away: whoever executes the file, and takes longer than that to come from the open to the rights, such as a
//! process whose arguments the kernel has to read from a slow filesystem; whoever truncates so that the keeper cannot see
//! it: before Linux 6.14 and on filesystems without `FAN_PRE_ACCESS` (tmpfs) by `truncate(2)`; from another process
//! namespace by that or by `O_RDONLY | O_TRUNC`, and there also through `openat2(2)`, io_uring or the 32-bit calls.

mod keeper;
mod message;

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketFlags, SocketType};

use self::message::{AFTER_OTHERS, GRACE_PERIOD, LONGEST_WINDOW, NO, Request, YES};
use crate::sys::file::inode::InodeId;
use crate::sys::process;
use crate::sys::seccomp::filter;

/// How long an answer of the keeper is waited for.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long a keeper may take to begin.
const STARTING: Duration = Duration::from_secs(20);

/// How many keepers one process starts at most that do not begin, or that die.
const MAX_FAILURES: u32 = 5;

static STATE: Mutex<State> =
    Mutex::new(State { keeper: None, number: 0, failures: 0, closed: Vec::new(), late: Vec::new() });

fn state() -> MutexGuard<'static, State> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The gates of this process.
#[derive(Debug)]
struct State {
    keeper: Option<Keeper>,
    /// Of the keeper: another one knows nothing of earlier gates.
    number: u64,
    failures: u32,
    /// The gates that are closed; one for each window.
    closed: Vec<InodeId>,
    /// Those that were opened in the grace period, and the last one, in the order of time.
    late: Vec<(InodeId, Instant)>,
}

/// The process that keeps the gates.
#[derive(Debug)]
struct Keeper {
    socket: OwnedFd,
    process: OwnedFd,
    /// From when on it and its owner count the time.
    begun: Instant,
}

/// Closes the gate of an open inode, until some time after the result is dropped.
///
/// `None` if there can be no gate: no `CAP_SYS_ADMIN` in the first user namespace, or a kernel without
/// `CONFIG_FANOTIFY_ACCESS_PERMISSIONS`.
pub fn close(fd: BorrowedFd<'_>, inode: InodeId) -> Option<ClosedGate> {
    let mut state = state();
    if !state.start() {
        return None;
    }
    let answer = state.ask(Request::Close(inode), Some(fd)).ok().filter(|answer| *answer != NO)?;
    state.closed.push(inode);
    let closed = ClosedGate { inode, keeper: state.number };
    drop(state);
    if answer == AFTER_OTHERS {
        std::thread::sleep(GRACE_PERIOD);
    }
    Some(closed)
}

/// Whether there can be gates here.
pub fn is_available() -> bool {
    state().start()
}

/// Waits until nobody is under way any more who found a flag clear that this process had cleared; ends the keeper if
/// no gate is closed.
///
/// To be called before the process ends, for its gates end with it.
pub fn wait_for_late_openers() {
    let last = state().late.last().copied();
    if let Some((_, last)) = last {
        std::thread::sleep(GRACE_PERIOD.saturating_sub(last.elapsed()));
    }
    let mut state = state();
    if state.closed.is_empty() {
        state.end();
    }
}

/// Waits until whoever opens an inode is not taken any more for somebody who came in a window of this process.
///
/// `inode` is asked for only if there has been a window so shortly before.
pub fn wait_until_opens_pass(inode: impl FnOnce() -> Option<InodeId>) {
    if !state().is_late(None) {
        return;
    }
    let Some(inode) = inode() else { return };
    let begun = Instant::now();
    // As long as the keeper leaves a window open.
    while state().is_late(Some(inode)) && begun.elapsed() < LONGEST_WINDOW {
        std::thread::sleep(GRACE_PERIOD / 10);
    }
}

/// A closed gate.
#[derive(Debug)]
pub struct ClosedGate {
    inode: InodeId,
    keeper: u64,
}

impl ClosedGate {
    /// Waits until those have come to their rights who had opened the file before, to execute it.
    pub(crate) fn wait_for_executions(&self) {
        std::thread::sleep(GRACE_PERIOD);
    }

    /// Whether somebody was turned away since it was closed, or that is not known.
    pub(crate) fn was_tried(&self) -> bool {
        let mut state = state();
        state.number != self.keeper || state.ask(Request::WasTried(self.inode), None).is_ok_and(|a| a != NO)
    }
}

impl Drop for ClosedGate {
    fn drop(&mut self) {
        let mut state = state();
        if let Some(at) = state.closed.iter().position(|inode| *inode == self.inode) {
            state.closed.swap_remove(at);
        }
        state.late.retain(|(_, opened)| opened.elapsed() < GRACE_PERIOD);
        let now = Instant::now();
        state.late.push((self.inode, now));
        if state.number == self.keeper
            && let Some(begun) = state.keeper.as_ref().map(|keeper| keeper.begun)
        {
            let _ = state.send(Request::Open(self.inode, now - begun), None);
        }
    }
}

impl State {
    /// Whether a gate, or the one of this inode, is closed or has been in the grace period.
    fn is_late(&self, inode: Option<InodeId>) -> bool {
        let is_asked_for = |closed: InodeId| inode.is_none_or(|inode| inode == closed);
        self.closed.iter().any(|closed| is_asked_for(*closed))
            || (self.late.iter()).any(|(late, opened)| is_asked_for(*late) && opened.elapsed() < GRACE_PERIOD)
    }

    /// Whether there is a keeper; it is started if need be.
    fn start(&mut self) -> bool {
        if self.keeper.is_none() && self.failures < MAX_FAILURES {
            match Keeper::start() {
                Ok(keeper) => {
                    self.number += 1;
                    self.keeper = Some(keeper);
                }
                // What is missing will be missing.
                Err(_) => self.failures = MAX_FAILURES,
            }
        }
        self.keeper.is_some()
    }

    fn ask(&mut self, request: Request, file: Option<BorrowedFd<'_>>) -> io::Result<u8> {
        self.send(request, file)?;
        let answer = self.keeper.as_ref().map_or(Err(io::ErrorKind::NotConnected.into()), |keeper| {
            message::answered(&keeper.socket, PATIENCE)
        });
        answer.inspect_err(|_| self.fail())
    }

    fn send(&mut self, request: Request, file: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let sent = self.keeper.as_ref().map_or(Err(io::ErrorKind::NotConnected.into()), |keeper| {
            message::send(&keeper.socket, request, file)
        });
        sent.inspect_err(|_| self.fail())
    }

    /// The keeper is dead, or stopped: whoever waits for it goes on when its groups are closed.
    fn fail(&mut self) {
        self.failures += 1;
        self.end();
    }

    fn end(&mut self) {
        if let Some(keeper) = self.keeper.take() {
            process::kill_child(keeper.process);
        }
    }
}

impl Keeper {
    fn start() -> io::Result<Keeper> {
        let needed = [
            libc::SYS_fanotify_init,
            libc::SYS_fanotify_mark,
            libc::SYS_mlock,
            libc::SYS_pidfd_open,
            libc::SYS_pidfd_send_signal,
            libc::SYS_waitid,
            libc::SYS_setsid,
            libc::SYS_socketpair,
            libc::SYS_sendmsg,
            libc::SYS_recvmsg,
            libc::SYS_close_range,
            libc::SYS_prctl,
        ];
        if !needed.into_iter().all(filter::permits) {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        let (socket, theirs) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        // Before: the lists of what is loaded may be locked by another thread, which is missing in there.
        let program = process::program_memory();
        let begun = Instant::now();
        let pid = process::fork_among_threads(|| keeper::keep(&theirs, &program, begun))?;
        let process = process::open_pidfd(pid)?;
        drop(theirs);
        match message::answered(&socket, STARTING) {
            Ok(YES) => Ok(Keeper { socket, process, begun }),
            answer => {
                process::kill_child(process);
                answer.and(Err(io::ErrorKind::Unsupported.into()))
            }
        }
    }
}

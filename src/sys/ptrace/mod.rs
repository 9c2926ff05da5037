//! A seccomp filter for a process that waits for us and has not asked for one (`ptrace(2)`, `seccomp(2)`).
//!
//! Every process installs filters for itself alone. So the other one is stopped while it waits for a child, and makes
//! the system call by the very instruction that it waits in; then it waits again. Debuggers, and CRIU, run code in
//! other processes the same way.
//!
//! What it has on its stack is not changed, nor does it see a signal, a descriptor or a result that is not its own:
//!
//! - Signals that come meanwhile are held back by its mask, and come to it in its wait. `SIGSTOP` cannot be held back:
//!   then it is stopped as soon as we have let it go, and its parent is told at once.
//! - The wait is not patched up but made again and interrupted again, for on 64-bit Arm only the kernel knows what a
//!   signal would change about it. A child that has ended meanwhile is found by it.
//! - It sends us the listener by a socket (`unix(7)`, `SCM_RIGHTS`). Before it gets the filter, which nobody can take
//!   away again, it has sent us another descriptor in the same way.
//! - The listener is closed there as soon as we have it. Were it left open, then after our end whoever makes a call
//!   that is to be notified would wait for ever; so such calls fail with `ENOSYS`.
//!
//! A call of ours that fails there changes nothing: it gets its registers back. Only where we end while they are
//! changed, or cannot give them back, it is killed (`PTRACE_O_EXITKILL`): else it would take our result for that of its
//! wait. So where a filter of somebody else's may kill us, all of it is done with children of ours first.

#![allow(unsafe_code)]

mod channel;

use std::io::{self, ErrorKind, IoSlice, IoSliceMut, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::ptrace::{self, Options};
use nix::sys::uio::{RemoteIoVec, process_vm_readv, process_vm_writev};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use rustix::process::{PidfdFlags, Signal, WaitId, WaitIdOptions};

#[cfg(target_arch = "aarch64")]
#[path = "aarch64.rs"]
mod arch;
#[cfg(target_arch = "x86_64")]
#[path = "x86_64.rs"]
mod arch;

use self::arch::Registers;
use self::channel::{Channel, Image};
use super::process::{self, Processes, Status};
use crate::sys::process::signal;
use crate::sys::seccomp::filter;

/// How long a process may take to come to its wait, and then to stop.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long it may take for a system call of ours. It is killed after that, so nothing but a broken machine takes it.
const BOUND: Duration = Duration::from_secs(30);
/// How often it tries to send the listener, which has worked with another descriptor just before.
const TRIES: u32 = 100;
/// How long we look again at once before we sleep.
const SPIN: Duration = Duration::from_millis(1);

/// The system calls that wait for a child.
const WAITS: [libc::c_long; 2] = [libc::SYS_wait4, libc::SYS_waitid];
/// Bytes below the stack that functions may use without moving its end (the ABI of x86-64; none on Arm).
const RED_ZONE: u64 = 128;
/// Number of `CAP_SYS_ADMIN` in `linux/capability.h`.
const CAP_SYS_ADMIN: u32 = 21;
/// `PTRACE_EVENT_STOP` of `linux/ptrace.h`, as `waitid(2)` has it beside the signal.
const EVENT_STOP: i32 = libc::PTRACE_EVENT_STOP << 8;
/// A stop at a system call with `PTRACE_O_TRACESYSGOOD`.
const SYSTEM_CALL_STOP: i32 = libc::SIGTRAP | 0x80;

/// Installs a seccomp filter with a listener in the process `pid`, which waits for a child, and returns the listener.
///
/// `flags` are added to `SECCOMP_FILTER_FLAG_NEW_LISTENER`. The filter is for that process and the children it starts
/// from then on. `program` must let `close(2)` and `sendmsg(2)` pass.
///
/// At most `PATIENCE` is spent until the process waits; the calling process is sent a `SIGCHLD` whenever it stops.
/// Signals that end programs are held back meanwhile. Where the caller is killed all the same, the other process
///
/// - has noticed nothing, if it had not been changed yet;
/// - is killed, if it was about to make a call of ours or its wait again: for some hundred microseconds;
/// - has the filter without a listener, if we had let go of it: what is to be notified fails with `ENOSYS`.
///
/// The call is tried in a child of the caller first. So a process that the caller descends from is not even touched
/// where a filter it has already would kill it for this, where it has a listener, or where `program` is not valid.
///
/// # Errors
/// The process is as it was, if it is still there:
///
/// - `WouldBlock`: it does not wait for a child, or it is stopped;
/// - `Unsupported`: it has several threads, or runs a program for another machine;
/// - `ResourceBusy`: it is traced, or has a filter with a listener;
/// - `PermissionDenied`: we may not trace it; or it may not install filters, for want of `CAP_SYS_ADMIN` in its user
///   namespace and of `no_new_privs`; or a filter forbids this;
/// - `InvalidInput`: the kernel does not take `program` or `flags`, or `program` does not let `close(2)` or `sendmsg(2)`
///   pass;
/// - `NotFound`: it has ended;
/// - `TimedOut`: it does not come to a stop;
/// - others as from `process_vm_writev(2)`, `ptrace(2)`, `seccomp(2)`, `socket(2)`, `connect(2)` and `sendmsg(2)`.
///
/// With `BrokenPipe` alone it has the filter, and the listener is lost. It is killed where it does not get through a
/// system call in `BOUND`.
pub fn listen_in(pid: i32, program: &[libc::sock_filter], flags: libc::c_ulong) -> io::Result<OwnedFd> {
    listen_within(PATIENCE, pid, program, flags)
}

/// Whether [`listen_in`] could be done in the process `pid`, once it waits for a child.
///
/// Asks what lasts: threads, program, tracer and privileges of the process, what we may do with it, and what the
/// filters say that the calling process has. Nothing is done to the process.
///
/// # Errors
/// As [`listen_in`].
pub fn may_listen_in(pid: i32) -> io::Result<()> {
    untraced(&fit(&Processes::open()?, pid)?, pid)?;
    // A process that may read its memory may trace it (`PTRACE_MODE_ATTACH` of `linux/ptrace.h`). Nothing is at this address.
    let nothing = RemoteIoVec { base: 0, len: 1 };
    match process_vm_readv(Pid::from_raw(pid), &mut [IoSliceMut::new(&mut [0])], &[nothing]) {
        Ok(_) | Err(nix::errno::Errno::EFAULT) => {}
        Err(e) => return Err(if_ended(e)),
    }
    // But ptrace(2) as a whole may be forbidden.
    match ptrace::interrupt(Pid::from_raw(pid)) {
        Ok(()) | Err(nix::errno::Errno::ESRCH) => {}
        Err(e) => return Err(e.into()),
    }
    let allow = libc::BPF_RET | libc::BPF_K;
    let program = [libc::sock_filter { code: allow as u16, jt: 0, jf: 0, k: libc::SECCOMP_RET_ALLOW }];
    rehearse(&program, 0)?;
    rehearse_tracing(&program, 0)
}

fn listen_within(
    patience: Duration,
    pid: i32,
    program: &[libc::sock_filter],
    flags: libc::c_ulong,
) -> io::Result<OwnedFd> {
    let processes = Processes::open()?;
    let pidfd = open(pid)?;
    rehearse(program, flags)?;
    rehearse_tracing(program, flags)?;
    let deadline = Instant::now() + patience;
    let trace = || loop {
        match attempt(&processes, pidfd.as_fd(), pid, program, flags) {
            Err(e) if e.kind() == ErrorKind::WouldBlock && Instant::now() < deadline => {
                std::thread::sleep(SPIN);
            }
            done => return done,
        }
    };
    let _blocked = signal::block();
    // Only the thread that traces a process may do something with it, and it is let go when that thread ends, even
    // where it does not stop.
    std::thread::scope(|scope| {
        let tracer = std::thread::Builder::new().name("tracer".into()).spawn_scoped(scope, trace)?;
        tracer.join().unwrap_or_else(|_| Err(io::Error::other("tracing failed")))
    })
}

/// Installs the filter in a process that waits at this moment.
fn attempt(
    processes: &Processes,
    pidfd: BorrowedFd<'_>,
    pid: i32,
    program: &[libc::sock_filter],
    flags: libc::c_ulong,
) -> io::Result<OwnedFd> {
    untraced(&fit(processes, pid)?, pid)?;
    let waits = |number| WAITS.contains(&number);
    if !processes.system_call(pid)?.is_some_and(|call| waits(call.number)) {
        return Err(not_waiting(pid));
    }
    let mut target = Target::seize(pid, pidfd)?;
    target.halt()?;
    // Nobody else can have this number while this process is there.
    if target.has_ended() {
        return Err(ended());
    }
    fit(processes, pid)?;
    let saved = target.registers()?;
    let Some((_, at)) = arch::interrupted(&saved).filter(|&(number, _)| waits(number)) else {
        return Err(not_waiting(pid));
    };
    if target.read(at, arch::INSTRUCTION.len())? != arch::INSTRUCTION {
        return Err(not_waiting(pid));
    }

    let channel = Channel::open()?;
    let len = Image::new(0, program, channel.address())?.bytes.len() as u64;
    let room = arch::stack(&saved).saturating_sub(RED_ZONE + len) & !15;
    let image = Image::new(room, program, channel.address())?;
    let kept = target.read(room, image.bytes.len())?;
    target.write(room, &image.bytes)?;

    target.change()?;
    let listener =
        Caller { target: &mut target, saved: &saved, at }.send_listener(&image, &channel, flags)?;
    // Nobody needs what is below the stack; only a debugger would see any.
    let _ = target.write(room, &kept);
    target.run(&arch::again(&saved, at))?;
    target.restore()?;
    listener
}

/// Whether the process is one whose registers and memory we understand, and which may install a filter.
fn fit(processes: &Processes, pid: i32) -> io::Result<Status> {
    let status = processes.status(pid).map_err(if_ended)?;
    if status.threads != 1 {
        return Err(refusal(ErrorKind::Unsupported, format!("process {pid} has {} threads", status.threads)));
    }
    let mut head = [0; 20];
    std::fs::File::from(processes.program(pid).map_err(if_ended)?).read_exact(&mut head)?;
    if !is_native(&head) {
        return Err(refusal(
            ErrorKind::Unsupported,
            format!("process {pid} runs a program for another machine"),
        ));
    }
    if status.capabilities & 1 << CAP_SYS_ADMIN == 0 && !status.no_new_privileges {
        return Err(unprivileged());
    }
    Ok(status)
}

fn untraced(status: &Status, pid: i32) -> io::Result<()> {
    match status.tracer {
        0 => Ok(()),
        tracer => Err(refusal(ErrorKind::ResourceBusy, format!("process {pid} is traced by {tracer}"))),
    }
}

/// Whether this is the beginning of a program for the same machine and ABI as ours (`elf(5)`).
fn is_native(head: &[u8; 20]) -> bool {
    let machine = u16::from_ne_bytes([head[18], head[19]]);
    head.starts_with(b"\x7fELF") && head[4] == libc::ELFCLASS64 && machine == arch::MACHINE
}

/// Why a process stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stop {
    /// We asked for it, or a stop of its process group came or went.
    Event { signal: libc::c_int },
    /// It is about to make a system call.
    SystemCall,
    /// It is about to get a signal.
    Signal(libc::c_int),
}

/// How a process goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Resume {
    ToSystemCall,
    Freely,
    Detached,
}

/// A process that this thread traces.
///
/// Dropped, it goes on untraced, from the signal it had stopped for if there is one; it is killed if it is changed.
#[derive(Debug)]
struct Target<'fd> {
    pid: Pid,
    pidfd: BorrowedFd<'fd>,
    /// A signal it is to get when it goes on, or 0.
    signal: libc::c_int,
    /// Its own signal mask while it is changed.
    mask: Option<u64>,
}

impl<'fd> Target<'fd> {
    fn seize(pid: i32, pidfd: BorrowedFd<'fd>) -> io::Result<Target<'fd>> {
        let pid = Pid::from_raw(pid);
        ptrace::seize(pid, Options::PTRACE_O_TRACESYSGOOD).map_err(if_ended)?;
        Ok(Target { pid, pidfd, signal: 0, mask: None })
    }

    /// Stops it, on its way out of the system call that it is in.
    fn halt(&mut self) -> io::Result<()> {
        ptrace::interrupt(self.pid).map_err(if_ended)?;
        match self.stopped(PATIENCE)? {
            Stop::Event { signal: libc::SIGTRAP } => Ok(()),
            Stop::Event { .. } => {
                Err(refusal(ErrorKind::WouldBlock, format!("process {} is stopped", self.pid)))
            }
            // It goes to its handler. The stop that we asked for would come after that, or not at all.
            Stop::Signal(signal) => {
                self.signal = signal;
                Err(not_waiting(self.pid.as_raw()))
            }
            Stop::SystemCall => Err(not_waiting(self.pid.as_raw())),
        }
    }

    /// Waits until it has stopped.
    fn stopped(&self, patience: Duration) -> io::Result<Stop> {
        let (begun, mut naps) = (Instant::now(), 0);
        // Not its end, which its parent is to learn, and that may be this process.
        let options = WaitIdOptions::STOPPED | WaitIdOptions::NOHANG;
        let pid = rustix::process::Pid::from_raw(self.pid.as_raw()).ok_or(ErrorKind::InvalidInput)?;
        loop {
            match rustix::process::waitid(WaitId::Pid(pid), options) {
                Ok(Some(status)) => match status.trapping_signal() {
                    Some(SYSTEM_CALL_STOP) => return Ok(Stop::SystemCall),
                    Some(event) if event & !0xff == EVENT_STOP => {
                        return Ok(Stop::Event { signal: event & 0xff });
                    }
                    Some(signal) => return Ok(Stop::Signal(signal)),
                    None => {}
                },
                Ok(None) | Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::CHILD) => return Err(ended()),
                Err(e) => return Err(e.into()),
            }
            if self.has_ended() {
                return Err(ended());
            }
            // Naps, not time: we may have been stopped ourselves, or the whole machine.
            if begun.elapsed() < SPIN {
                std::thread::yield_now();
            } else if SPIN * naps < patience {
                std::thread::sleep(SPIN);
                naps += 1;
            } else {
                return Err(refusal(ErrorKind::TimedOut, format!("process {} does not stop", self.pid)));
            }
        }
    }

    fn has_ended(&self) -> bool {
        has_ended(self.pidfd, PollTimeout::ZERO)
    }

    fn resume(&mut self, how: Resume) -> io::Result<()> {
        let request = match how {
            Resume::ToSystemCall => libc::PTRACE_SYSCALL,
            Resume::Freely => libc::PTRACE_CONT,
            Resume::Detached => libc::PTRACE_DETACH,
        };
        let signal = libc::c_long::from(std::mem::take(&mut self.signal));
        // SAFETY: all of these take a signal and touch no memory of ours.
        let result = unsafe { libc::ptrace(request, self.pid.as_raw(), 0_usize, signal) };
        if result < 0 { Err(if_ended(io::Error::last_os_error())) } else { Ok(()) }
    }

    /// Lets it go on until it stops in the way that `how` leads to.
    fn until_stop(&mut self, how: Resume) -> io::Result<()> {
        loop {
            self.resume(how)?;
            match (how, self.stopped(BOUND)?) {
                (Resume::ToSystemCall, Stop::SystemCall) | (Resume::Freely, Stop::Event { .. }) => {
                    return Ok(());
                }
                // SIGSTOP, or one that a filter of its own forces on it.
                (_, Stop::Signal(signal)) => self.signal = signal,
                _ => {}
            }
        }
    }

    /// Lets it make the system call that it is about to make, and stops it on its way out.
    fn run(&mut self, registers: &Registers) -> io::Result<Registers> {
        ptrace::setregs(self.pid, *registers).map_err(if_ended)?;
        self.until_stop(Resume::ToSystemCall)?;
        // Taken as soon as the call is done or has been interrupted; no other stop comes before it.
        ptrace::interrupt(self.pid).map_err(if_ended)?;
        self.until_stop(Resume::Freely)?;
        self.registers()
    }

    fn registers(&self) -> io::Result<Registers> {
        ptrace::getregs(self.pid).map_err(if_ended)
    }

    fn read(&self, address: u64, len: usize) -> io::Result<Vec<u8>> {
        let mut content = vec![0; len];
        let remote = RemoteIoVec { base: address as usize, len };
        let read = process_vm_readv(self.pid, &mut [IoSliceMut::new(&mut content)], &[remote]);
        if read.map_err(if_ended)? == len { Ok(content) } else { Err(ErrorKind::UnexpectedEof.into()) }
    }

    fn write(&self, address: u64, content: &[u8]) -> io::Result<()> {
        let remote = RemoteIoVec { base: address as usize, len: content.len() };
        let written = process_vm_writev(self.pid, &[IoSlice::new(content)], &[remote]);
        if written.map_err(if_ended)? == content.len() { Ok(()) } else { Err(ErrorKind::WriteZero.into()) }
    }

    /// From here on it is killed with us, and gets no signals.
    fn change(&mut self) -> io::Result<()> {
        ptrace::setoptions(self.pid, Options::PTRACE_O_TRACESYSGOOD | Options::PTRACE_O_EXITKILL)
            .map_err(if_ended)?;
        self.mask = Some(self.signal_mask()?);
        self.set_signal_mask(!0)
    }

    /// It has its registers again, and gets its mask back.
    fn restore(&mut self) -> io::Result<()> {
        if let Some(mask) = self.mask {
            self.set_signal_mask(mask)?;
            ptrace::setoptions(self.pid, Options::PTRACE_O_TRACESYSGOOD).map_err(if_ended)?;
            self.mask = None;
        }
        Ok(())
    }

    fn signal_mask(&self) -> io::Result<u64> {
        let mut mask = 0_u64;
        let (pid, len) = (self.pid.as_raw(), size_of::<u64>());
        // SAFETY: writes a mask of that many bytes, which outlives the call.
        let result = unsafe { libc::ptrace(libc::PTRACE_GETSIGMASK, pid, len, &raw mut mask) };
        if result < 0 { Err(if_ended(io::Error::last_os_error())) } else { Ok(mask) }
    }

    fn set_signal_mask(&self, mask: u64) -> io::Result<()> {
        let (pid, len) = (self.pid.as_raw(), size_of::<u64>());
        // SAFETY: reads a mask of that many bytes, which outlives the call.
        let result = unsafe { libc::ptrace(libc::PTRACE_SETSIGMASK, pid, len, &raw const mask) };
        if result < 0 { Err(if_ended(io::Error::last_os_error())) } else { Ok(()) }
    }
}

impl Drop for Target<'_> {
    fn drop(&mut self) {
        // Either fails where it has ended. Where it runs, it is let go when this thread ends.
        if self.mask.is_some() {
            let _ = rustix::process::pidfd_send_signal(self.pidfd, Signal::KILL);
        } else {
            let _ = self.resume(Resume::Detached);
        }
    }
}

/// A process that makes system calls of ours.
struct Caller<'t, 'fd> {
    target: &'t mut Target<'fd>,
    saved: &'t Registers,
    /// Where the instruction is that makes them.
    at: u64,
}

impl Caller<'_, '_> {
    /// Has it install the filter and send the listener. It goes on whatever comes of that, but not of tracing it.
    fn send_listener(
        &mut self,
        image: &Image,
        channel: &Channel,
        flags: libc::c_ulong,
    ) -> io::Result<io::Result<OwnedFd>> {
        let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        let socket = match self.call(libc::SYS_socket, [libc::AF_UNIX as u64, kind as u64, 0])? {
            Ok(socket) => socket as u64,
            Err(e) => return Ok(Err(e)),
        };
        let sent = self.send_through(socket, image, channel, flags)?;
        // It cannot fail: `program` lets it pass.
        let _ = self.call(libc::SYS_close, [socket, 0, 0])?;
        Ok(sent)
    }

    fn send_through(
        &mut self,
        socket: u64,
        image: &Image,
        channel: &Channel,
        flags: libc::c_ulong,
    ) -> io::Result<io::Result<OwnedFd>> {
        let address = [socket, image.address, channel.address().len() as u64];
        if let Err(e) = self.call(libc::SYS_connect, address)? {
            return Ok(Err(e));
        }
        let connection = match channel.accept(self.target.pid.as_raw()) {
            Ok(connection) => connection,
            Err(e) => return Ok(Err(e)),
        };
        // First any descriptor: while nothing is changed that cannot be changed back.
        if let Err(e) = self.send(socket, socket, image)?.and_then(|()| connection.receive()) {
            return Ok(Err(e));
        }
        let mode = libc::c_ulong::from(libc::SECCOMP_SET_MODE_FILTER);
        let install = [mode, flags | libc::SECCOMP_FILTER_FLAG_NEW_LISTENER, image.filter];
        let listener = match self.call(libc::SYS_seccomp, install)? {
            Ok(listener) => listener as u64,
            Err(e) => return Ok(Err(of_seccomp(e))),
        };
        let mut sent = Err(ErrorKind::BrokenPipe.into());
        for _ in 0..TRIES {
            sent = self.send(socket, listener, image)?.and_then(|()| connection.receive());
            if sent.is_ok() {
                break;
            }
            std::thread::sleep(SPIN);
        }
        let listener_is = match sent {
            Ok(sent) if is_listener(sent.as_fd()) => Ok(sent),
            Ok(_) => return Ok(Err(pretended())),
            Err(e) => Err(refusal(ErrorKind::BrokenPipe, format!("the listener was lost: {e}"))),
        };
        let _ = self.call(libc::SYS_close, [listener, 0, 0])?;
        Ok(listener_is)
    }

    /// Has it send its descriptor `number`.
    fn send(&mut self, socket: u64, number: u64, image: &Image) -> io::Result<io::Result<()>> {
        self.target.write(image.descriptor, &(number as u32).to_ne_bytes())?;
        let flags = (libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT) as u64;
        Ok(self.call(libc::SYS_sendmsg, [socket, image.message, flags])?.map(drop))
    }

    /// Has it make a system call; what comes of it.
    fn call(&mut self, number: libc::c_long, arguments: [u64; 3]) -> io::Result<io::Result<i64>> {
        let after = self.target.run(&arch::calling(self.saved, self.at, number, arguments))?;
        Ok(match arch::result(&after, self.at) {
            None => Err(ErrorKind::Interrupted.into()),
            Some(error @ -4095..0) => Err(io::Error::from_raw_os_error(-error as i32)),
            Some(result) => Ok(result),
        })
    }
}

/// Does all of it between children of ours, where a filter may forbid any part of it.
fn rehearse_tracing(program: &[libc::sock_filter], flags: libc::c_ulong) -> io::Result<()> {
    if !filter::is_in_force() {
        return Ok(());
    }
    let tracer = process::fork(|| match trace_a_child(program, flags) {
        Ok(()) => 0,
        Err(e) => e.raw_os_error().unwrap_or(libc::EIO),
    })?;
    match process::wait(tracer)? {
        Some(0) => Ok(()),
        Some(error) => Err(io::Error::from_raw_os_error(error)),
        None => Err(refusal(ErrorKind::PermissionDenied, "a filter kills a process that traces another")),
    }
}

fn trace_a_child(program: &[libc::sock_filter], flags: libc::c_ulong) -> io::Result<()> {
    let own = std::process::id() as i32;
    let waiting = process::fork(|| {
        // Both end with this process.
        let until = process::open_pidfd(own);
        let end =
            process::fork(|| i32::from(until.is_ok_and(|end| has_ended(end.as_fd(), PollTimeout::NONE))));
        end.and_then(process::wait).ok().flatten().unwrap_or(0)
    })?;
    let (processes, pidfd, begun) = (Processes::open()?, open(waiting)?, Instant::now());
    loop {
        match attempt(&processes, pidfd.as_fd(), waiting, program, flags) {
            Err(e) if e.kind() == ErrorKind::WouldBlock && begun.elapsed() < PATIENCE => {
                std::thread::sleep(SPIN);
            }
            done => return done.map(drop),
        }
    }
}

/// Installs the filter in a child of ours that does nothing else, to learn whether it can be done.
fn rehearse(program: &[libc::sock_filter], flags: libc::c_ulong) -> io::Result<()> {
    let len = u16::try_from(program.len()).map_err(|_| ErrorKind::InvalidInput)?;
    let argument = libc::sock_fprog { len, filter: program.as_ptr().cast_mut() };
    // SAFETY: without flags this is fork(2), but no signal tells of the child's end, nor can another thread wait for
    // it by accident. The child makes nothing but system calls until it ends.
    let child = unsafe { libc::syscall(libc::SYS_clone, 0, 0, 0, 0, 0) };
    if child < 0 {
        return Err(io::Error::last_os_error());
    }
    if child == 0 {
        let code = install_here(&argument, flags);
        // SAFETY: ends the process.
        unsafe { libc::_exit(code) }
    }
    let child = Pid::from_raw(child as i32);
    let in_time = open(child.as_raw()).map(|pidfd| has_ended(pidfd.as_fd(), PollTimeout::from(5000_u16)));
    if !matches!(in_time, Ok(true)) {
        let _ = nix::sys::signal::kill(child, nix::sys::signal::Signal::SIGKILL);
    }
    let status = loop {
        match waitpid(child, Some(WaitPidFlag::__WALL)) {
            Err(nix::errno::Errno::EINTR) => {}
            status => break status?,
        }
    };
    match (in_time?, status) {
        (false, _) => {
            Err(refusal(ErrorKind::InvalidInput, "the filter does not let close(2) and sendmsg(2) pass"))
        }
        (true, WaitStatus::Exited(_, 0)) => Ok(()),
        (true, WaitStatus::Exited(_, code)) => Err(of_seccomp(io::Error::from_raw_os_error(code))),
        (true, _) => {
            Err(refusal(ErrorKind::PermissionDenied, "a filter kills a process that calls seccomp(2)"))
        }
    }
}

/// Installs the filter in the calling process, sends the listener to itself and closes it; 0 or an error number.
///
/// For a child of a process with several threads: makes nothing but system calls.
fn install_here(argument: &libc::sock_fprog, flags: libc::c_ulong) -> libc::c_int {
    let errno = || io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO);
    let pair = channel::pair();
    let flags = flags | libc::SECCOMP_FILTER_FLAG_NEW_LISTENER;
    // SAFETY: changes the calling process alone, which ends after this; the argument and its program outlive the call.
    let fd = unsafe {
        // Whether the privileges suffice is asked of the other process.
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, argument)
    };
    if fd < 0 {
        return errno();
    }
    // SAFETY: a descriptor that has just been opened; where it is none, nothing comes of it.
    let listener = unsafe { BorrowedFd::borrow_raw(fd as i32) };
    if !is_listener(listener) {
        return libc::ENOSYS;
    }
    if let Err(e) = pair.and_then(|pair| channel::pass(&pair, listener)) {
        return e.raw_os_error();
    }
    // SAFETY: nobody else has this descriptor.
    if unsafe { libc::close(fd as i32) } < 0 { libc::EINVAL } else { 0 }
}

/// Whether it is the listener of a seccomp filter (`seccomp_unotify(2)`).
fn is_listener(fd: BorrowedFd<'_>) -> bool {
    let nobody = 0_u64;
    // SAFETY: reads a number that outlives the call.
    let result =
        unsafe { libc::ioctl(fd.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_ID_VALID, &raw const nobody) };
    result == 0 || io::Error::last_os_error().raw_os_error() == Some(libc::ENOENT)
}

fn open(pid: i32) -> io::Result<OwnedFd> {
    let pid = rustix::process::Pid::from_raw(pid).ok_or(ErrorKind::InvalidInput)?;
    rustix::process::pidfd_open(pid, PidfdFlags::empty()).map_err(if_ended)
}

/// Whether the process has ended, or ends in time.
fn has_ended(pidfd: BorrowedFd<'_>, patience: PollTimeout) -> bool {
    poll(&mut [PollFd::new(pidfd, PollFlags::POLLIN)], patience).is_ok_and(|ready| ready > 0)
}

fn refusal(kind: ErrorKind, reason: impl Into<String>) -> io::Error {
    io::Error::new(kind, reason.into())
}

fn not_waiting(pid: i32) -> io::Error {
    refusal(ErrorKind::WouldBlock, format!("process {pid} does not wait for a child"))
}

fn ended() -> io::Error {
    refusal(ErrorKind::NotFound, "the process has ended")
}

fn unprivileged() -> io::Error {
    refusal(ErrorKind::PermissionDenied, "the process has neither CAP_SYS_ADMIN nor no_new_privs")
}

fn pretended() -> io::Error {
    refusal(ErrorKind::PermissionDenied, "seccomp(2) succeeded without a listener: a filter pretends it")
}

/// The error of a request about a process.
fn if_ended(error: impl Into<io::Error>) -> io::Error {
    let error = error.into();
    if error.raw_os_error() == Some(libc::ESRCH) { ended() } else { error }
}

fn of_seccomp(error: io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(libc::EACCES) => unprivileged(),
        Some(libc::EBUSY) => refusal(ErrorKind::ResourceBusy, "a filter with a listener is in place"),
        _ => error,
    }
}

#[cfg(test)]
mod tests;

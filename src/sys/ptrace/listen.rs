//! Installs a filter in another process, or asks whether that could be done.

use std::io::{self, ErrorKind, IoSliceMut};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::sys::ptrace;
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::unistd::Pid;

use super::attempt::{attempt, fit, untraced};
use super::refusal::if_ended;
use super::rehearsal::{rehearse, rehearse_tracing};
use super::target::{SPIN, STOP_TIMEOUT};
use crate::sys::process::{self, Processes, signal};

/// Installs a seccomp filter with a listener in the process `pid`, which waits for a child, and returns the listener.
///
/// `flags` are added to `SECCOMP_FILTER_FLAG_NEW_LISTENER`. The filter is for that process and the children it starts
/// from then on. `program` must let `close(2)` and `sendmsg(2)` pass.
///
/// At most two seconds is spent until the process waits; the calling process is sent a `SIGCHLD` whenever it stops.
/// Signals that end programs are held back meanwhile. If the caller is killed all the same, the other process
///
/// - has noticed nothing, if it had not been changed yet;
/// - is killed, if it was about to make a call of ours or its wait again: for some hundred microseconds;
/// - has the filter without a listener, if we had let go of it: what is to be notified fails with `ENOSYS`.
///
/// The call is tried in a child of the caller first. So a process that the caller descends from is not even touched
/// if a filter it has already would kill it for this, if it has a listener, or if `program` is not valid.
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
/// With `BrokenPipe` alone it has the filter, and the listener is lost. It is killed if it does not get through a
/// system call within 30 seconds.
pub fn listen_in(pid: i32, program: &[libc::sock_filter], flags: libc::c_ulong) -> io::Result<OwnedFd> {
    listen_within(STOP_TIMEOUT, pid, program, flags)
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

pub(super) fn listen_within(
    patience: Duration,
    pid: i32,
    program: &[libc::sock_filter],
    flags: libc::c_ulong,
) -> io::Result<OwnedFd> {
    let processes = Processes::open()?;
    let pidfd = process::open_pidfd(pid).map_err(if_ended)?;
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
    // if it does not stop.
    std::thread::scope(|scope| {
        let tracer = std::thread::Builder::new().name("tracer".into()).spawn_scoped(scope, trace)?;
        tracer.join().unwrap_or_else(|_| Err(io::Error::other("tracing failed")))
    })
}

//! The same between children of ours first: if a filter forbids any part of it, or kills whoever tries.

#![allow(unsafe_code)]

use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Instant;

use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use rustix::event::Timespec;

use super::attempt::attempt;
use super::channel::{self, is_listener};
use super::refusal::{of_seccomp, refusal};
use super::target::{SPIN, STOP_TIMEOUT};
use crate::sys::process::{self, Processes};
use crate::sys::seccomp::filter;

/// How long a child may take to install a filter in itself.
const REHEARSAL: Timespec = Timespec { tv_sec: 5, tv_nsec: 0 };

/// Does all of it between children of ours, if a filter may forbid any part of it.
pub(super) fn rehearse_tracing(program: &[libc::sock_filter], flags: libc::c_ulong) -> io::Result<()> {
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
        let end = process::fork(|| i32::from(until.is_ok_and(|end| process::has_ended(end, None))));
        end.and_then(process::wait).ok().flatten().unwrap_or(0)
    })?;
    let (processes, pidfd, begun) = (Processes::open()?, process::open_pidfd(waiting)?, Instant::now());
    loop {
        match attempt(&processes, pidfd.as_fd(), waiting, program, flags) {
            Err(e) if e.kind() == ErrorKind::WouldBlock && begun.elapsed() < STOP_TIMEOUT => {
                std::thread::sleep(SPIN);
            }
            done => return done.map(drop),
        }
    }
}

/// Installs the filter in a child of ours that does nothing else, to learn whether it can be done.
pub(super) fn rehearse(program: &[libc::sock_filter], flags: libc::c_ulong) -> io::Result<()> {
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
    let in_time =
        process::open_pidfd(child.as_raw()).map(|pidfd| process::has_ended(pidfd, Some(&REHEARSAL)));
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
    // Whether the privileges suffice is asked of the other process.
    let _ = rustix::thread::set_no_new_privs(true);
    // SAFETY: changes the calling process alone, which ends after this; the argument and its program outlive the call.
    let fd = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, argument) };
    if fd < 0 {
        return errno();
    }
    // SAFETY: a descriptor that has just been opened; if it is none, nothing comes of it.
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

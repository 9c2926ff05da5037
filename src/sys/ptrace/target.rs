//! A process that is traced: stopped, made to go on, its registers, memory and signal mask read and written.

#![allow(unsafe_code)]

use std::io::{self, ErrorKind, IoSlice, IoSliceMut};
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use nix::sys::ptrace::{self, Options};
use nix::sys::uio::{RemoteIoVec, process_vm_readv, process_vm_writev};
use nix::unistd::Pid;
use rustix::event::Timespec;
use rustix::process::{Signal, WaitId, WaitIdOptions};

use super::arch::Registers;
use super::refusal::{ended, if_ended, not_waiting, refusal};
use crate::sys::process;

/// How long a process may take to come to its wait, and then to stop.
pub(super) const STOP_TIMEOUT: Duration = Duration::from_secs(2);
/// How long it may take for a system call of ours. It is killed after that, so nothing but a broken machine takes it.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// How long we look again at once before we sleep, and how long we sleep.
pub(super) const SPIN: Duration = Duration::from_millis(1);
const NOW: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };

/// `PTRACE_EVENT_STOP` of `linux/ptrace.h`, as `waitid(2)` has it beside the signal.
const EVENT_STOP: i32 = libc::PTRACE_EVENT_STOP << 8;
/// A stop at a system call with `PTRACE_O_TRACESYSGOOD`.
const SYSTEM_CALL_STOP: i32 = libc::SIGTRAP | 0x80;

/// Why a process stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// We asked for it, or a stop of its process group came or went.
    Event { signal: libc::c_int },
    /// It is about to make a system call.
    SystemCall,
    /// It is about to get a signal.
    Signal(libc::c_int),
}

/// How a process goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Resume {
    ToSystemCall,
    Freely,
    Detached,
}

/// A process that this thread traces.
///
/// Dropped, it goes on untraced, from the signal it had stopped for if there is one; it is killed if it is changed.
#[derive(Debug)]
pub(super) struct Target<'fd> {
    pub(super) pid: Pid,
    pidfd: BorrowedFd<'fd>,
    /// A signal it is to get when it goes on, or 0.
    signal: libc::c_int,
    /// Its own signal mask while it is changed.
    mask: Option<u64>,
}

impl<'fd> Target<'fd> {
    pub(super) fn seize(pid: i32, pidfd: BorrowedFd<'fd>) -> io::Result<Target<'fd>> {
        let pid = Pid::from_raw(pid);
        ptrace::seize(pid, Options::PTRACE_O_TRACESYSGOOD).map_err(if_ended)?;
        Ok(Target { pid, pidfd, signal: 0, mask: None })
    }

    /// Stops it, on its way out of the system call that it is in.
    pub(super) fn halt(&mut self) -> io::Result<()> {
        ptrace::interrupt(self.pid).map_err(if_ended)?;
        match self.stopped(STOP_TIMEOUT)? {
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
    pub(super) fn stopped(&self, patience: Duration) -> io::Result<Stop> {
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

    pub(super) fn has_ended(&self) -> bool {
        process::has_ended(self.pidfd, Some(&NOW))
    }

    pub(super) fn resume(&mut self, how: Resume) -> io::Result<()> {
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
    pub(super) fn until_stop(&mut self, how: Resume) -> io::Result<()> {
        loop {
            self.resume(how)?;
            match (how, self.stopped(CALL_TIMEOUT)?) {
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
    pub(super) fn run(&mut self, registers: &Registers) -> io::Result<Registers> {
        ptrace::setregs(self.pid, *registers).map_err(if_ended)?;
        self.until_stop(Resume::ToSystemCall)?;
        // Taken as soon as the call is done or has been interrupted; no other stop comes before it.
        ptrace::interrupt(self.pid).map_err(if_ended)?;
        self.until_stop(Resume::Freely)?;
        self.registers()
    }

    pub(super) fn registers(&self) -> io::Result<Registers> {
        ptrace::getregs(self.pid).map_err(if_ended)
    }

    pub(super) fn read(&self, address: u64, len: usize) -> io::Result<Vec<u8>> {
        let mut content = vec![0; len];
        let remote = RemoteIoVec { base: address as usize, len };
        let read = process_vm_readv(self.pid, &mut [IoSliceMut::new(&mut content)], &[remote]);
        if read.map_err(if_ended)? == len { Ok(content) } else { Err(ErrorKind::UnexpectedEof.into()) }
    }

    pub(super) fn write(&self, address: u64, content: &[u8]) -> io::Result<()> {
        let remote = RemoteIoVec { base: address as usize, len: content.len() };
        let written = process_vm_writev(self.pid, &[IoSlice::new(content)], &[remote]);
        if written.map_err(if_ended)? == content.len() { Ok(()) } else { Err(ErrorKind::WriteZero.into()) }
    }

    /// From here on it is killed with us, and gets no signals.
    pub(super) fn change(&mut self) -> io::Result<()> {
        ptrace::setoptions(self.pid, Options::PTRACE_O_TRACESYSGOOD | Options::PTRACE_O_EXITKILL)
            .map_err(if_ended)?;
        self.mask = Some(self.signal_mask()?);
        self.set_signal_mask(!0)
    }

    /// It has its registers again, and gets its mask back.
    pub(super) fn restore(&mut self) -> io::Result<()> {
        if let Some(mask) = self.mask {
            self.set_signal_mask(mask)?;
            ptrace::setoptions(self.pid, Options::PTRACE_O_TRACESYSGOOD).map_err(if_ended)?;
            self.mask = None;
        }
        Ok(())
    }

    pub(super) fn signal_mask(&self) -> io::Result<u64> {
        let mut mask = 0_u64;
        let (pid, len) = (self.pid.as_raw(), size_of::<u64>());
        // SAFETY: writes a mask of that many bytes, which outlives the call.
        let result = unsafe { libc::ptrace(libc::PTRACE_GETSIGMASK, pid, len, &raw mut mask) };
        if result < 0 { Err(if_ended(io::Error::last_os_error())) } else { Ok(mask) }
    }

    pub(super) fn set_signal_mask(&self, mask: u64) -> io::Result<()> {
        let (pid, len) = (self.pid.as_raw(), size_of::<u64>());
        // SAFETY: reads a mask of that many bytes, which outlives the call.
        let result = unsafe { libc::ptrace(libc::PTRACE_SETSIGMASK, pid, len, &raw const mask) };
        if result < 0 { Err(if_ended(io::Error::last_os_error())) } else { Ok(()) }
    }
}

impl Drop for Target<'_> {
    fn drop(&mut self) {
        // Either fails if it has ended. If it runs, it is let go when this thread ends.
        if self.mask.is_some() {
            let _ = rustix::process::pidfd_send_signal(self.pidfd, Signal::KILL);
        } else {
            let _ = self.resume(Resume::Detached);
        }
    }
}

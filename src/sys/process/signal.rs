//! Signals blocked while names change, or ignored for good.

#![allow(unsafe_code)]

use nix::sys::signal::{SigSet, SigmaskHow, Signal};

/// Signals that are blocked until this is dropped.
#[derive(Debug)]
pub struct Blocked {
    /// The signal mask before; none if it could not be changed.
    previous: Option<SigSet>,
}

/// Blocks the signals that a person or a service manager ends or stops programs with.
///
/// Threads started meanwhile inherit it.
pub fn block() -> Blocked {
    let mut set = SigSet::empty();
    for signal in
        [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTERM, Signal::SIGPIPE, Signal::SIGTSTP]
    {
        set.add(signal);
    }
    Blocked { previous: set.thread_swap_mask(SigmaskHow::SIG_BLOCK).ok() }
}

/// Whether a blocked signal waits that will end this process, as soon as it is no longer blocked.
pub fn is_asked_to_end() -> bool {
    let mut pending = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigpending(2) fills the set, or fails.
    let pending = unsafe {
        if libc::sigpending(pending.as_mut_ptr()) != 0 {
            return false;
        }
        SigSet::from_sigset_t_unchecked(pending.assume_init())
    };
    [Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTERM].into_iter().any(|signal| pending.contains(signal))
}

/// Ignores the signals that end or stop programs, from now on.
pub fn ignore_termination() {
    for signal in [
        Signal::SIGHUP,
        Signal::SIGINT,
        Signal::SIGQUIT,
        Signal::SIGTERM,
        Signal::SIGPIPE,
        Signal::SIGTSTP,
        Signal::SIGTTIN,
        Signal::SIGTTOU,
        Signal::SIGALRM,
        Signal::SIGUSR1,
        Signal::SIGUSR2,
        // Then the call fails that goes beyond the limit.
        Signal::SIGXFSZ,
        Signal::SIGXCPU,
    ] {
        // SAFETY: no handler is installed.
        let _ = unsafe { nix::sys::signal::signal(signal, nix::sys::signal::SigHandler::SigIgn) };
    }
}

/// Ignores the signal for a file that becomes larger than this process may make it: then the call fails.
pub fn ignore_file_size_limit() {
    // SAFETY: no handler is installed.
    let _ = unsafe { nix::sys::signal::signal(Signal::SIGXFSZ, nix::sys::signal::SigHandler::SigIgn) };
}

impl Drop for Blocked {
    fn drop(&mut self) {
        if let Some(previous) = &self.previous {
            let _ = previous.thread_set_mask();
        }
    }
}

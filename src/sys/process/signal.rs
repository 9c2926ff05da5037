//! Signals held back while names change, or for good.

#![allow(unsafe_code)]

use nix::sys::signal::{SigSet, SigmaskHow, Signal};

/// Holds back the signals that a person or a service manager ends or stops programs with, until dropped.
///
/// Threads started meanwhile inherit it.
#[derive(Debug)]
pub struct Held(Option<SigSet>);

impl Held {
    /// Holds signals back from now on.
    pub fn back() -> Held {
        let mut set = SigSet::empty();
        for signal in [
            Signal::SIGHUP,
            Signal::SIGINT,
            Signal::SIGQUIT,
            Signal::SIGTERM,
            Signal::SIGPIPE,
            Signal::SIGTSTP,
        ] {
            set.add(signal);
        }
        Held(set.thread_swap_mask(SigmaskHow::SIG_BLOCK).ok())
    }
}

/// Ignores the signals that end or stop programs, from now on.
pub fn ignore() {
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
pub fn ignore_file_size() {
    // SAFETY: no handler is installed.
    let _ = unsafe { nix::sys::signal::signal(Signal::SIGXFSZ, nix::sys::signal::SigHandler::SigIgn) };
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(previous) = &self.0 {
            let _ = previous.thread_set_mask();
        }
    }
}

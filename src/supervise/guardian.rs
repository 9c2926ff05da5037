//! The process that is always there: it keeps the listener open while workers come and go.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::journal::{self, STATE_LOCK_TIMEOUT};
use super::options::Options;
use super::worker;
use crate::report::Reason;
use crate::sys::path::root::Root;
use crate::sys::process::signal;
use crate::sys::process::{self, ProcessId, Processes};
use crate::sys::seccomp::inflight::InFlight;
use crate::sys::seccomp::{Listener, Response};

/// A worker that lives shorter counts as failed.
const MIN_WORKER_LIFE: Duration = Duration::from_secs(1);
/// How many workers in a row may fail before no other is started.
const MAX_FAILURES: u32 = 5;

/// A guardian that has all it needs but a listener.
#[derive(Debug)]
pub struct Guardian {
    calls: InFlight,
    own: ProcessId,
}

impl Guardian {
    /// Makes the calling process a guardian.
    pub fn new() -> io::Result<Guardian> {
        signal::ignore_termination();
        let _ = rustix::process::chdir("/");
        let _ = rustix::thread::set_name(c"cow-run");
        process::avoid_oom_kill();
        process::raise_resource_limits();
        Ok(Guardian { calls: InFlight::new()?, own: Processes::open()?.own()?.id })
    }

    /// Serves a listener until nobody is supervised any more. `begun` is called when it listens.
    pub(crate) fn guard(&self, listener: OwnedFd, options: &Options, begun: impl FnOnce()) {
        let Ok(listener) = Listener::new(listener) else { return };
        begun();
        let mut failures = 0;
        while failures < MAX_FAILURES {
            let start = Instant::now();
            let worker = process::fork(|| worker::work(&listener, options, self.own, &self.calls));
            process::silence_stderr();
            if worker.and_then(process::wait).is_ok_and(|code| code == Some(0)) {
                return;
            }
            // Their protection speaks for itself, once it is there again.
            let in_order = is_in_order(self.own);
            let answer = if in_order { options.without_an_answer() } else { Response::Failed(Errno::PERM) };
            for id in self.calls.left() {
                let _ = listener.respond(id, answer);
            }
            failures = if start.elapsed() < MIN_WORKER_LIFE { failures + 1 } else { 0 };
        }
        log::error!(
            "the supervisor cannot continue: unified files stay protected, but are no longer made \
            private, so changes to them fail"
        );
        worker::let_all_pass(&listener);
    }
}

/// Whether what a dead worker had begun is ended now. In a process of its own, as the worker's work is.
fn is_in_order(owner: ProcessId) -> bool {
    let ended = process::fork(|| {
        let root = Root::open(Path::new("/")).map_err(journal::Error::from);
        match root.and_then(|root| journal::put_in_order(&root, owner, STATE_LOCK_TIMEOUT)) {
            Ok(()) => 0,
            Err(e) => {
                log::error!("{}; run `cow-prepare --recover`", Reason(e));
                1
            }
        }
    });
    ended.and_then(process::wait).is_ok_and(|code| code == Some(0))
}

//! A notified call, and what it takes to answer it.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::io::Errno;

use super::lookup::Lookup;
use crate::supervise::shared::Supervisor;
use crate::sys::process::task::Task;
use crate::sys::process::thread_root::ThreadRoot;
use crate::sys::seccomp::Call;

/// A call that waits, and what the thread that made it sees.
#[derive(Debug)]
pub struct WaitingCall<'a> {
    pub(super) supervisor: &'a Supervisor<'a>,
    pub(super) call: &'a Call,
    pub(super) task: &'a Task,
    pub(super) lookup: Lookup<'a>,
    pub(super) thread_root: &'a mut ThreadRoot,
}

impl<'a> WaitingCall<'a> {
    /// For a `call` of `task`, to whose `root` the calling thread was moved; `thread_root` is the root of the calling thread.
    pub fn new(
        supervisor: &'a Supervisor<'a>,
        call: &'a Call,
        task: &'a Task,
        root: Arc<OwnedFd>,
        thread_root: &'a mut ThreadRoot,
    ) -> WaitingCall<'a> {
        WaitingCall { supervisor, call, task, lookup: Lookup::new(task, root), thread_root }
    }

    /// Whether the caller still waits: else all we know of it may be another's.
    pub(super) fn waits(&self) -> io::Result<()> {
        if self.supervisor.listener.waits(self.call.id) { Ok(()) } else { Err(Errno::SRCH.into()) }
    }
}

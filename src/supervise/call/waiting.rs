//! A notified call, and what it takes to answer it.

use std::cell::OnceCell;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::io::Errno;

use super::lookup::Lookup;
use crate::supervise::shared::Supervisor;
use crate::sys::process::Status;
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
    status: OnceCell<Status>,
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
        let (lookup, status) = (Lookup::new(task, root), OnceCell::new());
        WaitingCall { supervisor, call, task, lookup, thread_root, status }
    }

    /// The caller's rights. Only a thread itself changes them (`commit_creds` of `kernel/cred.c`), and this one waits.
    pub(super) fn status(&self) -> io::Result<&Status> {
        if let Some(known) = self.status.get() {
            return Ok(known);
        }
        let read = self.task.status()?;
        Ok(self.status.get_or_init(|| read))
    }

    /// Whether the caller still waits: else all we know of it may be another's.
    pub(super) fn waits(&self) -> io::Result<()> {
        if self.supervisor.listener.waits(self.call.id) { Ok(()) } else { Err(Errno::SRCH.into()) }
    }
}

//! The end of a process that need not be a child of this one (`pidfd_open(2)`).

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags};

use super::table::{ProcessId, Processes};

/// A descriptor of a process, which can be polled for its end.
///
/// # Errors
/// `ESRCH` if there is no such process.
pub fn open_pidfd(pid: i32) -> io::Result<OwnedFd> {
    let pid = Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidInput)?;
    Ok(rustix::process::pidfd_open(pid, PidfdFlags::empty())?)
}

/// Whether a process has ended, or does within `timeout`; without one it is waited for.
pub fn has_ended(pidfd: impl AsFd, timeout: Option<&Timespec>) -> bool {
    poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], timeout).is_ok_and(|ready| ready > 0)
}

/// Kills a child, and waits for its end. `pidfd` is of the child: somebody else in this process may have waited for it.
pub fn kill_child(pidfd: impl AsFd) {
    let _ = rustix::process::pidfd_send_signal(&pidfd, rustix::process::Signal::KILL);
    let _ = rustix::process::waitid(
        rustix::process::WaitId::PidFd(pidfd.as_fd()),
        rustix::process::WaitIdOptions::EXITED,
    );
}

/// Waits for the end of a process that is no child of this one.
pub fn wait_for_end(id: ProcessId, processes: &Processes) -> io::Result<()> {
    let end = open_pidfd(id.pid)?;
    // Only now nobody else can have its number.
    if !id.is_alive(Some(processes)) {
        return Ok(());
    }
    loop {
        match poll(&mut [PollFd::new(&end, PollFlags::IN)], None) {
            Err(Errno::INTR) => {}
            done => return Ok(done.map(drop)?),
        }
    }
}

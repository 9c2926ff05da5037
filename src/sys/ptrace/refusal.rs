//! Why a filter is not installed in a process.

use std::io::{self, ErrorKind};

pub(super) fn refusal(kind: ErrorKind, reason: impl Into<String>) -> io::Error {
    io::Error::new(kind, reason.into())
}

pub(super) fn not_waiting(pid: i32) -> io::Error {
    refusal(ErrorKind::WouldBlock, format!("process {pid} does not wait for a child"))
}

pub(super) fn ended() -> io::Error {
    refusal(ErrorKind::NotFound, "the process has ended")
}

pub(super) fn unprivileged() -> io::Error {
    refusal(ErrorKind::PermissionDenied, "the process has neither CAP_SYS_ADMIN nor no_new_privs")
}

/// It has the filter, and its listener did not come to us.
#[derive(Debug, thiserror::Error)]
#[error("the listener was lost: {0}")]
struct LostListener(#[source] io::Error);

pub(super) fn lost(source: io::Error) -> io::Error {
    io::Error::new(ErrorKind::BrokenPipe, LostListener(source))
}

pub(super) fn pretended() -> io::Error {
    refusal(ErrorKind::PermissionDenied, "seccomp(2) succeeded without a listener: a filter pretends it")
}

/// The error of a request about a process.
pub(super) fn if_ended(error: impl Into<io::Error>) -> io::Error {
    let error = error.into();
    if error.raw_os_error() == Some(libc::ESRCH) { ended() } else { error }
}

pub(super) fn of_seccomp(error: io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(libc::EACCES) => unprivileged(),
        Some(libc::EBUSY) => refusal(ErrorKind::ResourceBusy, "a filter with a listener is in place"),
        _ => error,
    }
}

//! The same for an architecture whose registers are not known here.

use std::io;
use std::os::fd::OwnedFd;

/// Installs a seccomp filter with a listener in the process `pid`.
///
/// # Errors
/// Always [`Unsupported`](io::ErrorKind::Unsupported).
pub fn listen_in(_pid: i32, _program: &[libc::sock_filter], _flags: libc::c_ulong) -> io::Result<OwnedFd> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Whether [`listen_in`] could be done.
///
/// # Errors
/// Always [`Unsupported`](io::ErrorKind::Unsupported).
pub fn may_listen_in(_pid: i32) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

//! Read leases: the one cheap way to learn of writers (`F_SETLEASE`, `fcntl(2)`).

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

/// `F_SETSIG` of `asm-generic/fcntl.h`, which the libc crate does not name.
const F_SETSIG: libc::c_int = 10;

/// A read lease, held while nobody has opened the file for writing.
#[derive(Debug)]
pub struct Lease<'fd> {
    fd: BorrowedFd<'fd>,
}

impl<'fd> Lease<'fd> {
    /// Takes a read lease through `fd`, which must be open read-only.
    ///
    /// `None` if somebody has the file open for writing or mapped it from such a descriptor.
    ///
    /// # Errors
    /// `EINVAL` if the filesystem knows no leases; `EACCES` without ownership and `CAP_LEASE`.
    pub fn take(fd: BorrowedFd<'fd>) -> io::Result<Option<Lease<'fd>>> {
        // A broken lease is announced by a signal, and SIGIO would end the process. SIGURG is ignored by default.
        fcntl(fd, F_SETSIG, libc::SIGURG)?;
        match fcntl(fd, libc::F_SETLEASE, libc::F_RDLCK) {
            Ok(_) => Ok(Some(Lease { fd })),
            Err(e) if e.raw_os_error() == Some(libc::EAGAIN) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Whether nobody has tried to open the file for writing since the lease was taken.
    pub fn unbroken(&self) -> io::Result<bool> {
        Ok(fcntl(self.fd, libc::F_GETLEASE, 0)? == libc::F_RDLCK)
    }

    /// Whether nobody else has the file open, runs it, or is about to run it.
    ///
    /// A write lease is granted then, and given back at once (`check_conflicting_open` of `fs/locks.c`).
    pub(crate) fn is_alone(&self) -> bool {
        let granted = fcntl(self.fd, libc::F_SETLEASE, libc::F_WRLCK).is_ok();
        granted && fcntl(self.fd, libc::F_SETLEASE, libc::F_RDLCK).is_ok()
    }

    /// Whether somebody is about to open the file for writing, and has not come to the lease yet.
    pub(crate) fn is_wanted(&self) -> bool {
        // The kernel counts a writer first; then it grants no lease, not even the one that is held already.
        fcntl(self.fd, libc::F_SETLEASE, libc::F_RDLCK).is_err_and(|e| e.raw_os_error() == Some(libc::EAGAIN))
    }
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        // A lease that cannot be given back goes with the descriptor.
        let _ = fcntl(self.fd, libc::F_SETLEASE, libc::F_UNLCK);
    }
}

fn fcntl(fd: impl AsFd, command: libc::c_int, argument: libc::c_int) -> io::Result<libc::c_int> {
    // SAFETY: the descriptor is borrowed and open; these commands take an int and touch no memory of ours.
    let result = unsafe { libc::fcntl(fd.as_fd().as_raw_fd(), command, argument) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

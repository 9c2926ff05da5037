//! System calls of other processes that wait for us to decide (`seccomp_unotify(2)`).

#![allow(unsafe_code)]

pub mod calls;
pub mod filter;
pub mod inflight;
pub mod message;
pub mod program;

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

/// A flag of filters: calls that were received are interrupted by fatal signals alone (Linux 5.19).
pub const KILLABLE: libc::c_ulong = libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV;

/// Wakes the waiting task on the processor that answers (`SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP`, Linux 6.6).
const SYNC_WAKE_UP: libc::c_ulong = 1;

/// A system call that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    /// What the answer goes to.
    pub id: u64,
    /// The thread that waits, in our numbering; 0 if it is in none of our process namespaces.
    pub tid: i32,
    /// `AUDIT_ARCH_*`.
    pub audit: u32,
    /// Its number.
    pub number: u32,
    /// Its arguments, as they are in the registers.
    pub arguments: [u64; 6],
}

/// What becomes of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Response {
    /// The kernel carries it out, from the arguments as they are then.
    Continue,
    /// It was carried out, and returns this.
    Done(i64),
    /// It failed.
    Failed(Errno),
}

/// The filter's other end.
#[derive(Debug)]
pub struct Listener {
    fd: OwnedFd,
    /// Room the kernel wants for a call, in words.
    words: usize,
}

impl Listener {
    /// Takes over the descriptor of a listener.
    pub fn new(fd: OwnedFd) -> io::Result<Listener> {
        let mut sizes =
            libc::seccomp_notif_sizes { seccomp_notif: 0, seccomp_notif_resp: 0, seccomp_data: 0 };
        // SAFETY: the kernel fills in the structure, which lives through the call.
        let result =
            unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_GET_NOTIF_SIZES, 0, &raw mut sizes) };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        let bytes = usize::from(sizes.seccomp_notif).max(size_of::<libc::seccomp_notif>());
        // Older kernels wake on any processor: slower, not wrong.
        // SAFETY: an integer is passed by value.
        unsafe { libc::ioctl(fd.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SET_FLAGS, SYNC_WAKE_UP) };
        Ok(Listener { fd, words: bytes.div_ceil(8) })
    }

    /// Waits for the next call.
    ///
    /// # Errors
    /// `ENOENT` if the caller was killed meanwhile; `EINTR`.
    pub fn receive(&self) -> io::Result<Call> {
        let mut room = vec![0u64; self.words];
        // SAFETY: the buffer is zeroed, aligned for the structure, and has the size the kernel asked for.
        let result =
            unsafe { libc::ioctl(self.fd.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_RECV, room.as_mut_ptr()) };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has filled in the structure, and every pattern of bits is one of it.
        let notice = unsafe { room.as_ptr().cast::<libc::seccomp_notif>().read() };
        Ok(Call {
            id: notice.id,
            tid: notice.pid as i32,
            audit: notice.data.arch,
            number: notice.data.nr as u32,
            arguments: notice.data.args,
        })
    }

    /// Lets the call go on.
    ///
    /// # Errors
    /// `ENOENT` if nobody waits any more.
    pub fn respond(&self, id: u64, response: Response) -> io::Result<()> {
        let (val, error, flags) = match response {
            Response::Continue => (0, 0, libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32),
            Response::Done(value) => (value, 0, 0),
            Response::Failed(errno) => (0, -errno.raw_os_error(), 0),
        };
        let mut notice = libc::seccomp_notif_resp { id, val, error, flags };
        // SAFETY: the structure lives through the call.
        let result =
            unsafe { libc::ioctl(self.fd.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SEND, &raw mut notice) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Whether no process has the filter any more, or none has within `timeout`; without one that is waited for.
    pub fn has_hung_up(&self, timeout: Option<&Timespec>) -> bool {
        let mut polled = [PollFd::new(&self.fd, PollFlags::empty())];
        let _ = poll(&mut polled, timeout);
        polled[0].revents().contains(PollFlags::HUP)
    }

    /// Whether the caller still waits: only then its number is its own.
    pub fn waits(&self, id: u64) -> bool {
        // SAFETY: the number lives through the call.
        unsafe { libc::ioctl(self.fd.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_ID_VALID, &raw const id) == 0 }
    }

    /// Puts an open file of ours in the place of the caller's descriptor `number`.
    pub fn replace_fd(
        &self,
        id: u64,
        file: BorrowedFd<'_>,
        number: i32,
        close_on_exec: bool,
    ) -> io::Result<()> {
        let addfd = libc::seccomp_notif_addfd {
            id,
            flags: libc::SECCOMP_ADDFD_FLAG_SETFD as u32,
            srcfd: file.as_raw_fd() as u32,
            newfd: number as u32,
            newfd_flags: if close_on_exec { libc::O_CLOEXEC as u32 } else { 0 },
        };
        // SAFETY: the structure lives through the call; the kernel takes a reference of its own to the file.
        let result =
            unsafe { libc::ioctl(self.fd.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_ADDFD, &raw const addfd) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Puts the calling thread, and all it will start, behind a filter for good; returns the listener's descriptor.
///
/// # Errors
/// `EBUSY` if there is a listener already; `EACCES` without `CAP_SYS_ADMIN` in the user namespace; `ENOSYS` or
/// `EINVAL` on kernels that cannot.
pub fn install(program: &[libc::sock_filter]) -> io::Result<OwnedFd> {
    match try_install(program, KILLABLE) {
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => try_install(program, 0),
        installed => installed,
    }
}

fn try_install(program: &[libc::sock_filter], flags: libc::c_ulong) -> io::Result<OwnedFd> {
    let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_ptr().cast_mut() };
    // SAFETY: the kernel copies the program, which lives through the call and which it does not change.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            flags | libc::SECCOMP_FILTER_FLAG_NEW_LISTENER,
            &raw const filter,
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given us this descriptor; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

#[cfg(test)]
pub mod testing {
    //! Filters of somebody else's.

    /// Puts the calling thread behind a filter that does this with one system call.
    pub fn forbid(number: libc::c_long, action: u32) {
        let step = |code, k| libc::sock_filter { code: code as u16, jt: 0, jf: 0, k };
        let program = [
            step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0),
            libc::sock_filter { jf: 1, ..step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, number as u32) },
            step(libc::BPF_RET | libc::BPF_K, action),
            step(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW),
        ];
        let argument = libc::sock_fprog { len: 4, filter: program.as_ptr().cast_mut() };
        // SAFETY: the program is read, and outlives the call.
        unsafe {
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
            let mode = libc::SECCOMP_SET_MODE_FILTER;
            assert_eq!(libc::syscall(libc::SYS_seccomp, mode, 0, &raw const argument), 0);
        }
    }
}

//! Which system calls a filter forbids this process (`seccomp(2)`).
//!
//! A filter may let a call fail, or kill the process that makes it. So each call is tried in a child, with arguments that the kernel
//! refuses whoever asks, before this process needs it. If there is no filter, nothing is tried.

#![allow(unsafe_code)]

use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};

use rustix::fs::{Mode, OFlags};
use rustix::mm::{MapFlags, ProtFlags};

use crate::sys::procfs;

/// What a call is needed for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Need {
    /// Something is done better with it.
    Nothing,
    /// Supervision, by the supervisor or by the process that begins it.
    Supervising,
    /// Private copies; the supervisor makes them, too.
    Copying,
}

struct Probe {
    name: &'static str,
    number: libc::c_long,
    arguments: [u64; 6],
    need: Need,
}

/// No descriptor, no process, no flags there are.
const NONE: u64 = u64::MAX;
const FLAGS: u64 = 0xffff_ffff;

const fn probe(need: Need, name: &'static str, number: libc::c_long, first: &[u64]) -> Probe {
    let mut arguments = [0; 6];
    let mut at = 0;
    while at < first.len() {
        arguments[at] = first[at];
        at += 1;
    }
    Probe { name, number, arguments, need }
}

macro_rules! probes {
    ($($need:ident $name:ident $number:ident [$($argument:expr),*],)*) => {
        [$(probe(Need::$need, stringify!($name), libc::$number, &[$($argument),*])),*]
    };
}

/// Each fails with `EBADF`, `EFAULT`, `EINVAL` or `ESRCH`, or does nothing that outlives the child.
static PROBES: [Probe; 65] = probes![
    Supervising ptrace SYS_ptrace [libc::PTRACE_CONT as u64, NONE],
    Supervising seccomp SYS_seccomp [libc::SECCOMP_GET_NOTIF_SIZES as u64],
    Supervising seccomp SYS_seccomp
        [libc::SECCOMP_SET_MODE_FILTER as u64, libc::SECCOMP_FILTER_FLAG_NEW_LISTENER],
    Supervising process_vm_readv SYS_process_vm_readv [NONE, 0, 1, 0, 1],
    Supervising process_vm_writev SYS_process_vm_writev [NONE, 0, 1, 0, 1],
    Supervising pidfd_open SYS_pidfd_open [NONE],
    Supervising pidfd_send_signal SYS_pidfd_send_signal [NONE, NONE],
    Supervising waitid SYS_waitid [FLAGS],
    Supervising socket SYS_socket [libc::AF_UNIX as u64, (libc::SOCK_STREAM | libc::SOCK_CLOEXEC) as u64],
    Supervising socketpair SYS_socketpair [libc::AF_UNIX as u64, libc::SOCK_STREAM as u64],
    Supervising bind SYS_bind [NONE],
    Supervising listen SYS_listen [NONE],
    Supervising accept4 SYS_accept4 [NONE],
    Supervising connect SYS_connect [NONE],
    Supervising getsockname SYS_getsockname [NONE],
    Supervising getsockopt SYS_getsockopt [NONE],
    Supervising sendmsg SYS_sendmsg [NONE],
    Supervising recvmsg SYS_recvmsg [NONE],
    Supervising shutdown SYS_shutdown [NONE],
    Supervising close_range SYS_close_range [1, 0],
    Supervising setsid SYS_setsid [],
    Supervising prctl SYS_prctl [FLAGS],
    Supervising pipe2 SYS_pipe2 [],
    Supervising clock_nanosleep SYS_clock_nanosleep [FLAGS],
    Supervising prlimit64 SYS_prlimit64 [0, FLAGS],
    Supervising capget SYS_capget [],
    Supervising unshare SYS_unshare [libc::CLONE_FS as u64],
    Supervising fchdir SYS_fchdir [NONE],
    Supervising chroot SYS_chroot [],
    Supervising openat2 SYS_openat2 [NONE],
    Supervising statx SYS_statx [NONE, 0, 0, 0x8000_0000],
    Copying linkat SYS_linkat [NONE, 0, NONE, 0, FLAGS],
    Copying renameat SYS_renameat [NONE, 0, NONE],
    Copying renameat2 SYS_renameat2 [NONE, 0, NONE, 0, FLAGS],
    Copying unlinkat SYS_unlinkat [NONE, 0, FLAGS],
    Copying mkdirat SYS_mkdirat [NONE],
    Copying fchmod SYS_fchmod [NONE],
    Copying fchown SYS_fchown [NONE],
    Copying utimensat SYS_utimensat [NONE],
    Copying flistxattr SYS_flistxattr [NONE],
    Copying fgetxattr SYS_fgetxattr [NONE],
    Copying fsetxattr SYS_fsetxattr [NONE],
    Copying flock SYS_flock [NONE, libc::LOCK_SH as u64],
    Copying fcntl SYS_fcntl [NONE, libc::F_GETLEASE as u64],
    Copying ioctl SYS_ioctl [NONE, libc::FS_IOC_GETFLAGS],
    Copying ioctl SYS_ioctl [NONE, libc::FS_IOC_SETFLAGS],
    Copying fsync SYS_fsync [NONE],
    Copying fdatasync SYS_fdatasync [NONE],
    Copying syncfs SYS_syncfs [NONE],
    Copying ftruncate SYS_ftruncate [NONE],
    Copying pread64 SYS_pread64 [NONE],
    Copying pwrite64 SYS_pwrite64 [NONE],
    Copying fstatfs SYS_fstatfs [NONE],
    Nothing kcmp SYS_kcmp [NONE, NONE],
    Nothing fanotify_init SYS_fanotify_init [FLAGS],
    Nothing fanotify_mark SYS_fanotify_mark [NONE, FLAGS],
    Nothing name_to_handle_at SYS_name_to_handle_at [NONE, 0, 0, 0, FLAGS],
    Nothing open_by_handle_at SYS_open_by_handle_at [NONE],
    Nothing fsopen SYS_fsopen [0, FLAGS],
    Nothing fsconfig SYS_fsconfig [NONE, FLAGS],
    Nothing fsmount SYS_fsmount [NONE, FLAGS],
    Nothing copy_file_range SYS_copy_file_range [NONE, 0, NONE, 0, 0, FLAGS],
    Nothing mlock SYS_mlock [0, 0],
    Nothing clone3 SYS_clone3 [],
    Nothing sched_getaffinity SYS_sched_getaffinity [FLAGS, 0],
];

/// What became of a call in the child.
const BEGUN: u8 = 1;
const PERMITTED: u8 = 2;
const FORBIDDEN: u8 = 3;

type Results = [AtomicU8; PROBES.len()];

/// Whether this process is behind a filter, which may be one of ours.
pub(crate) fn is_in_force() -> bool {
    mode().or_else(mode_asked).is_none_or(|mode| mode != b'0')
}

/// The system call, by its name, that a filter forbids and supervision needs.
pub fn against_supervision() -> Option<&'static str> {
    against(Need::Supervising)
}

/// The system call, by its name, that a filter forbids and private copies need.
pub fn against_copies() -> Option<&'static str> {
    against(Need::Copying)
}

/// Whether this process may make a system call at all; only some are known here.
pub fn permits(number: libc::c_long) -> bool {
    results().is_none_or(|results| {
        let mut tried = PROBES.iter().zip(results).filter(|(probe, _)| probe.number == number);
        tried.all(|(_, result)| result.load(Ordering::Relaxed) == PERMITTED)
    })
}

fn against(need: Need) -> Option<&'static str> {
    let mut tried = PROBES.iter().zip(results()?);
    let found =
        tried.find(|(probe, result)| probe.need >= need && result.load(Ordering::Relaxed) != PERMITTED);
    found.map(|(probe, _)| probe.name)
}

/// What the filters say; none if there is no filter.
fn results() -> Option<&'static Results> {
    static RESULTS: OnceLock<Option<&'static Results>> = OnceLock::new();
    *RESULTS.get_or_init(|| if is_in_force() { Some(ask()) } else { None })
}

/// The first character of `Seccomp` in `/proc/self/status`.
fn mode() -> Option<u8> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let file = rustix::fs::open("/proc/thread-self/status", flags, Mode::empty()).ok()?;
    let mut text = [0; 4096];
    let length = rustix::io::read(file, &mut text).ok()?;
    procfs::value(&text[..length], "Seccomp")?.bytes().next()
}

/// The same if no procfs is mounted, from a child: a filter may kill the process that asks (`PR_GET_SECCOMP(2const)`).
fn mode_asked() -> Option<u8> {
    // SAFETY: it touches no memory.
    let code = in_child(|| unsafe { libc::prctl(libc::PR_GET_SECCOMP) }).ok()??;
    u8::try_from(code).ok().map(|code| b'0' + code)
}

fn ask() -> &'static Results {
    static NOTHING: Results = [const { AtomicU8::new(FORBIDDEN) }; PROBES.len()];
    let Ok(results) = shared() else { return &NOTHING };
    let (mut next, mut limit) = (0, true);
    while next < PROBES.len() {
        if ask_from(next, results, limit).is_err() {
            return &NOTHING;
        }
        // It was killed by what it had begun.
        match results.iter().position(|result| result.load(Ordering::SeqCst) == BEGUN) {
            Some(killer) => {
                results[killer].store(FORBIDDEN, Ordering::SeqCst);
                next = killer + 1;
            }
            // Or by the limit.
            None if limit && results[next].load(Ordering::SeqCst) == 0 => limit = false,
            None => break,
        }
    }
    results
}

/// Memory that this process and its children share.
fn shared() -> io::Result<&'static Results> {
    // SAFETY: a new mapping at an address of the kernel's choice touches no memory there is.
    let page = unsafe {
        rustix::mm::mmap_anonymous(
            std::ptr::null_mut(),
            size_of::<Results>(),
            ProtFlags::READ | ProtFlags::WRITE,
            MapFlags::SHARED,
        )?
    };
    // SAFETY: the mapping is zeroed, large enough, aligned to a page, and never unmapped; all access is atomic.
    Ok(unsafe { &*page.cast() })
}

/// Has a child make the calls from this one on.
///
/// With `limit`, a child that is killed leaves no core.
fn ask_from(first: usize, results: &Results, limit: bool) -> io::Result<()> {
    let ended = in_child(|| {
        let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        if limit {
            // SAFETY: the limit is read, and outlives the call.
            unsafe { libc::setrlimit(libc::RLIMIT_CORE, &raw const none) };
        }
        for (probe, result) in PROBES.iter().zip(results).skip(first) {
            result.store(BEGUN, Ordering::SeqCst);
            result.store(if is_permitted(probe) { PERMITTED } else { FORBIDDEN }, Ordering::SeqCst);
        }
        0
    });
    ended.map(drop)
}

/// Runs `work` in a child, which ends with the exit code it returns; none if a signal killed it. It makes nothing but
/// system calls.
fn in_child(work: impl FnOnce() -> libc::c_int) -> io::Result<Option<libc::c_int>> {
    // SAFETY: without flags this is fork(2), but no signal tells of the child's end, nor can another thread wait for
    // it by accident. The child makes nothing but system calls until it ends.
    let child = unsafe { libc::syscall(libc::SYS_clone, 0, 0, 0, 0, 0) };
    if child < 0 {
        return Err(io::Error::last_os_error());
    }
    if child == 0 {
        let code = work();
        // SAFETY: ends the process.
        unsafe { libc::_exit(code) }
    }
    loop {
        let mut status = 0;
        // SAFETY: the status is written to, and outlives the call.
        let ended = unsafe { libc::waitpid(child as i32, &raw mut status, libc::__WALL) };
        let error = io::Error::last_os_error();
        if ended == child as i32 {
            return Ok(libc::WIFEXITED(status).then(|| libc::WEXITSTATUS(status)));
        } else if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

fn is_permitted(probe: &Probe) -> bool {
    let [a, b, c, d, e, f] = probe.arguments;
    // SAFETY: no argument is the address of anything, and what is opened or changed is the child's, which ends.
    let result = unsafe { libc::syscall(probe.number, a, b, c, d, e, f) };
    // Another error than these is none of the kernel's. The last ones are of a process that has reached its limits.
    let errors = [
        libc::EBADF,
        libc::EFAULT,
        libc::EINVAL,
        libc::ESRCH,
        libc::EMFILE,
        libc::ENFILE,
        libc::ENOMEM,
        libc::ENOBUFS,
    ];
    result >= 0 || io::Error::last_os_error().raw_os_error().is_some_and(|error| errors.contains(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_filter_every_call_is_permitted() {
        let results = shared().unwrap();
        ask_from(0, results, true).unwrap();
        // These ask for a capability first.
        let privileged = ["fanotify_init", "open_by_handle_at", "fsopen", "fsmount", "mlock"];
        for (probe, result) in PROBES.iter().zip(results) {
            let result = result.load(Ordering::SeqCst);
            assert!(result == PERMITTED || privileged.contains(&probe.name), "{}: {result}", probe.name);
        }
    }

    #[test]
    fn without_procfs_the_kernel_tells_of_filters() {
        assert_eq!(mode_asked(), Some(b'0'));
        let behind = std::thread::spawn(|| {
            crate::sys::seccomp::testing::forbid(libc::SYS_kcmp, libc::SECCOMP_RET_KILL_PROCESS);
            let known = mode_asked();
            crate::sys::seccomp::testing::forbid(libc::SYS_prctl, libc::SECCOMP_RET_KILL_PROCESS);
            (known, mode_asked())
        });
        assert_eq!(behind.join().unwrap(), (Some(b'2'), None));
    }

    #[test]
    fn a_call_that_kills_is_found_and_so_are_those_after_it() {
        let forbidden = [
            (libc::SYS_kcmp, libc::SECCOMP_RET_KILL_PROCESS),
            (libc::SYS_prlimit64, libc::SECCOMP_RET_KILL_PROCESS),
            (libc::SYS_ptrace, libc::SECCOMP_RET_TRAP),
            (libc::SYS_statx, libc::SECCOMP_RET_ERRNO | libc::EACCES as u32),
            (libc::SYS_chroot, libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32),
        ];
        // The filter stays with this thread.
        let asked = std::thread::spawn(move || {
            assert!(!is_in_force());
            for (number, action) in forbidden {
                crate::sys::seccomp::testing::forbid(number, action);
            }
            assert!(is_in_force());
            ask()
        });
        let results = asked.join().unwrap();
        for (probe, result) in PROBES.iter().zip(results) {
            let expected = forbidden.iter().any(|(number, _)| *number == probe.number);
            assert_eq!(result.load(Ordering::SeqCst) == FORBIDDEN, expected, "{}", probe.name);
        }
    }
}

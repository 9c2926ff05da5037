//! The calling process: its children, its descriptors and its limits.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::fs::{Mode, OFlags};

/// Descriptors that a supervisor may have open at least.
const MIN_OPEN_FILES: u64 = 1024;

/// Runs `work` in a process of its own: in no session or group of the caller's, and no child of it.
///
/// Of the calling process only the calling thread goes on in there; it must be the only one.
pub fn spawn_detached(work: impl FnOnce()) -> io::Result<()> {
    let first = fork(|| {
        let _ = nix::unistd::setsid();
        let second = fork(|| {
            work();
            0
        });
        i32::from(second.is_err())
    })?;
    if wait(first)? == Some(0) { Ok(()) } else { Err(io::Error::other("no process could be started")) }
}

/// Runs `work` in a child, which ends with the exit code it returns; the child's number. As for [`spawn_detached`], there
/// must be no other thread.
pub fn fork(work: impl FnOnce() -> i32) -> io::Result<i32> {
    // SAFETY: there is no other thread, so no lock is held by one that is missing in the child.
    match unsafe { nix::unistd::fork() }? {
        nix::unistd::ForkResult::Parent { child } => Ok(child.as_raw()),
        nix::unistd::ForkResult::Child => {
            let code = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
            // SAFETY: ends the process at once: what else would run at its end is the parent's.
            unsafe { libc::_exit(code.unwrap_or(101)) }
        }
    }
}

/// As [`fork`], if other threads run. Returns the child's number.
///
/// Of the other threads only their locks are in the child, held for ever. So `work` must not write to the log, use standard
/// streams or start threads; memory it can have (`fork(3)` of the C library keeps that usable).
pub fn fork_among_threads(work: impl FnOnce()) -> io::Result<i32> {
    // SAFETY: the caller vouches that `work` waits for no lock of a thread that is missing.
    match unsafe { nix::unistd::fork() }? {
        nix::unistd::ForkResult::Parent { child } => Ok(child.as_raw()),
        nix::unistd::ForkResult::Child => {
            let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
            // SAFETY: ends the process at once: what else would run at its end is the parent's.
            unsafe { libc::_exit(0) }
        }
    }
}

/// The parts of memory that the program and its libraries were loaded into: address and length of each, in bytes.
pub fn program_memory() -> Vec<(usize, usize)> {
    unsafe extern "C" fn add(
        object: *mut libc::dl_phdr_info,
        _size: libc::size_t,
        found: *mut libc::c_void,
    ) -> libc::c_int {
        // SAFETY: the C library passes a valid object, and the pointer that it was given below.
        let (object, found) = unsafe { (&*object, &mut *found.cast::<Vec<(usize, usize)>>()) };
        if !object.dlpi_phdr.is_null() {
            // SAFETY: so many headers there are.
            let headers =
                unsafe { std::slice::from_raw_parts(object.dlpi_phdr, usize::from(object.dlpi_phnum)) };
            for header in headers.iter().filter(|header| header.p_type == libc::PT_LOAD) {
                let address = (object.dlpi_addr as usize).wrapping_add(header.p_vaddr as usize);
                found.push((address, header.p_memsz as usize));
            }
        }
        0
    }
    let mut found: Vec<(usize, usize)> = Vec::new();
    // SAFETY: the function has the type that is asked for; the pointer outlives the call.
    unsafe { libc::dl_iterate_phdr(Some(add), (&raw mut found).cast()) };
    found
}

/// Reads these parts of memory in, and keeps them there (`mlock(2)`).
pub fn lock_memory(parts: &[(usize, usize)]) -> io::Result<()> {
    for (address, length) in parts {
        // SAFETY: locking changes no memory; the kernel refuses what is not there.
        if unsafe { libc::mlock(*address as *const libc::c_void, *length) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Waits for the end of a child; its exit code, or none if a signal killed it.
pub fn wait(pid: i32) -> io::Result<Option<i32>> {
    use nix::sys::wait::{WaitStatus, waitpid};
    loop {
        match waitpid(nix::unistd::Pid::from_raw(pid), None) {
            Ok(WaitStatus::Exited(_, code)) => return Ok(Some(code)),
            Ok(WaitStatus::Signaled(..)) => return Ok(None),
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

/// Closes all descriptors but these; the standard ones lead to `/dev/null`, but for standard error if `talk` is set.
///
/// For a child that has just been forked: whoever owned the others must not use them any more.
pub fn close_all_but(kept: &[BorrowedFd<'_>], talk: bool) {
    let mut kept: Vec<u32> = kept.iter().map(|fd| fd.as_raw_fd() as u32).collect();
    kept.sort_unstable();
    if let Ok(null) = rustix::fs::open("/dev/null", OFlags::RDWR, Mode::empty()) {
        let _ = rustix::stdio::dup2_stdin(&null);
        let _ = rustix::stdio::dup2_stdout(null);
    }
    if !talk {
        silence_stderr();
    }
    let mut from = 3;
    for end in kept.into_iter().chain([u32::MAX]) {
        if end > from {
            // SAFETY: the caller vouches that nobody uses what is closed.
            unsafe {
                libc::syscall(libc::SYS_close_range, from, if end == u32::MAX { end } else { end - 1 }, 0)
            };
        }
        from = from.max(end.saturating_add(1));
    }
}

/// Redirects standard error to `/dev/null` from now on.
pub fn silence_stderr() {
    if let Ok(null) = rustix::fs::open("/dev/null", OFlags::RDWR, Mode::empty()) {
        let _ = rustix::stdio::dup2_stderr(null);
    }
}

/// Asks the kernel to kill every other process before this one when memory runs out.
pub fn avoid_oom_kill() {
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    if let Ok(file) = rustix::fs::open("/proc/self/oom_score_adj", flags, Mode::empty()) {
        let _ = rustix::io::write(&file, b"-1000");
    }
}

/// Raises the limits that would stop this process from copying a large file, as far as it may.
///
/// For a child of somebody else's process, whose limits are not about us (`getrlimit(2)`).
pub fn raise_resource_limits() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    for resource in [Resource::Fsize, Resource::As, Resource::Data, Resource::Cpu, Resource::Nofile] {
        let maximum = getrlimit(resource).maximum;
        // The kernel has no infinity of descriptors.
        let wanted =
            if resource == Resource::Nofile { maximum.map(|most| most.max(MIN_OPEN_FILES)) } else { None };
        let raised = setrlimit(resource, Rlimit { current: wanted, maximum: wanted });
        // Without CAP_SYS_RESOURCE the hard limit stays.
        let _ = raised.or_else(|_| setrlimit(resource, Rlimit { current: maximum, maximum }));
    }
}

/// How many descriptors this process may have open; none if there is no limit.
pub fn max_open_files() -> Option<u64> {
    rustix::process::getrlimit(rustix::process::Resource::Nofile).current
}

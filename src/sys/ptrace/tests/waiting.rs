//! A process that waits for a child, and what is seen of it.

#![allow(unsafe_code)]

use std::io::{self, ErrorKind, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::sys::process::{self, Processes};
use crate::sys::ptrace::arch::Registers;
use crate::sys::ptrace::attempt::WAITS;
use crate::sys::ptrace::target::Target;

/// What the processes of the tests ask the filter for.
pub(crate) const ASKED: libc::c_long = libc::SYS_getppid;
pub(crate) const ANSWER: i64 = 4242;

pub fn step(code: u32, k: u32) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt: 0, jf: 0, k }
}

/// Notifies of one system call.
pub(crate) fn notifying(number: libc::c_long) -> [libc::sock_filter; 4] {
    [
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0),
        libc::sock_filter { jf: 1, ..step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, number as u32) },
        step(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_USER_NOTIF),
        step(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW),
    ]
}

/// Waits for a notification, and answers it; `None` if nobody is left.
pub fn answer(listener: &OwnedFd, value: i64, error: i32) -> Option<libc::c_long> {
    let mut ready = [PollFd::new(listener, PollFlags::IN)];
    assert_eq!(poll(&mut ready, Some(&Timespec { tv_sec: 20, tv_nsec: 0 })), Ok(1), "nobody asks");
    if !ready[0].revents().contains(PollFlags::IN) {
        return None;
    }
    // SAFETY: zeroes are valid for both, and asked for by the kernel.
    let (mut question, mut response): (libc::seccomp_notif, libc::seccomp_notif_resp) =
        unsafe { std::mem::zeroed() };
    // SAFETY: written in its whole size, which outlives the call.
    if unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_RECV, &raw mut question) } < 0 {
        return None;
    }
    (response.id, response.val, response.error) = (question.id, value, error);
    // SAFETY: read in its whole size, which outlives the call.
    unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SEND, &raw mut response) };
    Some(libc::c_long::from(question.data.nr))
}

/// What a waiting process has seen, in memory that it shares with the test.
#[derive(Default)]
pub struct Seen {
    /// The child it started, the child that its wait found, and the exit code of that.
    pub started: AtomicI64,
    pub found: AtomicI64,
    pub code: AtomicI64,
    /// How often its wait ended with `EINTR`, or in another way that it should not.
    pub interrupted: AtomicI64,
    pub other: AtomicI64,
    /// How many signals its handler got.
    pub(crate) handled: AtomicI64,
    /// Whether the one that is to be killed has begun.
    pub begun: AtomicI64,
    /// What it got when it asked.
    pub answer: AtomicI64,
}

static SEEN: std::sync::atomic::AtomicPtr<Seen> = std::sync::atomic::AtomicPtr::new(std::ptr::null_mut());

/// A process that waits for a child, asks, and ends. It is single-threaded, as it was forked from a thread.
pub struct Waiting {
    pub pid: i32,
    pub seen: &'static Seen,
    /// The child of it ends when this is written to.
    pub end: std::fs::File,
}

impl Waiting {
    pub fn new() -> Waiting {
        Waiting::prepared(|| ())
    }

    /// `prepare` makes nothing but system calls.
    pub fn prepared(prepare: impl FnOnce()) -> Waiting {
        let waiting = Waiting::starting(|| {
            prepare();
            true
        });
        assert!(eventually(|| Processes::open()
            .unwrap()
            .system_call(waiting.pid)
            .is_ok_and(|call| call.is_some_and(|call| WAITS.contains(&call.number)))));
        waiting
    }

    /// Waits only if `prepare` says so; else it sleeps.
    pub(crate) fn starting(prepare: impl FnOnce() -> bool) -> Waiting {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let kind = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
        // SAFETY: new memory, of zeroes, which are valid; it is never unmapped.
        let seen: &'static Seen = unsafe {
            &*libc::mmap(std::ptr::null_mut(), size_of::<Seen>(), protection, kind, -1, 0).cast::<Seen>()
        };
        let mut pipe = [0; 2];
        // SAFETY: two descriptors are written, which outlive the call.
        assert_eq!(unsafe { libc::pipe2(pipe.as_mut_ptr(), libc::O_CLOEXEC) }, 0);
        // SAFETY: the child makes system calls alone, and counts in memory that is there.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            SEEN.store(std::ptr::from_ref(seen).cast_mut(), Ordering::Relaxed);
            // SAFETY: as above.
            unsafe {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                let child = libc::fork();
                if child == 0 {
                    libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                    libc::close(pipe[1]);
                    let mut code = 0_u8;
                    libc::read(pipe[0], (&raw mut code).cast(), 1);
                    libc::_exit(code.into());
                }
                seen.started.store(child.into(), Ordering::Relaxed);
                if !prepare() {
                    loop {
                        libc::pause();
                    }
                }
                let mut status = 0;
                let found = loop {
                    let found = libc::waitpid(child, &raw mut status, 0);
                    if found > 0 {
                        break found;
                    }
                    let is_interrupted = *libc::__errno_location() == libc::EINTR;
                    let counter = if is_interrupted { &seen.interrupted } else { &seen.other };
                    counter.fetch_add(1, Ordering::Relaxed);
                };
                seen.found.store(found.into(), Ordering::Relaxed);
                seen.code.store(libc::WEXITSTATUS(status).into(), Ordering::Relaxed);
                // A signal would interrupt it before it is answered.
                let mask = [!0_u64; 16];
                libc::sigprocmask(libc::SIG_SETMASK, mask.as_ptr().cast(), std::ptr::null_mut());
                let answer = libc::syscall(ASKED);
                let error = *libc::__errno_location();
                seen.answer.store(if answer < 0 { -i64::from(error) } else { answer }, Ordering::Relaxed);
                libc::_exit(17);
            }
        }
        assert!(pid > 0);
        // SAFETY: both were just opened, and are nobody else's.
        let [_, end] = pipe.map(|fd| unsafe { std::fs::File::from_raw_fd(fd) });
        Waiting { pid, seen, end }
    }

    pub fn signal(&self, signal: libc::c_int) {
        // SAFETY: touches no memory.
        assert_eq!(unsafe { libc::kill(self.pid, signal) }, 0);
    }

    pub fn descriptors(&self) -> Vec<std::path::PathBuf> {
        let entries = std::fs::read_dir(format!("/proc/{}/fd", self.pid)).unwrap();
        let mut all: Vec<_> = entries.map(|fd| std::fs::read_link(fd.unwrap().path()).unwrap()).collect();
        all.sort();
        all
    }

    /// The line of `/proc/PID/status` with this name.
    pub fn status(&self, name: &str) -> String {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid)).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(":"));
        line.unwrap().trim().to_owned()
    }

    /// All that it has of its own while it waits.
    pub fn state(&self) -> impl PartialEq + std::fmt::Debug + use<> {
        assert!(eventually(|| self.status("State") == "S (sleeping)"));
        let names = ["SigBlk", "SigCgt", "SigIgn", "TracerPid"];
        (self.descriptors(), names.map(|name| self.status(name)), format!("{:x?}", registers_of(self.pid)))
    }

    pub(crate) fn end_child(&mut self, code: u8) {
        // It fails if the process was killed, and its child with it.
        let _ = self.end.write_all(&[code]);
    }

    pub fn end(&self) -> ExitStatus {
        let mut status = 0;
        assert!(eventually(|| {
            // SAFETY: a status is written, which outlives the call.
            let ended = unsafe { libc::waitpid(self.pid, &raw mut status, libc::WNOHANG) };
            assert!(ended >= 0, "somebody else has waited for it");
            ended == self.pid
        }));
        ExitStatus::from_raw(status)
    }

    /// Lets its child end, answers, and looks at what it has seen.
    pub(crate) fn goes_on(&mut self, listener: &OwnedFd) {
        self.end_child(7);
        assert_eq!(answer(listener, ANSWER, 0), Some(ASKED));
        assert_eq!(self.end().code(), Some(17));
        self.found_its_child();
        assert_eq!(self.seen.answer.load(Ordering::Relaxed), ANSWER);
    }

    /// Lets its child end, and looks at what it has seen: not us.
    pub(crate) fn goes_on_alone(&mut self) {
        self.end_child(7);
        assert_eq!(self.end().code(), Some(17));
        self.found_its_child();
        assert_eq!(self.seen.answer.load(Ordering::Relaxed), i64::from(std::process::id()));
    }

    pub(crate) fn found_its_child(&self) {
        let [started, found] = [&self.seen.started, &self.seen.found].map(|pid| pid.load(Ordering::Relaxed));
        assert_eq!(found, started);
        assert_eq!(self.seen.code.load(Ordering::Relaxed), 7);
        assert_eq!(self.seen.other.load(Ordering::Relaxed), 0);
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        // SAFETY: touches no memory; nobody has waited for it if it is still there.
        unsafe {
            if libc::waitpid(self.pid, std::ptr::null_mut(), libc::WNOHANG) == 0 {
                libc::kill(self.pid, libc::SIGKILL);
                libc::waitpid(self.pid, std::ptr::null_mut(), 0);
            }
        }
    }
}

pub(crate) fn eventually(mut is_so: impl FnMut() -> bool) -> bool {
    let begun = Instant::now();
    loop {
        if is_so() {
            return true;
        }
        if begun.elapsed() > Duration::from_secs(20) {
            return false;
        }
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// Registers of a process as they are while it waits.
fn registers_of(pid: i32) -> Registers {
    let pidfd = process::open_pidfd(pid).unwrap();
    std::thread::scope(|scope| {
        let tracer = scope.spawn(|| {
            let mut target = Target::seize(pid, pidfd.as_fd()).unwrap();
            target.halt().unwrap();
            target.registers().unwrap()
        });
        tracer.join().unwrap()
    })
}

/// In the process that gets signals: counts them.
extern "C" fn count(_: libc::c_int) {
    // SAFETY: set before the handler, and never unmapped.
    unsafe { &*SEEN.load(Ordering::Relaxed) }.handled.fetch_add(1, Ordering::Relaxed);
}

pub fn handle(signal: libc::c_int, flags: libc::c_int) {
    // SAFETY: zeroes are valid, and the handler does what handlers may do.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = count as *const () as usize;
        action.sa_flags = flags;
        libc::sigaction(signal, &raw const action, std::ptr::null_mut());
    }
}

/// Numbers that look random, the same every time.
pub(crate) fn delays(longest: u64) -> impl Iterator<Item = Duration> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    std::iter::from_fn(move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        Some(Duration::from_micros(state % longest))
    })
}

pub fn spin(delay: Duration) {
    let begun = Instant::now();
    while begun.elapsed() < delay {
        std::hint::spin_loop();
    }
}

pub fn kind(result: io::Result<OwnedFd>) -> ErrorKind {
    result.expect_err("it was installed").kind()
}

//! With real processes, which wait for real children. To be run as root.

#![allow(unsafe_code)]

mod waiting;

use std::io::{self, ErrorKind, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use self::waiting::*;
use super::attempt::attempt;
use super::listen::listen_within;
use super::target::{STOP_TIMEOUT, Target};
use super::{listen_in, may_listen_in};
use crate::sys::process::{self, Processes};
use crate::sys::seccomp::testing::forbid;

#[test]
fn a_process_that_waits_gets_a_filter_and_notices_nothing() {
    let mut waiting = Waiting::new();
    let before = waiting.state();
    may_listen_in(waiting.pid).unwrap();
    assert_eq!(waiting.status("Seccomp_filters"), "0");
    let listener = listen_in(waiting.pid, &notifying(ASKED), 0).unwrap();
    assert_eq!(waiting.status("Seccomp_filters"), "1");
    assert_eq!(waiting.state(), before);
    waiting.goes_on(&listener);
    assert_eq!(waiting.seen.interrupted.load(Ordering::Relaxed), 0);
    assert_eq!(answer(&listener, 0, 0), None, "nobody is left");
}

#[test]
fn a_filter_may_notify_of_the_wait_itself() {
    let mut waiting = Waiting::new();
    let listener = listen_in(waiting.pid, &notifying(libc::SYS_wait4), 0).unwrap();
    assert_eq!(answer(&listener, 0, -libc::EINTR), Some(libc::SYS_wait4));
    waiting.end_child(7);
    let started = waiting.seen.started.load(Ordering::Relaxed);
    assert_eq!(answer(&listener, started, 0), Some(libc::SYS_wait4));
    assert_eq!(waiting.end().code(), Some(17));
    assert_eq!(waiting.seen.interrupted.load(Ordering::Relaxed), 1);
}

#[test]
fn no_signal_is_lost_nor_changes_the_wait() {
    for (round, restart) in [0, libc::SA_RESTART].into_iter().cycle().take(300).enumerate() {
        let mut waiting = Waiting::prepared(|| {
            let interval = libc::timeval { tv_sec: 0, tv_usec: 211 };
            let timer = libc::itimerval { it_interval: interval, it_value: interval };
            handle(libc::SIGRTMIN() + 3, restart);
            handle(libc::SIGWINCH, restart);
            handle(libc::SIGALRM, restart);
            if round % 3 == 0 {
                // SAFETY: the timer is read, and outlives the call.
                unsafe { libc::setitimer(libc::ITIMER_REAL, &raw const timer, std::ptr::null_mut()) };
            }
        });
        let sent = AtomicI64::new(0);
        let done = std::sync::atomic::AtomicBool::new(false);
        let listener = std::thread::scope(|scope| {
            scope.spawn(|| {
                for delay in delays(150) {
                    // Those that are not real-time signals come once for many.
                    waiting.signal(libc::SIGWINCH);
                    waiting.signal(libc::SIGRTMIN() + 3);
                    sent.fetch_add(1, Ordering::Relaxed);
                    if done.load(Ordering::Relaxed) {
                        break;
                    }
                    spin(delay);
                }
            });
            let listener = listen_in(waiting.pid, &notifying(ASKED), 0);
            done.store(true, Ordering::Relaxed);
            listener.unwrap()
        });
        assert!(eventually(|| waiting.status("SigPnd") == "0000000000000000"
            && waiting.status("ShdPnd") == "0000000000000000"
            || round % 3 == 0));
        waiting.goes_on(&listener);
        assert!(waiting.seen.handled.load(Ordering::Relaxed) > sent.load(Ordering::Relaxed));
        let interrupted = waiting.seen.interrupted.load(Ordering::Relaxed);
        assert_eq!(interrupted > 0, restart == 0, "{interrupted} times");
    }
}

#[test]
fn a_child_that_ends_meanwhile_is_found() {
    for delay in delays(700).take(300) {
        let waiting = Waiting::new();
        let mut end = waiting.end.try_clone().unwrap();
        let listener = std::thread::scope(|scope| {
            scope.spawn(move || {
                spin(delay);
                end.write_all(&[7]).unwrap();
            });
            listen_in(waiting.pid, &notifying(ASKED), 0)
        });
        match listener {
            Ok(listener) => assert_eq!(answer(&listener, ANSWER, 0), Some(ASKED)),
            Err(e) => assert!(matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::NotFound), "{e}"),
        }
        assert_eq!(waiting.end().code(), Some(17));
        waiting.found_its_child();
    }
}

#[test]
fn a_stopped_process_is_left_alone() {
    let mut waiting = Waiting::new();
    waiting.signal(libc::SIGSTOP);
    assert!(eventually(|| waiting.status("State").starts_with('T')));
    let result = listen_within(Duration::ZERO, waiting.pid, &notifying(ASKED), 0);
    assert_eq!(kind(result), ErrorKind::WouldBlock);
    assert!(eventually(|| waiting.status("State") == "T (stopped)"));
    assert_eq!(waiting.status("Seccomp_filters"), "0");
    waiting.signal(libc::SIGCONT);
    waiting.goes_on_alone();
}

#[test]
fn a_process_may_be_stopped_and_continued_at_any_moment() {
    for delay in delays(700).take(300) {
        let mut waiting = Waiting::prepared(|| handle(libc::SIGCONT, 0));
        let listener = std::thread::scope(|scope| {
            scope.spawn(|| {
                spin(delay);
                waiting.signal(libc::SIGSTOP);
                spin(delay / 2);
                waiting.signal(libc::SIGCONT);
                spin(delay / 2);
                waiting.signal(libc::SIGSTOP);
            });
            listen_within(Duration::from_millis(20), waiting.pid, &notifying(ASKED), 0)
        });
        assert!(eventually(|| waiting.status("State") == "T (stopped)"));
        waiting.signal(libc::SIGCONT);
        match listener {
            Ok(listener) => waiting.goes_on(&listener),
            Err(e) => {
                assert_eq!(e.kind(), ErrorKind::WouldBlock, "{e}");
                waiting.goes_on_alone();
            }
        }
        assert!((1..=2).contains(&waiting.seen.handled.load(Ordering::Relaxed)));
    }
}

#[test]
fn a_process_may_be_killed_at_any_moment() {
    for delay in delays(700).take(300) {
        let waiting = Waiting::new();
        let result = std::thread::scope(|scope| {
            scope.spawn(|| {
                spin(delay);
                waiting.signal(libc::SIGKILL);
            });
            listen_in(waiting.pid, &notifying(ASKED), 0)
        });
        match result {
            Ok(listener) => assert_eq!(answer(&listener, 0, 0), None),
            Err(e) => assert_eq!(e.kind(), ErrorKind::NotFound, "{e}"),
        }
        assert_eq!(waiting.end().signal(), Some(libc::SIGKILL));
    }
}

#[test]
fn the_caller_may_be_killed_at_any_moment() {
    // Unnoticed, killed with the caller, with the filter and without a listener.
    let mut outcomes = [0; 3];
    for delay in delays(600).take(10_000) {
        let mut waiting = Waiting::new();
        // SAFETY: the child opens files and allocates, which it may with this allocator (glibc's is whole after fork).
        let tracer = unsafe { libc::fork() };
        if tracer == 0 {
            waiting.seen.begun.store(1, Ordering::Relaxed);
            if let Ok(_listener) = attempt_alone(waiting.pid) {
                std::thread::sleep(Duration::from_secs(20));
            }
            // SAFETY: ends the process.
            unsafe { libc::_exit(1) }
        }
        while waiting.seen.begun.load(Ordering::Relaxed) == 0 {
            std::hint::spin_loop();
        }
        spin(delay);
        // SAFETY: touches no memory; the child is there until it is waited for.
        unsafe {
            libc::kill(tracer, libc::SIGKILL);
            libc::waitpid(tracer, std::ptr::null_mut(), 0);
        }
        waiting.end_child(7);
        let status = waiting.end();
        let outcome = if status.signal() == Some(libc::SIGKILL) {
            1
        } else {
            assert_eq!(status.code(), Some(17));
            waiting.found_its_child();
            match waiting.seen.answer.load(Ordering::Relaxed) {
                answer if answer == -i64::from(libc::ENOSYS) => 2,
                answer if answer == i64::from(std::process::id()) => 0,
                answer => panic!("{answer}"),
            }
        };
        outcomes[outcome] += 1;
        if outcomes.iter().sum::<i32>() >= 300 && outcomes.iter().all(|&count| count >= 3) {
            return;
        }
    }
    panic!("not everything has happened: {outcomes:?}");
}

/// All that is done to the process, without a thread.
fn attempt_alone(pid: i32) -> io::Result<OwnedFd> {
    attempt(&Processes::open()?, process::open_pidfd(pid)?.as_fd(), pid, &notifying(ASKED), 0)
}

#[test]
fn only_a_process_that_waits_is_touched() {
    let sleeping = Waiting::starting(|| false);
    let begun = Instant::now();
    assert_eq!(kind(listen_in(sleeping.pid, &notifying(ASKED), 0)), ErrorKind::WouldBlock);
    assert!(begun.elapsed() >= STOP_TIMEOUT);
    assert_eq!(sleeping.status("Seccomp_filters"), "0");
    may_listen_in(sleeping.pid).unwrap();
    assert_eq!(kind(listen_in(std::process::id() as i32, &notifying(ASKED), 0)), ErrorKind::Unsupported);
}

#[test]
fn a_process_that_is_about_to_wait_is_waited_for() {
    let mut waiting = Waiting::starting(|| {
        std::thread::sleep(Duration::from_millis(300));
        true
    });
    let listener = listen_in(waiting.pid, &notifying(ASKED), 0).unwrap();
    waiting.goes_on(&listener);
}

#[test]
fn a_process_that_is_traced_or_listened_to_is_left_alone() {
    let mut waiting = Waiting::new();
    let pidfd = process::open_pidfd(waiting.pid).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let _traced = Target::seize(waiting.pid, pidfd.as_fd()).unwrap();
            // Another thread than this one asks.
            for result in [
                may_listen_in(waiting.pid).map(|()| None),
                listen_in(waiting.pid, &notifying(ASKED), 0).map(Some),
            ] {
                assert_eq!(result.unwrap_err().kind(), ErrorKind::ResourceBusy);
            }
        });
    });
    assert!(eventually(|| waiting.status("TracerPid") == "0"));
    let listener = listen_in(waiting.pid, &notifying(ASKED), 0).unwrap();
    let before = waiting.state();
    assert_eq!(kind(listen_in(waiting.pid, &notifying(ASKED), 0)), ErrorKind::ResourceBusy);
    assert_eq!(waiting.state(), before);
    assert_eq!(waiting.status("Seccomp_filters"), "1");
    waiting.goes_on(&listener);
}

#[test]
fn privileges_are_asked_of_the_process_itself() {
    for privileged in [false, true] {
        let mut waiting = Waiting::prepared(|| {
            // SAFETY: no memory is touched. The system call: the function of libc tells all threads, and there
            // are none.
            unsafe {
                if privileged {
                    libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
                }
                libc::syscall(libc::SYS_setuid, 65534);
                libc::prctl(libc::PR_SET_PDEATHSIG, 0);
            }
        });
        let result = listen_in(waiting.pid, &notifying(ASKED), 0);
        assert_eq!(may_listen_in(waiting.pid).is_ok(), privileged);
        if privileged {
            waiting.goes_on(&result.unwrap());
        } else {
            assert_eq!(kind(result), ErrorKind::PermissionDenied);
            waiting.goes_on_alone();
        }
    }
}

#[test]
fn what_the_kernel_refuses_there_leaves_no_trace() {
    let mut waiting = Waiting::prepared(|| {
        let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: the limit is read, and outlives the call.
        unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const none) };
    });
    let before = waiting.state();
    let error = listen_in(waiting.pid, &notifying(ASKED), 0).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EMFILE));
    assert_eq!(waiting.state(), before);
    assert_eq!(waiting.status("Seccomp_filters"), "0");
    waiting.goes_on_alone();
}

#[test]
fn a_filter_that_cannot_be_is_found_out_before() {
    let mut waiting = Waiting::new();
    let falls_off = [step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0)];
    let too_long = vec![step(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW); 70_000];
    for (program, flags) in [
        (&falls_off[..], 0),
        (&[], 0),
        (&too_long[..], 0),
        (&too_long[..5000], 0),
        (&notifying(ASKED), 1 << 20),
        (&notifying(libc::SYS_close), 0),
    ] {
        assert_eq!(kind(listen_in(waiting.pid, program, flags)), ErrorKind::InvalidInput);
    }
    assert_eq!(waiting.status("Seccomp_filters"), "0");
    // The longest that the kernel takes needs 32 KiB of the stack.
    let listener = listen_in(waiting.pid, &too_long[..4096], 0).unwrap();
    drop(listener);
    waiting.goes_on_alone();
}

#[test]
fn a_filter_that_is_in_the_way_is_found_out_by_a_child() {
    for (action, error) in [
        (libc::SECCOMP_RET_ERRNO | libc::EPERM as u32, ErrorKind::PermissionDenied),
        (libc::SECCOMP_RET_ERRNO, ErrorKind::Unsupported),
        (libc::SECCOMP_RET_TRAP, ErrorKind::PermissionDenied),
        (libc::SECCOMP_RET_KILL_PROCESS, ErrorKind::PermissionDenied),
    ] {
        let mut waiting = Waiting::new();
        let pid = waiting.pid;
        // A thread of its own: the filter stays with it.
        let result = std::thread::spawn(move || {
            forbid(libc::SYS_seccomp, action);
            assert_eq!(may_listen_in(pid).unwrap_err().kind(), error);
            listen_in(pid, &notifying(ASKED), 0)
        });
        assert_eq!(kind(result.join().unwrap()), error, "{action:x}");
        waiting.goes_on_alone();
    }
}

#[test]
fn a_filter_that_is_in_the_way_of_tracing_is_found_out_by_children() {
    let calls = [
        libc::SYS_ptrace,
        libc::SYS_process_vm_writev,
        libc::SYS_socket,
        libc::SYS_accept4,
        libc::SYS_connect,
        libc::SYS_getsockopt,
        libc::SYS_sendmsg,
        libc::SYS_recvmsg,
        libc::SYS_waitid,
    ];
    for number in calls {
        for action in [libc::SECCOMP_RET_ERRNO | libc::EACCES as u32, libc::SECCOMP_RET_KILL_PROCESS] {
            let mut waiting = Waiting::new();
            let (pid, before) = (waiting.pid, waiting.state());
            let tried = std::thread::spawn(move || {
                forbid(number, action);
                listen_in(pid, &notifying(ASKED), 0).map(drop)
            });
            tried.join().unwrap().expect_err("it was installed");
            assert_eq!(waiting.state(), before, "{number} {action:x}");
            assert_eq!(waiting.status("Seccomp_filters"), "0");
            waiting.goes_on_alone();
        }
    }
}

#[test]
fn a_process_that_has_ended_is_not_found() {
    let waiting = Waiting::new();
    waiting.signal(libc::SIGKILL);
    assert!(eventually(|| waiting.status("State").starts_with('Z')));
    for _ in ["zombie", "gone"] {
        let is_not_found = |e: io::Error| e.kind() == ErrorKind::NotFound;
        assert!(may_listen_in(waiting.pid).is_err_and(is_not_found));
        assert!(listen_in(waiting.pid, &notifying(ASKED), 0).is_err_and(is_not_found));
        if Processes::open().unwrap().process(waiting.pid).is_ok() {
            waiting.end();
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[test]
fn a_program_for_another_machine_is_left_alone() {
    use std::os::unix::fs::PermissionsExt;
    // For 32-bit x86: mov $pause, %eax; int $0x80; jmp to the beginning.
    const CODE: [u8; 9] = [0xb8, 29, 0, 0, 0, 0xcd, 0x80, 0xeb, 0xf7];
    let mut program = b"\x7fELF\x01\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    let header = [0x0003_0002_u32, 1, 0x0804_8054, 52, 0, 0, 0x0020_0034, 1, 0];
    let segment = [1, 0, 0x0804_8000, 0x0804_8000, 0x100, 0x100, 5, 0x1000];
    program.extend(header.into_iter().chain(segment).flat_map(u32::to_le_bytes));
    program.extend(CODE);
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("wait");
    std::fs::write(&path, program).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    let mut child = Command::new(&path).spawn().expect("this kernel runs 32-bit programs");
    let pid = child.id() as i32;
    assert!(eventually(|| Processes::open().unwrap().system_call(pid).is_ok_and(|call| call.is_some())));
    assert_eq!(kind(listen_in(pid, &notifying(ASKED), 0)), ErrorKind::Unsupported);
    assert_eq!(may_listen_in(pid).unwrap_err().kind(), ErrorKind::Unsupported);
    child.kill().unwrap();
    child.wait().unwrap();
}

/// Not a test: the hook of the test below, which a shell waits for.
#[test]
fn hook_of_a_shell() {
    let Some(expected) = std::env::var_os("COW_HOOKS_TEST_OF_A_SHELL") else { return };
    // SAFETY: touches no memory.
    let shell = unsafe { libc::getppid() };
    let listener = listen_in(shell, &notifying(libc::SYS_uname), 0);
    let code = match &listener {
        Ok(_) if expected == "installed" => 7,
        Err(e) if e.kind() == ErrorKind::ResourceBusy && expected == "busy" => 8,
        _ => 9,
    };
    if let Ok(listener) = listener {
        // SAFETY: the child answers until nobody is left, which is nothing but system calls.
        let child = unsafe { libc::fork() };
        while child == 0 && answer(&listener, 0, -libc::EPERM).is_some() {}
    }
    std::process::exit(code);
}

#[test]
fn a_shell_goes_on_behind_the_filter_its_own_child_gave_it() {
    // What it descends from is tried first, as its filters are the child's.
    const SCRIPT: &str = r#"
        hook="$0 --exact $2::hook_of_a_shell"
        descriptors() { ls /proc/$$/fd >"$1"; }
        descriptors "$1/before"
        uname >/dev/null && echo "free"
        COW_HOOKS_TEST_OF_A_SHELL=installed $hook >/dev/null 2>&1; echo "$?"
        (exit 3); echo "$?"
        uname >/dev/null 2>&1 || echo "filtered"
        COW_HOOKS_TEST_OF_A_SHELL=busy $hook >/dev/null 2>&1; echo "$?"
        descriptors "$1/after"
        cmp "$1/before" "$1/after" && echo "same"
    "#;
    for shell in ["sh", "bash", "dash"] {
        let (program, directory) = (std::env::current_exe().unwrap(), tempfile::tempdir().unwrap());
        let (_, module) = module_path!().split_once("::").unwrap();
        let mut command = Command::new(shell);
        command.args(["-c", SCRIPT]).arg(program).arg(directory.path()).arg(module);
        let output = command.output().expect(shell);
        let output = String::from_utf8(output.stdout).unwrap();
        let lines: Vec<_> = output.lines().collect();
        assert_eq!(lines, ["free", "7", "3", "filtered", "8", "same"], "{shell}");
    }
}

//! `cow-run` among namespaces, tracers, other listeners, and where rights or room are missing.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Output;

use super::support::bed::{Bed, FIRST, start, with_shell};
use super::support::{program, set_immutable, text};

/// Asserts that the command succeeded and that the file is private now.
fn assert_served(bed: &Bed, output: &Output, name: &str) {
    assert!(output.status.success(), "{}", text(output));
    assert!(bed.is_private(name), "{name}: {}", text(output));
    bed.assert_clean();
}

/// Asserts that the command failed with these words, and that nothing changed.
fn assert_refused(bed: &Bed, output: &Output, words: &str) {
    assert!(!output.status.success(), "{}", text(output));
    assert!(text(output).contains(words), "{}", text(output));
    assert!(!bed.is_private("f000"));
    bed.assert_clean();
}

#[test]
#[ignore = "needs root"]
fn privileged_a_tracer_within_sees_its_program_as_ever() {
    let bed = Bed::new(1);
    let output = bed.script("exec strace -f -e trace=openat -o log sh -c '(echo x >>f000)'");
    assert_served(&bed, &output, "f000");
    let log = fs::read_to_string(bed.first("log")).unwrap();
    assert!(log.lines().any(|line| line.contains("f000") && !line.contains(" = -1")), "{log}");
}

#[test]
#[ignore = "needs root"]
fn privileged_within_a_tracer_it_serves() {
    let bed = Bed::new(1);
    let run = program("cow-run");
    let traced = ["strace", "-f", "-o", "log", run, "sh", "-c", "(echo x >>f000)"];
    assert_served(&bed, &start(&mut bed.command(&traced)).done(), "f000");
}

#[test]
#[ignore = "needs root"]
fn privileged_within_itself_the_outer_one_serves() {
    let bed = Bed::new(2);
    let run = program("cow-run");
    let output = bed.script(&format!("{run} sh -c 'echo x >>f000' && echo x >>f001"));
    assert_served(&bed, &output, "f000");
    assert!(bed.is_private("f001"));
}

#[test]
#[ignore = "needs root"]
fn privileged_in_a_user_namespace_it_says_why_it_cannot_serve() {
    let bed = Bed::new(1);
    let run = program("cow-run");
    let script = format!("{run} sh -c 'cat f000 && echo x >>f000'");
    let output = start(&mut bed.command(&["unshare", "-r", "sh", "-c", &script])).done();
    assert!(text(&output).contains("cow-run: "), "{}", text(&output));
    assert_refused(&bed, &output, "content of 0");
}

#[test]
#[ignore = "needs root"]
fn privileged_in_a_process_namespace_it_serves() {
    let bed = Bed::new(1);
    let run = program("cow-run");
    let words = ["unshare", "-mpf", "--mount-proc", run, "sh", "-c", "echo x >>f000"];
    assert_served(&bed, &start(&mut bed.command(&words)).done(), "f000");
}

#[test]
#[ignore = "needs root"]
fn privileged_a_process_namespace_within_is_served() {
    let bed = Bed::new(2);
    let inner = "echo x >>f000 && echo x >>/proc/self/cwd/f001";
    let output = bed.ran(&["unshare", "-mpf", "--mount-proc", "sh", "-c", inner]);
    assert_served(&bed, &output, "f000");
    assert!(bed.is_private("f001"));
}

#[test]
#[ignore = "needs root"]
fn privileged_a_mount_namespace_within_is_served() {
    let bed = Bed::new(2);
    let inner = "mkdir /var/lib/other && mount --bind . /var/lib/other && echo x >>/var/lib/other/f000 && \
                 mount --bind f001 /var/lib/file && echo x >>f001";
    fs::write(bed.filesystem.path().join("file"), "").unwrap();
    let output = bed.ran(&["unshare", "-m", "sh", "-c", inner]);
    assert_served(&bed, &output, "f000");
    assert!(bed.is_private("f001"));
}

#[test]
#[ignore = "needs root"]
fn privileged_a_user_namespace_within_is_served_by_the_one_outside() {
    let bed = Bed::new(2);
    let output = bed.ran(&["unshare", "-r", "sh", "-c", "echo x >>f000 && rm -f f001"]);
    assert_served(&bed, &output, "f000");
    assert!(!bed.first("f001").exists());
}

#[test]
#[ignore = "needs root"]
fn privileged_a_container_of_systemd_within_is_served() {
    let bed = Bed::new(2);
    with_shell(&bed.first(""), &["/usr/bin/mv"]);
    for directory in ["usr", "etc", "sys", "dev", "run", "tmp"] {
        fs::create_dir(bed.first(directory)).unwrap();
    }
    let script = "echo x >>/f000 && echo new >/new && mv -f /new /f001";
    let output = bed.ran(&[
        "systemd-nspawn",
        "--quiet",
        "--directory=.",
        "--register=no",
        "--keep-unit",
        "--as-pid2",
        "/bin/sh",
        "-c",
        script,
    ]);
    assert_served(&bed, &output, "f000");
    assert_eq!(fs::read_to_string(bed.first("f001")).unwrap(), "new\n");
}

#[test]
#[ignore = "needs root"]
fn privileged_a_chroot_within_is_served_with_and_without_proc() {
    let bed = Bed::new(2);
    with_shell(&bed.first(""), &[]);
    let output = bed.ran(&["chroot", FIRST, "/bin/sh", "-c", "echo x >>/f000"]);
    assert_served(&bed, &output, "f000");
    let script =
        "mount -t proc proc proc && exec chroot . /bin/sh -c 'cd proc/self/cwd/.. && echo x >>/f001'";
    let output = bed.ran(&["unshare", "-m", "sh", "-c", script]);
    assert_served(&bed, &output, "f001");
}

#[test]
#[ignore = "needs root"]
fn privileged_within_a_chroot_without_proc_it_serves() {
    let bed = Bed::new(1);
    let run = program("cow-run");
    with_shell(&bed.first(""), &[run]);
    let output =
        start(&mut bed.command(&["chroot", FIRST, "/bin/cow-run", "/bin/sh", "-c", "echo x >>/f000"])).done();
    assert_served(&bed, &output, "f000");
}

#[test]
#[ignore = "needs root"]
fn privileged_a_sandbox_within_is_served() {
    let bed = Bed::new(1);
    let sandbox = ["bwrap", "--bind", "/", "/", "--dev", "/dev", "--proc", "/proc", "--unshare-pid"];
    let output = bed.ran(&[&sandbox[..], &["sh", "-c", "echo x >>f000"]].concat());
    assert_served(&bed, &output, "f000");
}

#[test]
#[ignore = "needs root"]
fn privileged_a_set_id_program_within_gets_its_rights() {
    let bed = Bed::new(0);
    fs::copy("/usr/bin/id", bed.first("id")).unwrap();
    fs::set_permissions(bed.first("id"), fs::Permissions::from_mode(0o4755)).unwrap();
    let output = bed.ran(&["setpriv", "--reuid", "65534", "--clear-groups", "./id"]);
    assert!(text(&output).contains("uid=65534") && text(&output).contains("euid=0"), "{}", text(&output));
}

#[test]
#[ignore = "needs root"]
fn privileged_with_another_listener_the_command_is_not_run() {
    let bed = Bed::new(1);
    let run = program("cow-run");
    let act = bed.compiled("act.c");
    let output = start(&mut bed.command(&[&act, "listener", run, "sh", "-c", "echo ran >ran"])).done();
    assert_eq!(output.status.code(), Some(125), "{}", text(&output));
    assert!(!bed.first("ran").exists());
    assert_refused(&bed, &output, "another program already intercepts its system calls; ");
    bed.assert_over();
}

#[test]
#[ignore = "needs root"]
fn privileged_without_the_capability_the_command_is_not_run() {
    let bed = Bed::new(1);
    let run = program("cow-run");
    let words = ["setpriv", "--bounding-set", "-sys_admin", run, "sh", "-c", "echo ran >ran"];
    let output = start(&mut bed.command(&words)).done();
    assert_eq!(output.status.code(), Some(125), "{}", text(&output));
    assert!(!bed.first("ran").exists());
    assert_refused(&bed, &output, "CAP_SYS_ADMIN");
    bed.assert_over();
}

#[test]
#[ignore = "needs root"]
fn privileged_where_flags_cannot_be_changed_the_call_fails_and_it_says_why() {
    let bed = Bed::new(1);
    let run = program("cow-run");
    let words = ["setpriv", "--bounding-set", "-linux_immutable", run, "sh", "-c", "echo x >>f000"];
    let output = start(&mut bed.command(&words)).done();
    assert!(text(&output).contains("cow-run: "), "{}", text(&output));
    assert_refused(&bed, &output, "Operation not permitted");
}

#[test]
#[ignore = "needs root"]
fn privileged_where_no_room_is_left_the_call_fails_and_it_says_why() {
    for warm in [false, true] {
        let bed = Bed::new(2);
        if warm {
            assert!(bed.script("echo x >>f001").status.success());
            bed.assert_over();
        }
        bed.filesystem.fill();
        let output = bed.script("echo x >>f000");
        println!("warm {warm}: {}", text(&output));
        assert!(text(&output).contains("cow-run: "), "{}", text(&output));
        assert!(!output.status.success() && !bed.is_private("f000"));
        bed.assert_over();
        fs::remove_file(bed.filesystem.path().join("filler")).unwrap();
        bed.recover();
        bed.assert_clean();
        assert_served(&bed, &bed.script("echo x >>f000"), "f000");
    }
}

#[test]
#[ignore = "needs root"]
fn privileged_a_policy_without_protection_must_be_overruled() {
    let bed = Bed::with(1, false);
    let run = program("cow-run");
    let policy = bed.filesystem.path().join("etc/cow-hooks/cow-hooks.toml");
    fs::create_dir_all(policy.parent().unwrap()).unwrap();
    fs::write(policy, "protection = \"none\"\n").unwrap();
    let run_with = |option: &str| {
        let script =
            format!("mount --bind /var/lib/etc /etc && exec {run} {option} -- sh -c 'echo x >>f000'");
        start(&mut bed.command(&["unshare", "-m", "sh", "-c", &script])).done()
    };
    let output = run_with("-v");
    assert_eq!(output.status.code(), Some(125), "{}", text(&output));
    assert_refused(&bed, &output, "--unprotected");
    assert_served(&bed, &run_with("--unprotected"), "f000");
}

#[test]
#[ignore = "needs root"]
fn privileged_the_commands_limits_are_not_the_supervisors() {
    let bed = Bed::new(3);
    let run = program("cow-run");
    let large = bed.second("large");
    fs::write(&large, vec![b'x'; 1 << 20]).unwrap();
    fs::hard_link(&large, bed.first("large")).unwrap();
    set_immutable(&large, true);
    for (limit, name) in [("-Sf 1", "large"), ("-Sn 8", "f000"), ("-Sv 200000", "f001"), ("-St 1", "f002")] {
        let script = format!("ulimit {limit}; exec {run} chmod 700 {name}");
        let output = start(&mut bed.command(&["sh", "-c", &script])).done();
        assert!(output.status.success(), "{limit}: {}", text(&output));
        assert!(bed.is_private(name), "{limit}");
    }
    let output =
        start(&mut bed.command(&["sh", "-c", &format!("ulimit -Sf 7; {run} sh -c 'ulimit -f'")])).done();
    assert_eq!(output.stdout, b"7\n", "{}", text(&output));
    bed.assert_clean();
}

#[test]
#[ignore = "needs root"]
fn privileged_the_command_keeps_what_it_ignores() {
    let bed = Bed::new(0);
    let run = program("cow-run");
    let signals = |run: &[&str]| {
        let set = ["env", "--ignore-signal=USR2", "--block-signal=USR1"];
        let read = ["grep", "-E", "SigBlk|SigIgn", "/proc/self/status"];
        text(&start(&mut bed.command(&[&set[..], run, &read[..]].concat())).done())
    };
    assert_eq!(signals(&[run]), signals(&[]));
}

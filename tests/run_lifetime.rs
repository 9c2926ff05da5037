//! How long a supervisor lives, what its command sees of it, and what happens when it is killed.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;

use nix::sys::signal::Signal;

use super::support::bed::{Bed, PATIENCE, Running, file, send, start, wait_for};
use super::support::{files, program, text};

fn stdout(output: &std::process::Output) -> String {
    String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
}

#[test]
#[ignore = "needs root"]
fn privileged_a_daemon_outlives_the_command_and_is_served() {
    let bed = Bed::new(2);
    let daemon =
        "until [ -e go ]; do sleep 0.05; done; echo later >>f001; echo done >done; exec sleep infinity";
    let script = format!("echo now >>f000; (setsid sh -c '{daemon}' >daemon 2>&1 & echo $! >pid)");
    let output = bed.script(&script);
    assert!(output.status.success(), "{}", text(&output));
    assert!(!bed.is_private("f001") && !bed.supervisors().is_empty());
    fs::write(bed.first("go"), "").unwrap();
    wait_for("the daemon", || bed.first("done").exists());
    assert!(bed.is_private("f001"), "{}", fs::read_to_string(bed.first("daemon")).unwrap());
    bed.assert_clean();
    assert!(bed.worker().is_some(), "the daemon still runs");
    let pid = fs::read_to_string(bed.first("pid")).unwrap().trim().parse().unwrap();
    send(pid, Signal::SIGKILL);
    bed.assert_over();
}

#[test]
#[ignore = "needs root"]
fn privileged_the_supervisor_ends_with_its_command() {
    let bed = Bed::new(1);
    assert!(bed.script("echo x >>f000").status.success());
    bed.assert_over();
    bed.assert_clean();
    assert!(bed.is_private("f000"));
}

#[test]
#[ignore = "needs root"]
fn privileged_the_command_keeps_its_number_and_its_end() {
    let bed = Bed::new(0);
    let running = bed.cow_run(&["sh", "-c", "echo $$"]);
    let pid = running.pid();
    assert_eq!(stdout(&running.done()), pid.to_string());
    assert_eq!(bed.script("exit 42").status.code(), Some(42));
    assert_eq!(bed.script("kill -TERM $$").status.signal(), Some(libc::SIGTERM));
}

#[test]
#[ignore = "needs root"]
fn privileged_what_cannot_be_run_is_told_from_what_fails() {
    let bed = Bed::new(0);
    fs::write(bed.first("text"), "no program").unwrap();
    for (words, code) in [(&["--no-such-option"][..], 125), (&["./text"], 126), (&["./missing"], 127)] {
        let output = bed.ran(words);
        assert_eq!(output.status.code(), Some(code), "{words:?}: {}", text(&output));
        assert!(!output.stderr.is_empty());
    }
    bed.assert_over();
}

#[test]
#[ignore = "needs root"]
fn privileged_input_output_and_terminal_are_the_commands_own() {
    let bed = Bed::new(0);
    let run = program("cow-run");
    let piped = start(&mut bed.command(&["sh", "-c", "echo through | \"$1\" cat | cat", "sh", run])).done();
    assert_eq!(stdout(&piped), "through");
    let inner = format!("{run} sh -c 'tty && test -t 0 && test -t 1 && test -t 2 && echo terminal'");
    let output = start(&mut bed.command(&["script", "-qec", &inner, "/dev/null"])).done();
    assert!(
        stdout(&output).contains("/dev/pts/") && stdout(&output).ends_with("terminal"),
        "{}",
        text(&output)
    );
}

#[test]
#[ignore = "needs root"]
fn privileged_no_descriptor_leaks_into_the_command() {
    let bed = Bed::new(0);
    let bare = start(&mut bed.command(&["ls", "/proc/self/fd"])).done();
    assert_eq!(stdout(&bed.ran(&["ls", "/proc/self/fd"])), stdout(&bare));
}

#[test]
#[ignore = "needs root"]
fn privileged_a_reader_of_the_output_does_not_wait_for_the_supervisor() {
    let bed = Bed::new(0);
    let mut command =
        bed.command(&[program("cow-run"), "sh", "-c", "setsid sleep infinity >&- 2>&- & echo end"]);
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let (send, receive) = std::sync::mpsc::channel();
    std::thread::spawn(move || send.send(child.wait_with_output().unwrap()));
    let output = receive.recv_timeout(PATIENCE).expect("its output stays open");
    assert_eq!(stdout(&output), "end");
    assert!(bed.worker().is_some());
}

/// Appends to each file, again where that fails once, and says how often it failed.
const APPEND: &str = r#"
for number in $(seq 0 $(($1 - 1))); do
    name=f$(printf %03d "$number")
    ( echo x >>"$name" ) 2>/dev/null || { echo "again $name"; echo x >>"$name" || exit 1; }
    echo "$name"
done"#;

#[test]
#[ignore = "needs root"]
fn privileged_a_worker_killed_between_calls_is_missed_by_nobody() {
    let bed = Bed::new(2);
    let running =
        bed.cow_run(&["sh", "-c", "echo x >>f000; until [ -e go ]; do sleep 0.05; done; echo x >>f001"]);
    wait_for("the first file", || bed.is_private("f000"));
    let killed = bed.kill_worker(&[]);
    wait_for("another worker", || bed.worker().is_some_and(|worker| worker != killed));
    fs::write(bed.first("go"), "").unwrap();
    let output = running.done();
    assert!(output.status.success(), "{}", text(&output));
    assert!(bed.is_private("f001"));
    bed.assert_over();
    bed.assert_clean();
}

#[test]
#[ignore = "needs root"]
fn privileged_a_worker_killed_during_calls_costs_one_call_at_most() {
    let bed = Bed::new(60);
    let mut running = bed.cow_run(&["sh", "-c", APPEND, "sh", "60"]);
    let mut killed = Vec::new();
    for lines in [1, 15, 30, 45] {
        running.wait_for_lines(lines);
        killed.push(bed.kill_worker(&killed));
    }
    let output = running.done();
    assert!(output.status.success(), "{}", text(&output));
    let again = stdout(&output).lines().filter(|line| line.starts_with("again")).count();
    println!("{again} calls failed once, with {} workers killed", killed.len());
    assert!(again <= killed.len());
    assert!((0..60).all(|number| bed.is_private(&file(number))));
    bed.assert_over();
    bed.recover();
    bed.assert_clean();
}

#[test]
#[ignore = "needs root"]
fn privileged_without_the_guardian_the_worker_goes_on() {
    let bed = Bed::new(2);
    let running =
        bed.cow_run(&["sh", "-c", "echo x >>f000; until [ -e go ]; do sleep 0.05; done; echo x >>f001"]);
    wait_for("the first file", || bed.is_private("f000"));
    let guardian = bed.guardian().unwrap();
    send(guardian, Signal::SIGKILL);
    wait_for("its death", || bed.supervisors().iter().all(|(pid, _)| *pid != guardian));
    fs::write(bed.first("go"), "").unwrap();
    let output = running.done();
    assert!(output.status.success(), "{}", text(&output));
    assert!(bed.is_private("f001"));
    bed.assert_over();
    bed.assert_clean();
}

#[test]
#[ignore = "needs root"]
fn privileged_without_any_supervisor_calls_that_change_files_fail() {
    let bed = Bed::new(3);
    let script = "echo x >>f000; until [ -e go ]; do sleep 0.05; done; cat f001; echo x >>f001 || true; chmod 700 f002";
    let running = bed.cow_run(&["sh", "-c", script]);
    wait_for("the first file", || bed.is_private("f000"));
    bed.kill_both();
    fs::write(bed.first("go"), "").unwrap();
    let output = running.done();
    assert!(!output.status.success());
    assert_eq!(stdout(&output), "content of 1");
    assert_eq!(text(&output).matches("not implemented").count(), 2, "{}", text(&output));
    assert!(!bed.is_private("f001") && !bed.is_private("f002"));
    bed.recover();
    bed.assert_clean();
}

const FILES: usize = 300;

/// Asserts that each file has a name unless it was removed, and that the other guest has nothing to complain about.
fn assert_in_order(bed: &Bed, said: &str) {
    let done: Vec<bool> = said.lines().map(|line| line.ends_with(" done")).collect();
    let began = said.lines().count();
    for number in 0..FILES {
        let exists = bed.first(file(number)).exists();
        // The call that the worker died in may have been carried out.
        let is_open = number == began || done.get(number) == Some(&false);
        match number % 4 == 3 && number <= began {
            true if done.get(number) == Some(&true) => assert!(!exists, "{number} is still there"),
            true if is_open => {}
            _ => assert!(exists, "{number} is missing"),
        }
        if done.get(number) == Some(&true) && number % 4 != 3 {
            assert!(bed.is_private(&file(number)), "{number} is still shared");
        }
    }
    bed.assert_clean();
}

#[test]
#[ignore = "needs root"]
fn privileged_workers_killed_among_many_files_leave_them_in_order() {
    let bed = Bed::new(FILES);
    let act = bed.compiled("act.c");
    let mut running = bed.cow_run(&[&act, "work", &FILES.to_string()]);
    let mut killed = Vec::new();
    for lines in [3, 70, 150, 260] {
        running.wait_for_lines(lines);
        killed.push(bed.kill_worker(&killed));
    }
    let output = running.done();
    let said = stdout(&output);
    let failed: Vec<_> = said.lines().filter(|line| !line.ends_with(" done")).collect();
    println!("{failed:?} failed, with {} workers killed", killed.len());
    assert!(output.status.success() && said.lines().count() == FILES, "{}", text(&output));
    // The worker may have been killed between its change of a name and its answer.
    let is_expected = |line: &&str| line.ends_with(" EPERM") || line.ends_with(" ENOENT");
    assert!(failed.len() <= killed.len() && failed.iter().all(is_expected));
    bed.assert_over();
    bed.recover();
    assert_in_order(&bed, &said);
}

#[test]
#[ignore = "needs root"]
fn privileged_a_supervisor_killed_at_any_moment_is_recovered_from() {
    for lines in [1, 37, 111, 222] {
        let bed = Bed::new(FILES);
        let act = bed.compiled("act.c");
        let mut running = bed.cow_run(&[&act, "work", &FILES.to_string()]);
        running.wait_for_lines(lines);
        bed.kill_both();
        let said = stdout(&running.done());
        let failed: Vec<_> = said.lines().filter(|line| !line.ends_with(" done")).collect();
        println!("killed after {} files", FILES - failed.len());
        assert!(failed.iter().all(|line| line.ends_with("ENOSYS")), "{failed:?}");
        let protected = files(&bed.second("")).values().filter(|seen| seen.immutable).count();
        println!("{} of {FILES} unprotected before recovery", FILES - protected);
        bed.recover();
        assert_in_order(&bed, &said);
    }
}

#[test]
#[ignore = "needs root"]
fn privileged_a_crowd_killed_while_it_waits_holds_nobody_up() {
    let bed = Bed::new(401);
    let act = bed.compiled("act.c");
    let mut running = bed.cow_run(&["sh", "-c", &format!("echo started; exec {act} crowd 400")]);
    running.wait_for_lines(1);
    wait_for("a worker", || bed.worker().is_some());
    let worker = bed.worker().unwrap();
    send(worker, Signal::SIGSTOP);
    running.wait_for_lines(2);
    fs::write(bed.first("go"), "").unwrap();
    // Those whose calls were received can only die once they are answered, or the worker goes on.
    send(worker, Signal::SIGCONT);
    let output = running.done();
    println!("{}", stdout(&output));
    assert!(stdout(&output).ends_with("killed, then Success"), "{}", text(&output));
    bed.assert_over();
    assert!(bed.is_private("f400"));
    bed.assert_clean();
}

/// Has the worker die at a call of its own, seen by strace; returns strace.
fn die_at(bed: &Bed, call: &str, nth: usize) -> Running {
    wait_for("a worker", || bed.worker().is_some());
    let (worker, log) = (bed.worker().unwrap(), bed.filesystem.path().join("strace"));
    let mut strace = std::process::Command::new("strace");
    strace.args(["-f", "-o", log.to_str().unwrap(), "-p", &worker.to_string()]);
    strace.args(["-e", &format!("trace={call}"), "-e", &format!("inject={call}:signal=KILL:when={nth}")]);
    let tracer = start(&mut strace);
    let traced = |thread: &fs::DirEntry| {
        let status = fs::read_to_string(thread.path().join("status")).unwrap_or_default();
        !status.contains("TracerPid:\t0\n")
    };
    let threads = || fs::read_dir(format!("/proc/{worker}/task")).into_iter().flatten().flatten();
    // Or it is dead already: a call that it waits in is made anew.
    wait_for("strace", || threads().all(|thread| traced(&thread)));
    tracer
}

/// Runs a script whose worker dies at a call of its own; says whether it did. Nothing of the other guest's may change,
/// whatever the script goes on with.
fn with_a_death_at(call: &str, nth: usize, script: &str) -> bool {
    let bed = Bed::new(2);
    let script = format!("echo started; until [ -e go ]; do sleep 0.05; done; {script}");
    let mut running = bed.cow_run(&["sh", "-c", &script]);
    running.wait_for_lines(1);
    let mut tracer = die_at(&bed, call, nth);
    fs::write(bed.first("go"), "").unwrap();
    let output = running.done();
    println!("{call} {nth}: {}", text(&output).replace('\n', " | "));
    bed.assert_untouched();
    bed.assert_over();
    wait_for("strace's end", || tracer.child.try_wait().unwrap().is_some());
    bed.assert_clean();
    let log = fs::read_to_string(bed.filesystem.path().join("strace")).unwrap();
    log.contains("killed by SIGKILL")
}

#[test]
#[ignore = "needs root"]
fn privileged_a_worker_killed_while_it_moves_names_leaves_no_file_unprotected() {
    let script = "mv f000 x; echo y >>x; chmod 700 x; [ ! -e f000 ] || echo y >>f000";
    let died = (2..=7).filter(|&nth| with_a_death_at("ioctl", nth, script)).count();
    assert!(died > 0);
}

#[test]
#[ignore = "needs root"]
fn privileged_a_worker_killed_while_it_copies_leaves_no_file_unprotected() {
    let script = "echo y >>f000; echo y >>f000; chmod 700 f000; echo y >>f001";
    let points = (2..=9).map(|nth| ("ioctl", nth)).chain([("renameat2", 1), ("renameat2", 2)]);
    let died = points.filter(|&(call, nth)| with_a_death_at(call, nth, script)).count();
    assert!(died > 0);
}

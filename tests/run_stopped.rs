//! A process that is stopped while it changes names of shared files keeps nobody else waiting.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::support::bed::{Bed, file, send, wait_for};
use super::support::{Filesystem, text};

/// Who opens a file waits no longer, on a busy machine either.
const LIMIT: Duration = Duration::from_secs(2);

/// Opens each file, in a thread; `false` if that takes too long.
fn opens(paths: &[PathBuf]) -> bool {
    let (send, receive) = std::sync::mpsc::channel();
    let paths = paths.to_vec();
    std::thread::spawn(move || {
        let opened = paths.iter().filter(|path| File::open(path).is_ok()).count();
        let _ = send.send(opened);
    });
    receive.recv_timeout(LIMIT).is_ok()
}

#[test]
#[ignore = "needs root"]
fn privileged_a_stopped_supervisor_keeps_nobody_from_opening_a_file() {
    const ROUNDS: usize = 20;
    let bed = Bed::new(4);
    let script = "while [ ! -e stop ]; do for f in 0 1 2 3; do ln f00$f l$f; rm l$f; done; done";
    let running = bed.cow_run(&["sh", "-c", script]);
    wait_for("a worker", || bed.worker().is_some());
    let paths: Vec<PathBuf> = (0..4).map(|number| bed.second(file(number))).collect();
    let mut hung = 0;
    for round in 0..ROUNDS {
        std::thread::sleep(Duration::from_millis(20 + 7 * round as u64 % 40));
        let supervisors = bed.supervisors();
        supervisors.iter().for_each(|(pid, _)| send(*pid, Signal::SIGSTOP));
        hung += usize::from(!opens(&paths));
        supervisors.iter().for_each(|(pid, _)| send(*pid, Signal::SIGCONT));
    }
    fs::write(bed.first("stop"), "").unwrap();
    let output = running.done();
    println!("{hung} of {ROUNDS} rounds hung");
    assert_eq!(hung, 0, "{}", text(&output));
    assert!(output.status.success(), "{}", text(&output));
    bed.assert_over();
    bed.assert_clean();
}

/// Twenty guests with two hundred equal files each.
fn many_guests(top: &Path) -> Vec<PathBuf> {
    let guests: Vec<PathBuf> = (0..20).map(|number| top.join(format!("g{number}"))).collect();
    for guest in &guests {
        fs::create_dir_all(guest.join("usr/bin")).unwrap();
        for number in 0..200 {
            let path = guest.join(format!("usr/bin/f{number}"));
            fs::write(&path, format!("content of {number}\n").repeat(10)).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
            super::support::set_mtime(
                &path,
                cow_hooks::sys::file::inode::Time { secs: 1_600_000_000, nanos: 0 },
            );
        }
    }
    guests
}

#[test]
#[ignore = "needs root"]
fn privileged_a_stopped_cow_unify_keeps_nobody_from_opening_a_file() {
    let filesystem = Filesystem::new("ext4", 256);
    let guests = many_guests(filesystem.path());
    std::thread::sleep(Duration::from_millis(30));
    let pool = filesystem.path().join("pool");
    let mut command = Command::new(env!("CARGO_BIN_EXE_cow-unify"));
    command.args(["--scope", "all", "--protection", "immutable", "--pool"]).arg(&pool).args(&guests);
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let (pid, begun) = (child.id() as i32, Instant::now());
    let (mut rounds, mut hung) = (0, 0);
    while child.try_wait().unwrap().is_none() {
        std::thread::sleep(Duration::from_millis(5));
        let first = guests[0].join("usr/bin");
        let names = fs::read_dir(&first).unwrap().map(|entry| entry.unwrap().path());
        let paths: Vec<PathBuf> = names.collect();
        if !pool.exists() || begun.elapsed() > Duration::from_secs(100) {
            continue;
        }
        send(pid, Signal::SIGSTOP);
        hung += usize::from(!opens(&paths));
        rounds += 1;
        send(pid, Signal::SIGCONT);
    }
    let output = child.wait_with_output().unwrap();
    println!("{hung} of {rounds} rounds hung");
    assert!(output.status.success(), "{}", text(&output));
    assert!(rounds > 0 && hung == 0, "{hung} of {rounds} rounds hung");
}

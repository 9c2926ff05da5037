//! What a guest, or a user in one, does to the others while the host changes names: each test is the attack, and counts its
//! tries.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use rustix::mount::{MountFlags, UnmountFlags};

use crate::support::farm::Farm;
use crate::support::{FILESYSTEMS, inode, note_left_out, run, text};

/// Files that the hostile guest gives the host to link: of these as many as 64 are linked in one window.
const COPIES: usize = 1600;

/// `support/hostile.c`, compiled once.
fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join("hostile");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/hostile.c");
        run(Command::new("cc").args(["-O2", "-Wall", "-pthread", "-o"]).arg(&program).arg(source));
        program
    })
}

/// One way of `support/hostile.c`, while it works.
pub struct Hostile(Child);

/// How often it tried, and succeeded.
#[derive(Debug)]
struct Tally {
    tried: u64,
    done: u64,
}

impl Hostile {
    pub fn starts(way: &str, path: &Path) -> Hostile {
        let mut command = Command::new(program());
        Hostile(command.arg(way).arg(path).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap())
    }

    fn ready(mut self) -> Hostile {
        let mut line = String::new();
        BufReader::new(self.0.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        self
    }

    fn ends(mut self) -> Tally {
        drop(self.0.stdin.take());
        let mut said = String::new();
        self.0.stdout.take().unwrap().read_to_string(&mut said).unwrap();
        assert!(self.0.wait().unwrap().success());
        let numbers: Vec<u64> = said.split(' ').filter_map(|word| word.trim().parse().ok()).collect();
        Tally { tried: numbers[0], done: numbers[1] }
    }
}

impl Drop for Hostile {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A shared program, and many equal files of the first guest that the host links to it, while the first guest works on its
/// name in the way `how`, and a user of the second guest runs it, if there is one.
fn in_windows(kind: &str, how: &str, user: Option<&str>) {
    let farm = Farm::of_size(kind, 1024);
    fs::set_permissions(farm.filesystem.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let content = fs::read(program()).unwrap();
    let executable = |path: &PathBuf| fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    let (first, second) = farm.both("usr/bin/tool", &content);
    executable(&first);
    executable(&second);
    farm.unify(&["--protection", "immutable"]);
    let before = inode(&second);
    for number in 0..COPIES {
        executable(&farm.write(&format!("g1/usr/lib/copies/{number}"), &content));
    }
    let guest = Hostile::starts(how, &first);
    let user = user.map(|way| Hostile::starts(way, &second));
    let (_, said) = farm.ran(&["--scope", "all", "g1", "g2"]);
    let user = user.map(Hostile::ends);
    let guest = guest.ends();
    eprintln!("{kind}, {how}: {guest:?}, {user:?}; {} names", inode(&second).nlink);
    assert!(
        fs::read(&second).unwrap() == content,
        "{kind}, {how}: the other guest's file was changed: {said}"
    );
    let now = inode(&second);
    assert_eq!((now.mode, now.uid, now.immutable), (before.mode, before.uid, true), "{kind}, {how}: {said}");
    assert!(now.nlink as usize > COPIES / 2, "{kind}, {how}: too little was linked to show anything: {said}");
    if let Some(user) = user {
        assert_eq!(user.done, 0, "{kind}, {how}: of {} runs", user.tried);
    }
}

#[test]
#[ignore = "needs root"]
fn privileged_no_user_gets_rights_by_what_another_guest_does_in_a_window() {
    for kind in FILESYSTEMS {
        in_windows(kind, "chmod", Some("exec"));
    }
    in_windows(FILESYSTEMS[0], "chmod", Some("slow-exec"));
    in_windows(FILESYSTEMS[0], "setcap", Some("exec"));
}

#[test]
#[ignore = "needs root"]
fn privileged_nothing_is_cut_off_in_a_window() {
    for kind in FILESYSTEMS {
        for how in ["truncate", "truncate-openat", "write"] {
            in_windows(kind, how, None);
        }
    }
}

#[test]
#[ignore = "needs root"]
fn privileged_a_directory_that_a_guest_puts_in_a_names_place_stays_out_of_the_pool() {
    for kind in FILESYSTEMS {
        let (mut exchanged, rounds) = (0, 20);
        let farm = Farm::new(kind);
        for round in 0..rounds {
            for number in 0..40 {
                farm.both(&format!("usr/lib/{round}/{number:02}"), format!("{round} {number}"));
            }
            let guest = Hostile::starts("exchange", &farm.path(&format!("g1/usr/lib/{round}")));
            let (_, said) = farm.ran(&["--scope", "all", "--protection", "immutable", "g1", "g2"]);
            exchanged += guest.ends().done.min(1);
            let runs = farm.path(".cow-pool/runs");
            assert_eq!(fs::read_dir(runs).unwrap().count(), 0, "{kind}, round {round}: {said}");
        }
        eprintln!("{kind}: {exchanged} of {rounds} rounds exchanged a name");
        assert!(exchanged > 0);
        farm.exits(0, &["verify", "g1", "g2"]);
    }
}

#[test]
#[ignore = "needs root"]
fn privileged_whatever_a_killed_run_has_left_the_rest_is_ended() {
    let farm = Farm::new(FILESYSTEMS[0]);
    farm.both("usr/bin/tool", "equal");
    farm.unify(&["--protection", "immutable"]);
    let left = farm.path(".cow-pool/runs/1-0");
    fs::create_dir(&left).unwrap();
    symlink("/etc/passwd", left.join("0.kept")).unwrap();
    run(Command::new("mkfifo").arg(left.join("1.kept")));
    fs::create_dir_all(left.join("2.kept/inside")).unwrap();
    fs::hard_link(farm.write("g1/usr/bin/own", "own"), left.join("3.kept")).unwrap();
    farm.both("usr/bin/next", "also equal");
    let said = farm.exits(1, &["--scope", "all", "g1", "g2"]);
    assert!(said.contains("runs/1-0/2.kept: this is a directory"), "{said}");
    let names: Vec<_> = fs::read_dir(&left).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["2.kept"], "{said}");
    assert!(inode(&farm.path("g2/usr/bin/next")).immutable, "the pass goes on: {said}");
    fs::remove_dir_all(left.join("2.kept")).unwrap();
    farm.unify(&[]);
    farm.assert_tidy();
}

/// Guests with so many shared files, whose locks a user holds, and as many that are new.
fn locked(files: usize) -> (Farm, Hostile) {
    let farm = Farm::new(FILESYSTEMS[0]);
    fs::set_permissions(farm.filesystem.path(), fs::Permissions::from_mode(0o755)).unwrap();
    for number in 0..files {
        farm.both(&format!("usr/lib/shared/{number}"), format!("{number}"));
    }
    farm.unify(&["--protection", "immutable"]);
    for number in 0..files {
        farm.write(&format!("g1/usr/lib/new/{number}"), format!("{number}"));
    }
    let user = Hostile::starts("lock", &farm.path("g2/usr/lib/shared")).ready();
    (farm, user)
}

#[test]
#[ignore = "needs root"]
fn privileged_files_that_one_guest_alone_has_do_not_make_the_pool_grow() {
    const ROUNDS: usize = 10;
    for kind in FILESYSTEMS {
        let farm = Farm::new(kind);
        farm.both("usr/bin/tool", "equal");
        farm.unify(&["--protection", "immutable"]);
        for round in 0..ROUNDS {
            let pair = ["one", "two"].map(|name| {
                farm.write(&format!("g1/usr/lib/{round}/{name}"), format!("{round}").repeat(9000))
            });
            farm.unify(&[]);
            pair.iter().for_each(|path| fs::remove_file(path).unwrap());
        }
        assert_eq!(farm.objects().len(), 1, "{kind}: after {ROUNDS} pairs of equal files that were removed");
    }
}

#[test]
#[ignore = "needs root"]
fn privileged_locks_that_a_user_holds_hold_up_no_pass() {
    let (farm, user) = locked(200);
    let begun = Instant::now();
    let said = farm.exits(0, &["--scope", "all", "g1", "g2"]);
    // A quarter of a second for each lock would be 50 seconds.
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}: {said}", begun.elapsed());
    assert!(user.ends().done >= 200);
    for number in 0..200 {
        assert_eq!(inode(&farm.path(&format!("g1/usr/lib/new/{number}"))).nlink, 4, "{said}");
    }
}

#[test]
#[ignore = "needs root"]
fn privileged_a_pass_that_is_told_to_end_does_so_between_two_windows() {
    let (mut killed, rounds) = (0, 10);
    for round in 0..rounds {
        let (farm, user) = locked(100);
        let mut command = farm.command(&["--scope", "all", "g1", "g2"]);
        let mut pass = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(40 * round));
        let pid = nix::unistd::Pid::from_raw(pass.id().try_into().unwrap());
        let begun = Instant::now();
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        let status = pass.wait().unwrap();
        assert!(begun.elapsed() < Duration::from_secs(5), "round {round}: {:?}", begun.elapsed());
        killed += u64::from(!status.success());
        user.ends();
        let output = farm.command(&["--scope", "all", "g1", "g2"]).output().unwrap();
        assert!(output.status.success(), "round {round}: {}", text(&output));
        for number in 0..100 {
            let path = farm.path(&format!("g1/usr/lib/new/{number}"));
            assert!(inode(&path).immutable && fs::metadata(&path).unwrap().nlink() == 4, "round {round}");
        }
        farm.assert_tidy();
    }
    eprintln!("{killed} of {rounds} were ended by the signal");
    assert!(killed > 0);
}

/// A filesystem whose server does not answer.
struct Silent(PathBuf, Option<File>);

impl Silent {
    fn mounted_on(path: &Path) -> Silent {
        let server = File::options().read(true).write(true).open("/dev/fuse").unwrap();
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", server.as_raw_fd());
        let options = std::ffi::CString::new(options).unwrap();
        rustix::mount::mount("silent", path, "fuse", MountFlags::empty(), options.as_c_str()).unwrap();
        Silent(path.to_path_buf(), Some(server))
    }
}

impl Drop for Silent {
    fn drop(&mut self) {
        // Whoever waits for it gets an error then.
        drop(self.1.take());
        let _ = rustix::mount::unmount(&self.0, UnmountFlags::DETACH);
    }
}

#[test]
#[ignore = "needs root"]
fn privileged_a_filesystem_without_answer_in_a_directorys_place_stops_no_pass() {
    if !Path::new("/dev/fuse").exists() {
        return note_left_out("filesystems that do not answer", "there is no /dev/fuse");
    }
    let farm = Farm::new(FILESYSTEMS[0]);
    for name in ["a", "b", "c"] {
        farm.both(&format!("usr/lib/{name}/shared"), name);
        farm.write(&format!("g1/usr/lib/{name}/private"), "private");
    }
    farm.unify(&["--protection", "immutable"]);
    fs::create_dir(farm.path("outside")).unwrap();
    // One in a directory's place, and a symbolic link to one that is no part of the guest.
    let silent = [farm.path("outside"), farm.path("g1/usr/lib/b")].map(|path| Silent::mounted_on(&path));
    fs::rename(farm.path("g1/usr/lib/a"), farm.path("g1/usr/lib/d")).unwrap();
    symlink(farm.path("outside"), farm.path("g1/usr/lib/a")).unwrap();
    let mut silent = Some(silent);
    for (name, more) in [("new", None), ("listed", Some("--changed"))] {
        farm.both(&format!("usr/lib/c/{name}"), name);
        for guest in ["g1", "g2"] {
            let listed = ["a/shared", "b/shared", "c/listed"].map(|file| format!("/usr/lib/{file}\0"));
            farm.write(&format!("{guest}/var/lib/cow-hooks/spool/changed"), listed.concat());
        }
        std::thread::sleep(Duration::from_millis(30));
        let words: Vec<&str> = ["--scope", "all"].into_iter().chain(more).chain(["g1", "g2"]).collect();
        let mut pass = farm.command(&words);
        let mut pass = pass.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let begun = Instant::now();
        while pass.try_wait().unwrap().is_none() && begun.elapsed() < Duration::from_secs(60) {
            std::thread::sleep(Duration::from_millis(50));
        }
        let hangs = pass.try_wait().unwrap().is_none();
        if hangs {
            silent = None;
        }
        let output = pass.wait_with_output().unwrap();
        assert!(!hangs, "the pass waits for a filesystem that a guest has mounted: {}", text(&output));
        assert!(output.status.success(), "{}", text(&output));
        let is_shared = inode(&farm.path(&format!("g2/usr/lib/c/{name}"))).immutable;
        assert!(is_shared, "{name}: {}", text(&output));
    }
    drop(silent);
}

//! Programs that run keep the path they were started from, whatever happens to its name.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::support::strace::killed_at_each;
use crate::support::{
    Filesystem, Guests, chroot, feed, inode, install_libraries, removal, run, same_inode, set_immutable,
    set_mtime, text,
};
use cow_hooks::sys::file::inode::Time;

const UNIFY: &str = env!("CARGO_BIN_EXE_cow-unify");

/// A program that runs in a guest, until this is dropped.
struct Program {
    child: Child,
    path: PathBuf,
}

impl Program {
    /// Starts what lies at this path.
    fn start(path: &Path) -> Program {
        Program::spawned(Command::new(path).arg("1000"), path)
    }

    /// Starts `name` with `root` as its root directory.
    fn start_in(root: &Path, name: &str) -> Program {
        Program::spawned(chroot(&[], root, name).arg("1000"), &root.join(name))
    }

    fn spawned(command: &mut Command, path: &Path) -> Program {
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let program = Program { child, path: path.to_path_buf() };
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while program.exe() != program.path && std::time::Instant::now() < deadline {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        assert_eq!(program.exe(), program.path, "it runs");
        program
    }

    fn exe(&self) -> PathBuf {
        fs::read_link(format!("/proc/{}/exe", self.child.id())).unwrap()
    }

    /// Asserts that service scripts find it: what /proc tells of it is its path, or that as deleted.
    #[track_caller]
    fn assert_found(&self, when: &str) {
        let exe = self.exe().into_os_string().into_string().unwrap();
        let path = self.path.to_str().unwrap();
        assert_eq!(exe.strip_suffix(" (deleted)").unwrap_or(&exe), path, "{when}");
        // It compares the paths, and knows what " (deleted)" means.
        let status = Command::new("start-stop-daemon").args(["--status", "--exec", path]).status().unwrap();
        assert!(status.success(), "{when}: start-stop-daemon does not find {path}");
    }

    #[track_caller]
    fn assert_replaced(&self, when: &str) {
        self.assert_found(when);
        assert!(self.exe().to_str().unwrap().ends_with(" (deleted)"), "{when}: {}", self.exe().display());
    }

    #[track_caller]
    fn assert_current(&self, when: &str) {
        assert_eq!(self.exe(), self.path, "{when}");
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Two guests with a program that a service would be.
struct Farm {
    filesystem: Filesystem,
}

impl Farm {
    fn new() -> Farm {
        let farm = Farm { filesystem: Filesystem::new("ext4", 256) };
        for guest in ["g1", "g2"] {
            fs::create_dir_all(farm.path(guest).join("usr/sbin")).unwrap();
            farm.renew(guest, 1);
        }
        farm
    }

    fn path(&self, name: &str) -> PathBuf {
        self.filesystem.path().join(name)
    }

    fn food(&self, guest: &str) -> PathBuf {
        self.path(guest).join("usr/sbin/food")
    }

    /// A new private file, as a package manager would make it.
    fn renew(&self, guest: &str, version: i64) {
        let new = self.path(guest).join("usr/sbin/food.new");
        fs::copy("/bin/sleep", &new).unwrap();
        set_mtime(&new, Time { secs: 1_600_000_000 + version, nanos: 5 });
        fs::rename(&new, self.food(guest)).unwrap();
    }

    fn command(&self, words: &[&str]) -> Command {
        // What has only just changed is left for the next run.
        std::thread::sleep(std::time::Duration::from_millis(30));
        let mut command = Command::new(UNIFY);
        command.args(words).args(["--pool".as_ref(), self.path("pool").as_os_str()]);
        command.args(["g1", "g2"].map(|guest| self.path(guest)));
        command
    }

    #[track_caller]
    fn unify(&self, options: &[&str]) -> String {
        let said = text(&run(&mut self.command(&[&["--scope", "all"], options].concat())));
        println!("{said}");
        said
    }

    /// The state directory that the hooks would have made, with a list for the host.
    fn spool(&self, guest: &str, path: &str) -> PathBuf {
        let dir = self.path(guest).join("var/lib/cow-hooks/spool");
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("changed"), format!("{path}\0")).unwrap();
        dir
    }

    fn is_shared(&self) -> bool {
        same_inode(&self.food("g1"), &self.food("g2"))
    }
}

#[test]
#[ignore = "needs root"]
fn privileged_a_program_is_found_by_its_path_when_its_file_was_linked() {
    let farm = Farm::new();
    let program = Program::start(&farm.food("g1"));
    let said = farm.unify(&[]);
    assert!(farm.is_shared());
    program.assert_replaced("linked");
    assert!(said.contains("1 linked file is in use by 1 running program"), "{said}");
}

#[test]
#[ignore = "needs root"]
fn privileged_a_program_is_found_by_its_path_when_its_guest_was_let_go_or_repaired() {
    let farm = Farm::new();
    farm.unify(&[]);
    let first = Program::start(&farm.food("g1"));
    run(Command::new(UNIFY).arg("detach").arg(farm.path("g1")));
    assert!(!farm.is_shared());
    first.assert_replaced("detached");

    let second = Program::start(&farm.food("g2"));
    let object = farm.food("g2");
    set_immutable(&object, false);
    run(Command::new("chmod").arg("700").arg(&object));
    set_immutable(&object, true);
    let verify = Command::new(UNIFY)
        .args(["verify", "--pool"])
        .arg(farm.path("pool"))
        .args(["g1", "g2"].map(|guest| farm.path(guest)))
        .output()
        .unwrap();
    assert_eq!(inode(&farm.food("g2")).mode, 0o755, "{}", text(&verify));
    second.assert_replaced("repaired");
}

#[test]
#[ignore = "needs root"]
fn privileged_a_program_is_found_by_its_path_when_cow_unify_was_killed_anywhere() {
    let traced = |farm: &Farm, kill: Option<(&str, usize)>| {
        let command = farm.command(&["--scope", "all", "--jobs", "1"]);
        crate::support::strace::traced(&command, b"", kill)
    };
    let names = ["linkat", "renameat", "unlinkat", "ioctl"];
    let (mut calls, _) = traced(&Farm::new(), None);
    calls.retain(|call, _| names.contains(&call.as_str()));
    let killed = killed_at_each(&calls, |call, nth| {
        let farm = Farm::new();
        let program = Program::start(&farm.food("g1"));
        let result = traced(&farm, Some((call, nth)));
        program.assert_found(&format!("killed at {call} {nth}"));
        farm.unify(&[]);
        program.assert_found(&format!("recovered after {call} {nth}"));
        assert!(farm.is_shared(), "{call} {nth}");
        result
    });
    assert!(killed >= 8, "{killed} rounds");
}

#[test]
#[ignore = "needs root"]
fn privileged_files_of_running_programs_wait_when_only_changes_are_linked() {
    let farm = Farm::new();
    let spools = ["g1", "g2"].map(|guest| farm.spool(guest, "/usr/sbin/food"));
    let programs = ["g1", "g2"].map(|guest| Program::start(&farm.food(guest)));
    for _ in 0..2 {
        let said = farm.unify(&["--changed"]);
        assert!(said.contains("2 used by running programs"), "{said}");
        assert!(!farm.is_shared());
        programs.iter().for_each(|program| program.assert_current("waiting"));
    }
    // Something new in the meantime is no reason to forget them.
    farm.spool("g1", "/usr/sbin/none");
    farm.unify(&["--changed"]);
    drop(programs);
    farm.unify(&["--changed"]);
    assert!(farm.is_shared());
    for spool in spools {
        assert_eq!(fs::read_dir(&spool).unwrap().count(), 0, "{}", spool.display());
    }
}

#[test]
#[ignore = "needs root"]
fn privileged_a_pass_lets_files_of_running_programs_wait_if_asked() {
    let farm = Farm::new();
    let program = Program::start(&farm.food("g1"));
    for options in [&["--in-use", "wait", "--dry-run"][..], &["--in-use", "wait"]] {
        let said = farm.unify(options);
        assert!(said.contains(" 0 linked") || said.contains(" 0 would be linked"), "{said}");
        assert!(said.contains("1 used by running programs"), "{said}");
    }
    program.assert_current("waiting");
    drop(program);
    farm.unify(&["--in-use", "wait"]);
    assert!(farm.is_shared());
}

/// A guest with the program among its unified files, and its libraries.
fn guests() -> Guests {
    let guests = Guests::new("ext4", 2, false);
    guests.share("usr/bin/food", &fs::read("/bin/sleep").unwrap());
    guests.protect();
    guests.own("p", &["/usr/bin/food".to_owned()]);
    install_libraries(&guests.first(), Path::new("/bin/sleep"));
    guests
}

fn hook(guests: &Guests, hook: &str) {
    let output = feed(guests.program("cow-dpkg").arg(hook), removal("p").as_bytes());
    assert!(output.status.success(), "{hook}: {}", text(&output));
}

#[test]
#[ignore = "needs root"]
fn privileged_a_program_is_found_by_its_path_when_its_file_was_made_private_and_shared_again() {
    let guests = guests();
    guests.policy("supervise = \"never\"\n");
    let program = Program::start_in(&guests.first(), "usr/bin/food");
    hook(&guests, "apt-pre");
    assert!(!guests.shared("usr/bin/food"));
    program.assert_replaced("made private");
    hook(&guests, "apt-post");
    assert!(guests.shared("usr/bin/food"));
    program.assert_replaced("shared again");

    let program = Program::start_in(&guests.first(), "usr/bin/food");
    assert!(guests.prepare(&["/usr/bin/food"]).status.success());
    assert!(!guests.shared("usr/bin/food"));
    program.assert_replaced("prepared");
}

#[test]
#[ignore = "needs root"]
fn privileged_a_program_that_was_started_meanwhile_keeps_its_file_and_the_host_hears_of_it() {
    let guests = guests();
    guests.policy("supervise = \"never\"\n");
    hook(&guests, "apt-pre");
    let program = Program::start_in(&guests.first(), "usr/bin/food");
    hook(&guests, "apt-post");
    program.assert_current("settled");
    assert!(!guests.shared("usr/bin/food"));
    assert_eq!(guests.spool(), ["/usr/bin/food"]);
    assert_eq!(crate::support::litter(&guests.first()), Vec::<PathBuf>::new());
}

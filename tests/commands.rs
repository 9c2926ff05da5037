//! What all commands have in common: who may run them, how they end, what they say of themselves.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use rustix::process::geteuid;
use tempfile::TempDir;

use crate::support::farm::Farm;
use crate::support::tiny::{Package, Tiny};
use crate::support::{Guests, built, program, text};

/// The commands that this test was built with, and an option or command of each that needs nothing else.
const COMMANDS: [(&str, &[&str]); 5] = [
    ("cow-run", &["true"]),
    ("cow-prepare", &["/nowhere"]),
    ("cow-status", &["--root", "/nowhere"]),
    ("cow-unify", &["/nowhere"]),
    ("cow-guard", &["status"]),
];

fn path(name: &str) -> Option<PathBuf> {
    match name {
        "cow-unify" => Some(env!("CARGO_BIN_EXE_cow-unify").into()),
        "cow-guard" => option_env!("CARGO_BIN_EXE_cow-guard").map(PathBuf::from),
        name => Some(program(name).into()),
    }
}

fn full() -> File {
    OpenOptions::new().write(true).open("/dev/full").unwrap()
}

fn ended(mut command: Command, to: Stdio) -> Output {
    command.stdin(Stdio::null()).stdout(to).stderr(Stdio::piped()).output().unwrap()
}

/// The commands where any user can run them.
struct ForAll(TempDir);

impl ForAll {
    fn new() -> ForAll {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        for (name, _) in COMMANDS {
            // A guest's commands are one program.
            let own = Path::new(name);
            match path(name) {
                Some(path) if own == Path::new(path.file_name().unwrap()) && path.is_symlink() => {
                    std::os::unix::fs::symlink("cow-hooks", dir.path().join(own)).unwrap();
                }
                Some(path) => drop(fs::copy(path, dir.path().join(own)).unwrap()),
                None => {}
            }
        }
        fs::copy(built("cow-hooks"), dir.path().join("cow-hooks")).unwrap();
        ForAll(dir)
    }

    /// A command as a user who is not root runs it.
    fn command(&self, name: &str) -> Option<Command> {
        let path = self.0.path().join(name);
        let mut command = path.exists().then(|| Command::new(path))?;
        if geteuid().is_root() {
            command.uid(65534).gid(65534);
        }
        Some(command)
    }
}

#[test]
fn a_user_who_is_not_root_is_told_so_and_nothing_else() {
    let programs = ForAll::new();
    for (name, arguments) in COMMANDS {
        let Some(mut command) = programs.command(name) else {
            eprintln!("skipped: {name} is built with the feature `guard` alone");
            continue;
        };
        command.args(arguments);
        let output = ended(command, Stdio::piped());
        let said =
            format!("{name}: error: needs root: run the same command as root, for example with sudo\n");
        assert_eq!(text(&output), said);
        assert_eq!(output.status.code(), Some(if name == "cow-run" { 125 } else { 3 }), "{name}");
    }
}

#[test]
fn help_that_cannot_be_written_is_an_error_unless_nobody_reads_it() {
    for (name, _) in COMMANDS {
        let Some(path) = path(name) else { continue };
        for option in ["--help", "--version"] {
            let command = || {
                let mut command = Command::new(&path);
                command.arg(option);
                command
            };
            let output = ended(command(), full().into());
            assert_eq!(
                output.status.code(),
                Some(if name == "cow-run" { 125 } else { 1 }),
                "{name} {option}"
            );
            assert_eq!(text(&output), format!("{name}: error: standard output: No space left on device\n"));
            let (reader, writer) = std::io::pipe().unwrap();
            drop(reader);
            let output = ended(command(), writer.into());
            assert_eq!((output.status.code(), text(&output).as_str()), (Some(0), ""), "{name} {option}");
        }
    }
}

/// A result that cannot be written: said, and the exit code is not 0.
#[track_caller]
fn fails_on_a_full_device(command: Command) {
    let what = format!("{command:?}");
    let output = ended(command, full().into());
    let said = text(&output);
    assert_eq!(output.status.code(), Some(1), "{what}: {said}");
    let last = said.lines().last().unwrap_or_default();
    assert!(
        last.ends_with(": error: standard output: No space left on device; the result is not complete"),
        "{said}"
    );
}

#[test]
#[ignore = "needs root"]
fn privileged_a_result_that_cannot_be_written_is_an_error_of_every_command() {
    let guests = Guests::new("ext4", 2, true);
    for (name, arguments) in [
        ("cow-prepare", &["--recover"][..]),
        ("cow-prepare", &["--recover", "--json"]),
        ("cow-prepare", &["-n", "/usr"]),
        ("cow-prepare", &["--json", "/usr"]),
        ("cow-status", &[]),
        ("cow-status", &["--json", "/usr/bin"]),
    ] {
        let mut command = guests.program(name);
        command.args(arguments);
        fails_on_a_full_device(command);
    }
    let farm = Farm::new("ext4");
    farm.both("usr/bin/tool", "equal");
    for arguments in [
        &["--scope", "all", "g1", "g2"][..],
        &["status", "g1", "g2"],
        &["verify", "g1", "--json"],
        &["gc", "-n", "--pool", ".cow-pool"],
        &["detach", "g1"],
        &["remove", "-n", "g1"],
        &["remove", "g1", "--json"],
    ] {
        fails_on_a_full_device(farm.command(arguments));
    }
}

#[test]
#[ignore = "needs root"]
fn privileged_the_same_mistake_has_the_same_exit_code_in_every_command() {
    let guests = Guests::new("ext4", 2, true);
    let farm = Farm::new("ext4");
    guests.policy("no_such_key = 1\n");
    let in_guest = |name: &str, arguments: &[&str]| {
        let mut command = guests.program(name);
        command.args(arguments);
        command
    };
    let on_host = |arguments: &[&str]| farm.command(arguments);
    let missing = "/no/such/directory";
    let cases = [
        // What a person wrote makes no sense.
        (2, in_guest("cow-prepare", &["--no-such-option"])),
        (2, in_guest("cow-status", &["--no-such-option"])),
        (2, on_host(&["--no-such-option", "g1"])),
        (2, in_guest("cow-prepare", &["/usr"])),
        (2, in_guest("cow-status", &[])),
        (2, on_host(&["--exclude", "[", "g1"])),
        (2, on_host(&["gc"])),
        (2, on_host(&["-n", "gc", "--pool", "x"])),
        (2, on_host(&["remove"])),
        (2, on_host(&["-n", "remove", "g1"])),
        // What it names is not there.
        (3, in_guest("cow-prepare", &["--root", missing, "/usr"])),
        (3, in_guest("cow-status", &["--root", missing])),
        (3, on_host(&[missing])),
        (3, on_host(&["status", missing])),
        (3, on_host(&["detach", missing])),
        (3, on_host(&["remove", missing])),
        (3, on_host(&["gc", "--pool", missing])),
        (3, on_host(&["verify", "g1"])),
        (3, on_host(&["--exclude-from", missing, "g1"])),
        (3, on_host(&["--vserver-excludes", missing, "g1"])),
    ];
    for (code, command) in cases {
        let what = format!("{command:?}");
        let output = ended(command, Stdio::piped());
        assert_eq!(output.status.code(), Some(code), "{what}: {}", text(&output));
    }
}

#[test]
#[ignore = "needs root"]
fn privileged_a_mistake_in_the_policy_is_told_once_in_a_run() {
    let tiny = Tiny::new();
    let package = Package { name: "cow", files: &[(&["usr/share/cow/file"], "content")], postinst: None };
    let deb = tiny.deb(1, package);
    tiny.both(&format!("dpkg -i {deb}"));
    tiny.unify(&["--protection", "immutable"]);
    assert!(tiny.shared("usr/share/cow/file"));
    tiny.policy("no_such_key = 1\n");
    for _ in 0..2 {
        let said = tiny.succeed(&format!("dpkg -i {deb}"));
        assert_eq!(said.matches("unknown key `no_such_key`").count(), 1, "{said}");
    }
    // Told of another mistake, one is told again.
    tiny.policy("no_other_key = 1\n");
    let said = tiny.succeed(&format!("dpkg -i {deb}"));
    assert_eq!(said.matches("unknown key `no_other_key`").count(), 1, "{said}");
}

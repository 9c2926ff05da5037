//! What is said once to a run of a package manager, although each of its hooks is a process of its own that finds it.
//!
//! The first one to say it writes down to which run. The others find that process among those that have started them.

use std::ffi::OsStr;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use crate::report::Reason;
use crate::state::store::STATE_DIR;
use crate::sys::budget;
use crate::sys::path::dirfd;
use crate::sys::path::root::{Root, read_at};
use crate::sys::process::{Process, ProcessId, Processes};

/// Programs whose life is a run, their names cut to 15 bytes as the kernel does.
const RUNS: [&str; 15] = [
    "apt",
    "apt-get",
    "aptitude",
    "synaptic",
    "dselect",
    "packagekitd",
    "unattended-upgr",
    "dpkg",
    "dnf",
    "dnf5",
    "yum",
    "microdnf",
    "zypper",
    "rpm",
    "pacman",
];

/// The file beside the ledger that has the run, and what was said to it.
const TOLD: &str = "told";

/// Whether nobody has said this to the run that the calling process belongs to. From now on somebody has. Where that
/// cannot be known it is said again.
pub(super) fn is_new(said: &str) -> bool {
    let Some(run) = run() else { return true };
    let dir = Root::open(Path::new("/")).and_then(|root| dirfd::make_dir(&root, Path::new(STATE_DIR)));
    let told = dir.and_then(|dir| is_new_to(&dir, run, said));
    told.unwrap_or_else(|e| {
        log::debug!("{STATE_DIR}/{TOLD}: {}", Reason(e));
        true
    })
}

/// The outermost package manager of the calling process and those that started it: apt for the hooks of the dpkg it runs.
fn run() -> Option<ProcessId> {
    let processes = Processes::open().ok()?;
    let mut line = vec![processes.own().ok()?];
    line.extend(processes.ancestors().ok()?);
    outermost(&line)
}

fn outermost(line: &[Process]) -> Option<ProcessId> {
    let is_run = |process: &&Process| RUNS.iter().any(|name| process.command == *name);
    line.iter().rfind(is_run).map(|process| process.id)
}

fn is_new_to(dir: impl AsFd, run: ProcessId, said: &str) -> io::Result<bool> {
    let content = format!("{} {}\n{said}\n", run.pid, run.start);
    match read_at(&dir, OsStr::new(TOLD), budget::SMALL) {
        Ok(told) if told == content.as_bytes() => return Ok(false),
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    dirfd::replace_file(&dir, OsStr::new(TOLD), content.as_bytes())?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_told_once_and_the_next_run_again() {
        let temporary = tempfile::tempdir().unwrap();
        let dir = std::fs::File::open(temporary.path()).unwrap();
        let run = ProcessId { pid: 7, start: 9 };
        let is_new = |run, said| is_new_to(&dir, run, said).unwrap();
        assert!(is_new(run, "a"));
        for _ in 0..5 {
            assert!(!is_new(run, "a"));
        }
        assert!(is_new(run, "b") && !is_new(run, "b"));
        // Another process that has the number of the first.
        let later = ProcessId { start: 10, ..run };
        assert!(is_new(later, "b") && !is_new(later, "b"));
    }

    #[test]
    fn the_run_is_the_outermost_package_manager() {
        let line = |commands: &[&str]| {
            let process = |(pid, command): (usize, &&str)| Process {
                id: ProcessId { pid: pid as i32, start: 1 },
                parent: 0,
                command: command.into(),
            };
            commands.iter().enumerate().map(process).collect::<Vec<_>>()
        };
        let pid = |commands: &[&str]| outermost(&line(commands)).map(|id| id.pid);
        assert_eq!(pid(&["cow-dpkg", "sh", "dpkg", "apt-get", "sudo", "bash", "systemd"]), Some(3));
        assert_eq!(pid(&["cow-dpkg", "sh", "apt", "apt", "bash"]), Some(3));
        assert_eq!(pid(&["rpm", "zypper", "bash"]), Some(1));
        assert_eq!(pid(&["rpm", "bash"]), Some(0));
        assert_eq!(pid(&["cow-dpkg", "bash"]), None);
    }
}

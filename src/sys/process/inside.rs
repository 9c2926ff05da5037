//! Which processes are in a directory: with their root, or with their working directory.

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{Mode, OFlags};

use super::table::Processes;
use crate::sys::file::inode::Inode;

/// As many directories are looked at on the way up, at most.
const DEEPEST: usize = 100_000;

/// A process in a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inside {
    /// Its number.
    pub pid: i32,
    /// Name of its program, cut to 15 bytes.
    pub command: OsString,
}

/// The processes, but for the calling one, whose root or working directory is a directory or below it.
///
/// A process that has the directory by another path, as in a mount namespace of its own, is found by the inode. One that
/// has it as a layer of an overlay is not.
///
/// # Errors
/// If the process table cannot be read.
pub fn processes_in(directory: &Inode, path: &Path) -> io::Result<Vec<Inside>> {
    let processes = Processes::open()?;
    let own = std::process::id() as i32;
    let mut found = Vec::new();
    for pid in processes.all()?.into_iter().filter(|&pid| pid != own) {
        // Some have ended since; a thread of the kernel is in no guest.
        let is_in = ["root", "cwd"].iter().any(|what| leads_into(&processes, pid, what, directory, path));
        if is_in && let Ok(process) = processes.process(pid) {
            found.push(Inside { pid, command: process.command });
        }
    }
    Ok(found)
}

fn leads_into(processes: &Processes, pid: i32, what: &str, directory: &Inode, path: &Path) -> bool {
    if processes.path_of(pid, what).is_ok_and(|leads_to| leads_to.starts_with(path)) {
        return true;
    }
    let Ok(fd) = processes.directory_of(pid, what) else { return false };
    // Only what lies on the same filesystem is asked: another one may not answer.
    match Inode::cached(&fd) {
        Ok(inode) if inode.id.dev == directory.id.dev => is_below(fd, inode, directory).unwrap_or(false),
        _ => false,
    }
}

/// Whether an open directory is this one, or below it.
fn is_below(mut fd: OwnedFd, mut inode: Inode, directory: &Inode) -> io::Result<bool> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    for _ in 0..DEEPEST {
        if inode.id == directory.id {
            return Ok(true);
        }
        fd = rustix::fs::openat(&fd, "..", flags, Mode::empty())?;
        let above = Inode::cached(&fd)?;
        if (above.id, above.mount) == (inode.id, inode.mount) || above.id.dev != directory.id.dev {
            return Ok(false);
        }
        inode = above;
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_below_a_directory_is_found_and_none_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = std::fs::canonicalize(dir.path()).unwrap();
        std::fs::create_dir_all(path.join("guest/a/b")).unwrap();
        std::fs::create_dir_all(path.join("guest2")).unwrap();
        let look = |name: &str| {
            let inode = Inode::of(std::fs::File::open(path.join(name)).unwrap()).unwrap();
            processes_in(&inode, &path.join(name)).unwrap()
        };
        assert_eq!(look("guest"), []);
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .current_dir(path.join("guest/a/b"))
            .spawn()
            .unwrap();
        let found = (look("guest"), look("guest2"), look("guest/a/b"));
        // By the inode, whatever the path says.
        let inode = Inode::of(std::fs::File::open(path.join("guest")).unwrap()).unwrap();
        let by_inode = processes_in(&inode, Path::new("/nowhere")).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        let pids = |found: &[Inside]| found.iter().map(|inside| inside.pid).collect::<Vec<_>>();
        let pid = child.id() as i32;
        assert_eq!([pids(&found.0), pids(&found.1), pids(&found.2)], [vec![pid], vec![], vec![pid]]);
        assert_eq!(pids(&by_inode), [pid]);
    }
}

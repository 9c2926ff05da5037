//! The package files that the rpm which called a hook was told to install.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use super::caller::Caller;
use crate::package::rpm::command_line::PackageArguments;
use crate::sys::path::root::Root;
use crate::sys::process::Processes;

/// The packages on the command line of the nearest rpm; none if it is not an rpm that runs.
pub fn of(caller: &Caller) -> PackageArguments {
    let (Some(processes), Some(rpm)) = (&caller.processes, caller.running("rpm")) else {
        return PackageArguments::default();
    };
    let pid = rpm.id.pid;
    let words = processes.command_line(pid).unwrap_or_default();
    PackageArguments::among(words.get(1..).unwrap_or_default(), &|path| open(processes, pid, path))
}

/// Opens a file as the process names it.
fn open(processes: &Processes, pid: i32, path: &Path) -> io::Result<OwnedFd> {
    let root = Root::from_fd(processes.root(pid)?, Path::new("/"));
    // As our root, which is that of the process, has it.
    let directory = processes.working_directory(pid)?;
    if directory.is_absolute() {
        return root.open_file(&directory.join(path));
    }
    // rpm has gone into another root (`--root`), from the root that it was started in.
    let outside = Root::from_fd(processes.current(pid)?, Path::new("/"));
    if path.is_absolute() { outside.open_file(path) } else { Err(io::ErrorKind::NotFound.into()) }
}

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

/// Opens a file as the process names it. An rpm that was told `--root` has left the root that its arguments are paths of:
/// those files are not found.
fn open(processes: &Processes, pid: i32, path: &Path) -> io::Result<OwnedFd> {
    let root = Root::from_fd(processes.root(pid)?, Path::new("/"));
    root.open_file(&processes.working_directory(pid)?.join(path))
}

//! Opens regular files and nothing else.
//!
//! To open a device can do something: rewind a tape, start a watchdog. A guest's root may have made the node of any device,
//! and on the host nothing forbids to open it. So a name is looked at first without being opened (`O_PATH`), and what it
//! led to is opened by its descriptor.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags};

use crate::sys::file::inode::Inode;

const FLAGS: OFlags = OFlags::RDONLY.union(OFlags::NONBLOCK).union(OFlags::NOCTTY).union(OFlags::CLOEXEC);

/// Opens for reading what `open` opens with the flags that it is given, if that is a regular file.
///
/// # Errors
/// `InvalidInput` if it is something else; nothing was opened then if the caller has a `/proc`.
pub fn open(open: impl Fn(OFlags) -> io::Result<OwnedFd>) -> io::Result<OwnedFd> {
    let place = regular(open(OFlags::PATH)?)?;
    match rustix::fs::open(format!("/proc/self/fd/{}", place.as_raw_fd()), FLAGS, Mode::empty()) {
        // No /proc, or not our process's.
        Err(rustix::io::Errno::NOENT) => regular(open(FLAGS)?),
        opened => {
            let opened = opened?;
            let is_it = Inode::of(&opened)?.id == Inode::of(&place)?.id;
            if is_it { Ok(opened) } else { Err(io::Error::other("/proc is not what it should be")) }
        }
    }
}

fn regular(fd: OwnedFd) -> io::Result<OwnedFd> {
    if FileType::from_raw_mode(rustix::fs::fstat(&fd)?.st_mode).is_file() {
        Ok(fd)
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"))
    }
}

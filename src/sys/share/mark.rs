//! The mark of a shared inode: the `noatime` flag (`chattr +A`) on a regular file with more than one name.
//!
//! The guard, BPF programs that cow-guard loads, refuses every change of a marked inode on the filesystem of a pool, and
//! no change of its names. Without the guard the mark protects nothing.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{AtFlags, IFlags, Mode, OFlags};
use rustix::io::Errno;

/// Names of the probe, which belongs to whoever makes it; a process's number follows.
const PROBE: &str = ".cow-guard-probe";

/// Whether [`is_guarded`] gave a name, in a directory that holds nothing else of this name.
pub fn is_probe(name: &OsStr) -> bool {
    name.as_bytes().starts_with(PROBE.as_bytes())
}

/// Whether an open file has the flag. How many names it has is not asked.
pub fn is_set(file: impl AsFd) -> io::Result<bool> {
    Ok(rustix::fs::ioctl_getflags(file)?.contains(IFlags::NOATIME))
}

/// Sets the flag on an open file.
///
/// # Errors
/// `ENOTTY` or `EOPNOTSUPP` on a filesystem without flags.
pub fn set(file: impl AsFd) -> io::Result<()> {
    change(file, true)
}

/// Clears the flag of an open file.
///
/// # Errors
/// `EPERM` without `CAP_LINUX_IMMUTABLE` in the initial user namespace, if the guard protects the file.
pub fn clear(file: impl AsFd) -> io::Result<()> {
    change(file, false)
}

fn change(file: impl AsFd, set: bool) -> io::Result<()> {
    let before = rustix::fs::ioctl_getflags(&file)?;
    let mut flags = before;
    flags.set(IFlags::NOATIME, set);
    if flags != before {
        rustix::fs::ioctl_setflags(&file, flags)?;
    }
    Ok(())
}

/// Whether the guard protects marked files in a directory: tries to write to one that is made for it and removed.
///
/// # Errors
/// What making and marking the file meets.
pub fn is_guarded(dir: impl AsFd) -> io::Result<bool> {
    let dir = dir.as_fd();
    let name = format!("{PROBE}.{}", std::process::id());
    let second = format!("{name}.2");
    let remove = || {
        for name in [&name, &second] {
            let _ = rustix::fs::unlinkat(dir, name.as_str(), AtFlags::empty());
        }
    };
    // What a killed process with this number has left.
    remove();
    let flags = OFlags::RDONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let file: OwnedFd = rustix::fs::openat(dir, name.as_str(), flags, Mode::RUSR | Mode::WUSR)?;
    let tried = (|| {
        rustix::fs::linkat(dir, name.as_str(), dir, second.as_str(), AtFlags::empty())?;
        set(&file)?;
        refuses_writers(dir, OsStr::new(&name))
    })();
    remove();
    tried
}

/// Whether a file cannot be opened for writing, although its permissions allow it. Its content does not change.
///
/// # Errors
/// What opening it meets, but for `EPERM`.
pub fn refuses_writers(dir: impl AsFd, name: &OsStr) -> io::Result<bool> {
    let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    match rustix::fs::openat(dir, name, flags, Mode::empty()) {
        Ok(_) => Ok(false),
        Err(Errno::PERM) => Ok(true),
        Err(e) => Err(e.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_guard_a_marked_file_can_be_written_to() {
        let dir = tempfile::tempdir().unwrap();
        let fd = std::fs::File::open(dir.path()).unwrap();
        match is_guarded(&fd) {
            Ok(guarded) => assert!(!guarded),
            Err(e) => assert!(matches!(e.raw_os_error(), Some(libc::ENOTTY | libc::EOPNOTSUPP)), "{e}"),
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}

//! A guest's root directory: every path of the guest is resolved beneath it, by descriptor.
//!
//! Absolute symlinks and `..` are taken relative to the guest's root (`openat2(2)`,
//! `RESOLVE_IN_ROOT`), so no name a guest holds can lead out of it.

use std::ffi::OsStr;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::sys::budget::Exceeded;
use crate::sys::file::inode::{Inode, InodeId};
use crate::sys::path::{patient, regular};
use crate::sys::seccomp::filter;

/// The longest path that is opened in one call, in bytes (`PATH_MAX` without the zero at its end).
const MAX_PATH_IN_ONE_CALL: usize = 4095;
/// The longest path that is opened at all. Nobody works with such, but a guest can make paths without end, and each
/// directory below is opened from the root.
const MAX_PATH: usize = 8 * 4096;

/// An open guest root.
#[derive(Debug)]
pub struct Root {
    fd: OwnedFd,
    path: PathBuf,
    borders: Vec<InodeId>,
    /// What the kernel must not go through besides.
    barred: ResolveFlags,
}

impl Root {
    /// Opens `path` as a guest's root.
    pub fn open(path: &Path) -> io::Result<Root> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(path, flags, Mode::empty())?;
        Ok(Root::from_fd(fd, path))
    }

    /// A root that is open already; `path` is for messages.
    pub fn from_fd(fd: OwnedFd, path: &Path) -> Root {
        Root { fd, path: path.to_path_buf(), borders: Vec::new(), barred: ResolveFlags::empty() }
    }

    /// The same root without these directories and what is below them: a pool, other guests.
    pub fn bounded(self, borders: Vec<InodeId>) -> Root {
        Root { borders, ..self }
    }

    /// Whether an open directory below the root is none of the guest's.
    pub fn is_border(&self, directory: impl AsFd) -> bool {
        let is_border = |inode: Inode| self.borders.contains(&inode.id);
        !self.borders.is_empty() && Inode::of(directory).is_ok_and(is_border)
    }

    /// The same root, once more.
    pub fn try_clone(&self) -> io::Result<Root> {
        Ok(Root {
            fd: self.fd.try_clone()?,
            path: self.path.clone(),
            borders: self.borders.clone(),
            barred: self.barred,
        })
    }

    /// The same root, without what is mounted below it: a guest may have mounted a filesystem that does not answer.
    ///
    /// What is there is `EXDEV`.
    pub fn without_mounts(self) -> Root {
        Root { barred: ResolveFlags::NO_XDEV, ..self }
    }

    /// The path the root was opened by, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether this is the root of the calling process.
    pub fn is_own(&self) -> bool {
        let id = |path: &Path| rustix::fs::stat(path).map(|s| (s.st_dev, s.st_ino)).ok();
        rustix::fs::fstat(&self.fd).map(|s| (s.st_dev, s.st_ino)).ok() == id(Path::new("/"))
    }

    /// Opens `path`, beneath the root. Symlinks are followed inside the root unless `flags` has `NOFOLLOW`; none is in a
    /// path that is longer than the kernel takes at once: only walks come to such, and their paths have none.
    ///
    /// # Errors
    /// As `openat2(2)`; `ELOOP` for a magic link or a final symlink with `NOFOLLOW`.
    pub fn open_at(&self, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
        let path = relative(path);
        if path.as_os_str().len() > MAX_PATH_IN_ONE_CALL {
            return self.open_in_pieces(path, flags, self.barred);
        }
        // Out of its own root no process can be led.
        if !filter::permits(libc::SYS_openat2) && self.is_own() {
            // As openat2(2), which refuses flags that mean nothing to it.
            let harmless = if flags.contains(OFlags::PATH) { OFlags::empty() } else { OFlags::NOCTTY };
            return Ok(rustix::fs::openat(
                &self.fd,
                path,
                flags | harmless | OFlags::CLOEXEC,
                Mode::empty(),
            )?);
        }
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | self.barred;
        open_beneath(&self.fd, path, flags, resolve)
    }

    /// Opens a path that a walk has found, beneath the root: no symlink was in it then, and no mount. If the guest has put
    /// one there meanwhile, nothing behind it is asked: it may be a filesystem that does not answer.
    ///
    /// # Errors
    /// `ELOOP` for a symlink, `ENOTDIR` for a mount.
    pub fn open_walked(&self, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
        self.open_unless_mounted(path, flags)?.ok_or(io::Error::from_raw_os_error(libc::ENOTDIR))
    }

    /// As [`Root::open_walked`]; `None` for a mount, or what is behind one.
    pub(super) fn open_unless_mounted(&self, path: &Path, flags: OFlags) -> io::Result<Option<OwnedFd>> {
        if !filter::permits(libc::SYS_openat2) && self.is_own() {
            return self.open_at(path, flags).map(Some);
        }
        let path = relative(path);
        let opened = if path.as_os_str().len() > MAX_PATH_IN_ONE_CALL {
            self.open_in_pieces(path, flags, ResolveFlags::NO_XDEV)
        } else {
            let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
            open_beneath(&self.fd, path, flags, resolve)
        };
        match opened {
            Err(e) if e.raw_os_error() == Some(libc::EXDEV) => Ok(None),
            opened => opened.map(Some),
        }
    }

    fn open_in_pieces(&self, path: &Path, flags: OFlags, more: ResolveFlags) -> io::Result<OwnedFd> {
        if path.as_os_str().len() > MAX_PATH {
            return Err(io::Error::other(format!(
                "the path is longer than {MAX_PATH} bytes, which is too long to be followed"
            )));
        }
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | more;
        let mut rest = path.as_os_str().as_bytes();
        let mut dir: Option<OwnedFd> = None;
        loop {
            let from = dir.as_ref().map_or(self.fd.as_fd(), AsFd::as_fd);
            if rest.len() <= MAX_PATH_IN_ONE_CALL {
                return open_beneath(from, Path::new(OsStr::from_bytes(rest)), flags, resolve);
            }
            let cut = rest[..=MAX_PATH_IN_ONE_CALL].iter().rposition(|&byte| byte == b'/').unwrap_or(0);
            let piece = Path::new(OsStr::from_bytes(&rest[..cut]));
            let next = open_beneath(from, piece, OFlags::PATH | OFlags::DIRECTORY, resolve)?;
            rest = &rest[cut + 1..];
            dir = Some(next);
        }
    }

    /// Looks at a path that a walk has found, beneath the root; it is not followed.
    ///
    /// # Errors
    /// As [`Root::open_walked`].
    pub fn look(&self, path: &Path) -> io::Result<Inode> {
        Inode::of(self.open_walked(path, OFlags::PATH | OFlags::NOFOLLOW)?)
    }

    /// Opens the directory `path`, beneath the root, following symlinks inside it.
    pub fn open_dir(&self, path: &Path) -> io::Result<OwnedFd> {
        self.open_at(path, OFlags::RDONLY | OFlags::DIRECTORY)
    }

    /// Reads the regular file `path` whole, beneath the root, following symlinks inside it.
    ///
    /// # Errors
    /// `InvalidInput` if `path` is something else than a regular file; a FIFO never blocks. `FileTooLarge` beyond `most`
    /// bytes, a limit of [`budget`](crate::sys::budget).
    pub fn read(&self, path: &Path, most: usize) -> io::Result<Vec<u8>> {
        read_regular(self.open_file(path)?, most)
    }

    /// Opens the regular file `path` for reading, beneath the root, following symlinks inside it.
    ///
    /// # Errors
    /// `InvalidInput` if `path` is something else than a regular file; a FIFO never blocks.
    pub fn open_file(&self, path: &Path) -> io::Result<OwnedFd> {
        regular::open(|flags| self.open_at(path, flags))
    }
}

fn open_beneath(dir: impl AsFd, path: &Path, flags: OFlags, resolve: ResolveFlags) -> io::Result<OwnedFd> {
    // openat2(2) refuses flags that mean nothing to it.
    let harmless = if flags.contains(OFlags::PATH) { OFlags::empty() } else { OFlags::NOCTTY };
    match patient::openat2(dir, path.as_os_str(), flags | harmless, resolve) {
        Err(Errno::AGAIN) => Err(io::Error::new(
            io::ErrorKind::TimedOut,
            "another process renames files all the time, which keeps its path from being looked up",
        )),
        opened => Ok(opened?),
    }
}

impl AsFd for Root {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Reads the regular file `name` of the directory `dir` whole; a symlink is not followed.
///
/// # Errors
/// As [`Root::read`].
pub fn read_at(dir: impl AsFd, name: &OsStr, most: usize) -> io::Result<Vec<u8>> {
    read_regular(
        regular::open(|flags| {
            let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            Ok(rustix::fs::openat(&dir, name, flags, Mode::empty())?)
        })?,
        most,
    )
}

fn read_regular(fd: OwnedFd, most: usize) -> io::Result<Vec<u8>> {
    let stat = rustix::fs::fstat(&fd)?;
    let size = usize::try_from(stat.st_size).unwrap_or(0);
    Exceeded::check_bytes(size as u64, most as u64)?;
    let mut data = Vec::with_capacity(size);
    std::fs::File::from(fd).take(most as u64 + 1).read_to_end(&mut data)?;
    Exceeded::check_bytes(data.len() as u64, most as u64)?;
    Ok(data)
}

/// `path` without its leading slashes; the root itself is `.`.
pub fn relative(path: &Path) -> &Path {
    let bytes = path.as_os_str().as_bytes();
    let start = bytes.iter().position(|&b| b != b'/').unwrap_or(bytes.len());
    if start == bytes.len() { Path::new(".") } else { Path::new(OsStr::from_bytes(&bytes[start..])) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_any_length_are_opened_but_for_those_without_end() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path()).unwrap();
        let (mut at, mut path) = (root.fd.try_clone().unwrap(), PathBuf::from("/"));
        let (name, flags) = ("x".repeat(255), OFlags::PATH | OFlags::DIRECTORY);
        for _ in 0..40 {
            rustix::fs::mkdirat(&at, &name, Mode::RWXU).unwrap();
            at = rustix::fs::openat(&at, &name, flags, Mode::empty()).unwrap();
            path.push(&name);
            assert_eq!(Inode::of(root.open_dir(&path).unwrap()).unwrap().id, Inode::of(&at).unwrap().id);
        }
        rustix::fs::symlinkat("/", &at, "link").unwrap();
        assert_eq!(root.look(&path.join("link")).unwrap().kind, crate::sys::file::inode::Kind::Symlink);
        assert!(root.open_dir(&path.join("link")).is_err());
        assert!(root.open_dir(&path.join("..")).is_ok());
        let end = root.open_dir(&path.join("z".repeat(MAX_PATH))).unwrap_err();
        assert!(!crate::sys::path::resolve::is_absent(&end), "{end}");
    }

    #[test]
    #[ignore = "needs root"]
    fn privileged_a_device_in_the_place_of_a_file_is_not_opened() {
        let dir = tempfile::tempdir().unwrap();
        // To open it would end with ENXIO: there is no such device.
        let device = rustix::fs::makedev(4000, 1);
        let kind = rustix::fs::FileType::CharacterDevice;
        let names = std::fs::File::open(dir.path()).unwrap();
        rustix::fs::mknodat(&names, "lock", kind, Mode::RUSR | Mode::WUSR, device).unwrap();
        let root = Root::open(dir.path()).unwrap();
        let kinds = [
            root.read(Path::new("/lock"), 1).unwrap_err().kind(),
            read_at(&names, OsStr::new("lock"), 1).unwrap_err().kind(),
            crate::sys::path::dirfd::open_lock_file(&names, OsStr::new("lock")).unwrap_err().kind(),
        ];
        assert_eq!(kinds, [io::ErrorKind::InvalidInput; 3]);
    }

    #[test]
    fn a_file_without_end_is_not_read() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::File::create(dir.path().join("sparse")).unwrap().set_len(1 << 40).unwrap();
        let error = Root::open(dir.path()).unwrap().read(Path::new("/sparse"), 1 << 20).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
    }
}

//! A private copy of a file: data with its holes, owner, mode, extended attributes, times, inode flags, project.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{Mode, OFlags, SeekFrom};
use rustix::io::Errno;

use crate::sys::file::content::next_data;
use crate::sys::file::inode::Inode;
use crate::sys::file::metadata::Metadata;
use crate::sys::file::traits::Traits;
use crate::sys::file::xattr;
use crate::sys::seccomp::filter;

/// Makes private copies on one filesystem, and remembers whether it can share blocks (`FICLONE`).
#[derive(Debug)]
pub struct Copier {
    clones: AtomicBool,
}

impl Default for Copier {
    fn default() -> Copier {
        Copier { clones: AtomicBool::new(true) }
    }
}

impl Copier {
    /// Creates `name` in `dir` as a private copy of `source`, an open regular file that `inode` describes.
    ///
    /// Nothing is flushed: one `syncfs` for the whole batch is the caller's. What fails half way is removed.
    /// Returns the open copy and how many bytes were written; 0 if blocks are shared.
    ///
    /// # Errors
    /// As the system calls; `UnexpectedEof` if the source has been cut short meanwhile.
    pub fn copy(
        &self,
        source: &OwnedFd,
        inode: &Inode,
        dir: BorrowedFd<'_>,
        name: &OsStr,
    ) -> io::Result<(OwnedFd, u64)> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let copy = rustix::fs::openat(dir, name, flags, Mode::RUSR | Mode::WUSR)?;
        match self.fill(source, inode, &copy, dir) {
            Ok(bytes) => Ok((copy, bytes)),
            Err(e) => {
                let _ = rustix::fs::unlinkat(dir, name, rustix::fs::AtFlags::empty());
                Err(e)
            }
        }
    }

    fn fill(&self, source: &OwnedFd, inode: &Inode, copy: &OwnedFd, dir: BorrowedFd<'_>) -> io::Result<u64> {
        let traits = Traits::of(source)?;
        traits.give_first(copy)?;
        let bytes = self.data(source, inode, copy)?;
        Metadata { inode: *inode, xattrs: xattr::read(source)? }.write(copy, &Metadata::of(copy)?)?;
        traits.give(copy, dir)?;
        Ok(bytes)
    }

    fn data(&self, source: &OwnedFd, inode: &Inode, copy: &OwnedFd) -> io::Result<u64> {
        if inode.size == 0 {
            return Ok(0);
        }
        if self.clones.load(Ordering::Relaxed) {
            match rustix::fs::ioctl_ficlone(copy, source) {
                Ok(()) => return whole(copy, inode.size).map(|()| 0),
                Err(Errno::OPNOTSUPP | Errno::NOTTY | Errno::NOSYS) => {
                    self.clones.store(false, Ordering::Relaxed)
                }
                // This one file cannot share blocks: another filesystem, other flags.
                Err(Errno::XDEV | Errno::INVAL | Errno::PERM | Errno::TXTBSY) => {}
                Err(e) => return Err(e.into()),
            }
        }
        rustix::fs::ftruncate(copy, inode.size)?;
        let bytes = extents(source, copy, inode.size)?;
        whole(source, inode.size)?;
        Ok(bytes)
    }
}

fn whole(file: &OwnedFd, size: u64) -> io::Result<()> {
    if rustix::fs::fstat(file)?.st_size as u64 == size {
        Ok(())
    } else {
        Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the file's size changed while it was copied"))
    }
}

/// Copies the data of a file, and leaves its holes. How many blocks it takes says nothing of these: some may be beyond
/// its end.
fn extents(source: &OwnedFd, copy: &OwnedFd, size: u64) -> io::Result<u64> {
    let (mut at, mut bytes) = (0, 0);
    while at < size {
        let start = next_data(source, at)?;
        if start >= size {
            break;
        }
        let end = match rustix::fs::seek(source, SeekFrom::Hole(start)) {
            Ok(end) => end.min(size),
            Err(Errno::INVAL | Errno::OPNOTSUPP | Errno::NOTTY) => size,
            Err(e) => return Err(e.into()),
        };
        bytes += range(source, copy, start, end)?;
        at = end;
    }
    Ok(bytes)
}

fn range(source: &OwnedFd, copy: &OwnedFd, start: u64, end: u64) -> io::Result<u64> {
    if !filter::permits(libc::SYS_copy_file_range) {
        return through_memory(source, copy, start, end).map(|()| end - start);
    }
    let (mut from, mut to) = (start, start);
    while from < end {
        let want = usize::try_from(end - from).unwrap_or(usize::MAX).min(1 << 30);
        match rustix::fs::copy_file_range(source, Some(&mut from), copy, Some(&mut to), want) {
            Ok(0) => {
                return Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    "the file was truncated while it was copied",
                ));
            }
            Ok(_) | Err(Errno::INTR) => {}
            // Not between these two filesystems.
            Err(Errno::XDEV | Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
                return through_memory(source, copy, from, end).map(|()| end - start);
            }
            Err(e) => return Err(e.into()),
        }
    }
    Ok(end - start)
}

fn through_memory(source: &OwnedFd, copy: &OwnedFd, mut at: u64, end: u64) -> io::Result<()> {
    let mut buf = vec![0; 1 << 18];
    while at < end {
        let want = usize::try_from(end - at).unwrap_or(usize::MAX).min(buf.len());
        let got = rustix::io::retry_on_intr(|| rustix::io::pread(source, &mut buf[..want], at))?;
        if got == 0 {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the file was truncated while it was \
                copied",
            ));
        }
        let mut done = 0;
        while done < got {
            done +=
                rustix::io::retry_on_intr(|| rustix::io::pwrite(copy, &buf[done..got], at + done as u64))?;
        }
        at += got as u64;
    }
    Ok(())
}

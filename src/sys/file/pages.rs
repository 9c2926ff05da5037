//! The pages of a file that are in memory.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use rustix::fs::Advice;
use rustix::mm::{MapFlags, ProtFlags};

/// `cachestat(2)`, Linux 6.5: one number on all architectures, which the libc crate does not name everywhere.
const SYS_CACHESTAT: libc::c_long = 451;

/// `struct cachestat_range` of `linux/mman.h`, in bytes; no length means to the end.
#[repr(C)]
struct Range {
    start: u64,
    length: u64,
}

/// `struct cachestat` of `linux/mman.h`, in pages.
#[repr(C)]
#[derive(Default)]
struct Counts {
    cached: u64,
    dirty: u64,
    under_writeback: u64,
    evicted: u64,
    recently_evicted: u64,
}

/// What is known of the pages of a file in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InMemory {
    /// Some are.
    Some,
    /// None is.
    None,
    /// None is, or what is has lost its content in a write to the disk that failed. All that a kernel before Linux 6.5 can
    /// tell.
    NoneUptodate,
}

/// Asks the kernel to give up the pages of a file. It keeps those that are dirty, mapped, pinned or in use.
pub fn evict(file: impl AsFd) -> io::Result<()> {
    Ok(rustix::fs::fadvise(file, 0, None, Advice::DontNeed)?)
}

/// Whether pages of an open file of `size` bytes are in memory.
///
/// # Errors
/// As `mmap(2)` and `mincore(2)`. Who neither owns the file nor may write to it is told that they are.
pub fn in_memory(file: impl AsFd, size: u64) -> io::Result<InMemory> {
    match count(&file) {
        Ok(0) => Ok(InMemory::None),
        Ok(_) => Ok(InMemory::Some),
        // Older, or a filter or the owner forbids it.
        Err(_) => mapped(file, size),
    }
}

fn count(file: impl AsFd) -> io::Result<u64> {
    let (range, mut counts) = (Range { start: 0, length: 0 }, Counts::default());
    // SAFETY: the call reads a `struct cachestat_range` and writes a `struct cachestat`, which both live through it.
    let result = unsafe {
        libc::syscall(
            SYS_CACHESTAT,
            file.as_fd().as_raw_fd(),
            std::ptr::from_ref(&range),
            std::ptr::from_mut(&mut counts),
            0,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(counts.cached) }
}

fn mapped(file: impl AsFd, size: u64) -> io::Result<InMemory> {
    /// Bytes looked at in one go.
    const PIECE: u64 = 1 << 30;
    let page = rustix::param::page_size();
    for start in (0..size).step_by(PIECE as usize) {
        let length = usize::try_from(PIECE.min(size - start)).map_err(io::Error::other)?;
        let mut pages = vec![0u8; length.div_ceil(page)];
        // SAFETY: a new mapping at an address that the kernel chooses. It is not read; it is unmapped before anything else
        // happens, and `mincore` writes a byte for each of its pages.
        let result = unsafe {
            let map = rustix::mm::mmap(
                std::ptr::null_mut(),
                length,
                ProtFlags::READ,
                MapFlags::SHARED,
                &file,
                start,
            )?;
            let looked = libc::mincore(map, length, pages.as_mut_ptr());
            let result = if looked < 0 { Err(io::Error::last_os_error()) } else { Ok(()) };
            rustix::mm::munmap(map, length)?;
            result
        };
        result?;
        if pages.iter().any(|page| page & 1 != 0) {
            return Ok(InMemory::Some);
        }
    }
    Ok(InMemory::NoneUptodate)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn pages_of_a_file_are_evicted_and_come_back() {
        // Not in /tmp: a tmpfs has no other place for them.
        let mut file = tempfile::tempfile_in("/var/tmp").unwrap();
        let size = 3 * 4096 + 5;
        file.write_all(&vec![1; size]).unwrap();
        file.sync_all().unwrap();
        for _ in 0..2 {
            assert_eq!(in_memory(&file, size as u64).unwrap(), InMemory::Some);
            assert_eq!(mapped(&file, size as u64).unwrap(), InMemory::Some);
            evict(&file).unwrap();
            assert_ne!(in_memory(&file, size as u64).unwrap(), InMemory::Some);
            assert_eq!(mapped(&file, size as u64).unwrap(), InMemory::NoneUptodate);
            std::os::unix::fs::FileExt::read_at(&file, &mut [0], size as u64 - 1).unwrap();
        }
    }

    #[test]
    fn a_dirty_page_stays() {
        let mut file = tempfile::tempfile_in("/var/tmp").unwrap();
        file.write_all(b"dirty").unwrap();
        evict(&file).unwrap();
        assert_eq!(in_memory(&file, 5).unwrap(), InMemory::Some);
    }
}

//! How the kernel holds files in memory.

#![allow(unsafe_code)]

/// Bytes of one page of the page cache.
pub fn size() -> u64 {
    // SAFETY: takes a number, touches no memory of ours.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    u64::try_from(size).ok().filter(|&size| size > 0).unwrap_or(4096)
}

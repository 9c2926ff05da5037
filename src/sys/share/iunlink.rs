//! Linux-VServer's "immutable, but may be unlinked": an inode that nobody can change, and whose names anybody can.
//!
//! Mainline kernels have neither the flag nor the system call `vserver(2)` that sets it (`linux/vserver/inode_cmd.h` of
//! the patch; number 236 is reserved for it on x86-64).

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// `VCMD_get_version`: `VC_CMD(VERSION, 0, 0)`.
const GET_VERSION: u32 = 0;
/// `VCMD_fset_iattr`: `VC_CMD(INODE, 4, 0)`, with 38 for the inodes' commands.
const SET_ATTRIBUTES: u32 = 38 << 24 | 4 << 16;
/// `IATTR_IUNLINK` and `IATTR_IMMUTABLE`.
const FLAGS: u32 = 0x20000 | 0x40000;

/// `struct vcmd_ctx_fiattr_v0`.
#[repr(C)]
struct Attributes {
    tag: u32,
    flags: u32,
    mask: u32,
}

/// Whether this kernel knows the flag.
pub fn is_known() -> bool {
    vserver(GET_VERSION, 0, None).is_ok()
}

/// Sets the flag, and the immutable flag beside it, on an open file.
///
/// # Errors
/// `ENOSYS` on a kernel without it; `EPERM` without its capabilities.
pub fn set(fd: impl AsFd) -> io::Result<()> {
    let mut attributes = Attributes { tag: 0, flags: FLAGS, mask: FLAGS };
    vserver(SET_ATTRIBUTES, fd.as_fd().as_raw_fd() as u32, Some(&mut attributes))
}

#[cfg(target_arch = "x86_64")]
fn vserver(command: u32, id: u32, data: Option<&mut Attributes>) -> io::Result<()> {
    const NUMBER: libc::c_long = 236;
    let data = data.map_or(std::ptr::null_mut(), std::ptr::from_mut);
    // SAFETY: `data` is null or points to what the command reads, and lives through the call.
    let result = unsafe { libc::syscall(NUMBER, command, id, data) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(not(target_arch = "x86_64"))]
fn vserver(_: u32, _: u32, _: Option<&mut Attributes>) -> io::Result<()> {
    Err(io::Error::from_raw_os_error(libc::ENOSYS))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_without_the_flag_says_so() {
        let file = tempfile::tempfile().unwrap();
        let has_no_call = set(&file).is_err_and(|e| e.raw_os_error() == Some(libc::ENOSYS));
        assert_eq!(has_no_call, !is_known());
    }
}

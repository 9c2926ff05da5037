//! Lets a file share the blocks of another one of equal content (`ioctl_fideduperange(2)`).
//!
//! The kernel compares under its own locks, and changes neither inode but for where its data lies: no time, no owner, no
//! mode. Writers need not be kept away.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use rustix::ioctl::{Opcode, Updater, opcode};

use crate::sys::file::content::next_data;

/// `FIDEDUPERANGE` of `linux/fs.h`, which counts the structure without its ranges.
const FIDEDUPERANGE: Opcode = opcode::read_write::<[u64; 3]>(0x94, 54);
/// `FILE_DEDUPE_RANGE_DIFFERS` of `linux/fs.h`.
const RANGE_DIFFERS: i32 = 1;
/// No filesystem shares more at a time; btrfs says so itself.
const MAX_RANGE_BYTES: u64 = 16 << 20;

/// `struct file_dedupe_range` with one `struct file_dedupe_range_info`.
#[repr(C)]
#[derive(Default)]
struct Range {
    source_offset: u64,
    source_length: u64,
    count: u16,
    reserved: [u16; 3],
    target: i64,
    target_offset: u64,
    deduped: u64,
    status: i32,
    reserved_too: u32,
}

/// Makes `target` share the blocks of `source`, both of `size` bytes. `false` if their content differs.
///
/// # Errors
/// `EXDEV` on different filesystems; `EOPNOTSUPP` and `EINVAL` if blocks cannot be shared; `EPERM` for a target that
/// is immutable.
pub fn share_blocks(source: impl AsFd, target: impl AsFd, size: u64) -> io::Result<bool> {
    let mut at = 0;
    loop {
        // What neither of them has blocks for is equal, and nothing to share.
        at = at.max(next_data(&source, at)?.min(next_data(&target, at)?) & !(MAX_RANGE_BYTES - 1));
        if at >= size {
            return Ok(true);
        }
        let mut range = Range {
            source_offset: at,
            source_length: (size - at).min(MAX_RANGE_BYTES),
            count: 1,
            target: target.as_fd().as_raw_fd().into(),
            target_offset: at,
            ..Range::default()
        };
        // SAFETY: both descriptors are open; `range` has the layout the kernel reads and writes, with the one target
        // that `count` says.
        unsafe { rustix::ioctl::ioctl(&source, Updater::<FIDEDUPERANGE, Range>::new(&mut range)) }?;
        match range.status {
            RANGE_DIFFERS => return Ok(false),
            error if error < 0 => return Err(io::Error::from_raw_os_error(-error)),
            _ if range.deduped == 0 => return Err(io::ErrorKind::Unsupported.into()),
            _ => at += range.deduped,
        }
    }
}

//! Inode flags given as programs give them to the kernel (`ioctl_iflags(2)`, `ioctl_xfs_fsgetxattr(2)`,
//! `file_setattr(2)`).

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use crate::sys::seccomp::program::{FS_SET_XATTR, SET_FLAGS, SET_FLAGS_32};

/// Number of `file_setattr(2)`, the same on all architectures.
const FILE_SETATTR: libc::c_long = 469;

/// A system call that sets flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlagsCall {
    /// `FS_IOC_SETFLAGS`: the first word of its argument.
    SetFlags,
    /// `FS_IOC_FSSETXATTR`: a `struct fsxattr`.
    FsSetXattr,
    /// `file_setattr(2)`: a `struct file_attr`.
    FileSetattr,
}

/// The argument of a call that sets flags.
#[derive(Clone, Debug)]
pub struct FlagsArgument {
    call: FlagsCall,
    bytes: Vec<u8>,
}

impl FlagsCall {
    /// The call that an `ioctl(2)` request makes.
    pub fn of_request(request: u32) -> Option<FlagsCall> {
        match request {
            SET_FLAGS | SET_FLAGS_32 => Some(FlagsCall::SetFlags),
            FS_SET_XATTR => Some(FlagsCall::FsSetXattr),
            _ => None,
        }
    }

    /// Size of the argument in bytes.
    pub fn size(self) -> usize {
        match self {
            FlagsCall::SetFlags => 4,
            FlagsCall::FsSetXattr => 28,
            FlagsCall::FileSetattr => 24,
        }
    }
}

impl FlagsArgument {
    /// What a program passes to this call.
    pub fn new(call: FlagsCall, bytes: Vec<u8>) -> FlagsArgument {
        FlagsArgument { call, bytes }
    }

    /// Whether these are the flags as `FS_IOC_GETFLAGS` gives them.
    pub fn equals(&self, flags: u32) -> bool {
        self.call == FlagsCall::SetFlags && self.bytes == flags.to_ne_bytes()
    }

    /// Takes the immutable flag out; returns whether it was set.
    pub fn clear_immutable(&mut self) -> bool {
        // FS_IMMUTABLE_FL and FS_XFLAG_IMMUTABLE of linux/fs.h; the flags are the first word of each.
        let bit = if self.call == FlagsCall::SetFlags { 0x10 } else { 0x08 };
        let word = if self.call == FlagsCall::FileSetattr { 8 } else { 4 };
        let at = if cfg!(target_endian = "little") { 0 } else { word - 1 };
        let was_set = self.bytes[at] & bit != 0;
        self.bytes[at] &= !bit;
        was_set
    }

    /// Whether every owner of a file with these flags, as `FS_IOC_GETFLAGS` gives them, may set ours.
    pub fn needs_no_capability(&self, flags: u32) -> bool {
        // FS_IMMUTABLE_FL, FS_APPEND_FL and FS_JOURNAL_DATA_FL of linux/fs.h need capabilities.
        let changed = |word: [u8; 4]| (u32::from_ne_bytes(word) ^ flags) & 0x4030;
        self.call == FlagsCall::SetFlags && self.bytes[..4].try_into().is_ok_and(|word| changed(word) == 0)
    }

    /// Sets the flags of an open file.
    pub fn set(&self, file: impl AsFd) -> io::Result<()> {
        let fd = file.as_fd().as_raw_fd();
        let bytes = self.bytes.as_ptr();
        // SAFETY: each request or call reads as many bytes as its argument has, which live through it.
        let result = unsafe {
            match self.call {
                FlagsCall::SetFlags => libc::c_long::from(libc::ioctl(fd, SET_FLAGS.into(), bytes)),
                FlagsCall::FsSetXattr => libc::c_long::from(libc::ioctl(fd, FS_SET_XATTR.into(), bytes)),
                FlagsCall::FileSetattr => libc::syscall(
                    FILE_SETATTR,
                    fd,
                    c"".as_ptr(),
                    bytes,
                    self.bytes.len(),
                    libc::AT_EMPTY_PATH,
                ),
            }
        };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_flags_are_for_the_privileged() {
        let flags = |flags: u32| FlagsArgument::new(FlagsCall::SetFlags, flags.to_ne_bytes().to_vec());
        assert!(flags(0x40).needs_no_capability(0x80));
        assert!(!flags(0x60).needs_no_capability(0x40));
        assert!(flags(0x60).needs_no_capability(0x20));
    }

    #[test]
    fn the_immutable_flag_alone_is_taken_out() {
        for (call, flags, rest) in
            [(FlagsCall::SetFlags, 0x50u32, 0x40u32), (FlagsCall::FsSetXattr, 0x88, 0x80)]
        {
            let mut bytes = vec![0; call.size()];
            bytes[..4].copy_from_slice(&flags.to_ne_bytes());
            let mut argument = FlagsArgument::new(call, bytes);
            assert!(argument.clear_immutable());
            assert_eq!(argument.bytes[..4], rest.to_ne_bytes());
            assert!(!argument.clear_immutable());
        }
    }
}

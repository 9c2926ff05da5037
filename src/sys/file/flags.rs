//! Inode flags given as programs give them to the kernel (`ioctl_iflags(2)`, `ioctl_xfs_fsgetxattr(2)`,
//! `file_setattr(2)`).

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// `FS_IOC_SETFLAGS`, and its number for 32-bit programs.
const SET_FLAGS: [u32; 2] = [0x4008_6602, 0x4004_6602];
/// `FS_IOC_FSSETXATTR`.
const SET_EXTENDED: u32 = 0x401c_5820;
/// Number of `file_setattr(2)`, the same on all architectures.
const FILE_SETATTR: libc::c_long = 469;

/// Which call brings the flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// The first word of what `FS_IOC_SETFLAGS` is given.
    Flags,
    /// A `struct fsxattr`.
    Extended,
    /// A `struct file_attr`.
    Attributes,
}

/// The argument of a call that sets flags.
#[derive(Clone, Debug)]
pub struct Attributes {
    form: Form,
    bytes: Vec<u8>,
}

impl Form {
    /// The form of an `ioctl(2)` request.
    pub fn of_request(request: u32) -> Option<Form> {
        if SET_FLAGS.contains(&request) {
            Some(Form::Flags)
        } else {
            (request == SET_EXTENDED).then_some(Form::Extended)
        }
    }

    /// Bytes of the argument that count.
    pub fn size(self) -> usize {
        match self {
            Form::Flags => 4,
            Form::Extended => 28,
            Form::Attributes => 24,
        }
    }
}

impl Attributes {
    /// What a program passes in this form.
    pub fn new(form: Form, bytes: Vec<u8>) -> Attributes {
        Attributes { form, bytes }
    }

    /// Whether these are the flags as `FS_IOC_GETFLAGS` gives them.
    pub fn are_flags(&self, flags: u32) -> bool {
        self.form == Form::Flags && self.bytes == flags.to_ne_bytes()
    }

    /// Takes the immutable flag out; returns whether it was set.
    pub fn without_immutable(&mut self) -> bool {
        // FS_IMMUTABLE_FL and FS_XFLAG_IMMUTABLE of linux/fs.h; the flags are the first word of each.
        let bit = if self.form == Form::Flags { 0x10 } else { 0x08 };
        let word = if self.form == Form::Attributes { 8 } else { 4 };
        let at = if cfg!(target_endian = "little") { 0 } else { word - 1 };
        let was_set = self.bytes[at] & bit != 0;
        self.bytes[at] &= !bit;
        was_set
    }

    /// Whether any owner of a file that has these flags, as `FS_IOC_GETFLAGS` gives them, may set it to ours.
    pub fn are_for_everybody(&self, flags: u32) -> bool {
        // FS_IMMUTABLE_FL, FS_APPEND_FL and FS_JOURNAL_DATA_FL of linux/fs.h need capabilities.
        let changed = |word: [u8; 4]| (u32::from_ne_bytes(word) ^ flags) & 0x4030;
        self.form == Form::Flags && self.bytes[..4].try_into().is_ok_and(|word| changed(word) == 0)
    }

    /// Gives them to an open file.
    pub fn set(&self, file: impl AsFd) -> io::Result<()> {
        let fd = file.as_fd().as_raw_fd();
        let bytes = self.bytes.as_ptr();
        // SAFETY: each request or call reads as many bytes as its form has, which live through it.
        let result = unsafe {
            match self.form {
                Form::Flags => libc::c_long::from(libc::ioctl(fd, SET_FLAGS[0].into(), bytes)),
                Form::Extended => libc::c_long::from(libc::ioctl(fd, SET_EXTENDED.into(), bytes)),
                Form::Attributes => libc::syscall(
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
        let flags = |flags: u32| Attributes::new(Form::Flags, flags.to_ne_bytes().to_vec());
        assert!(flags(0x40).are_for_everybody(0x80));
        assert!(!flags(0x60).are_for_everybody(0x40));
        assert!(flags(0x60).are_for_everybody(0x20));
    }

    #[test]
    fn the_immutable_flag_alone_is_taken_out() {
        for (form, flags, rest) in [(Form::Flags, 0x50u32, 0x40u32), (Form::Extended, 0x88, 0x80)] {
            let mut bytes = vec![0; form.size()];
            bytes[..4].copy_from_slice(&flags.to_ne_bytes());
            let mut attributes = Attributes::new(form, bytes);
            assert!(attributes.without_immutable());
            assert_eq!(attributes.bytes[..4], rest.to_ne_bytes());
            assert!(!attributes.without_immutable());
        }
    }
}

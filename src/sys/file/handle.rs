//! File handles: an inode's identity that survives the loss of its names and a reboot
//! (`name_to_handle_at(2)`).

#![allow(unsafe_code)]

use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use crate::sys::seccomp::filter;

/// As large as any filesystem's handle (`MAX_HANDLE_SZ`, `linux/exportfs.h`).
const MAX_HANDLE: usize = 128;

/// `struct file_handle` with room for the largest handle.
#[repr(C)]
struct Raw {
    bytes: libc::c_uint,
    kind: libc::c_int,
    data: [u8; MAX_HANDLE],
}

/// An encoded file handle; opaque.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Handle(Vec<u8>);

impl Handle {
    /// The handle of what `name` in `dir` names; a symlink is not followed.
    ///
    /// # Errors
    /// `EOPNOTSUPP` if the filesystem has no handles.
    pub fn at(dir: impl AsFd, name: &OsStr) -> io::Result<Handle> {
        Self::get(dir, name, 0)
    }

    /// The handle of an open file or directory.
    ///
    /// # Errors
    /// `EOPNOTSUPP` if the filesystem has no handles.
    pub fn of(fd: impl AsFd) -> io::Result<Handle> {
        Self::get(fd, OsStr::new(""), libc::AT_EMPTY_PATH)
    }

    fn get(dir: impl AsFd, name: &OsStr, flags: libc::c_int) -> io::Result<Handle> {
        if !filter::permits(libc::SYS_name_to_handle_at) {
            return Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP));
        }
        let name = CString::new(name.as_bytes())?;
        let mut raw = Raw { bytes: MAX_HANDLE as libc::c_uint, kind: 0, data: [0; MAX_HANDLE] };
        let mut mount = 0;
        // SAFETY: `raw` has the layout of `struct file_handle` and as much room as its `bytes` says; the path is a
        // C string; all pointers live through the call.
        let result = unsafe {
            libc::name_to_handle_at(
                dir.as_fd().as_raw_fd(),
                name.as_ptr(),
                (&raw mut raw).cast(),
                &raw mut mount,
                flags,
            )
        };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        let mut encoded = raw.kind.to_le_bytes().to_vec();
        encoded.extend_from_slice(&raw.data[..raw.bytes as usize]);
        Ok(Handle(encoded))
    }

    /// The handle that [`Handle::as_bytes`] gave.
    pub fn from_bytes(bytes: &[u8]) -> Handle {
        Handle(bytes.to_vec())
    }

    /// The handle in a form that can be stored.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Opens the inode read-only; `on` is any open file of its filesystem.
    ///
    /// # Errors
    /// `ESTALE` if the inode is no more; `EPERM` without `CAP_DAC_READ_SEARCH`; `EINVAL` for bytes that are no handle.
    pub fn open(&self, on: impl AsFd) -> io::Result<OwnedFd> {
        if !filter::permits(libc::SYS_open_by_handle_at) {
            return Err(io::Error::from_raw_os_error(libc::EPERM));
        }
        let invalid = || io::Error::from(io::ErrorKind::InvalidInput);
        let (kind, data) = self.0.split_at_checked(4).ok_or_else(invalid)?;
        let kind = libc::c_int::from_le_bytes(kind.try_into().map_err(|_| invalid())?);
        let mut raw = Raw { bytes: data.len() as libc::c_uint, kind, data: [0; MAX_HANDLE] };
        raw.data.get_mut(..data.len()).ok_or_else(invalid)?.copy_from_slice(data);
        let flags = libc::O_RDONLY | libc::O_NONBLOCK | libc::O_CLOEXEC;
        // SAFETY: `raw` has the layout of `struct file_handle`, `bytes` counts what is set; it lives through the call.
        let fd = unsafe { libc::open_by_handle_at(on.as_fd().as_raw_fd(), (&raw mut raw).cast(), flags) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just given us this descriptor; nobody else owns it.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_that_are_no_handle_are_refused() {
        let here = std::fs::File::open("/").unwrap();
        assert!(Handle::from_bytes(&[1, 2]).open(&here).is_err());
        assert!(Handle::from_bytes(&[0; 200]).open(&here).is_err());
    }
}

//! What all checks share.

use std::fmt::Display;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::MemfdFlags;

use crate::report::{Reason, Shown};

/// A listed path: absolute, not the root, and one that a file can have.
pub fn is_listed(path: &Path) {
    let bytes = path.as_os_str().as_bytes();
    assert!(path.is_absolute() && bytes.len() > 1 && !bytes.contains(&0), "{path:?}");
}

/// A message that can go to a log or a terminal: whatever a guest wrote in it, it is one line.
pub fn is_message(message: impl Display) {
    let message = Reason(message).to_string();
    assert!(!message.is_empty() && !message.chars().any(char::is_control), "{message:?}");
}

/// A name, as it is shown to people.
pub fn is_shown(name: &[u8]) {
    is_message(Shown(Path::new(std::ffi::OsStr::from_bytes(name))));
}

/// An open file that holds these bytes.
pub fn file_of(data: &[u8]) -> OwnedFd {
    let fd = rustix::fs::memfd_create("input", MemfdFlags::CLOEXEC).unwrap();
    assert_eq!(rustix::io::pwrite(&fd, data, 0).unwrap(), data.len());
    fd
}

/// The data up to the first byte of this value, and what follows it.
pub fn halves(data: &[u8], separator: u8) -> (&[u8], &[u8]) {
    match data.iter().position(|&byte| byte == separator) {
        Some(at) => (&data[..at], &data[at + 1..]),
        None => (data, &[]),
    }
}

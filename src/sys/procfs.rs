//! Files of procfs: small ones, which the kernel gives at once, and those whose lines are `Key:\tvalue`.

use std::io;
use std::os::fd::AsFd;

use rustix::fs::{Mode, OFlags};

/// What most files have room in.
const ROOM: usize = 4096;

/// Reads a small file below a directory of procfs.
pub(super) fn read(dir: impl AsFd, path: &str) -> io::Result<Vec<u8>> {
    let fd = rustix::fs::openat(dir, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let mut content = vec![0; ROOM];
    let mut length = 0;
    loop {
        length += rustix::io::read(&fd, &mut content[length..])?;
        // procfs gives as much as there is room for.
        if length < content.len() {
            content.truncate(length);
            return Ok(content);
        }
        content.resize(2 * length, 0);
    }
}

/// The keys and values of all lines that are text.
pub(super) fn lines(content: &[u8]) -> impl Iterator<Item = (&str, &str)> {
    let lines = content.split(|&byte| byte == b'\n').filter_map(|line| std::str::from_utf8(line).ok());
    lines.filter_map(|line| line.split_once(':')).map(|(key, value)| (key, value.trim()))
}

/// The value of the first line with this key.
pub(super) fn value<'t>(content: &'t [u8], key: &str) -> Option<&'t str> {
    lines(content).find_map(|(found, value)| (found == key).then_some(value))
}

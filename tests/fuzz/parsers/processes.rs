//! What the kernel says of processes that choose their own names, and what their memory holds.

use std::os::unix::ffi::OsStrExt;

use crate::supervise::call::{arguments, lookup};
use crate::sys::process::mounts::{self, Mount};
use crate::sys::process::{Status, programs, table, task};

pub fn fdinfo(data: &[u8]) {
    task::parse_open_file(data);
}

pub fn maps(data: &[u8]) {
    for (ino, range) in data.split(|&byte| byte == b'\n').filter_map(programs::executable) {
        assert!(ino != 0 && !range.contains(' '));
    }
}

pub fn mountinfo(data: &[u8]) {
    let mounts: Vec<Mount> = data.split(|&byte| byte == b'\n').filter_map(Mount::parse).collect();
    for mount in &mounts {
        assert!(!mount.device.contains(' '));
        // The first of several with one number counts.
        if let Some((device, _)) = mounts::place(&mounts, mount.id, &mount.point) {
            assert!(mounts.iter().any(|mount| mount.device == device));
        }
    }
}

pub fn stat(data: &[u8]) {
    if let Some(process) = table::parse_stat(data) {
        let name = process.command.as_bytes();
        assert!(name.is_empty() || data.windows(name.len()).any(|part| part == name));
    }
}

pub fn status(data: &[u8]) {
    if let Ok(status) = Status::parse(data) {
        assert!(status.groups.len() <= data.len());
    }
}

pub fn system_call(data: &[u8]) {
    table::parse_system_call(data);
}

#[cfg(feature = "guard")]
pub fn kernel_types(data: &[u8]) {
    if let Some(hooks) = crate::guard::kernel::parse(data) {
        assert!(hooks.len() <= data.len());
    }
}

pub fn call_path(data: &[u8]) {
    if let Some((parent, name, _)) = lookup::parts(data) {
        let name = name.as_bytes();
        assert!(!parent.is_empty() && !matches!(name, b"" | b"." | b"..") && !name.contains(&b'/'));
        let whole = [parent, b"/", name].concat();
        assert!(lookup::names_reversed(&whole).next().is_some_and(|last| last == name));
    }
}

pub fn call_how(data: &[u8]) {
    if let Some((flags, resolve)) = arguments::parse_how(data) {
        assert!(flags <= u64::from(u32::MAX) && data.starts_with(&flags.to_le_bytes()));
        assert_eq!(u64::from_le_bytes(*data[16..].first_chunk().unwrap()), resolve.bits());
    }
}

/// The first byte tells whether seconds and nanoseconds have 32 bits each.
pub fn call_times(data: &[u8]) {
    let Some((&narrow, times)) = data.split_first() else { return };
    let size = if narrow & 1 != 0 { 8 } else { 16 };
    if let Some(pairs) = times.get(..2 * size) {
        arguments::parse_times(pairs);
    }
}

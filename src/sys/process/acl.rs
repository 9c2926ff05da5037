//! Access control lists, as the kernel judges by them (`acl(5)`, `posix_acl_permission` of `fs/posix_acl.c`).

use super::status::Status;
use crate::sys::file::inode::Inode;

/// Tags of `linux/posix_acl.h`.
const USER: u16 = 0x02;
const GROUP_OBJECT: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

/// Bytes before the entries, and of each entry (`linux/posix_acl_xattr.h`).
const HEADER: usize = 4;
const ENTRY: usize = 8;

struct Entry {
    tag: u16,
    bits: u32,
    id: u32,
}

fn entries(list: &[u8]) -> impl Iterator<Item = Entry> {
    let entries = list.get(HEADER..).unwrap_or_default().chunks_exact(ENTRY);
    entries.map(|entry| Entry {
        tag: u16::from_le_bytes([entry[0], entry[1]]),
        bits: u16::from_le_bytes([entry[2], entry[3]]).into(),
        id: u32::from_le_bytes([entry[4], entry[5], entry[6], entry[7]]),
    })
}

/// Whether a list, as the attribute `system.posix_acl_access` has it, gives these permission bits to somebody who does not
/// own the file.
pub(super) fn allows(list: &[u8], status: &Status, inode: &Inode, wanted: u32) -> bool {
    let mask = entries(list).find(|entry| entry.tag == MASK).map_or(7, |entry| entry.bits);
    let has = |entry: &Entry| entry.bits & wanted == wanted;
    let mut in_a_group = false;
    for entry in entries(list) {
        let is_ours = match entry.tag {
            USER if entry.id == status.uid => return has(&entry) && mask & wanted == wanted,
            GROUP_OBJECT => status.is_in_group(inode.gid),
            GROUP => status.is_in_group(entry.id),
            OTHER => return !in_a_group && has(&entry),
            _ => false,
        };
        if is_ours && has(&entry) {
            return mask & wanted == wanted;
        }
        in_a_group |= is_ours;
    }
    false
}

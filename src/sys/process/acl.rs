//! Access control lists, as the kernel judges by them (`acl(5)`, `posix_acl_permission` of `fs/posix_acl.c`).

/// Tags of `linux/posix_acl.h`.
const OWNER: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJECT: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

/// Bytes before the entries, and of each entry (`linux/posix_acl_xattr.h`).
const HEADER: usize = 4;
const ENTRY: usize = 8;

/// What the attribute `system.posix_acl_access` holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessList(Vec<Entry>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    tag: u16,
    bits: u32,
    /// The user or group; 0 in entries that have none.
    id: u32,
}

impl AccessList {
    /// Reads the attribute's value; `None` if there are no whole entries in it. The kernel may refuse more.
    pub fn parse(value: &[u8]) -> Option<AccessList> {
        let (header, entries) = value.split_at_checked(HEADER)?;
        let (entries, rest) = entries.as_chunks::<ENTRY>();
        let entry = |&[a, b, c, d, ref id @ ..]: &[u8; ENTRY]| {
            let tag = u16::from_le_bytes([a, b]);
            let id = if matches!(tag, USER | GROUP) { u32::from_le_bytes(*id) } else { 0 };
            Entry { tag, bits: u16::from_le_bytes([c, d]).into(), id }
        };
        (header == [2, 0, 0, 0] && rest.is_empty()).then(|| AccessList(entries.iter().map(entry).collect()))
    }

    /// Whether it says what the permission bits of this mode say.
    pub fn is_mode(&self, mode: u32) -> bool {
        let entry = |tag, shift: u32| Entry { tag, bits: mode >> shift & 7, id: 0 };
        self.0 == [entry(OWNER, 6), entry(GROUP_OBJECT, 3), entry(OTHER, 0)]
    }

    /// Whether it gives these permission bits to a user who does not own the file; `file_group` is the file's group.
    pub(super) fn allows(
        &self,
        user: u32,
        is_in_group: impl Fn(u32) -> bool,
        file_group: u32,
        wanted: u32,
    ) -> bool {
        let mask = self.0.iter().find(|entry| entry.tag == MASK).map_or(7, |entry| entry.bits);
        let has = |entry: &Entry| entry.bits & wanted == wanted;
        let mut in_a_group = false;
        for entry in &self.0 {
            let is_ours = match entry.tag {
                USER if entry.id == user => return has(entry) && mask & wanted == wanted,
                GROUP_OBJECT => is_in_group(file_group),
                GROUP => is_in_group(entry.id),
                OTHER => return !in_a_group && has(entry),
                _ => false,
            };
            if is_ours && has(entry) {
                return mask & wanted == wanted;
            }
            in_a_group |= is_ours;
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_three_entries_is_a_mode() {
        let entry =
            |tag: u16, bits: u16| [tag.to_le_bytes(), bits.to_le_bytes(), [0xff; 2], [0xff; 2]].concat();
        let list = [vec![2, 0, 0, 0], entry(OWNER, 6), entry(GROUP_OBJECT, 4), entry(OTHER, 0)].concat();
        let is_mode = |list: &[u8], mode| AccessList::parse(list).is_some_and(|list| list.is_mode(mode));
        assert!(is_mode(&list, 0o640) && is_mode(&list, 0o6640) && !is_mode(&list, 0o644));
        assert!(!is_mode(&[list.clone(), entry(MASK, 7)].concat(), 0o640));
        assert_eq!(AccessList::parse(&list[..list.len() - 1]), None);
        assert_eq!(AccessList::parse(&[&[1, 0, 0, 0], &list[4..]].concat()), None);
    }
}

//! The journal of a run: the names it is about to change, on the disk before it begins.
//!
//! Names in guests are told by file handles, which do not depend on who looks from where.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use super::object::ObjectName;
use crate::sys::file::handle::Handle;

/// The first bytes of a journal, and its version.
const MAGIC: &[u8] = b"cow-hooks journal 1\n";

/// A name that is to become a name of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkIntent {
    /// Number of the names in the run's directory: of the link that takes its place, and of the inode that loses it.
    pub temporary: u64,
    /// The object, whatever its index.
    pub object: ObjectName,
    pub dir: Handle,
    pub name: OsString,
    /// Number of the inode it had.
    pub ino: u64,
    /// Its length in bytes.
    pub size: u64,
    /// Its time of modification, in nanoseconds.
    pub mtime: i64,
}

/// What is written before these names change; `protect` says that their objects are immutable.
pub(crate) fn encode(protect: bool, intents: &[LinkIntent]) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    out.push(u8::from(protect));
    for intent in intents {
        for number in [intent.temporary, intent.ino, intent.size, intent.mtime as u64] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        let object = intent.object.whole();
        for field in [object.as_bytes(), intent.dir.as_bytes(), intent.name.as_bytes()] {
            out.extend_from_slice(&(field.len() as u32).to_le_bytes());
            out.extend_from_slice(field);
        }
    }
    out.extend_from_slice(MAGIC);
    out
}

/// Reads a journal; `None` if it is not whole.
pub(crate) fn decode(data: &[u8]) -> Option<(bool, Vec<LinkIntent>)> {
    let body = data.strip_prefix(MAGIC)?.strip_suffix(MAGIC)?;
    let (&protect, mut rest) = body.split_first()?;
    let mut intents = Vec::new();
    while !rest.is_empty() {
        let mut numbers = [0; 4];
        for number in &mut numbers {
            let (bytes, tail) = rest.split_first_chunk()?;
            (*number, rest) = (u64::from_le_bytes(*bytes), tail);
        }
        let mut fields = [&[][..]; 3];
        for field in &mut fields {
            let (length, tail) = rest.split_first_chunk()?;
            (*field, rest) = tail.split_at_checked(u32::from_le_bytes(*length) as usize)?;
        }
        intents.push(LinkIntent {
            temporary: numbers[0],
            ino: numbers[1],
            size: numbers[2],
            mtime: numbers[3] as i64,
            object: ObjectName::parse_whole(OsStr::from_bytes(fields[0]))?,
            dir: Handle::from_bytes(fields[1]),
            name: OsString::from_vec(fields[2].to_vec()),
        });
    }
    Some((protect != 0, intents))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::unify::pool::identity::Digest;

    proptest! {
        #[test]
        fn a_journal_is_read_as_it_was_written_or_not_at_all(
            rows in prop::collection::vec((any::<u64>(), any::<[u8; 32]>(), prop::collection::vec(any::<u8>(), 0..40)), 0..5),
            protect: bool,
            cut in 1usize..60,
        ) {
            let intents: Vec<LinkIntent> = rows.into_iter().map(|(number, content, bytes)| LinkIntent {
                temporary: number,
                object: ObjectName { tag: number, digest: Digest { content, xattrs: 3 }, salt: number / 2, index: 9 },
                dir: Handle::from_bytes(&bytes),
                name: OsString::from_vec(bytes),
                ino: !number,
                size: number ^ 5,
                mtime: number as i64,
            }).collect();
            let data = encode(protect, &intents);
            prop_assert_eq!(decode(&data), Some((protect, intents)));
            prop_assert_eq!(decode(&data[..data.len() - cut.min(data.len())]), None);
        }

        #[test]
        fn any_bytes_are_read_without_panic(data in prop::collection::vec(any::<u8>(), 0..100)) {
            decode(&data);
            decode(&[MAGIC, &data, MAGIC].concat());
        }
    }
}

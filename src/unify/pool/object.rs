//! What an object of the pool is called, and what is known of all of them.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io;
use std::os::fd::AsFd;

use super::identity::{self, Digest, Mtime};
use super::protection::PoolProtection;
use crate::sys::file::inode::Inode;

/// What the second name of an object ends with.
const SECOND: &str = ".second";

/// What an object must be, and which one of several it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectName {
    /// The [`super::identity::tag`] of its metadata.
    pub tag: u64,
    /// Content and extended attributes.
    pub(crate) digest: Digest,
    /// Keeps apart what a reference guest has under different paths; 0 without one.
    pub(crate) salt: u64,
    /// Several inodes of one object are counted from 0.
    pub index: u32,
}

impl ObjectName {
    /// The directory the object lies in.
    pub fn shelf(&self) -> u8 {
        self.digest.content[0]
    }

    /// The same but for the index.
    pub(crate) fn same_object(&self, other: &ObjectName) -> bool {
        ObjectName { index: 0, ..*self } == ObjectName { index: 0, ..*other }
    }

    /// Whether an open file that nobody writes to is what the name says.
    pub(crate) fn describes(&self, file: impl AsFd, mtime: Mtime) -> io::Result<bool> {
        let (inode, digest) = Digest::of_quiet(&file)?;
        Ok(identity::tag(&inode, mtime) == self.tag && digest.is_of_object(file, &self.digest)?)
    }

    /// What candidates are grouped by.
    pub fn key(&self) -> u64 {
        self.tag ^ self.salt
    }

    pub(crate) fn parse(shelf: u8, name: &str) -> Option<ObjectName> {
        let (digests, rest) = name.split_once('.')?;
        let (index, salt) = match rest.split_once('.') {
            Some((index, salt)) => (index, number(salt)?),
            None => (rest, 0),
        };
        let mut parts = digests.split('-');
        let content = blake3::Hash::from_hex(format!("{shelf:02x}{}", parts.next()?)).ok()?;
        let (tag, xattrs) = (number(parts.next()?)?, number(parts.next()?)?);
        let parsed = ObjectName {
            tag,
            digest: Digest { content: content.into(), xattrs },
            salt,
            index: index.parse().ok()?,
        };
        // One object has one name.
        (parsed.to_string() == name).then_some(parsed)
    }

    /// The tag in the name of an object's file, without a look at the rest.
    pub(super) fn tag_of(name: &str) -> Option<u64> {
        number(name.split('-').nth(1)?)
    }

    /// Reads what [`ObjectName::whole`] wrote.
    pub(crate) fn parse_whole(name: &OsStr) -> Option<ObjectName> {
        let name = name.to_str()?;
        let (shelf, rest) = name.split_at_checked(2)?;
        let parsed = ObjectName::parse(u8::from_str_radix(shelf, 16).ok()?, rest)?;
        // One object has one name: capital letters and signs are digits to the standard library, too.
        (parsed.whole() == name).then_some(parsed)
    }

    /// The name with the directory's two digits before it.
    pub fn whole(&self) -> OsString {
        format!("{:02x}{self}", self.shelf()).into()
    }

    /// The name in quarantine of the object that had the inode number `ino`: several may have been the same one.
    pub(crate) fn quarantine_name(&self, ino: u64) -> OsString {
        format!("{:02x}{self}@{ino}", self.shelf()).into()
    }

    /// The object that a file of this name in quarantine was.
    pub(crate) fn parse_quarantined(name: &OsStr) -> Option<ObjectName> {
        let (whole, ino) = name.to_str()?.split_once('@')?;
        ino.parse::<u64>().ok()?;
        ObjectName::parse_whole(OsStr::new(whole))
    }

    /// The file's name in its directory.
    pub fn file(&self) -> OsString {
        self.to_string().into()
    }

    /// The second name in the same directory, which an object has that the guard protects.
    pub(crate) fn second(&self) -> OsString {
        format!("{self}{SECOND}").into()
    }

    /// The object that a second name belongs to.
    pub(crate) fn parse_second(shelf: u8, name: &str) -> Option<ObjectName> {
        ObjectName::parse(shelf, name.strip_suffix(SECOND)?)
    }
}

fn number(hex: &str) -> Option<u64> {
    (hex.len() == 16).then(|| u64::from_str_radix(hex, 16).ok()).flatten()
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let content = blake3::Hash::from(self.digest.content).to_hex();
        let (content, xattrs) = (&content.as_str()[2..], self.digest.xattrs);
        write!(f, "{content}-{:016x}-{xattrs:016x}.{}", self.tag, self.index)?;
        if self.salt == 0 { Ok(()) } else { write!(f, ".{:016x}", self.salt) }
    }
}

/// One inode of the pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Object {
    pub name: ObjectName,
    /// Its inode number, on the pool's filesystem.
    pub ino: u64,
}

/// An object as it lies in the pool, or in quarantine.
#[derive(Clone, Debug)]
pub struct PoolFile {
    /// What it is, or was.
    pub name: ObjectName,
    /// The name of its file.
    pub file: OsString,
    /// It lies in quarantine.
    pub quarantined: bool,
    pub inode: Inode,
    /// It has the guard's mark; asked only in a pool that relies on the guard.
    pub marked: bool,
    /// It is an object, and has its second name.
    pub second: bool,
}

impl PoolFile {
    /// Whether no guest has a link to it.
    pub(crate) fn is_unused(&self) -> bool {
        self.inode.nlink == self.names_in_pool()
    }

    /// How many names it has in the pool itself.
    pub(crate) fn names_in_pool(&self) -> u32 {
        1 + u32::from(self.second)
    }

    /// Whether it was protected in this way when it was looked at.
    pub fn is_protected(&self, protection: PoolProtection) -> bool {
        protection.is_given(&self.inode, self.marked, self.second || self.quarantined)
    }
}

/// All objects, to be asked which inodes are the pool's and what there is for a file.
#[derive(Debug, Default)]
pub struct ObjectIndex {
    /// By key, name and index.
    objects: Vec<Object>,
    inodes: HashSet<u64>,
    quarantined: HashSet<u64>,
}

impl ObjectIndex {
    /// An index of these objects.
    pub fn new(mut objects: Vec<Object>, quarantined: HashSet<u64>) -> ObjectIndex {
        objects.sort_unstable_by_key(|object| (object.name.key(), object.name));
        let inodes = objects.iter().map(|object| object.ino).collect();
        ObjectIndex { objects, inodes, quarantined }
    }

    /// An index of files of the pool that were looked at.
    pub fn of(files: &[PoolFile]) -> ObjectIndex {
        let (quarantined, objects): (Vec<&PoolFile>, Vec<&PoolFile>) =
            files.iter().partition(|file| file.quarantined);
        let ino = |file: &PoolFile| file.inode.id.ino;
        let objects = objects.into_iter().map(|file| Object { name: file.name, ino: ino(file) });
        ObjectIndex::new(objects.collect(), quarantined.into_iter().map(ino).collect())
    }

    /// Whether the inode of this number is an object, or was one and is in quarantine.
    pub fn holds(&self, ino: u64) -> bool {
        self.inodes.contains(&ino) || self.quarantined.contains(&ino)
    }

    /// Whether the inode of this number is in quarantine.
    pub(crate) fn is_quarantined(&self, ino: u64) -> bool {
        !self.quarantined.is_empty() && self.quarantined.contains(&ino)
    }

    /// Whether there is any object with this key.
    pub fn knows(&self, key: u64) -> bool {
        !self.with_key(key).is_empty()
    }

    /// The newest inode of the only object with this key; `None` if there is none, or several.
    pub(crate) fn only(&self, key: u64) -> Option<Object> {
        let found = self.with_key(key);
        found.last().filter(|_| !are_several(found)).copied()
    }

    /// Whether there are several objects with this key.
    pub(crate) fn knows_several(&self, key: u64) -> bool {
        are_several(self.with_key(key))
    }

    fn with_key(&self, key: u64) -> &[Object] {
        let begin = self.objects.partition_point(|object| object.name.key() < key);
        let length = self.objects[begin..].partition_point(|object| object.name.key() == key);
        &self.objects[begin..begin + length]
    }

    /// The newest inode of the object `name`, whatever its index.
    pub(crate) fn newest(&self, name: &ObjectName) -> Option<Object> {
        let last = ObjectName { index: u32::MAX, ..*name };
        let end =
            self.objects.partition_point(|object| (object.name.key(), object.name) <= (last.key(), last));
        let object = self.objects[..end].last()?;
        object.name.same_object(name).then_some(*object)
    }

    /// All objects.
    pub fn objects(&self) -> &[Object] {
        &self.objects
    }
}

/// Whether inodes, in the order of their names, are of more than one object.
fn are_several(inodes: &[Object]) -> bool {
    matches!(inodes, [first, .., last] if !first.name.same_object(&last.name))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn name(tag: u64, first: u8, salt: u64, index: u32) -> ObjectName {
        let mut content = [0x5a; 32];
        content[0] = first;
        ObjectName { tag, digest: Digest { content, xattrs: 7 }, salt, index }
    }

    #[test]
    fn the_newest_index_of_an_object_is_found_among_others() {
        let names =
            [name(1, 0, 0, 0), name(1, 0, 0, 10), name(1, 0, 0, 2), name(1, 1, 0, 3), name(2, 0, 0, 4)];
        let objects = names.iter().zip(1..).map(|(name, ino)| Object { name: *name, ino }).collect();
        let index = ObjectIndex::new(objects, HashSet::from([99]));
        assert_eq!(index.newest(&name(1, 0, 0, 0)).map(|object| object.name.index), Some(10));
        assert_eq!(index.newest(&name(3, 0, 0, 0)), None);
        assert_eq!(index.newest(&name(1, 0, 8, 0)), None);
        assert!(index.knows(1) && !index.knows(3));
        assert!(index.knows_several(1) && index.only(1).is_none());
        assert_eq!(index.only(2).map(|object| object.name.index), Some(4));
        assert!(!index.knows_several(3) && index.only(3).is_none());
        assert!(index.holds(1) && index.holds(99) && !index.holds(77));
        assert!(index.is_quarantined(99) && !index.is_quarantined(1));
    }

    #[test]
    fn a_stranger_is_no_object() {
        for text in ["", "x", "00-00-00.0", "lost+found"] {
            assert_eq!(ObjectName::parse(0, text), None);
            assert_eq!(ObjectName::parse_whole(OsStr::new(text)), None);
            assert_eq!(ObjectName::parse_quarantined(OsStr::new(text)), None);
        }
    }

    #[test]
    fn an_object_has_one_name() {
        let whole = name(1, 0x0a, 0, 0).whole().into_string().unwrap();
        for other in ["+a", "0A"].map(|shelf| format!("{shelf}{}", &whole[2..])) {
            assert_eq!(ObjectName::parse_whole(OsStr::new(&other)), None, "{other}");
        }
    }

    proptest! {
        #[test]
        fn names_are_read_as_they_are_written(tag: u64, first: u8, salt: u64, index: u32) {
            let name = name(tag, first, salt, index);
            prop_assert_eq!(ObjectName::parse(first, &name.to_string()), Some(name));
            let second = name.second().into_string().unwrap();
            prop_assert_eq!(ObjectName::parse_second(first, &second), Some(name));
            prop_assert_eq!(ObjectName::parse(first, &second), None);
            prop_assert_eq!(ObjectName::parse_whole(&name.whole()), Some(name));
            prop_assert_eq!(ObjectName::parse_quarantined(&name.quarantine_name(tag)), Some(name));
            prop_assert_eq!(ObjectName::parse_quarantined(&name.whole()), None);
        }
    }
}

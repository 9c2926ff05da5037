//! The one predicate: may these two files be one inode?
//!
//! They may if everything agrees that a guest could tell them apart by: what `stat(2)` shows, every extended
//! attribute, every inode flag that people set, the project, every byte. For files that are not at hand at the same time the same question is put to digests.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use crate::sys::file::content::{self, fill};
use crate::sys::file::inode::{Inode, Kind};
use crate::sys::file::traits::Traits;
use crate::sys::file::xattr::{self, Xattrs};

/// Whether files may differ in their time of modification.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Mtime {
    /// They must be equal, to the nanosecond.
    #[default]
    Match,
    /// They may differ; guests see the time of the pool's inode.
    Ignore,
}

/// Whether two regular files agree in everything `stat(2)` shows that a guest could tell them apart by: size, mode,
/// owner, group and time of modification.
///
/// Says nothing about extended attributes and content.
pub fn same_metadata(a: &Inode, b: &Inode, mtime: Mtime) -> bool {
    let key = |inode: &Inode| (inode.size, inode.mode, inode.uid, inode.gid);
    let both_regular = a.kind == Kind::Regular && b.kind == Kind::Regular;
    both_regular && key(a) == key(b) && (mtime == Mtime::Ignore || a.mtime == b.mtime)
}

/// Whether two open regular files may be one inode: metadata, every extended attribute, inode flags, every byte.
pub fn same(a: impl AsFd, b: impl AsFd, mtime: Mtime) -> io::Result<bool> {
    let (of_a, of_b) = (Inode::of(&a)?, Inode::of(&b)?);
    Ok(same_metadata(&of_a, &of_b, mtime)
        && xattr::read(&a)? == xattr::read(&b)?
        && Traits::of(&a)? == Traits::of(&b)?
        && content::same_content(a, b, of_a.size)?)
}

/// A digest of what [`same_metadata`] compares. Equal files have equal tags; the reverse wants a second look.
pub fn tag(inode: &Inode, mtime: Mtime) -> u64 {
    let mut encoded = [0; 32];
    encoded[..8].copy_from_slice(&inode.size.to_le_bytes());
    encoded[8..12].copy_from_slice(&inode.mode.to_le_bytes());
    encoded[12..16].copy_from_slice(&inode.uid.to_le_bytes());
    encoded[16..20].copy_from_slice(&inode.gid.to_le_bytes());
    if mtime == Mtime::Match {
        encoded[20..28].copy_from_slice(&inode.mtime.secs.to_le_bytes());
        encoded[28..].copy_from_slice(&inode.mtime.nanos.to_le_bytes());
    }
    short(&encoded)
}

/// What keeps files of different paths apart if only those of the same path may be equal; 0 if any may.
pub(crate) fn salt(by_path: bool, path: impl FnOnce() -> PathBuf) -> u64 {
    // Never 0.
    if by_path { short(path().as_os_str().as_bytes()) | 1 } else { 0 }
}

/// Bytes read at a time: as much as stays in a processor's own cache until it is hashed.
const BYTES_PER_READ: usize = 1 << 16;
/// Of a file that has so many zero bytes in a row, from a multiple of that on, these are counted and not hashed: a hole
/// costs nothing, however large.
const BYTES_PER_EMPTY_BLOCK: u64 = 64 << 20;

/// The first bytes of a BLAKE3 digest, as a number.
pub fn short(data: &[u8]) -> u64 {
    let digest = blake3::hash(data);
    digest.as_bytes().iter().take(8).fold(0, |number, &byte| number << 8 | u64::from(byte))
}

/// What of a file does not fit into its [`tag`]: content, extended attributes and traits, as digests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest {
    /// BLAKE3 of all bytes; if many of them are zero in a row, of the others and of the places at which they are.
    pub content: [u8; 32],
    /// A digest of names and values of the extended attributes, and of flags and project; 0 for none.
    pub xattrs: u64,
}

impl Digest {
    /// Reads an open file of `size` bytes, which has these attributes and traits.
    ///
    /// `go_on` is asked after each piece; if it says no, or if the file is shorter, there is no digest. Whether it
    /// has grown is the caller's to see.
    pub fn of(
        file: impl AsFd,
        size: u64,
        (xattrs, traits): (&Xattrs, Traits),
        go_on: impl Fn() -> bool,
    ) -> io::Result<Option<Digest>> {
        let content = Content::default().of(&file, size, &go_on)?;
        let xattrs = digest_xattrs(xattrs, traits);
        Ok(content.map(|content| Digest { content, xattrs }))
    }

    /// Whether an open file of the pool, whose digest this is, has the digest that its name tells.
    pub(crate) fn is_of_object(&self, file: impl AsFd, named: &Digest) -> io::Result<bool> {
        Ok(self.content == named.content && self.has_attributes_of_object(file, named)?)
    }

    /// The same for all but the content. The `noatime` flag does not count: the guard's mark looks like it.
    pub(crate) fn has_attributes_of_object(&self, file: impl AsFd, named: &Digest) -> io::Result<bool> {
        if self.xattrs == named.xattrs {
            return Ok(true);
        }
        let (xattrs, traits) = (xattr::read(&file)?, Traits::of(&file)?);
        let either = |noatime| digest_xattrs(&xattrs, traits.with_noatime(noatime)) == named.xattrs;
        Ok(either(true) || either(false))
    }

    /// The digest of an open file that nobody writes to, and what it was made of.
    ///
    /// # Errors
    /// `UnexpectedEof` if somebody does.
    pub(crate) fn of_quiet(file: impl AsFd) -> io::Result<(Inode, Digest)> {
        let inode = Inode::of(&file)?;
        let attributes = (&xattr::read(&file)?, Traits::of(&file)?);
        let digest = Digest::of(&file, inode.size, attributes, || true)?;
        Ok((inode, digest.ok_or(io::ErrorKind::UnexpectedEof)?))
    }
}

/// A digest of content, while it is read.
#[derive(Default)]
struct Content {
    hasher: blake3::Hasher,
    /// Which blocks of [`BYTES_PER_EMPTY_BLOCK`] bytes are.
    empty: Vec<u8>,
}

impl Content {
    fn of(mut self, file: impl AsFd, size: u64, go_on: &impl Fn() -> bool) -> io::Result<Option<[u8; 32]>> {
        let mut buffer = vec![0; usize::try_from(size).unwrap_or(BYTES_PER_READ).min(BYTES_PER_READ)];
        let mut at = 0;
        while at < size {
            let end = (at + BYTES_PER_EMPTY_BLOCK).min(size);
            let may_be_empty = end - at == BYTES_PER_EMPTY_BLOCK;
            let hole = may_be_empty && content::next_data(&file, at)? >= end;
            match if hole { Some(true) } else { self.block(&file, at, end, &mut buffer, go_on)? } {
                Some(true) if may_be_empty => self.empty.extend_from_slice(&at.to_le_bytes()),
                Some(_) => {}
                None => return Ok(None),
            }
            at = end;
            if at < size && !go_on() {
                return Ok(None);
            }
        }
        let all = self.hasher.finalize();
        if self.empty.is_empty() {
            return Ok(Some(all.into()));
        }
        let mut with_holes = blake3::Hasher::new_derive_key("cow-hooks content with empty blocks");
        with_holes.update(all.as_bytes()).update(&self.empty);
        Ok(Some(with_holes.finalize().into()))
    }

    /// Reads from `at` to `end`. Whether all bytes are zero, and as many as are counted; none if there are fewer, or
    /// the reading is to stop.
    fn block(
        &mut self,
        file: impl AsFd,
        start: u64,
        end: u64,
        buffer: &mut [u8],
        go_on: &impl Fn() -> bool,
    ) -> io::Result<Option<bool>> {
        let mut empty = end - start == BYTES_PER_EMPTY_BLOCK;
        let mut at = start;
        while at < end {
            let want = usize::try_from(end - at).unwrap_or(BYTES_PER_READ).min(buffer.len());
            if fill(&file, &mut buffer[..want], at)? < want {
                return Ok(None);
            }
            if empty && buffer[..want].iter().any(|&byte| byte != 0) {
                empty = false;
                for _ in 0..(at - start) / BYTES_PER_READ as u64 {
                    self.hasher.update(&[0; BYTES_PER_READ]);
                }
            }
            if !empty {
                self.hasher.update(&buffer[..want]);
            }
            at += want as u64;
            if at < end && !go_on() {
                return Ok(None);
            }
        }
        Ok(Some(empty))
    }
}

/// What is [`Digest::xattrs`] of a file that has these attributes and traits.
pub(crate) fn digest_xattrs(xattrs: &Xattrs, traits: Traits) -> u64 {
    digest_attributes(xattrs, traits.number())
}

/// Each name and value with its length before it, so that no two sets are written alike.
fn digest_attributes(xattrs: &Xattrs, traits: u64) -> u64 {
    if xattrs.is_empty() && traits == 0 {
        return 0;
    }
    let mut encoded = Vec::new();
    for part in xattrs.iter().flat_map(|(name, value)| [name.as_bytes(), value]) {
        encoded.extend_from_slice(&(part.len() as u64).to_le_bytes());
        encoded.extend_from_slice(part);
    }
    if traits != 0 {
        // No attribute has an empty name.
        encoded.extend_from_slice(&0u64.to_le_bytes());
        encoded.extend_from_slice(&traits.to_le_bytes());
    }
    short(&encoded)
}

#[cfg(test)]
mod tests {
    use std::fs::{File, FileTimes};
    use std::io::Write;
    use std::os::fd::OwnedFd;
    use std::os::unix::fs::PermissionsExt;
    use std::time::{Duration, SystemTime};

    use super::*;

    fn file(content: &[u8]) -> File {
        // Not in /tmp: a tmpfs has extended attributes of users only since Linux 6.6.
        let mut file = tempfile::tempfile_in("/var/tmp").unwrap();
        file.write_all(content).unwrap();
        file.set_times(FileTimes::new().set_modified(SystemTime::UNIX_EPOCH + Duration::new(9, 5))).unwrap();
        file
    }

    fn agree(a: File, b: File) -> bool {
        same(a, b, Mtime::Match).unwrap()
    }

    #[test]
    fn equal_files_may_be_one_inode() {
        let large = vec![7; 3 << 20];
        assert!(agree(file(&large), file(&large)));
        assert!(agree(file(b""), file(b"")));
    }

    #[test]
    fn one_byte_keeps_files_apart() {
        let large = vec![7; 3 << 20];
        let mut other = large.clone();
        *other.last_mut().unwrap() = 8;
        assert!(!agree(file(&large), file(&other)));
        assert!(!agree(file(&large), file(&large[1..])));
    }

    #[test]
    fn a_nanosecond_keeps_files_apart() {
        let other = file(b"x");
        other.set_times(FileTimes::new().set_modified(SystemTime::UNIX_EPOCH + Duration::new(9, 6))).unwrap();
        assert!(!agree(file(b"x"), other));
    }

    #[test]
    fn a_mode_keeps_files_apart() {
        let other = file(b"x");
        other.set_permissions(std::fs::Permissions::from_mode(0o4755)).unwrap();
        assert!(!agree(file(b"x"), other));
    }

    #[test]
    fn an_extended_attribute_keeps_files_apart() {
        let other = file(b"x");
        rustix::fs::fsetxattr(&other, "user.test", b"1", rustix::fs::XattrFlags::empty()).unwrap();
        assert!(!agree(file(b"x"), other));
    }

    #[test]
    fn the_time_of_modification_may_be_left_out() {
        let other = file(b"x");
        other.set_times(FileTimes::new().set_modified(SystemTime::UNIX_EPOCH)).unwrap();
        let (a, b): (OwnedFd, OwnedFd) = (file(b"x").into(), other.into());
        assert!(!same(&a, &b, Mtime::Match).unwrap());
        assert!(same(&a, &b, Mtime::Ignore).unwrap());
        let inodes = (Inode::of(&a).unwrap(), Inode::of(&b).unwrap());
        assert_ne!(tag(&inodes.0, Mtime::Match), tag(&inodes.1, Mtime::Match));
        assert_eq!(tag(&inodes.0, Mtime::Ignore), tag(&inodes.1, Mtime::Ignore));
    }

    #[test]
    fn digests_agree_where_content_and_attributes_do() {
        let large = vec![7; 3 << 20];
        let digest = |content: &[u8]| Digest::of_quiet(file(content)).unwrap().1;
        assert_eq!(digest(&large), digest(&large));
        assert_eq!(digest(&large[..1 << 18]).content, <[u8; 32]>::from(blake3::hash(&large[..1 << 18])));
        assert_ne!(digest(&large), digest(&large[1..]));
    }

    #[test]
    fn holes_are_content_like_zeros_and_cost_nothing() {
        let digest = |file: &File| Digest::of_quiet(file).unwrap().1.content;
        let written = |zeros: &[u64]| {
            let mut file = tempfile::tempfile().unwrap();
            for block in 0..3 {
                let byte = u8::from(!zeros.contains(&block)) * 7;
                file.write_all(&vec![byte; BYTES_PER_EMPTY_BLOCK as usize]).unwrap();
            }
            file
        };
        let with_hole = tempfile::tempfile().unwrap();
        with_hole.set_len(3 * BYTES_PER_EMPTY_BLOCK).unwrap();
        for at in [0, 2] {
            std::os::unix::fs::FileExt::write_all_at(
                &with_hole,
                &vec![7; BYTES_PER_EMPTY_BLOCK as usize],
                at * BYTES_PER_EMPTY_BLOCK,
            )
            .unwrap();
        }
        assert_eq!(digest(&with_hole), digest(&written(&[1])));
        assert_ne!(digest(&with_hole), digest(&written(&[2])));
        let plain = written(&[]);
        let mut hasher = blake3::Hasher::new();
        hasher.update(&vec![7; 3 * BYTES_PER_EMPTY_BLOCK as usize]);
        assert_eq!(digest(&plain), <[u8; 32]>::from(hasher.finalize()));
        let huge = tempfile::tempfile().unwrap();
        huge.set_len(1 << 40).unwrap();
        let huger = tempfile::tempfile().unwrap();
        huger.set_len((1 << 40) + BYTES_PER_EMPTY_BLOCK).unwrap();
        assert_ne!(digest(&huge), digest(&huger));
        // A byte after many zeros, within a block.
        let late = tempfile::tempfile().unwrap();
        std::os::unix::fs::FileExt::write_all_at(&late, b"x", BYTES_PER_EMPTY_BLOCK - 1).unwrap();
        let mut zeros = vec![0; BYTES_PER_EMPTY_BLOCK as usize];
        zeros[BYTES_PER_EMPTY_BLOCK as usize - 1] = b'x';
        assert_eq!(digest(&late), <[u8; 32]>::from(blake3::hash(&zeros)));
    }

    #[test]
    fn attributes_are_told_apart_by_where_one_ends() {
        let set = |pairs: &[(&std::ffi::CStr, &[u8])]| {
            digest_attributes(
                &pairs.iter().map(|(name, value)| ((*name).to_owned(), value.to_vec())).collect(),
                0,
            )
        };
        assert_eq!(set(&[]), 0);
        assert_ne!(set(&[(c"user.a", b"bc")]), set(&[(c"user.ab", b"c")]));
        assert_ne!(set(&[(c"user.a", b"")]), 0);
        assert_ne!(digest_attributes(&Xattrs::new(), 1), 0);
        assert_ne!(digest_attributes(&Xattrs::new(), 1), digest_attributes(&Xattrs::new(), 2));
    }

    #[test]
    fn a_writer_stops_the_reading() {
        let file: OwnedFd = file(&vec![1; 1 << 20]).into();
        let attributes = (&Xattrs::new(), Traits::of(&file).unwrap());
        assert_eq!(Digest::of(&file, 1 << 20, attributes, || false).unwrap(), None);
        assert_eq!(Digest::of(&file, 2 << 20, attributes, || true).unwrap(), None);
    }
}

//! The one predicate: may these two files be one inode?

use std::io;
use std::os::fd::OwnedFd;

use crate::sys::inode::{Inode, Kind};
use crate::sys::{root, xattr};

/// Whether two regular files agree in everything `stat(2)` shows that a guest could tell them apart by: size, mode,
/// owner, group and time of modification.
///
/// Says nothing about extended attributes and content.
pub fn same_metadata(a: &Inode, b: &Inode) -> bool {
    let key = |inode: &Inode| (inode.size, inode.mode, inode.uid, inode.gid, inode.mtime);
    a.kind == Kind::Regular && b.kind == Kind::Regular && key(a) == key(b)
}

/// Whether two open regular files may be one inode: metadata, every extended attribute, every byte.
pub fn same(a: &OwnedFd, b: &OwnedFd) -> io::Result<bool> {
    Ok(same_metadata(&Inode::of(a)?, &Inode::of(b)?)
        && xattr::read(a)? == xattr::read(b)?
        && root::same_content(a, b)?)
}

#[cfg(test)]
mod tests {
    use std::fs::{File, FileTimes};
    use std::io::Write;
    use std::os::unix::fs::PermissionsExt;
    use std::time::{Duration, SystemTime};

    use super::*;

    fn file(content: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content).unwrap();
        file.set_times(FileTimes::new().set_modified(SystemTime::UNIX_EPOCH + Duration::new(9, 5))).unwrap();
        file
    }

    fn agree(a: File, b: File) -> bool {
        same(&a.into(), &b.into()).unwrap()
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
        let set = rustix::fs::fsetxattr(&other, "user.test", b"1", rustix::fs::XattrFlags::empty());
        if set.is_ok() {
            assert!(!agree(file(b"x"), other));
        }
    }
}

//! The UUID of a filesystem, as the kernel keeps it in `super_block.s_uuid`: the same for all mounts, and for all
//! subvolumes of btrfs.

#![allow(unsafe_code)]

use std::fmt;
use std::io;
use std::os::fd::AsFd;
use std::str::FromStr;

use rustix::ioctl::{Getter, Opcode, Updater, opcode};

/// `FS_IOC_GETFSUUID` of `linux/fs.h` with a `struct fsuuid2`: the length and 16 bytes. Since Linux 6.9.
const GET: Opcode = opcode::read::<[u8; 17]>(0x15, 0);
/// `EXT4_IOC_GETFSUUID` of `linux/ext4.h` with a `struct fsuuid`, whose size does not count the UUID.
const GET_OF_EXT4: Opcode = opcode::read::<[u8; 8]>(b'f', 44);
/// `XFS_IOC_FSGEOMETRY_V1` of `xfs/xfs_fs.h` with a `struct xfs_fsop_geom_v1`.
const GET_OF_XFS: Opcode = opcode::read::<[u8; 112]>(b'X', 100);
/// `BTRFS_IOC_FS_INFO` of `linux/btrfs.h` with a `struct btrfs_ioctl_fs_info_args`.
const GET_OF_BTRFS: Opcode = opcode::read::<[u8; 1024]>(0x94, 31);

/// Magic numbers of `linux/magic.h` and `fs/xfs/libxfs/xfs_format.h`.
const EXT4: u32 = 0xef53;
const XFS: u32 = 0x5846_5342;
const BTRFS: u32 = 0x9123_683e;

/// The UUID of a filesystem; never all zeros, which stands for none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Uuid([u8; 16]);

impl Uuid {
    /// The UUID of the filesystem that an open file is on.
    ///
    /// # Errors
    /// `Unsupported` if the filesystem has none, or the kernel does not tell it.
    pub fn of(file: impl AsFd) -> io::Result<Uuid> {
        let magic = rustix::fs::fstatfs(&file)?.f_type as u32;
        let bytes = match (generic(&file), magic) {
            (Ok(bytes), _) => bytes,
            (Err(_), EXT4) => of_ext4(&file)?,
            (Err(_), XFS) => of_xfs(&file)?,
            (Err(_), BTRFS) => of_btrfs(&file)?,
            (Err(e), _) => return Err(io::Error::new(io::ErrorKind::Unsupported, e)),
        };
        Uuid::new(bytes)
            .ok_or_else(|| io::Error::new(io::ErrorKind::Unsupported, "the filesystem has no UUID"))
    }

    fn new(bytes: [u8; 16]) -> Option<Uuid> {
        (bytes != [0; 16]).then_some(Uuid(bytes))
    }

    /// Its bytes, as the kernel has them.
    pub fn bytes(&self) -> [u8; 16] {
        self.0
    }
}

fn generic(file: impl AsFd) -> io::Result<[u8; 16]> {
    // SAFETY: the call writes 17 bytes.
    let answer = unsafe { rustix::ioctl::ioctl(file, Getter::<GET, [u8; 17]>::new()) }?;
    Ok(part(&answer, 1))
}

fn of_ext4(file: impl AsFd) -> io::Result<[u8; 16]> {
    // Length, flags and room for the UUID.
    let mut answer = [0; 24];
    answer[..4].copy_from_slice(&16u32.to_ne_bytes());
    // SAFETY: the call writes no more than the 8 bytes before the UUID, and as many as its length says.
    unsafe { rustix::ioctl::ioctl(file, Updater::<GET_OF_EXT4, [u8; 24]>::new(&mut answer)) }?;
    Ok(part(&answer, 8))
}

fn of_xfs(file: impl AsFd) -> io::Result<[u8; 16]> {
    // SAFETY: the call writes 112 bytes.
    let answer = unsafe { rustix::ioctl::ioctl(file, Getter::<GET_OF_XFS, [u8; 112]>::new()) }?;
    Ok(part(&answer, 64))
}

fn of_btrfs(file: impl AsFd) -> io::Result<[u8; 16]> {
    // Which optional parts are wanted: none.
    let mut answer = [0; 1024];
    // SAFETY: the call reads and writes 1024 bytes.
    unsafe { rustix::ioctl::ioctl(file, Updater::<GET_OF_BTRFS, [u8; 1024]>::new(&mut answer)) }?;
    Ok(part(&answer, 16))
}

/// 16 bytes from `at`.
fn part(answer: &[u8], at: usize) -> [u8; 16] {
    std::array::from_fn(|index| answer[at + index])
}

/// With dashes, as `blkid(8)` shows it.
impl fmt::Display for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, byte) in self.0.iter().enumerate() {
            let dash = if matches!(at, 4 | 6 | 8 | 10) { "-" } else { "" };
            write!(f, "{dash}{byte:02x}")?;
        }
        Ok(())
    }
}

/// A text that is no UUID.
#[derive(Debug, thiserror::Error)]
#[error("not a UUID")]
pub struct NoUuid;

impl FromStr for Uuid {
    type Err = NoUuid;

    fn from_str(text: &str) -> Result<Uuid, NoUuid> {
        let digits: String = text.chars().filter(|&digit| digit != '-').collect();
        let all = u128::from_str_radix(&digits, 16).map_err(|_| NoUuid)?;
        let uuid = Uuid::new(all.to_be_bytes()).ok_or(NoUuid)?;
        if uuid.to_string() == text { Ok(uuid) } else { Err(NoUuid) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_of_a_uuid_is_that_uuid() {
        let text = "0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9";
        assert_eq!(text.parse::<Uuid>().unwrap().to_string(), text);
        for wrong in ["", "0a1b2c3d4e5f60718293a4b5c6d7e8f9", "00000000-0000-0000-0000-000000000000", "x"] {
            assert!(wrong.parse::<Uuid>().is_err(), "{wrong}");
        }
    }
}

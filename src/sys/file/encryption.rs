//! How the files of a directory are encrypted (`fscrypt`).
//!
//! Neither a link nor a rename brings a file into an encrypted directory that is not encrypted in the same way: `EXDEV`,
//! although both are on one mount.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::AsFd;

use rustix::fs::{AtFlags, StatxFlags};
use rustix::ioctl::{Opcode, Updater, opcode};

/// `FS_IOC_GET_ENCRYPTION_POLICY_EX` of `linux/fscrypt.h`.
const GET_POLICY: Opcode = opcode::read_write::<[u8; 9]>(b'f', 22);
/// `STATX_ATTR_ENCRYPTED`.
const ENCRYPTED: u64 = 0x800;
/// As large as any version of `union fscrypt_policy` (`linux/fscrypt.h`), with room to spare.
const MAX_POLICY: usize = 64;

/// How files that are made in a directory are encrypted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encryption(Option<Vec<u8>>);

impl Encryption {
    /// That of an open directory.
    pub fn of(dir: impl AsFd) -> io::Result<Encryption> {
        let stat = rustix::fs::statx(&dir, "", AtFlags::EMPTY_PATH, StatxFlags::empty())?;
        let encrypted = stat.stx_attributes.bits() & ENCRYPTED != 0;
        Ok(Encryption(if encrypted { Some(policy(&dir)?) } else { None }))
    }

    /// Whether a file of this encryption can have a name in a directory of another.
    pub fn fits_into(&self, other: &Encryption) -> bool {
        other.0.is_none() || other == self
    }
}

fn policy(dir: impl AsFd) -> io::Result<Vec<u8>> {
    // `struct fscrypt_get_policy_ex_arg`: the size that there is room for, then the policy.
    let mut argument = [0u8; 8 + MAX_POLICY];
    argument[..8].copy_from_slice(&(MAX_POLICY as u64).to_ne_bytes());
    // SAFETY: the kernel writes no more than the argument says that it has room for.
    unsafe { rustix::ioctl::ioctl(dir, Updater::<GET_POLICY, [u8; 8 + MAX_POLICY]>::new(&mut argument)) }?;
    Ok(argument[8..].to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_fits_into_its_own_kind_of_directory_and_into_one_that_is_not_encrypted() {
        let [none, one, other] = [None, Some(1), Some(2)].map(|byte| Encryption(byte.map(|byte| vec![byte])));
        assert!(none.fits_into(&none) && one.fits_into(&one) && one.fits_into(&none));
        assert!(!none.fits_into(&one) && !other.fits_into(&one));
    }

    #[test]
    fn any_directory_tells() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Encryption::of(std::fs::File::open(dir.path()).unwrap()).is_ok());
    }
}

//! What the host leaves in each guest that has our hooks: a file handle of its pool, and how it unifies.
//!
//! A guest on the pool's mount whose root holds `CAP_DAC_READ_SEARCH` (a chroot, a privileged container) can open the
//! handle, and link what its package manager has just unpacked without waiting for the host. All others cannot.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::OFlags;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::store::STATE_DIR;
use crate::sys::budget;
use crate::sys::file::handle::Handle;
use crate::sys::path::dirfd;
use crate::sys::path::resolve::is_absent;
use crate::sys::path::root::{Root, read_at};

/// The file in a guest's state directory.
pub const POOL_NOTICE: &str = "pool.toml";

/// What the host tells a guest of its pool.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolNotice {
    /// Handle of the pool's directory; in the file in hexadecimal.
    #[serde(rename = "handle", serialize_with = "to_hex", deserialize_with = "from_hex")]
    pub pool: Handle,
    /// Shared inodes are immutable.
    pub immutable: bool,
    /// Shared inodes are marked, and the host's guard protects them; earlier versions do not say it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub guard: bool,
    /// Set-id files and files with capabilities are unified, too.
    pub allow_setid: bool,
    /// The smallest file that is unified, in bytes.
    pub min_size: u64,
}

impl PoolNotice {
    /// Leaves the notice in a guest, if it has our hooks.
    pub fn leave(&self, root: &Root) -> io::Result<()> {
        let Some(state_dir) = state_dir(root)? else { return Ok(()) };
        if PoolNotice::read(&state_dir).ok().flatten().as_ref() == Some(self) {
            return Ok(());
        }
        let text = toml::to_string(self).map_err(io::Error::other)?;
        dirfd::replace_file(&state_dir, OsStr::new(POOL_NOTICE), text.as_bytes())
    }

    /// Reads the notice in a guest's state directory; none if the host has left none.
    pub fn read(state_dir: impl AsFd) -> io::Result<Option<PoolNotice>> {
        let text = match read_at(state_dir, OsStr::new(POOL_NOTICE), budget::SMALL) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e),
        };
        PoolNotice::parse(text).map(Some)
    }

    pub(crate) fn parse(text: Vec<u8>) -> io::Result<PoolNotice> {
        let text = String::from_utf8(text).map_err(io::Error::other)?;
        toml::from_str(&text).map_err(io::Error::other)
    }

    /// Reads the notice in a guest; none if there is none that can be read.
    pub fn of(root: &Root) -> Option<PoolNotice> {
        PoolNotice::read(root.open_dir(Path::new(STATE_DIR)).ok()?).ok().flatten()
    }

    /// Takes the notice away: the guest has no pool any more.
    pub fn retract(root: &Root) -> io::Result<()> {
        match root.open_dir(Path::new(STATE_DIR)) {
            Err(e) if is_absent(&e) => Ok(()),
            dir => dirfd::remove_file(dir?, OsStr::new(POOL_NOTICE)),
        }
    }
}

/// Where a guest is told of its pool; none if it has no hooks. The running system is told in any case: from inside it,
/// nothing else says what belongs to its pool.
fn state_dir(root: &Root) -> io::Result<Option<OwnedFd>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW;
    match root.open_at(Path::new(STATE_DIR), flags) {
        Err(e) if is_absent(&e) && root.is_own() => dirfd::make_dir(root, Path::new(STATE_DIR)).map(Some),
        Err(e) if is_absent(&e) => Ok(None),
        opened => opened.map(Some),
    }
}

fn to_hex<S: Serializer>(handle: &Handle, serializer: S) -> Result<S::Ok, S::Error> {
    let hex: String = handle.as_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    serializer.serialize_str(&hex)
}

fn from_hex<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Handle, D::Error> {
    let hex = String::deserialize(deserializer)?;
    let bytes = bytes(&hex).ok_or_else(|| serde::de::Error::custom("not a number in hexadecimal"))?;
    Ok(Handle::from_bytes(&bytes))
}

fn bytes(hex: &str) -> Option<Vec<u8>> {
    let pair = |at| u8::from_str_radix(hex.get(at..at + 2)?, 16).ok();
    (0..hex.len()).step_by(2).map(pair).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hexadecimal_is_read_as_it_is_written() {
        assert_eq!(bytes("00ff7a"), Some(vec![0, 255, 0x7a]));
        assert_eq!(bytes(""), Some(Vec::new()));
        assert_eq!(bytes("0"), None);
        assert_eq!(bytes("é0"), None);
    }

    #[test]
    fn the_file_stays_as_earlier_versions_wrote_it() {
        let text = "handle = \"00ff7a\"\nimmutable = true\nallow_setid = false\nmin_size = 1\n";
        let pool = Handle::from_bytes(&[0, 255, 0x7a]);
        let notice = PoolNotice { pool, immutable: true, guard: false, allow_setid: false, min_size: 1 };
        assert_eq!(toml::to_string(&notice).unwrap(), text);
        assert_eq!(toml::from_str::<PoolNotice>(text).unwrap(), notice);
        assert!(toml::from_str::<PoolNotice>(&text.replace("7a", "7")).is_err());
    }
}

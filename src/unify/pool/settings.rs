//! How files are shared in a pool.

use std::ffi::OsStr;
use std::io;
use std::os::fd::AsFd;

use serde::{Deserialize, Serialize};

use super::identity::Mtime;
use super::protection::PoolProtection;
use crate::sys::path::dirfd;

/// The file in the pool's directory.
pub(super) const SETTINGS: &str = "pool.toml";

/// How equal files share.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Sharing {
    /// One inode: disk and page cache are used once; the inode must be protected.
    #[default]
    Hardlink,
    /// Blocks (xfs, btrfs): disk is used once, each file keeps its own inode; needs no protection.
    Reflink,
}

/// How files are shared in a pool, chosen when it is made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PoolSettings {
    pub share: Sharing,
    /// Whether times of modification must agree.
    pub mtime: Mtime,
    /// How objects are protected; earlier versions did not write it down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protection: Option<PoolProtection>,
}

impl PoolSettings {
    /// Reads what [`PoolSettings::write`] wrote.
    pub(crate) fn read(text: &[u8]) -> io::Result<PoolSettings> {
        let text = std::str::from_utf8(text).map_err(io::Error::other)?;
        toml::from_str(text).map_err(|e| io::Error::other(format!("{SETTINGS}: {}", e.message())))
    }

    /// Writes them into the pool's directory.
    pub(super) fn write(&self, dir: impl AsFd) -> io::Result<()> {
        let text = toml::to_string(self).map_err(io::Error::other)?;
        dirfd::replace_file(dir, OsStr::new(SETTINGS), text.as_bytes())
    }
}

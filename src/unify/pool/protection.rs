//! How the inodes of a pool are protected against changes.

use std::io;

use crate::sys::share::swap::Shared;
use crate::sys::share::{iunlink, mark};

/// How shared inodes are fenced on this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PoolProtection {
    /// The mark, which the guard of this host's kernel respects.
    Guard,
    /// `+i`.
    Immutable,
    /// Linux-VServer's "immutable, but may be unlinked".
    Iunlink,
    /// Nothing.
    None,
}

impl PoolProtection {
    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            PoolProtection::Guard => "guard",
            PoolProtection::Immutable => "immutable",
            PoolProtection::Iunlink => "iunlink",
            PoolProtection::None => "none",
        }
    }

    /// Fences a shared inode.
    pub(in crate::unify) fn set(self, shared: &Shared) -> io::Result<()> {
        match self {
            PoolProtection::Guard => mark::set(shared),
            PoolProtection::Immutable => shared.protect(),
            PoolProtection::Iunlink => iunlink::set(shared),
            PoolProtection::None => Ok(()),
        }
    }
}

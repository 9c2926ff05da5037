//! How the inodes of a pool are protected against changes.

use std::io;
use std::os::fd::AsFd;

use crate::sys::file::inode::Inode;
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

    /// Whether names of protected inodes change only with `CAP_LINUX_IMMUTABLE`.
    pub(in crate::unify) fn needs_capability(self) -> bool {
        matches!(self, PoolProtection::Immutable | PoolProtection::Iunlink)
    }

    /// Whether an inode is protected in this way. What is immutable nobody changes either, guard or not.
    pub(super) fn is_given(self, inode: &Inode, marked: bool) -> bool {
        match self {
            PoolProtection::Guard => marked || inode.immutable,
            PoolProtection::Immutable | PoolProtection::Iunlink => inode.immutable,
            PoolProtection::None => true,
        }
    }

    /// Whether an open file is protected in this way.
    pub(in crate::unify) fn protects(self, file: impl AsFd) -> io::Result<bool> {
        let inode = Inode::of(&file)?;
        let marked = self == PoolProtection::Guard && mark::is_set(&file)?;
        Ok(self.is_given(&inode, marked))
    }

    /// Fences a shared inode beside what fences it already; returns whether it was not fenced so.
    pub(super) fn add(self, shared: &Shared) -> io::Result<bool> {
        let has_it = match self {
            PoolProtection::Guard => mark::is_set(shared)?,
            PoolProtection::Immutable | PoolProtection::Iunlink => shared.inode()?.immutable,
            PoolProtection::None => true,
        };
        if !has_it {
            self.set(shared)?;
        }
        Ok(!has_it)
    }

    /// Takes this fence off a shared inode; returns whether it had it.
    pub(super) fn remove(self, shared: &Shared) -> io::Result<bool> {
        match self {
            PoolProtection::Guard => {
                let marked = mark::is_set(shared)?;
                mark::clear(shared).map(|()| marked)
            }
            PoolProtection::Immutable => shared.unprotect(),
            // Linux-VServer's is never turned into another.
            PoolProtection::Iunlink | PoolProtection::None => Ok(false),
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

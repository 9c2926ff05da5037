//! How the inodes of a pool are protected against changes.

use std::io;
use std::os::fd::AsFd;

use crate::sys::file::inode::Inode;
use crate::sys::share::swap::Shared;
use crate::sys::share::{iunlink, mark};

/// How shared inodes are fenced on this host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PoolProtection {
    /// The mark, which the guard of this host's kernel respects.
    Guard,
    /// `+i`.
    Immutable,
    /// Linux-VServer's "immutable, but may be unlinked".
    Iunlink,
    /// Nothing.
    #[default]
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

    /// Whom it does not stop, in words for an administrator; nothing if it stops the roots of guests, too.
    pub fn limit(self) -> Option<&'static str> {
        match self {
            PoolProtection::Guard | PoolProtection::Iunlink => None,
            PoolProtection::Immutable => Some(
                "it stops users and programs of guests, and not a guest's root who works against the others in the moments \
                 in which names change",
            ),
            PoolProtection::None => Some("it stops nobody: every guest can change the files of all others"),
        }
    }

    /// Whether names of protected inodes change only with `CAP_LINUX_IMMUTABLE`.
    pub(in crate::unify) fn needs_capability(self) -> bool {
        matches!(self, PoolProtection::Immutable | PoolProtection::Iunlink)
    }

    /// Whether an inode is protected in this way; `held` says whether it has more than one name whatever guests do. What is
    /// immutable nobody changes either, guard or not.
    pub(super) fn is_given(self, inode: &Inode, marked: bool, held: bool) -> bool {
        match self {
            PoolProtection::Guard => marked && held || inode.immutable,
            PoolProtection::Immutable | PoolProtection::Iunlink => inode.immutable,
            PoolProtection::None => true,
        }
    }

    /// Whether an open file has the guard's mark.
    pub(super) fn is_marked(file: impl AsFd) -> io::Result<bool> {
        mark::is_set(file)
    }

    /// Whether an open file is protected in this way; `inode` was just seen of it, and `held` says whether it has more than
    /// one name whatever guests do.
    pub(in crate::unify) fn protects(self, file: impl AsFd, inode: &Inode, held: bool) -> io::Result<bool> {
        let marked = self == PoolProtection::Guard && mark::is_set(&file)?;
        Ok(self.is_given(inode, marked, held))
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

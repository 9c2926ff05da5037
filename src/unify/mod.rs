//! Makes equal files of many guests one inode, and keeps them so.
//!
//! From the outside in; each knows only those below it:
//!
//! - [`remove`]: deletes a guest, and nothing that others share.
//! - [`pass`]: one pass over guests: scan, read, link, and remember what is left.
//! - [`care`]: looks at the pool's protection, reads all of it, replaces what is damaged, removes what nobody has.
//! - [`link`]: puts together what is equal, and makes it names of one object.
//! - [`scan`]: finds the files that may be unified, and reads those that could be equal to another.
//! - [`pool`]: the host's directory of objects; what equal means; what was begun and not ended.
//! - [`eligible`]: which files may be unified, by their paths alone.

pub(crate) mod care;
pub(crate) mod eligible;
pub(crate) mod link;
pub(crate) mod pass;
pub(crate) mod pool;
pub(crate) mod remove;
pub(crate) mod scan;

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use self::pool::no_guard::NoGuard;
use crate::report::{Reason, Shown};

/// Why the unifier refuses to work. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or directory.
    #[error("{}: {}", Shown(path), Reason(source))]
    At {
        /// The file or directory.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// Other users could reach the pool.
    #[error(
        "{}: a pool must belong to the user who runs cow-unify, and no other user may have access to it",
        Shown(path)
    )]
    Exposed {
        /// The pool.
        path: PathBuf,
    },
    /// A directory that holds something else.
    #[error("{}: not a pool: it contains other files, such as {}", Shown(path), Shown(stranger.as_ref()))]
    NoPool {
        /// The directory.
        path: PathBuf,
        /// One of them.
        stranger: OsString,
    },
    /// The immutable flag cannot be set.
    #[error("{}: the immutable flag cannot be set and cleared: {}", Shown(path), Reason(source))]
    Capability {
        /// The pool.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The kernel lacks a flag.
    #[error(
        "{}: this kernel does not have Linux-VServer's flag \"immutable, but may be unlinked\"",
        Shown(path)
    )]
    NoIunlink {
        /// The pool.
        path: PathBuf,
    },
    /// The guard protects nothing here.
    #[error("{}: {source}", Shown(path))]
    NoGuard {
        /// The pool.
        path: PathBuf,
        /// Why.
        source: NoGuard,
    },
    /// Blocks cannot be shared.
    #[error("{}: the filesystem cannot share blocks between files", Shown(path))]
    NoReflink {
        /// The pool.
        path: PathBuf,
    },
    /// The filesystem takes no changes.
    #[error("{}: the filesystem is mounted read-only", Shown(path))]
    ReadOnly {
        /// The pool.
        path: PathBuf,
    },
    /// A pool made for another way of sharing.
    #[error("{}: this pool was created with {made}", Shown(path))]
    PoolSettings {
        /// The pool.
        path: PathBuf,
        /// The options it was made with.
        made: String,
    },
    /// A guest that cannot share with the pool.
    #[error("{}: {source}", Shown(path))]
    Guest {
        /// The guest.
        path: PathBuf,
        /// Why, and what to do.
        source: GuestError,
    },
    /// The running system, which nobody asked for by name.
    #[error("{}: contains the running system ({}), which is not a guest", Shown(path), Shown(part))]
    System {
        /// The guest.
        path: PathBuf,
        /// What of the system it holds.
        part: PathBuf,
    },
    /// The cache, which is made anew if it can be.
    #[error("{}: {source}", Shown(path))]
    Cache {
        /// The database.
        path: PathBuf,
        /// What SQLite says.
        source: rusqlite::Error,
    },
    /// Somebody else works on the pool.
    #[error("{}: another cow-unify is working on this pool", Shown(path))]
    Busy {
        /// The pool.
        path: PathBuf,
    },
}

/// Why a guest cannot share with a pool.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// The pool lies in the guest.
    #[error("the pool is inside this guest, which could reach it; name another with --pool")]
    HoldsPool,
    /// The pool is out of reach of hard links.
    #[error(
        "on another filesystem, mount or subvolume than the pool, so hard links are not possible; create a \
         pool for it there (--pool), or use --share reflink if the filesystem can share blocks"
    )]
    OutOfReach,
    /// The directory is no guest, but this.
    #[error("not a guest: {0}")]
    NoGuest(String),
}

impl Error {
    /// What a person can do about it, if that is more than the message says.
    pub fn remedy(&self) -> Option<&'static str> {
        Some(match self {
            Error::Exposed { .. } => {
                "run `chown root` and `chmod 700` on the pool, or name another with \
                --pool"
            }
            Error::NoPool { .. } => "name a new or an empty directory with --pool",
            Error::Busy { .. } => "wait until it has ended; an interrupted run keeps no lock",
            Error::Capability { .. } => {
                "run it as root of the host, with CAP_LINUX_IMMUTABLE, on a filesystem that has the flag; or \
                 use --protection none, which protects nothing, or --share reflink"
            }
            Error::NoGuard { source: NoGuard::Missing, .. } => {
                "install the package cow-guard, or leave out --protection"
            }
            Error::NoGuard { source: NoGuard::FlagChange | NoGuard::NoList, .. } => {
                "the objects stay immutable; run `cow-unify protect` again, as root of the host and not in a container"
            }
            Error::NoGuard { .. } => {
                "see `cow-guard status`; or leave out --protection: then objects are made immutable"
            }
            Error::NoIunlink { .. } => "leave out --protection, or use --protection immutable",
            Error::NoReflink { .. } => {
                "use --share hardlink; if this pool exists already, name another with --pool"
            }
            Error::PoolSettings { .. } => {
                "leave out the option, or name another pool with --pool; `cow-unify protect` changes the protection \
                 of this one"
            }
            Error::System { .. } => {
                "name only guests; or use --unify-running-system: files of this host's own programs then \
                 become immutable, its package manager needs cow-hooks, and `cow-unify detach` with this \
                 path undoes it"
            }
            Error::At { source, .. } if source.kind() == io::ErrorKind::StorageFull => {
                "free some space, then run it again"
            }
            Error::At { .. } | Error::Guest { .. } | Error::Cache { .. } | Error::ReadOnly { .. } => {
                return None;
            }
        })
    }
}

/// An error that may be that of many files.
pub type SharedError = Arc<dyn std::error::Error + Send + Sync>;

/// A file, directory or guest that something is wrong with. The others are done all the same.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{}: {}", Shown(path), Reason(source))]
pub struct FailedPath {
    /// From the caller's root.
    pub path: PathBuf,
    /// What is wrong.
    pub source: SharedError,
}

impl FailedPath {
    /// Something is wrong with `path`.
    pub fn new(path: PathBuf, error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> FailedPath {
        FailedPath { path, source: error.into().into() }
    }
}

/// Says where an error happened.
pub(crate) trait At<T> {
    fn at(self, path: &Path) -> Result<T, Error>;
}

impl<T> At<T> for io::Result<T> {
    fn at(self, path: &Path) -> Result<T, Error> {
        self.map_err(|source| Error::At { path: path.to_path_buf(), source })
    }
}

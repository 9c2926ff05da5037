//! The guests of a command line, each once. What is no guest is passed over, and a guest that cannot be opened keeps nobody
//! else waiting: the paths may come from a pattern of the shell.

use std::path::{Path, PathBuf};

use crate::cli::Problem;
use crate::report::Reason;
use crate::sys::file::inode::InodeId;
use crate::sys::path::dirfd;
use crate::sys::path::root::relative;
use crate::unify::eligible::scope::Scope;
use crate::unify::pool::settings::Sharing;
use crate::unify::scan::guest::GuestTree;
use crate::unify::{Error, GuestError};

/// The one or the other of these is in the root directory of any system.
const OF_A_ROOT: [&str; 7] = ["usr", "etc", "bin", "sbin", "lib", "var", "opt"];

/// All of these are in a pool.
const OF_A_POOL: [&str; 3] = ["pool.toml", "objects", "runs"];

/// What the paths of a command line are.
#[derive(Debug, Default)]
pub struct Guests {
    /// Guests that can take part.
    pub open: Vec<GuestTree>,
    /// Guests that cannot, with the reason.
    pub left: Vec<Problem>,
    /// What is no guest, and what it is instead.
    pub others: Vec<(PathBuf, &'static str)>,
}

impl Guests {
    /// Opens guests; `scope` says which of their files are wanted.
    ///
    /// # Errors
    /// If none of them can be opened.
    pub fn open(paths: &[PathBuf], scope: Scope) -> Result<Guests, Error> {
        let mut guests = Guests::default();
        // What is out of reach by one mount may be in reach by another.
        let mut known: Vec<(InodeId, u64)> = Vec::new();
        let mut first = None;
        for path in paths {
            match GuestTree::open(path) {
                Err(Error::At { source, .. }) if source.raw_os_error() == Some(libc::ENOTDIR) => {
                    guests.others.push((path.clone(), "not a directory"));
                }
                Err(e) => guests.leave(path.clone(), e, &mut first),
                Ok(guest) if known.contains(&(guest.inode.id, guest.inode.mount)) => {}
                Ok(guest) => match other(&guest, scope) {
                    Some(what) => guests.others.push((path.clone(), what)),
                    None => {
                        known.push((guest.inode.id, guest.inode.mount));
                        guests.open.push(guest);
                    }
                },
            }
        }
        guests.unless_none(first)
    }

    /// Leaves out the guests that cannot share with a pool at `path`.
    ///
    /// # Errors
    /// If one of them could reach the pool, or none is left.
    pub(crate) fn in_reach(mut self, path: &Path, share: Sharing) -> Result<Guests, Error> {
        let mut first = None;
        for guest in std::mem::take(&mut self.open) {
            guest.check_outside(path)?;
            match guest.check_reach(path, share) {
                Ok(()) if self.open.iter().any(|other| other.inode.id == guest.inode.id) => {}
                Ok(()) => self.open.push(guest),
                Err(e) => self.leave(guest.root.path().to_path_buf(), e, &mut first),
            }
        }
        self.unless_none(first)
    }

    fn leave(&mut self, path: PathBuf, error: Error, first: &mut Option<Error>) {
        let reason = match &error {
            Error::At { source, .. } => Reason(source).to_string(),
            Error::Guest { source, .. } => source.to_string(),
            other => Reason(other).to_string(),
        };
        self.left.push(Problem { path, reason });
        first.get_or_insert(error);
    }

    fn unless_none(self, first: Option<Error>) -> Result<Guests, Error> {
        if !self.open.is_empty() {
            return Ok(self);
        }
        match (first, self.others.first()) {
            (Some(error), _) => Err(error),
            (None, Some((path, what))) => {
                Err(Error::Guest { path: path.clone(), source: GuestError::NoGuest(what) })
            }
            (None, None) => Ok(self),
        }
    }
}

/// What a directory is, if it is no guest.
fn other(guest: &GuestTree, scope: Scope) -> Option<&'static str> {
    let path = guest.root.path();
    if path.file_name().is_some_and(|name| name == "lost+found") {
        return Some("the directory for files that fsck has recovered");
    }
    let names = guest.root.open_dir(relative(Path::new("/"))).and_then(dirfd::names).unwrap_or_default();
    if names.is_empty() {
        return Some("an empty directory");
    }
    let holds = |name: &&str| names.iter().any(|other| other == name);
    if OF_A_POOL.iter().all(&holds) {
        return Some("a pool");
    }
    let is_root = OF_A_ROOT.iter().any(holds);
    (scope == Scope::Owned && !is_root).then_some("it contains none of the usual directories of a root")
}

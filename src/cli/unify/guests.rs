//! The guests of a command line, each once. What is no guest is passed over, and a guest that cannot be opened keeps nobody
//! else waiting: the paths may come from a pattern of the shell.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::cli::Problem;
use crate::report::{Reason, Shown};
use crate::sys::file::inode::InodeId;
use crate::sys::path::dirfd;
use crate::sys::path::root::{Root, relative};
use crate::unify::eligible::scope::Scope;
use crate::unify::pool::settings::Sharing;
use crate::unify::remove::place::is_aside;
use crate::unify::scan::guest::{GuestTree, OF_EVERY_ROOT};
use crate::unify::{Error, GuestError};

/// The one or the other of these is in the root directory of any system.
const OF_A_ROOT: [&str; 7] = ["usr", "etc", "bin", "sbin", "lib", "var", "opt"];

/// How many directories are looked into for guests: one of the first few is one, or hardly any is.
const CHILDREN: usize = 32;

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
    pub others: Vec<(PathBuf, String)>,
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
                    guests.others.push((path.clone(), "not a directory".to_owned()));
                }
                Err(e) => guests.leave(path.clone(), e, &mut first),
                Ok(guest) if known.contains(&(guest.inode.id, guest.inode.mount)) => {}
                Ok(guest) => match other(path, &guest, scope) {
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
                Err(Error::Guest { path: path.clone(), source: GuestError::NoGuest(what.clone()) })
            }
            (None, None) => Ok(self),
        }
    }
}

/// What a directory, called `given` by the caller, is, if it is no guest. With the scope of all files any directory can be
/// one; then a parent of guests is only warned of.
fn other(given: &Path, guest: &GuestTree, scope: Scope) -> Option<String> {
    if guest.root.path().file_name().is_some_and(|name| name == "lost+found") {
        return Some("the directory for files that fsck has recovered".to_owned());
    }
    if guest.root.path().file_name().is_some_and(is_aside) {
        return Some("what is left of a guest; run `cow-unify remove` on it again".to_owned());
    }
    let names = names_in(&guest.root, Path::new("/"));
    if names.is_empty() {
        return Some("an empty directory".to_owned());
    }
    if OF_A_POOL.iter().all(|name| holds(&names, name)) {
        return Some("a pool".to_owned());
    }
    if OF_A_ROOT.iter().any(|name| holds(&names, name)) {
        return None;
    }
    let parent = contains_guests(&guest.root, &names).then(|| parent(given));
    if scope == Scope::Owned {
        return Some(parent.unwrap_or("it contains none of the usual directories of a root".to_owned()));
    }
    if let Some(parent) = parent {
        log::warn!("{}: {parent}", Shown(given));
    }
    None
}

fn parent(given: &Path) -> String {
    format!("it contains guests; name these instead: {}", Shown(&given.join("*")))
}

/// Whether one of the directories in a root, of which `names` are all, is itself a guest's root.
fn contains_guests(root: &Root, names: &[OsString]) -> bool {
    names.iter().take(CHILDREN).any(|name| {
        let names = names_in(root, &Path::new("/").join(name));
        OF_EVERY_ROOT.iter().all(|name| holds(&names, name))
    })
}

/// The names in a directory; none if it cannot be read, or is no directory.
fn names_in(root: &Root, dir: &Path) -> Vec<OsString> {
    root.open_dir(relative(dir)).and_then(dirfd::names).unwrap_or_default()
}

fn holds(names: &[OsString], name: &str) -> bool {
    names.iter().any(|other| other == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory of two guests, one of them with packages.
    fn guests() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for path in ["g1/usr", "g1/etc", "g1/var/lib", "g2/opt", "empty"] {
            std::fs::create_dir_all(dir.path().join(path)).unwrap();
        }
        dir
    }

    #[test]
    fn the_parent_of_guests_is_answered_with_a_pattern_for_them() {
        let dir = guests();
        let refusal = Guests::open(&[dir.path().to_path_buf()], Scope::Owned).unwrap_err().to_string();
        let expected = format!("name these instead: {}/*", dir.path().display());
        assert!(
            refusal.contains("not a guest: it contains guests") && refusal.ends_with(&expected),
            "{refusal}"
        );
        // Any directory may be wanted then.
        assert_eq!(Guests::open(&[dir.path().to_path_buf()], Scope::All).unwrap().open.len(), 1);
    }

    #[test]
    fn a_directory_without_guests_is_not_taken_for_their_parent() {
        let dir = guests();
        std::fs::remove_dir(dir.path().join("g1/etc")).unwrap();
        let refusal = Guests::open(&[dir.path().to_path_buf()], Scope::Owned).unwrap_err().to_string();
        assert!(refusal.ends_with("it contains none of the usual directories of a root"), "{refusal}");
        let guests =
            Guests::open(&["g1", "g2", "empty"].map(|name| dir.path().join(name)), Scope::Owned).unwrap();
        assert_eq!((guests.open.len(), guests.others.len()), (2, 1));
    }
}

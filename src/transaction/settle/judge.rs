//! What becomes of each detached name.

use std::ffi::OsStr;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::ledger::{Entry, Stage};
use crate::package::Packages;
use crate::state::store::Store;
use crate::sys::file::inode::{Inode, Kind};
use crate::sys::path::resolve::is_absent;
use crate::sys::process::programs::Programs;
use crate::sys::share::swap::Name;
use crate::transaction::guest::Guest;
use crate::unify::pool::identity::{self, Mtime};

/// What becomes of one detached name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Settlement {
    /// The original takes its name back.
    Restore {
        /// The private file as it was judged.
        now: Inode,
        /// It is the copy that we made.
        ours: bool,
    },
    /// It stays private, and the stash lets go of the original.
    Drop { changed: bool },
    /// The same, for what somebody keeps from changing.
    LetGo { why: &'static str },
    /// Too early.
    Postpone,
}

impl Settlement {
    /// What is recorded before it is carried out.
    pub(super) fn stage(self) -> Stage {
        if matches!(self, Settlement::Restore { .. }) { Stage::Restoring } else { Stage::Dropping }
    }
}

/// Names that have one settlement, and one file.
pub(super) struct Unit<'e> {
    pub entries: Vec<&'e Entry>,
    pub(crate) settlement: Settlement,
}

pub(super) struct Settling<'a> {
    pub guest: Guest<'a>,
    pub store: &'a Store,
    pub packages: &'a Packages,
    /// Programs that run on when the package manager has ended: what they were started from keeps its inode.
    programs: Programs,
}

impl<'a> Settling<'a> {
    pub(super) fn new(guest: Guest<'a>, store: &'a Store, packages: &'a Packages) -> Settling<'a> {
        Settling { guest, store, packages, programs: Programs::outliving_the_caller() }
    }

    /// Whether a program that runs on was loaded from this file. Looks at programs only if it could be.
    pub(super) fn is_in_use(&self, name: &OsStr, inode: &Inode) -> bool {
        let is_code = inode.mode & 0o111 != 0 || name.as_bytes().windows(3).any(|part| part == b".so");
        is_code && !self.programs.loaded_from(inode.id).is_empty()
    }

    pub(super) fn judge(&self, entry: &Entry) -> io::Result<Settlement> {
        let path = entry.intent.place.path();
        if self.packages.unfinished.contains(&path) {
            return Ok(Settlement::Postpone);
        }
        let stashed = entry.stashed();
        let stashed = Name { dir: self.store.stash(), name: &stashed };
        let Some(original) = stashed.inode()?.filter(|inode| inode.id.ino == entry.intent.original.ino)
        else {
            return Ok(Settlement::Drop { changed: true });
        };
        let dir = match self.guest.root.open_dir(&entry.intent.place.dir) {
            Ok(dir) => dir,
            Err(e) if is_absent(&e) => return Ok(Settlement::Drop { changed: false }),
            Err(e) => return Err(e),
        };
        let name = Name { dir: dir.as_fd(), name: &entry.intent.place.name };
        let is_other =
            |inode: &Inode| inode.kind == Kind::Regular && inode.id != original.id && !inode.is_mounted_on();
        let Some(now) = name.inode()?.filter(is_other) else {
            return Ok(Settlement::Drop { changed: false });
        };
        if self.stays_private(&path) {
            return Ok(Settlement::Drop { changed: false });
        }
        let above = Inode::of(&dir)?;
        // A mount lies between the name and the stash.
        if !self.store.reaches(&above) {
            return Ok(Settlement::Drop { changed: true });
        }
        if let Some(why) = kept_from_changing(&now, &above) {
            return Ok(Settlement::LetGo { why });
        }
        let copy = entry.copy.filter(|copy| copy.ino == now.id.ino);
        let untouched = copy.is_some_and(|copy| copy.ctime == Some(now.ctime));
        let same = identity::same_metadata(&now, &original, Mtime::Match)
            && (untouched || identity::same(&name.open()?, &stashed.open()?, Mtime::Match)?);
        let ours = copy.is_some_and(|copy| untouched || copy.ctime.is_none());
        let restore = same && !self.is_in_use(name.name, &now);
        Ok(if restore { Settlement::Restore { now, ours } } else { Settlement::Drop { changed: true } })
    }

    /// Whether a name is none that packages own for good.
    pub(super) fn stays_private(&self, path: &Path) -> bool {
        self.guest.policy.never_unify.matches(path) || self.packages.configuration.contains(path)
    }
}

/// What keeps a name from another file, if that is the administrator's doing, or another program's.
fn kept_from_changing(file: &Inode, dir: &Inode) -> Option<&'static str> {
    match (file, dir) {
        (Inode { immutable: true, .. }, _) => Some("became immutable during the run"),
        (Inode { append_only: true, .. }, _) => Some("became append-only during the run"),
        (_, Inode { immutable: true, .. }) => Some("its directory became immutable during the run"),
        (_, Inode { append_only: true, .. }) => Some("its directory became append-only during the run"),
        _ => None,
    }
}

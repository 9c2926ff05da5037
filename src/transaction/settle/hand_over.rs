//! New content: unified with the pool if that is within reach, left to the host else.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use super::judge::Settling;
use crate::sys::file::inode::{InodeId, Kind};
use crate::sys::file::layer;
use crate::sys::share::swap::Name;
use crate::transaction::error::Error;
use crate::transaction::guest::Guest;
use crate::unify::pass::in_guest;

impl Settling<'_> {
    /// Unifies what it can of these paths with the pool, and adds to the spool what the host may unify; returns how many
    /// of each.
    pub(super) fn hand_over<'p>(
        &self,
        paths: impl Iterator<Item = &'p PathBuf>,
    ) -> Result<(u64, u64), Error> {
        let Guest { root, policy } = self.guest;
        // What is in layers is out of the host's reach.
        if layer::is_layered(root).unwrap_or(false) {
            return Ok((0, 0));
        }
        let (mut new, in_use) = self.eligible(paths);
        // The host looks at all that is left.
        let unified = in_guest::unify(root, self.store.top(), policy, &new).unwrap_or_else(|e| {
            log::debug!("{e}");
            BTreeSet::new()
        });
        new.retain(|path| !unified.contains(path));
        new.extend(in_use);
        self.store.spool(&new).map_err(Error::spool)?;
        Ok((unified.len() as u64, new.len() as u64))
    }

    /// Those of the paths that may be unified: private files all names of which are known. And of these, apart, those that
    /// programs were loaded from.
    fn eligible<'p>(
        &self,
        paths: impl Iterator<Item = &'p PathBuf>,
    ) -> (BTreeSet<PathBuf>, BTreeSet<PathBuf>) {
        let mut files: HashMap<InodeId, (u32, bool, Vec<PathBuf>)> = HashMap::new();
        let mut last: Option<(PathBuf, io::Result<OwnedFd>)> = None;
        for path in paths.filter(|path| !self.stays_private(path)) {
            let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else { continue };
            if last.as_ref().is_none_or(|(open, _)| open != dir) {
                last = Some((dir.to_path_buf(), self.guest.root.open_dir(dir)));
            }
            let Some((_, Ok(fd))) = &last else { continue };
            let Ok(Some(inode)) = (Name { dir: fd.as_fd(), name }).inode() else { continue };
            let fits = inode.kind == Kind::Regular && inode.size > 0 && !inode.immutable;
            if fits && !inode.is_mounted_on() {
                let (_, in_use, names) = files.entry(inode.id).or_insert((inode.nlink, false, Vec::new()));
                *in_use |= self.is_in_use(name, &inode);
                names.push(path.clone());
            }
        }
        let (mut eligible, mut in_use) = (BTreeSet::new(), BTreeSet::new());
        for (nlink, is_in_use, names) in files.into_values() {
            if nlink as usize == names.len() {
                if is_in_use { &mut in_use } else { &mut eligible }.extend(names);
            }
        }
        (eligible, in_use)
    }
}

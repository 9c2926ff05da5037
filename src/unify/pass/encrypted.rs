//! Which names an object can have: an encrypted directory takes no file that is not encrypted in the same way.
//!
//! Known before anything is copied: a copy of an encrypted file would lie in the pool for all to read, and nobody would
//! have it.

use std::collections::{BTreeSet, HashSet};

use super::{Pass, Passed};
use crate::parallel;
use crate::sys::file::encryption::Encryption;
use crate::unify::link::plan::Work;
use crate::unify::pool::directory::Pool;
use crate::unify::pool::settings::Sharing;
use crate::unify::scan::catalog::{Catalog, DirIndex, FileIndex};
use crate::unify::scan::not_unified::NotUnified;
use crate::unify::{At, Error};

impl Pass<'_> {
    /// Leaves the names that no object of the pool can have.
    pub(super) fn leave_encrypted(
        &self,
        pool: &Pool,
        catalog: &Catalog,
        mut works: Vec<Work>,
        passed: &mut Passed,
    ) -> Result<Vec<Work>, Error> {
        let objects = Encryption::of(pool.runs()).at(pool.path())?;
        let dir = |at: &FileIndex| catalog[*at].dir;
        let dirs: BTreeSet<DirIndex> = works.iter().flat_map(|work| work.names.iter().map(dir)).collect();
        let dirs: Vec<DirIndex> = dirs.into_iter().collect();
        // What has gone meanwhile is told of when it is linked.
        let context = |dir: &DirIndex| Encryption::of(catalog.open_dir(&catalog[*dir]).ok()?).ok();
        let contexts = parallel::map(self.options.threads, &dirs, context);
        let apart =
            |context: &Option<Encryption>| context.as_ref().is_some_and(|dir| !self.fits(&objects, dir));
        let apart: HashSet<DirIndex> = dirs
            .into_iter()
            .zip(&contexts)
            .filter(|(_, context)| apart(context))
            .map(|(dir, _)| dir)
            .collect();
        if apart.is_empty() {
            return Ok(works);
        }
        for work in &mut works {
            let is_apart = |names: &[FileIndex]| names.iter().any(|at| apart.contains(&dir(at)));
            let (left, names): (Vec<&[FileIndex]>, Vec<&[FileIndex]>) =
                work.inodes(catalog).partition(|names| is_apart(names));
            let left: Vec<FileIndex> = left.concat();
            let names: Vec<FileIndex> = names.concat();
            self.leave(catalog, left.into_iter().map(|at| (at, NotUnified::Encrypted)), passed);
            work.names = names;
        }
        works.retain(|work| work.is_worthwhile(catalog));
        Ok(works)
    }

    /// Whether an object can have a name in a directory, or its blocks in the directory's files.
    fn fits(&self, objects: &Encryption, dir: &Encryption) -> bool {
        match self.settings.share {
            Sharing::Hardlink => objects.fits_into(dir),
            Sharing::Reflink => objects == dir,
        }
    }
}

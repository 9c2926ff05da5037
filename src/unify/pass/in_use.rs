//! Files that running programs were loaded from: a program goes on with an inode that has lost its name.

use super::{InUse, Pass, Passed};
use crate::unify::link::plan::Work;
use crate::unify::pool::settings::Sharing;
use crate::unify::scan::catalog::{Catalog, FileIndex};
use crate::unify::scan::not_unified::NotUnified;

impl Pass<'_> {
    /// Takes out what running programs were loaded from, if that is to wait for them.
    pub(super) fn leave_in_use(
        &self,
        catalog: &Catalog,
        mut works: Vec<Work>,
        passed: &mut Passed,
    ) -> Vec<Work> {
        if self.options.in_use == InUse::Replace {
            return works;
        }
        for work in &mut works {
            let (used, free): (Vec<FileIndex>, Vec<FileIndex>) =
                work.names.iter().partition(|&&at| !self.programs_of(catalog, at).is_empty());
            passed.waiting.extend(used);
            work.names = free;
        }
        works.retain(|work| work.is_worthwhile(catalog));
        if !passed.waiting.is_empty() {
            passed.left.insert(NotUnified::InUse, passed.waiting.len() as u64);
        }
        works
    }

    /// Notes which programs go on with what names have named that were linked just now: those from `first` on.
    pub(super) fn note_displaced(&self, catalog: &Catalog, first: usize, passed: &mut Passed) {
        for &at in &passed.linked.names[first..] {
            let programs = self.programs_of(catalog, at);
            passed.displaced += u64::from(!programs.is_empty());
            passed.programs.extend(programs);
        }
    }

    /// Processes that were loaded from this name's inode, if names are to change their inodes.
    fn programs_of(&self, catalog: &Catalog, at: FileIndex) -> Vec<i32> {
        let programs = self.programs.filter(|_| self.settings.share == Sharing::Hardlink);
        let inode = catalog.id(&catalog[at]);
        programs.map_or_else(Vec::new, |programs| programs.loaded_from(inode))
    }
}

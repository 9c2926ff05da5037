//! A pass over all files of some guests: scan, read, link, and remember what is left.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use super::{Pass, PassOptions, Passed};
use crate::parallel;
use crate::sys::file::inode::{Inode, InodeId};
use crate::sys::file::times::{TICK, is_settled};
use crate::unify::eligible::scope::{self, Eligible};
use crate::unify::link::dedupe;
use crate::unify::link::linked::{ChangedDir, Linked};
use crate::unify::link::plan::Work;
use crate::unify::pool::guard;
use crate::unify::pool::object::ObjectIndex;
use crate::unify::pool::settings::Sharing;
use crate::unify::pool::unprotected;
use crate::unify::scan::cache::{Cache, CachedDirs};
use crate::unify::scan::catalog::{Catalog, DirIndex, FileIndex, GuestIndex};
use crate::unify::scan::guest::GuestTree;
use crate::unify::scan::marks;
use crate::unify::scan::walk::{self, ScanOptions};
use crate::unify::{Error, FailedPath};

impl Pass<'_> {
    /// Says what there is to unify in these guests; writes nothing.
    pub fn rehearse(&self, guests: Vec<GuestTree>) -> Result<Passed, Error> {
        let mut passed = Passed::default();
        // A cache that is not there is not made for this.
        let cache = match self.pool {
            Some(pool) if pool.cache_path().exists() => Some(self.cache(pool)?),
            _ => None,
        };
        let mut catalog = Catalog::default();
        let index = match self.pool {
            Some(pool) => {
                let files = pool.look_at_all(self.options.threads)?;
                passed.still_seen = pool.still_seen()?;
                let (protection, _) = guard::in_effect(pool, unprotected::protection(pool, &files));
                passed.unprotected = pool.unprotected(&files, protection).len() as u64;
                ObjectIndex::of(&files)
            }
            None => ObjectIndex::default(),
        };
        self.scan_all(&mut catalog, guests, cache.as_ref(), &index, &mut passed);
        let works = self.plan(&mut catalog, &index, &mut passed);
        let works = match self.pool {
            Some(pool) => self.leave_encrypted(pool, &catalog, works, &mut passed)?,
            None => works,
        };
        let works = self.leave_in_use(&catalog, works, &mut passed);
        for work in &works {
            let (freed, names) = match self.settings.share {
                Sharing::Hardlink => (work.frees(&catalog), work.names.clone()),
                // What cannot be asked is not counted.
                Sharing::Reflink => dedupe::would_free(&catalog, self.pool, work).unwrap_or_default(),
            };
            passed.names.extend(names.iter().map(|&at| catalog.outer_path(&catalog[at])));
            passed.would_free += freed;
        }
        Ok(passed)
    }

    /// Unifies equal files of these guests.
    ///
    /// # Errors
    /// If nothing can be done at all. What fails for one file or guest is in the result.
    pub fn unify(&self, guests: Vec<GuestTree>) -> Result<Passed, Error> {
        let Some(pool) = self.pool else { return Ok(Passed::default()) };
        let (mut passed, index) = self.begin(pool, &guests)?;
        let mut cache = self.cache(pool)?;
        let mut catalog = Catalog::default();
        let prints = self.scan_all(&mut catalog, guests, Some(&cache), &index, &mut passed);
        let works = self.plan(&mut catalog, &index, &mut passed);
        self.link(pool, &catalog, works, &mut passed)?;
        self.note_linked(&mut catalog, &passed.linked);
        // Nothing is lost but time.
        cache
            .store(&catalog, &prints)
            .unwrap_or_else(|e| log::warn!("the pool's cache cannot be written: {e}"));
        Ok(passed)
    }

    /// Notes in the catalog what the next pass is to know of the names that were linked, and of their directories.
    fn note_linked(&self, catalog: &mut Catalog, linked: &Linked) {
        let mut shares_blocks: Vec<FileIndex> = linked.known.clone();
        match self.settings.share {
            Sharing::Hardlink => self.note_dirs(catalog, &linked.dirs),
            Sharing::Reflink => shares_blocks.extend(&linked.names),
        }
        for at in shares_blocks {
            catalog[at].shares_blocks = true;
            let dir = catalog[at].dir;
            catalog[dir].fresh = true;
        }
        if self.settings.share == Sharing::Hardlink {
            catalog.remove(&linked.names.iter().copied().collect());
        }
    }

    /// Notes the times that directories have now whose names have changed, so that the next pass need not list them.
    ///
    /// It does list those that anybody else has changed since they were listed: before our first change, between two of
    /// our rounds, or after the last. Of what another process changes within a round, only the next change of that
    /// directory tells.
    fn note_dirs(&self, catalog: &mut Catalog, changed: &[ChangedDir]) {
        for &ChangedDir { dir, before, after } in changed {
            let dir = &mut catalog[dir];
            dir.fresh = true;
            dir.ctime = if dir.ctime == before { after } else { 0 };
        }
        let dirs: BTreeSet<DirIndex> = changed.iter().map(|changed| changed.dir).collect();
        let dirs: Vec<DirIndex> = dirs.into_iter().collect();
        let is_known = |dir: &&DirIndex| catalog[**dir].ctime != 0;
        if dirs.iter().filter(is_known).any(|dir| !is_settled(catalog[*dir].ctime)) {
            std::thread::sleep(TICK);
        }
        let now = parallel::map(self.options.threads, &dirs, |dir| {
            Ok::<_, io::Error>(Inode::of(catalog.open_dir(&catalog[*dir])?)?.ctime.nanoseconds())
        });
        for (dir, now) in dirs.into_iter().zip(now) {
            let dir = &mut catalog[dir];
            if !now.is_ok_and(|now| now == dir.ctime && is_settled(now)) {
                dir.ctime = 0;
            }
        }
    }

    fn plan(&self, catalog: &mut Catalog, index: &ObjectIndex, passed: &mut Passed) -> Vec<Work> {
        passed.linked.failed.append(&mut catalog.unread);
        passed.shared_before = catalog.shared;
        passed.damaged = catalog.damaged;
        passed.looked_at = catalog.files.len() as u64;
        let planner = self.planner();
        planner.read(catalog, |key| index.knows(key));
        self.note_left(catalog, passed);
        planner.works(catalog, index)
    }

    /// Scans all guests into the catalog; returns the fingerprint of what was eligible in each.
    fn scan_all(
        &self,
        catalog: &mut Catalog,
        guests: Vec<GuestTree>,
        cache: Option<&Cache>,
        index: &ObjectIndex,
        passed: &mut Passed,
    ) -> Vec<[u8; 32]> {
        let pool = self.pool.map(|pool| pool.inode().id);
        let borders: Vec<InodeId> =
            pool.into_iter().chain(guests.iter().map(|guest| guest.inode.id)).collect();
        let paths: Vec<PathBuf> = guests.iter().map(|guest| guest.root.path().to_path_buf()).collect();
        let PassOptions { scope, rules, never, .. } = self.options;
        let wanted = ScanOptions {
            index,
            share: self.settings.share,
            mtime: self.settings.mtime,
            min_size: self.options.min_size,
            allow_setid: self.options.allow_setid,
            by_path: self.options.reference.is_some(),
            borders: &borders,
            threads: self.options.threads,
        };
        let mut prints = Vec::new();
        for guest in guests {
            let path = guest.root.path().to_path_buf();
            // A guest of whom nothing is known is scanned in full.
            let print = scope::fingerprint(&guest.root, *scope, rules, never).unwrap_or_default();
            prints.push(print);
            let loaded = cache.map_or_else(|| Ok(CachedDirs::new()), |cache| cache.load(&guest, &print));
            let mut remembered = loaded.unwrap_or_else(|e| {
                log::warn!("the pool's cache cannot be written: {e}");
                CachedDirs::new()
            });
            for inner in paths.iter().filter_map(|inner| inner.strip_prefix(&path).ok()) {
                if !inner.as_os_str().is_empty() {
                    remembered.retain(|dir, _| !dir.starts_with(Path::new("/").join(inner)));
                }
            }
            let number = GuestIndex::new(catalog.guests.len());
            let eligible = OnceLock::new();
            let load = || Eligible::load(&guest.root, *scope, rules, never);
            let eligible_here = || eligible.get_or_init(load).as_ref().ok();
            let found = walk::scan(&guest, number, &eligible_here, &remembered, &wanted);
            match (eligible.into_inner(), found) {
                (Some(Err(e)), _) => passed.skipped.push(FailedPath::new(path, e)),
                (_, Err(e)) => passed.skipped.push(FailedPath::new(path, e)),
                (_, Ok(found)) => catalog.absorb(found),
            }
            catalog.guests.push(guest);
        }
        if self.settings.share == Sharing::Hardlink {
            marks::mark_linked_elsewhere(catalog);
            marks::mark_mount_points(catalog);
            if self.options.immutable {
                marks::mark_unable(catalog);
            }
            if wanted.by_path {
                marks::mark_several_names(catalog);
            }
        }
        prints
    }
}

//! One pass over guests: scan, read, link, and remember what is left.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use super::inside;
use crate::policy::PatternSet;
use crate::report::{Reason, Shown};
use crate::sys::file::inode::{Inode, InodeId};
use crate::sys::file::times::TICK;
use crate::sys::file::traits;
use crate::sys::path::root::Root;
use crate::sys::process::mounts;
use crate::sys::process::programs::Programs;
use crate::unify::care::protection;
use crate::unify::care::repair::{Repaired, Repairer};
use crate::unify::care::verify::{Verified, Verifier};
use crate::unify::eligible::rules::Rules;
use crate::unify::eligible::scope::{self, Eligible, Scope};
use crate::unify::link::batch::{Fence, Linked};
use crate::unify::link::dedupe;
use crate::unify::link::plan::{Planner, Work};
use crate::unify::pool::directory::{Pool, Settings, Share};
use crate::unify::pool::identity::Digest;
use crate::unify::pool::object::Index;
use crate::unify::pool::run::{self, Recovered};
use crate::unify::scan::cache::{Cache, Remembered};
use crate::unify::scan::catalog::{Catalog, File, Guest, Unfit};
use crate::unify::scan::digest::Limits;
use crate::unify::scan::walk::{self, Wanted};
use crate::unify::{At, Error, Watch};

/// What is to be done.
#[derive(Debug)]
pub struct Options {
    /// Which files.
    pub scope: Scope,
    /// What the command line includes and excludes.
    pub rules: Rules,
    /// What is never unified unless it is asked for.
    pub never: PatternSet,
    /// The smallest file, in bytes.
    pub min_size: u64,
    /// Unify set-id files and files with capabilities, too.
    pub allow_setid: bool,
    /// The guest that is the model: only files of the same path as one of its are unified.
    pub reference: Option<usize>,
    /// How shared inodes are fenced.
    pub fence: Fence,
    /// They are immutable, or will be once it is not only tried: who cannot clear the flag is not to have them.
    pub immutable: bool,
    /// How many threads look and read.
    pub threads: usize,
    /// How long to wait for the lock on one shared inode.
    pub patience: Duration,
    /// Bytes to be left free on the filesystem.
    pub reserve: u64,
    /// The paths of what is linked are wanted.
    pub list: bool,
    /// Files that running programs were loaded from.
    pub in_use: InUse,
}

/// What becomes of files that running programs were loaded from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum InUse {
    /// Link them too; the programs keep the replaced inodes until they end
    Replace,
    /// Leave them until the programs have ended
    Wait,
}

/// What a pass came to.
#[derive(Debug, Default)]
pub struct Passed {
    /// What an interrupted run had left.
    pub recovered: Recovered,
    /// Private names that were looked at.
    pub looked_at: u64,
    /// Names seen that were the pool's before; those of directories that have not changed are not counted.
    pub shared_before: u64,
    /// Names of objects that are in quarantine.
    pub damaged: u64,
    /// Damaged files, set aside, that guests have names of.
    pub still_seen: u64,
    /// Objects that somebody has written to meanwhile.
    pub changed_objects: u64,
    /// What was linked.
    pub linked: Linked,
    /// The paths of the names linked, or to be linked.
    pub names: Vec<PathBuf>,
    /// Bytes that a dry run would free, at most.
    pub would_free: u64,
    /// How many names stay private, by reason.
    pub left: BTreeMap<Unfit, u64>,
    /// The paths of these names, if they are wanted.
    pub left_names: Vec<(PathBuf, Unfit)>,
    /// Guests that were left out, with the reason.
    pub skipped: Vec<(PathBuf, String)>,
    /// Those of them in which a package manager is at work, by their places among the guests.
    pub busy: BTreeMap<usize, PathBuf>,
    /// Names left for programs that run, by their places in the catalog's files.
    pub waiting: Vec<u32>,
    /// Names that were linked although programs run from what they named.
    pub displaced: u64,
    /// Numbers of these programs' processes.
    pub programs: BTreeSet<i32>,
    /// Files of the pool that are not protected, and were left so by a dry run.
    pub unprotected: u64,
    /// What the look at the pool's protection came to: what was lost, and what had changed meanwhile.
    pub verified: Verified,
    /// What became of the guests' names of what had changed.
    pub repaired: Repaired,
}

/// Opens a guest.
pub fn open_guest(path: &Path) -> Result<Guest, Error> {
    let path = std::fs::canonicalize(path).at(path)?;
    let root = Root::open(&path).at(&path)?;
    Ok(Guest { inode: Inode::of(&root).at(&path)?, root })
}

/// A pass over some guests.
pub struct Pass<'a> {
    /// The pool; a rehearsal can do without.
    pub pool: Option<&'a Pool>,
    /// How files are shared in it.
    pub settings: Settings,
    /// What is to be done.
    pub options: &'a Options,
    /// Told how far it has got.
    pub watch: &'a dyn Watch,
    /// The caller holds the locks of the guests.
    pub locked: bool,
    /// The programs that run; none if the caller has looked after them.
    pub programs: Option<&'a Programs>,
}

impl Pass<'_> {
    /// Says what there is to unify in these guests; writes nothing.
    pub fn rehearse(&self, guests: Vec<Guest>) -> Result<Passed, Error> {
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
                if protection::fence(pool, &files) != Fence::None {
                    passed.unprotected = pool.unprotected(&files).len() as u64;
                }
                Index::of(&files)
            }
            None => Index::default(),
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
                Share::Hardlink => (work.frees(&catalog), work.names.clone()),
                // What cannot be asked is not counted.
                Share::Reflink => dedupe::would_free(&catalog, self.pool, work).unwrap_or_default(),
            };
            passed.names.extend(names.iter().map(|&at| catalog.outer_path(&catalog.files[at as usize])));
            passed.would_free += freed;
        }
        Ok(passed)
    }

    /// Unifies equal files of these guests.
    ///
    /// # Errors
    /// Where nothing can be done at all. What fails for one file or guest is in the result.
    pub fn unify(&self, guests: Vec<Guest>) -> Result<Passed, Error> {
        let Some(pool) = self.pool else { return Ok(Passed::default()) };
        let (mut passed, index) = self.begin(pool, &guests)?;
        let mut cache = self.cache(pool)?;
        let mut catalog = Catalog::default();
        let prints = self.scan_all(&mut catalog, guests, Some(&cache), &index, &mut passed);
        let works = self.plan(&mut catalog, &index, &mut passed);
        self.link(pool, &catalog, works, &mut passed)?;
        for &at in &passed.linked.known {
            catalog.files[at as usize].shares_blocks = true;
            let dir = catalog.files[at as usize].dir as usize;
            catalog.dirs[dir].fresh = true;
        }
        if passed.linked.names.is_empty() {
            self.store(&mut cache, &catalog, &prints);
            return Ok(passed);
        }
        // What the directories look like now, and what has come meanwhile, is for the next pass to know.
        for &at in &passed.linked.names {
            let file = &mut catalog.files[at as usize];
            match self.settings.share {
                Share::Hardlink => file.digest = None,
                Share::Reflink => file.shares_blocks = true,
            }
        }
        let known = digests(&catalog);
        let guests = std::mem::take(&mut catalog.guests);
        drop((catalog, index));
        let mut after = Catalog::default();
        let index = pool.index(self.options.threads)?;
        let prints = self.scan_all(&mut after, guests, Some(&cache), &index, &mut Passed::default());
        for at in 0..after.files.len() {
            let file = &after.files[at];
            if let Some((ctime, digest, shares_blocks)) = known.get(&after.id(file))
                && *ctime == file.ctime
            {
                after.set_digest(at, *digest);
                after.files[at].shares_blocks = *shares_blocks;
            }
        }
        self.store(&mut cache, &after, &prints);
        Ok(passed)
    }

    /// Ends what an interrupted run left, tells the guests where the pool is, and looks at its protection; says what
    /// is in the pool.
    pub(super) fn begin(&self, pool: &Pool, guests: &[Guest]) -> Result<(Passed, Index), Error> {
        for guest in guests {
            // A guest that does not know waits for the host.
            let told = inside::announce(pool, self.options, &guest.root);
            told.unwrap_or_else(|e| log::debug!("{}: {}", Shown(guest.root.path()), Reason(e)));
        }
        let mut recovered = run::recover(pool, self.options.patience)?;
        let failed = std::mem::take(&mut recovered.failed);
        if recovered.total() > 0 {
            // What was given back to a guest has only just changed, and would be left for the next run.
            std::thread::sleep(TICK);
        }
        let mut passed = Passed { recovered, ..Passed::default() };
        passed.linked.failed = failed;
        let index = self.check(pool, guests, &mut passed)?;
        Ok((passed, index))
    }

    /// Looks at the protection of all that is in the pool, and mends what is amiss.
    fn check(&self, pool: &Pool, guests: &[Guest], passed: &mut Passed) -> Result<Index, Error> {
        let Options { fence, threads, patience, reserve, .. } = *self.options;
        let watch = self.watch;
        let index = if fence == Fence::None {
            pool.index(threads)?
        } else {
            let files = pool.look_at_all(threads)?;
            passed.verified = Verifier { pool, patience, threads, watch }.check(&files, fence)?;
            if passed.verified.damaged.is_empty() && passed.verified.protected.is_empty() {
                Index::of(&files)
            } else {
                let repairer = Repairer { pool, guests, fence, patience, reserve, threads, watch };
                passed.repaired = repairer.repair()?;
                pool.index(threads)?
            }
        };
        passed.still_seen = pool.still_seen()?;
        Ok(index)
    }

    fn plan(&self, catalog: &mut Catalog, index: &Index, passed: &mut Passed) -> Vec<Work> {
        passed.linked.failed.append(&mut catalog.unread);
        passed.shared_before = catalog.shared;
        passed.damaged = catalog.damaged;
        passed.looked_at = catalog.files.len() as u64;
        let planner = self.planner();
        planner.read(catalog, |key| index.knows(key));
        self.note_left(catalog, passed);
        planner.works(catalog, index)
    }

    /// Counts the files that stay as they are, and names those that could not be read.
    pub(super) fn note_left(&self, catalog: &Catalog, passed: &mut Passed) {
        let unfit = catalog.files.iter().zip(0..).filter_map(|(file, at)| Some((at, file.unfit?)));
        self.leave(catalog, unfit, passed);
        let path = |at: &u32| catalog.outer_path(&catalog.files[*at as usize]);
        let failed = catalog.unreadable.iter().map(|(at, reason)| (path(at), reason.clone()));
        passed.linked.failed.extend(failed);
    }

    /// Counts names that stay as they are, and names them if that is wanted.
    pub(super) fn leave(
        &self,
        catalog: &Catalog,
        names: impl Iterator<Item = (u32, Unfit)>,
        passed: &mut Passed,
    ) {
        for (at, unfit) in names {
            *passed.left.entry(unfit).or_default() += 1;
            if self.options.list {
                passed.left_names.push((catalog.outer_path(&catalog.files[at as usize]), unfit));
            }
        }
    }

    pub(super) fn cache(&self, pool: &Pool) -> Result<Cache, Error> {
        let path = pool.cache_path();
        Cache::open(&path).map_err(|source| Error::Cache { path, source })
    }

    fn store(&self, cache: &mut Cache, catalog: &Catalog, prints: &[[u8; 32]]) {
        // Nothing is lost but time.
        cache.store(catalog, prints).unwrap_or_else(|e| log::warn!("the pool's cache: {e}"));
    }

    pub(super) fn planner(&self) -> Planner<'_> {
        // A directory that cannot be asked says nothing; then links are tried.
        let project = self.pool.and_then(|pool| traits::handed_on(pool.runs()).ok().flatten());
        let links = self.settings.share == Share::Hardlink;
        Planner {
            limits: Limits { allow_setid: self.options.allow_setid, links, project },
            reference: self.options.reference.map(|at| at as u16),
            threads: self.options.threads,
            watch: self.watch,
        }
    }

    /// Scans all guests into the catalog; returns the fingerprint of what was eligible in each.
    fn scan_all(
        &self,
        catalog: &mut Catalog,
        guests: Vec<Guest>,
        cache: Option<&Cache>,
        index: &Index,
        passed: &mut Passed,
    ) -> Vec<[u8; 32]> {
        let pool = self.pool.map(|pool| pool.inode().id);
        let borders: Vec<InodeId> =
            pool.into_iter().chain(guests.iter().map(|guest| guest.inode.id)).collect();
        let paths: Vec<PathBuf> = guests.iter().map(|guest| guest.root.path().to_path_buf()).collect();
        let Options { scope, rules, never, .. } = self.options;
        let wanted = Wanted {
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
            let loaded = cache.map_or_else(|| Ok(Remembered::new()), |cache| cache.load(&guest, &print));
            let mut remembered = loaded.unwrap_or_else(|e| {
                log::warn!("the pool's cache: {e}");
                Remembered::new()
            });
            for inner in paths.iter().filter_map(|inner| inner.strip_prefix(&path).ok()) {
                if !inner.as_os_str().is_empty() {
                    remembered.retain(|dir, _| !dir.starts_with(Path::new("/").join(inner)));
                }
            }
            let number = catalog.guests.len() as u16;
            let eligible = OnceLock::new();
            let load = || Eligible::load(&guest.root, *scope, rules, never);
            let eligible_here = || eligible.get_or_init(load).as_ref().ok();
            let found = walk::scan(&guest, number, &eligible_here, &remembered, &wanted);
            match eligible.get() {
                Some(Err(e)) => passed.skipped.push((path, Reason(e).to_string())),
                _ => catalog.absorb(found),
            }
            catalog.guests.push(guest);
        }
        if self.settings.share == Share::Hardlink {
            walk::mark_linked_elsewhere(catalog);
            walk::mark_mount_points(catalog);
            if self.options.immutable {
                walk::mark_unable(catalog);
            }
            if wanted.by_path {
                walk::mark_several_names(catalog);
            }
        }
        prints
    }
}

/// What was read of the files that are still private.
fn digests(catalog: &Catalog) -> HashMap<InodeId, (i64, Digest, bool)> {
    let known =
        |file: &File| Some((catalog.id(file), (file.ctime, catalog.digest(file)?, file.shares_blocks)));
    catalog.files.iter().filter_map(known).collect()
}

/// Whether a pool at `path`, canonical and perhaps not there yet, is out of the guest's reach.
pub fn check_outside(path: &Path, guest: &Guest) -> Result<(), Error> {
    let guest_path = guest.root.path();
    // The running system holds its own pool.
    if guest.root.is_own() {
        return Ok(());
    }
    let (near, inode) = nearest(path)?;
    // By where they lie in the filesystem as well: a mount may lead into the guest.
    let mounts = mounts::of("self").unwrap_or_default();
    let place = |mount, path| mounts::place(&mounts, mount, path);
    let inside = match (place(inode.mount, near), place(guest.inode.mount, guest_path)) {
        (Some((device, pool)), Some((of_guest, guest))) => device == of_guest && pool.starts_with(guest),
        _ => false,
    };
    if inside || path.starts_with(guest_path) {
        let reason =
            "the pool lies in it, where the guest could reach it; name another with --pool".to_owned();
        return Err(Error::Guest { path: guest_path.to_path_buf(), reason });
    }
    Ok(())
}

/// Whether a guest can share with a pool at `path`, which need not be there yet.
pub fn check_reach(path: &Path, share: Share, guest: &Guest) -> Result<(), Error> {
    let (_, near) = nearest(path)?;
    if share == Share::Hardlink && (near.id.dev, near.mount) != (guest.inode.id.dev, guest.inode.mount) {
        let reason = "on another filesystem, mount or subvolume than the pool, so no hard link can join them; \
             give it a pool of its own there (--pool), or share blocks with --share reflink where the filesystem can";
        return Err(Error::Guest { path: guest.root.path().to_path_buf(), reason: reason.to_owned() });
    }
    Ok(())
}

/// The directory `path`, or the one that it is to be made in.
fn nearest(path: &Path) -> Result<(&Path, Inode), Error> {
    let near = if path.exists() { path } else { path.parent().unwrap_or(path) };
    Ok((near, Inode::of(Root::open(near).at(near)?).at(near)?))
}

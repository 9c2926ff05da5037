//! Unifying from inside a guest, if the pool is within reach: what its package manager has just unpacked need not wait for
//! the host.

use std::collections::{BTreeSet, HashSet};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use super::listed::{ListedFiles, found};
use super::{InUse, Pass, PassOptions, Passed};
use crate::policy::Policy;
use crate::report::Silent;
use crate::state::pool_notice::{POOL_NOTICE, PoolNotice};
use crate::state::store::STATE_DIR;
use crate::sys::file::inode::Inode;
use crate::sys::path::root::Root;
use crate::unify::Error;
use crate::unify::eligible::rules::Rules;
use crate::unify::eligible::scope::Scope;
use crate::unify::pool::directory::Pool;
use crate::unify::pool::object::ObjectIndex;
use crate::unify::pool::protection::PoolProtection;
use crate::unify::pool::settings::Sharing;
use crate::unify::scan::catalog::{Catalog, GuestIndex};
use crate::unify::scan::guest::GuestTree;
use crate::unify::scan::marks;

/// As many names of objects are read in the time that it takes to read a file for its digest and to find its object.
const NAMES_PER_FILE: usize = 32;
/// The directories of the pool take as long to read as so many names of objects, if they are empty.
const NAMES_PER_POOL: usize = 4096;

/// The objects that have the metadata of these files; `None` if it is cheaper to read all files.
///
/// A file whose object is known is read once, to be compared with it, and a file that has no object is not read at all.
fn by_metadata(pool: &Pool, catalog: &Catalog, threads: usize) -> Result<Option<ObjectIndex>, Error> {
    if pool.settings.share != Sharing::Hardlink {
        return Ok(None);
    }
    let free = catalog.files.iter().filter(|file| file.not_unified.is_none());
    let tags: HashSet<u64> = free.map(|file| file.key).collect();
    let most = tags.len().saturating_mul(NAMES_PER_FILE);
    if most < NAMES_PER_POOL || pool.estimate()?.saturating_add(NAMES_PER_POOL) > most {
        return Ok(None);
    }
    pool.tagged(&tags, threads).map(Some)
}

/// Makes these files of the guest names of objects the pool has. The caller holds the guest's lock.
///
/// Returns the paths that are names of objects now; none if the pool is out of reach.
pub fn unify(
    root: &Root,
    state_dir: impl AsFd,
    policy: &Policy,
    paths: &BTreeSet<PathBuf>,
) -> Result<BTreeSet<PathBuf>, Error> {
    let at = |source| Error::At { path: Path::new(STATE_DIR).join(POOL_NOTICE), source };
    let none = Ok(BTreeSet::new());
    if paths.is_empty() {
        return none;
    }
    let Some(notice) = PoolNotice::read(&state_dir).map_err(at)? else { return none };
    // Another filesystem, another mount, no capability: the host will do it.
    let Ok(dir) = notice.pool.open(&state_dir) else { return none };
    let inode = Inode::of(root).map_err(at)?;
    let Some(pool) = Pool::at(Root::from_fd(dir, Path::new("the host's pool")))? else { return none };
    if !pool.reaches(&inode) {
        return none;
    }
    let options = PassOptions {
        scope: Scope::Owned,
        rules: Rules::default(),
        never: policy.never_unify.clone(),
        min_size: notice.min_size,
        allow_setid: notice.allow_setid,
        reference: None,
        immutable: notice.immutable,
        protection: match notice {
            PoolNotice { guard: true, .. } => PoolProtection::Guard,
            PoolNotice { immutable: true, .. } => PoolProtection::Immutable,
            _ => PoolProtection::None,
        },
        threads: crate::parallel::processors(),
        lock_timeout: policy.lock_timeout,
        reserve: policy.reserve,
        list: false,
        in_use: InUse::Replace,
    };
    let pass = Pass {
        pool: Some(&pool),
        settings: pool.settings,
        options: &options,
        watch: &Silent,
        locked: true,
        programs: None,
    };
    let guest = GuestTree { root: root.try_clone().map_err(at)?, inode };
    let mut listed = ListedFiles::new(&pass, None);
    listed.catalog.guests.push(guest);
    listed.add(GuestIndex::new(0), paths.iter().map(PathBuf::as_path));
    let mut catalog = listed.catalog;
    marks::mark_linked_elsewhere(&mut catalog);
    let planner = pass.planner();
    let mut works = match by_metadata(&pool, &catalog, options.threads)? {
        Some(index) => {
            let mut works = planner.unread_works(&catalog, &index);
            planner.read(&mut catalog, |key| index.knows_several(key));
            works.extend(planner.works(&catalog, &index));
            works
        }
        None => {
            planner.read(&mut catalog, |_| true);
            planner.works(&catalog, &found(&pool, &catalog)?)
        }
    };
    // What the pool does not have yet is the host's to decide: it sees the other guests.
    works.retain(|work| work.existing.is_some());
    let mut passed = Passed::default();
    pass.link(&pool, &catalog, works, &mut passed)?;
    for failed in &passed.linked.failed {
        log::debug!("{failed}");
    }
    Ok(passed.linked.names.iter().map(|&at| catalog.path(&catalog[at])).collect())
}

//! The pools that the guard is for, and how much it protects in each.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::guard::registered::{self, RegisteredPool};
use crate::report::{Reason, Shown};
use crate::sys::file::uuid::Uuid;
use crate::sys::share::mark;
use crate::unify;
use crate::unify::pass::pools;
use crate::unify::pool::directory::Pool;
use crate::unify::pool::protection::PoolProtection;

/// A pool whose filesystem is to be guarded.
pub(super) struct GuardedPool {
    pub path: PathBuf,
    /// Its filesystem, now or when it was last seen.
    pub uuid: Uuid,
    /// None if its filesystem is not mounted.
    pub open: Option<Pool>,
    /// It was named by the caller, as cow-unify does, which has locked it then.
    pub is_named: bool,
}

impl GuardedPool {
    /// The pool, if guests could change its objects without the guard.
    pub fn relying(&self) -> Option<&Pool> {
        self.open.as_ref().filter(|pool| relies(pool))
    }
}

/// The pools to guard, and what is wrong with others.
#[derive(Default)]
pub(super) struct Pools {
    pub all: Vec<GuardedPool>,
    /// The host's list as it was read.
    before: Vec<RegisteredPool>,
    /// It could not be read, so it is not written.
    is_unread: bool,
    /// Those that protect their objects otherwise, and are no longer registered.
    others: Vec<Pool>,
    /// Filesystems of pools that are forgotten, or protect their objects otherwise.
    released: Vec<Uuid>,
    /// Messages for a person.
    pub problems: Vec<String>,
}

impl Pools {
    /// Looks at all pools that are registered but for those that are `forgotten`, at those of the host's list that rely
    /// on the guard, and at `more`.
    ///
    /// # Errors
    /// If one of `more` is no pool, or one of `forgotten` not registered, or still in need of the guard.
    pub fn look(more: &[PathBuf], forgotten: &[PathBuf]) -> anyhow::Result<Pools> {
        let mut pools = Pools::default();
        let before = registered::read().unwrap_or_else(|e| {
            pools.problems.push(format!(
                "{}: {}; move it away, then run `cow-guard load --pool DIR` for each pool",
                Shown(&registered::path()),
                Reason(e)
            ));
            pools.is_unread = true;
            Vec::new()
        });
        pools.before.clone_from(&before);
        for path in more {
            let path =
                std::fs::canonicalize(path).map_err(|e| anyhow::anyhow!("{}: {}", Shown(path), Reason(e)))?;
            let pool = Pool::open(&path)?;
            let pool = pool.ok_or_else(|| anyhow::anyhow!("{}: not a pool of cow-unify", Shown(&path)))?;
            let uuid = Uuid::of(pool.runs()).map_err(|e| no_uuid(&path, e))?;
            pools.all.push(GuardedPool { path, uuid, open: Some(pool), is_named: true });
        }
        for path in forgotten {
            let found = before.iter().find(|pool| pool.path == *path);
            let uuid = found.ok_or_else(|| anyhow::anyhow!("{}: not registered", Shown(path)))?.uuid;
            if let Ok(Some(pool)) = Pool::open(path) {
                if relies(&pool) {
                    anyhow::bail!(
                        "{}: this pool relies on the guard; run `cow-unify protect --to immutable` first",
                        Shown(path)
                    );
                }
                pool.lock(Duration::ZERO)?;
            }
            pools.released.push(uuid);
        }
        for RegisteredPool { path, uuid } in before.iter().filter(|pool| !forgotten.contains(&pool.path)) {
            pools.add(path, Some(*uuid));
        }
        for path in pools::listed() {
            pools.add(&path, None);
        }
        Ok(pools)
    }

    /// Adds a pool, unless it is known already or protected otherwise; `uuid` is that of its filesystem if it was
    /// registered. One that is not there now may come with its filesystem.
    fn add(&mut self, path: &Path, uuid: Option<Uuid>) {
        if self.all.iter().any(|pool| pool.path == path) {
            return;
        }
        let is_registered = uuid.is_some();
        let open = Pool::open(path).unwrap_or_else(|e| {
            self.problems.push(e.to_string());
            None
        });
        let found = match &open {
            Some(pool) => Uuid::of(pool.runs()).map_err(|e| self.problems.push(no_uuid(path, e).to_string())),
            None => Err(()),
        };
        let Some(uuid) = found.ok().or(uuid) else { return };
        let pool = GuardedPool { path: path.to_path_buf(), uuid, open, is_named: false };
        match pool.open {
            Some(open) if is_protected_otherwise(&open) && !(is_registered && is_busy(&open)) => {
                log::debug!("{}: this pool does not rely on the guard", Shown(path));
                self.released.push(uuid);
                self.others.push(open);
            }
            open => self.all.push(GuardedPool { open, ..pool }),
        }
    }

    /// Remembers those that rely on the guard for the next load, and once it `is_loaded` those that may do so from now on.
    pub fn register(&self, is_loaded: bool) -> std::io::Result<()> {
        if self.is_unread {
            return Ok(());
        }
        let is_known = |pool: &RegisteredPool| self.before.contains(pool);
        let wanted =
            |pool: &&GuardedPool| is_loaded || pool.relying().is_some() || is_known(&registered(pool));
        let pools: Vec<RegisteredPool> = self.all.iter().filter(wanted).map(registered).collect();
        if registered::holds(&pools) { Ok(()) } else { registered::write(&pools) }
    }

    /// Their filesystems, and those that are guarded now, each once: this process may not see all pools.
    pub fn filesystems(&self, guarded: &[Uuid]) -> Vec<Uuid> {
        let unseen = guarded.iter().filter(|uuid| !self.released.contains(uuid)).copied();
        let mut all: Vec<Uuid> = self.all.iter().map(|pool| pool.uuid).chain(unseen).collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// Those that are there, however they protect their objects.
    pub fn open(&self) -> impl Iterator<Item = &Pool> {
        self.all.iter().filter_map(|pool| pool.open.as_ref()).chain(&self.others)
    }

    /// Those whose objects guests could change without the guard.
    pub fn relying(&self) -> impl Iterator<Item = &Pool> {
        self.all.iter().filter_map(GuardedPool::relying)
    }
}

fn is_protected_otherwise(pool: &Pool) -> bool {
    pool.settings.protection.is_some_and(|other| other != PoolProtection::Guard)
}

/// Whether a run of cow-unify works on a pool. It may be about to turn it to the guard: what it has had registered for
/// that stays so until it has ended.
fn is_busy(pool: &Pool) -> bool {
    matches!(pool.lock(Duration::ZERO), Err(unify::Error::Busy { .. }))
}

fn relies(pool: &Pool) -> bool {
    pool.settings.protection == Some(PoolProtection::Guard)
}

fn registered(pool: &GuardedPool) -> RegisteredPool {
    RegisteredPool { path: pool.path.clone(), uuid: pool.uuid }
}

fn no_uuid(path: &Path, e: std::io::Error) -> anyhow::Error {
    anyhow::anyhow!(
        "{}: the UUID of the filesystem cannot be found, so the guard cannot protect it: {}; use \
         `cow-unify --protection immutable`",
        Shown(path),
        Reason(e)
    )
}

/// Whether the guard protects marked files of a pool, as a file that is made for it shows.
pub(super) fn is_guarded(pool: &Pool) -> std::io::Result<bool> {
    mark::is_guarded(pool.runs())
}

//! The pools that the guard is for, and how much it protects in each.

use std::path::{Path, PathBuf};

use crate::guard::registered::{self, RegisteredPool};
use crate::report::{Reason, Shown};
use crate::sys::file::uuid::Uuid;
use crate::sys::share::mark;
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
}

impl GuardedPool {
    /// The pool, if guests could change its objects without the guard.
    pub fn relying(&self) -> Option<&Pool> {
        self.open.as_ref().filter(|pool| relies(pool))
    }
}

/// The pools to guard, and what is wrong with others.
pub(super) struct Pools {
    pub all: Vec<GuardedPool>,
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
        let mut pools = Pools { all: Vec::new(), released: Vec::new(), problems: Vec::new() };
        let before = registered::read().unwrap_or_else(|e| {
            pools.problems.push(format!("{}: {}", Shown(&registered::path()), Reason(e)));
            Vec::new()
        });
        for path in more {
            let path =
                std::fs::canonicalize(path).map_err(|e| anyhow::anyhow!("{}: {}", Shown(path), Reason(e)))?;
            let pool = Pool::open(&path)?;
            let pool = pool.ok_or_else(|| anyhow::anyhow!("{}: not a pool of cow-unify", Shown(&path)))?;
            let uuid = Uuid::of(pool.runs()).map_err(|e| no_uuid(&path, e))?;
            pools.all.push(GuardedPool { path, uuid, open: Some(pool) });
        }
        for path in forgotten {
            let found = before.iter().find(|pool| pool.path == *path);
            let uuid = found.ok_or_else(|| anyhow::anyhow!("{}: not registered", Shown(path)))?.uuid;
            if Pool::open(path).is_ok_and(|pool| pool.is_some_and(|pool| relies(&pool))) {
                anyhow::bail!(
                    "{}: this pool relies on the guard; run `cow-unify protect` first",
                    Shown(path)
                );
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
        let open = Pool::open(path).unwrap_or_else(|e| {
            self.problems.push(e.to_string());
            None
        });
        let found = match &open {
            Some(pool) => Uuid::of(pool.runs()).map_err(|e| self.problems.push(no_uuid(path, e).to_string())),
            None => Err(()),
        };
        let Some(uuid) = found.ok().or(uuid) else { return };
        let pool = GuardedPool { path: path.to_path_buf(), uuid, open };
        let protection = pool.open.as_ref().and_then(|pool| pool.settings.protection);
        if protection.is_some_and(|other| other != PoolProtection::Guard) {
            log::debug!("{}: this pool does not rely on the guard", Shown(path));
            self.released.push(uuid);
        } else {
            self.all.push(pool);
        }
    }

    /// Remembers those that rely on the guard for the next load, and once it `is_loaded` those that may do so from now on.
    pub fn register(&self, is_loaded: bool) -> std::io::Result<()> {
        let before = registered::read()?;
        let is_known = |pool: &RegisteredPool| before.contains(pool);
        let wanted =
            |pool: &&GuardedPool| is_loaded || pool.relying().is_some() || is_known(&registered(pool));
        let pools: Vec<RegisteredPool> = self.all.iter().filter(wanted).map(registered).collect();
        if before == pools { Ok(()) } else { registered::write(&pools) }
    }

    /// Their filesystems, and those that are guarded now, each once: this process may not see all pools.
    pub fn filesystems(&self, guarded: &[Uuid]) -> Vec<Uuid> {
        let unseen = guarded.iter().filter(|uuid| !self.released.contains(uuid)).copied();
        let mut all: Vec<Uuid> = self.all.iter().map(|pool| pool.uuid).chain(unseen).collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// Those whose objects guests could change without the guard.
    pub fn relying(&self) -> impl Iterator<Item = &Pool> {
        self.all.iter().filter_map(GuardedPool::relying)
    }
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

//! What every pass begins with: what an interrupted run left, and the pool's protection.

use super::{Pass, PassOptions, Passed};
use crate::report::{Reason, Shown};
use crate::state::pool_notice::PoolNotice;
use crate::sys::file::handle::Handle;
use crate::sys::file::times::TICK;
use crate::sys::file::traits;
use crate::unify::Error;
use crate::unify::care::repair::Repairer;
use crate::unify::care::verify::Verifier;
use crate::unify::link::plan::Planner;
use crate::unify::pool::directory::Pool;
use crate::unify::pool::object::ObjectIndex;
use crate::unify::pool::protection::PoolProtection;
use crate::unify::pool::recover;
use crate::unify::pool::settings::Sharing;
use crate::unify::scan::cache::Cache;
use crate::unify::scan::digest::Limits;
use crate::unify::scan::guest::GuestTree;

impl Pass<'_> {
    /// Ends what an interrupted run left, tells the guests where the pool is, and looks at its protection; says what
    /// is in the pool.
    pub(super) fn begin(&self, pool: &Pool, guests: &[GuestTree]) -> Result<(Passed, ObjectIndex), Error> {
        self.announce(pool, guests);
        let mut recovered = recover::recover(pool, self.options.lock_timeout)?;
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
    fn check(&self, pool: &Pool, guests: &[GuestTree], passed: &mut Passed) -> Result<ObjectIndex, Error> {
        let PassOptions { protection, threads, lock_timeout, reserve, .. } = *self.options;
        let watch = self.watch;
        let index = if protection == PoolProtection::None {
            pool.index(threads)?
        } else {
            let files = pool.look_at_all(threads)?;
            passed.verified = Verifier { pool, lock_timeout, threads, watch }.check(&files, protection)?;
            if passed.verified.damaged.is_empty() && passed.verified.protected.is_empty() {
                ObjectIndex::of(&files)
            } else {
                let repairer = Repairer { pool, guests, protection, lock_timeout, reserve, threads, watch };
                passed.repaired = repairer.repair()?;
                pool.index(threads)?
            }
        };
        passed.still_seen = pool.still_seen()?;
        Ok(index)
    }

    pub(super) fn cache(&self, pool: &Pool) -> Result<Cache, Error> {
        let path = pool.cache_path();
        Cache::open(&path).map_err(|source| Error::Cache { path, source })
    }

    pub(super) fn planner(&self) -> Planner<'_> {
        // A directory that cannot be asked says nothing; then links are tried.
        let project = self.pool.and_then(|pool| traits::handed_on(pool.runs()).ok().flatten());
        let links = self.settings.share == Sharing::Hardlink;
        Planner {
            limits: Limits { allow_setid: self.options.allow_setid, links, project },
            reference: self.options.reference,
            threads: self.options.threads,
            watch: self.watch,
        }
    }

    /// Tells guests where the pool is and how it unifies. A guest that does not know waits for the host.
    fn announce(&self, pool: &Pool, guests: &[GuestTree]) {
        let PassOptions { protection, allow_setid, min_size, .. } = *self.options;
        let pool = match Handle::of(pool.root()) {
            Ok(handle) => handle,
            Err(e) => return log::debug!("{}: {}", Shown(pool.path()), Reason(e)),
        };
        let guard = protection == PoolProtection::Guard;
        let immutable = protection != PoolProtection::None && !guard;
        let notice = PoolNotice { pool, immutable, guard, allow_setid, min_size };
        for guest in guests {
            let told = notice.leave(&guest.root);
            told.unwrap_or_else(|e| log::debug!("{}: {}", Shown(guest.root.path()), Reason(e)));
        }
    }
}

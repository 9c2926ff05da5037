//! The other protection of a pool that relies on the guard: the immutable flag on all its objects, while the guard is
//! not there.

use std::time::Duration;

use super::pools::GuardedPool;
use crate::parallel;
use crate::report::{Reason, Shown, count, word};
use crate::unify;
use crate::unify::pool::directory::Pool;
use crate::unify::pool::protect::{Turn, Turned};
use crate::unify::pool::protection::PoolProtection;

/// How long to wait for the lock on one object.
const LOCK_TIMEOUT: Duration = Duration::from_millis(250);

/// Gives a pool that relies on the guard the protection that it needs now, or takes off what it no longer needs.
/// Returns whether it is protected.
pub(super) fn settle(guarded_pool: &GuardedPool, pool: &Pool, guarded: bool) -> bool {
    match pool.settings.protection {
        Some(PoolProtection::Guard) if guarded => open_locked(guarded_pool, pool),
        Some(PoolProtection::Guard) => close(pool, true),
        _ => true,
    }
}

/// Makes all objects immutable, and leaves the mark on them; returns whether they are. If they may have been `exposed`,
/// the next pass reads again what was not immutable.
pub(super) fn close(pool: &Pool, exposed: bool) -> bool {
    let closed = if exposed { close_exposed(pool) } else { turn(pool).give(PoolProtection::Immutable) };
    match closed {
        Ok(turned) => {
            if turned.files > 0 {
                log::warn!(
                    "{}: {} immutable now, because the guard does not protect this pool: packages cannot be upgraded in \
                     its guests but with cow-hooks",
                    Shown(pool.path()),
                    are(turned.files)
                );
            }
            is_whole(&turned)
        }
        Err(e) => failed(pool, &e),
    }
}

fn close_exposed(pool: &Pool) -> Result<Turned, unify::Error> {
    let files = pool.look_at_all(parallel::processors())?;
    let threads = parallel::processors();
    let protected = pool.protect(&files, PoolProtection::Immutable, LOCK_TIMEOUT, threads)?;
    Ok(Turned { files: protected.files.len() as u64, failed: protected.failed })
}

/// Whether all objects are immutable.
pub(super) fn is_closed(pool: &Pool) -> Result<bool, unify::Error> {
    Ok(pool.look_at_all(parallel::processors())?.iter().all(|file| file.inode.immutable))
}

/// As [`open`], unless a run of cow-unify works on the pool: it may be about to turn it away from the guard.
fn open_locked(guarded_pool: &GuardedPool, pool: &Pool) -> bool {
    let lock = if guarded_pool.is_named { None } else { Some(pool.lock(Duration::ZERO)) };
    match lock {
        Some(Err(unify::Error::Busy { .. })) => {
            log::warn!(
                "{}: cow-unify works on this pool, so immutable objects stay so; run `cow-guard load` when it has ended",
                Shown(pool.path())
            );
            true
        }
        // If no lock can be made, nobody else changes the pool either.
        _ => open(pool),
    }
}

/// Marks all objects, and then takes the immutable flag off them; returns whether none has it.
fn open(pool: &Pool) -> bool {
    let marked = match turn(pool).give(PoolProtection::Guard) {
        Ok(turned) => is_whole(&turned),
        Err(e) => failed(pool, &e),
    };
    if !marked {
        return false;
    }
    match turn(pool).leave_to_guard() {
        Ok(turned) => {
            if turned.files > 0 {
                log::info!(
                    "{}: {} no longer immutable: the guard protects this pool",
                    Shown(pool.path()),
                    are(turned.files)
                );
            }
            is_whole(&turned)
        }
        Err(e) => failed(pool, &e),
    }
}

fn turn(pool: &Pool) -> Turn<'_> {
    Turn { pool, lock_timeout: LOCK_TIMEOUT, threads: parallel::processors() }
}

fn are(objects: u64) -> String {
    format!("{} {}", count(objects, "object"), word(objects, "is", "are"))
}

fn is_whole(turned: &Turned) -> bool {
    turned.failed.iter().for_each(|failed| log::error!("{failed}"));
    turned.failed.is_empty()
}

fn failed(pool: &Pool, e: &unify::Error) -> bool {
    log::error!("{}: {}", Shown(pool.path()), Reason(e));
    false
}

//! `cow-guard unload`: takes the guard out of the kernel, but not away from pools that have nothing else.

use std::time::{Duration, Instant};

use super::fence;
use super::pools::{self, Pools};
use crate::exit::Exit;
use crate::guard::pins::Pins;
use crate::guard::{self, loader};
use crate::report::Shown;
use crate::unify;
use crate::unify::pool::directory::{Pool, PoolLock};

/// How long the kernel may take to end the programs; it takes milliseconds.
const LINGERING: Duration = Duration::from_secs(10);

pub(super) fn run(protect: bool) -> anyhow::Result<Exit> {
    // Locked until the guard is gone: no other process has it loaded for another pool after these were looked at.
    let pins = Pins::existing().map_err(guard::Error::Pins)?;
    let pools = Pools::look(&[], &[])?;
    pools.problems.iter().for_each(|problem| log::error!("{problem}"));
    let Some(pins) = pins.filter(|pins| pins.generations().is_ok_and(|all| !all.is_empty())) else {
        log::info!("the guard was not loaded");
        return Ok(if protect { close_all(&pools) } else { Exit::Done });
    };
    // Locked as long: a run of cow-unify that has seen the guard relies on it until it ends.
    let locks: Vec<_> = pools.open().map(|pool| pool.lock(Duration::ZERO)).collect();
    if !are_taken(&locks) || !are_closed(&pools, protect) || !pools.problems.is_empty() {
        return Ok(Exit::Refused);
    }
    loader::unload(&pins)?;
    wait_until_gone(&pools);
    log::info!("unloaded");
    // A guest that had seen the guard may have added an object since.
    Ok(close_all(&pools))
}

/// The kernel ends a program a moment after it has lost its name: nobody should see the guard then, and rely on it.
fn wait_until_gone(pools: &Pools) {
    let begin = Instant::now();
    let is_seen = |pool: &Pool| pools::is_guarded(pool).unwrap_or(false);
    while begin.elapsed() < LINGERING && pools.open().any(is_seen) {
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Makes all objects immutable of pools that rely on the guard, if it is gone.
fn close_all(pools: &Pools) -> Exit {
    let open = pools.relying().filter(|pool| !fence::close(pool, true)).count();
    if open == 0 { Exit::Done } else { Exit::Partial }
}

/// Whether all pools are locked; says which is not, and what to do.
fn are_taken(locks: &[Result<PoolLock, unify::Error>]) -> bool {
    let mut taken = true;
    for error in locks.iter().filter_map(|lock| lock.as_ref().err()) {
        log::error!("{error}; the guard stays loaded");
        taken = false;
        if matches!(error, unify::Error::Busy { .. }) {
            log::error!("remedy: run this command again when cow-unify has ended");
        }
    }
    taken
}

/// Whether no pool needs the guard any longer; says which does, and what to do.
fn are_closed(pools: &Pools, protect: bool) -> bool {
    let open = pools.relying().filter(|pool| !is_closed(pool, protect)).count();
    let unseen: Vec<_> = pools.all.iter().filter(|pool| pool.open.is_none()).collect();
    for pool in &unseen {
        log::error!(
            "{}: this pool is not there now, so its objects cannot be made immutable; the guard stays loaded",
            Shown(&pool.path)
        );
    }
    if open > 0 && protect {
        log::error!(
            "remedy: the guard stays loaded; remove the cause above, for example mount the filesystem writable, \
             then run this command again"
        );
    } else if open > 0 {
        log::error!(
            "remedy: run `cow-guard unload --protect`, which makes the pool's objects immutable first, or turn the pool \
             to another protection with `cow-unify protect --to immutable`"
        );
    }
    if !unseen.is_empty() {
        log::error!(
            "remedy: mount its filesystem, or run `cow-guard load --forget DIR` if the pool was removed"
        );
    }
    open == 0 && unseen.is_empty()
}

/// Whether a pool needs the guard no longer; with `protect` it is made so.
fn is_closed(pool: &Pool, protect: bool) -> bool {
    if protect {
        return fence::close(pool, false);
    }
    let closed = fence::is_closed(pool).unwrap_or_else(|e| {
        log::error!("{e}");
        false
    });
    if !closed {
        log::error!("{}: this pool relies on the guard", Shown(pool.path()));
    }
    closed
}

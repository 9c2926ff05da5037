//! `cow-guard unload`: takes the guard out of the kernel, but not away from pools that have nothing else.

use super::fence;
use super::pools::Pools;
use crate::exit::Exit;
use crate::guard::loader;
use crate::report::Shown;
use crate::unify::pool::directory::Pool;

pub(super) fn run(protect: bool) -> anyhow::Result<Exit> {
    let pools = Pools::look(&[], &[])?;
    pools.problems.iter().for_each(|problem| log::error!("{problem}"));
    let open = pools.relying().filter(|pool| !is_closed(pool, protect)).count();
    let unseen: Vec<_> = pools.all.iter().filter(|pool| pool.open.is_none()).collect();
    for pool in &unseen {
        log::error!(
            "{}: this pool is not there now, so its objects cannot be made immutable",
            Shown(&pool.path)
        );
    }
    if open > 0 {
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
    let needed = open > 0 || !unseen.is_empty() || !pools.problems.is_empty();
    if needed && !loader::generations()?.is_empty() {
        return Ok(Exit::Refused);
    }
    if loader::unload()? {
        log::info!("unloaded");
    } else {
        log::info!("the guard was not loaded");
    }
    Ok(Exit::Done)
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

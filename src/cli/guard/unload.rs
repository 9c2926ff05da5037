//! `cow-guard unload`: takes the guard out of the kernel, but not away from pools that have nothing else.

use super::fence;
use super::pools::Pools;
use crate::exit::Exit;
use crate::guard::loader;
use crate::report::Shown;

pub(super) fn run(protect: bool) -> anyhow::Result<Exit> {
    let pools = Pools::look(&[])?;
    pools.problems.iter().for_each(|problem| log::warn!("{problem}"));
    let mut open = 0;
    for pool in pools.relying() {
        if protect {
            open += usize::from(!fence::close(pool));
        } else if !fence::is_closed(pool)? {
            log::error!("{}: this pool relies on the guard", Shown(pool.path()));
            open += 1;
        }
    }
    if open > 0 {
        log::error!(
            "remedy: run `cow-guard unload --protect`, which makes the pool's objects immutable first, or turn the pool \
             to another protection with `cow-unify protect --to immutable`"
        );
        return Ok(Exit::Refused);
    }
    if loader::unload()? {
        log::info!("unloaded");
    } else {
        log::info!("the guard was not loaded");
    }
    Ok(Exit::Done)
}

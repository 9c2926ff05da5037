//! `cow-guard load`: loads the guard, or the other protection where it cannot be.

use std::path::PathBuf;

use super::fence;
use super::pools::{self, Pools};
use crate::exit::Exit;
use crate::guard::pins::Pins;
use crate::guard::{self, loader, registered};
use crate::report::{Reason, Shown};
use crate::sys::file::uuid::Uuid;

pub(super) fn run(more: &[PathBuf], forgotten: &[PathBuf]) -> anyhow::Result<Exit> {
    // Locked, so that no other process loads without what this one adds.
    let pins = Pins::open().map_err(guard::Error::Pins);
    let pools = Pools::look(more, forgotten)?;
    pools.problems.iter().for_each(|problem| log::error!("{problem}"));
    let mut whole = pools.problems.is_empty();
    // First: what is not known at the next boot is not guarded then.
    whole &= register(&pools, false);
    let loaded = pins.and_then(|pins| load(&pins, &pools));
    whole &= loaded.is_err() || register(&pools, true);
    for pool in pools.all.iter().filter_map(|pool| pool.open.as_ref()) {
        let guarded = pools::is_guarded(pool);
        match &guarded {
            Ok(true) => log::debug!("{}: guarded", Shown(pool.path())),
            Ok(false) if loaded.is_err() => {}
            Ok(false) => {
                whole = false;
                log::error!(
                    "{}: the guard is loaded, but a marked file of this pool can be written to",
                    Shown(pool.path())
                );
            }
            Err(e) => {
                whole = false;
                log::error!("{}: the guard cannot be tried out: {}", Shown(pool.path()), Reason(e));
            }
        }
        whole &= fence::settle(pool, guarded.unwrap_or(false));
    }
    if pools.all.is_empty()
        && let Err(e) = &loaded
    {
        log::warn!("{e}; no pool relies on the guard");
        return Ok(if whole { Exit::Done } else { Exit::Partial });
    }
    Ok(match loaded {
        Err(e) => return Err(e.into()),
        Ok(()) if whole => Exit::Done,
        Ok(()) => Exit::Partial,
    })
}

/// Returns whether the host's list is as it should be.
fn register(pools: &Pools, is_loaded: bool) -> bool {
    let written = pools.register(is_loaded);
    if let Err(e) = &written {
        log::error!("{}: cannot be written: {}", Shown(&registered::path()), Reason(e));
    }
    written.is_ok()
}

fn load(pins: &Pins, pools: &Pools) -> Result<(), guard::Error> {
    let generations = pins.generations().map_err(guard::Error::Pins)?;
    let guarded: Vec<Uuid> = generations.into_iter().flat_map(|one| one.filesystems).collect();
    let filesystems = pools.filesystems(&guarded);
    let generation = loader::load(pins, &filesystems)?;
    log::info!("loaded, generation {generation}; filesystems guarded: {}", filesystems.len());
    Ok(())
}

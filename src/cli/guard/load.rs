//! `cow-guard load`: loads the guard, or the other protection if it cannot be.

use std::path::PathBuf;

use super::fence;
use super::pools::{self, GuardedPool, Pools};
use crate::exit::Exit;
use crate::guard::pins::Pins;
use crate::guard::{self, loader, registered};
use crate::report::{Reason, Shown};
use crate::sys::file::uuid::Uuid;

pub(super) fn run(more: &[PathBuf], forgotten: &[PathBuf]) -> anyhow::Result<Exit> {
    // Locked until all is done: no other process loads without what this one adds, or unloads what this one relies on.
    let pins = Pins::open().map_err(guard::Error::Pins);
    let pools = Pools::look(more, forgotten)?;
    pools.problems.iter().for_each(|problem| log::error!("{problem}"));
    let mut whole = pools.problems.is_empty();
    // First: what is not known at the next boot is not guarded then.
    whole &= register(&pools, false);
    let (pins, loaded) = match pins {
        Ok(pins) => {
            let loaded = load(&pins, &pools);
            (Some(pins), loaded)
        }
        Err(e) => (None, Err(e)),
    };
    whole &= loaded.is_err() || register(&pools, true);
    let guarded = pins.as_ref().map_or(Vec::new(), filesystems_guarded);
    for pool in &pools.all {
        whole &= settle(pool, loaded.is_ok(), guarded.contains(&pool.uuid));
    }
    if pools.all.is_empty()
        && let Err(e) = &loaded
    {
        log::warn!("{e}; no pool relies on the guard");
        return Ok(if whole { Exit::Done } else { Exit::Partial });
    }
    Ok(match loaded {
        Err(e) => {
            conclude(&pools, &guarded, whole);
            return Err(e.into());
        }
        Ok(()) if whole => Exit::Done,
        Ok(()) => Exit::Partial,
    })
}

/// Says what protects the pools although the guard could not be loaded.
fn conclude(pools: &Pools, guarded: &[Uuid], whole: bool) {
    if !whole {
        log::error!("not all shared files are protected; see the errors above");
    } else if pools.all.iter().all(|pool| guarded.contains(&pool.uuid)) {
        log::warn!("the guard that was loaded before stays, and protects all pools");
    } else {
        log::warn!(
            "shared files of pools that rely on the guard are immutable (`chattr +i`) until it can be loaded"
        );
    }
}

/// Tries the guard out in a pool that is there, and gives it the protection that it needs; returns whether all is as it
/// should be. If the guard `is_kept` for it by nothing, it ends in a moment, whatever a trial says.
fn settle(pool: &GuardedPool, is_loaded: bool, is_kept: bool) -> bool {
    let path = Shown(&pool.path);
    let Some(open) = &pool.open else {
        if !is_kept {
            log::error!(
                "{path}: the filesystem of this pool is not mounted, so its objects cannot be made immutable now; when it \
                 is mounted, run `cow-guard load` before a guest on it starts"
            );
        }
        return is_kept;
    };
    let guarded = pools::is_guarded(open).map(|guarded| guarded && is_kept);
    match &guarded {
        Ok(true) => log::debug!("{path}: guarded"),
        Ok(false) if !is_loaded => {}
        Ok(false) => {
            log::error!("{path}: the guard is loaded, but a marked file of this pool can be written to");
        }
        Err(e) => log::error!("{path}: the guard cannot be tried out: {}", Reason(e)),
    }
    let is_tried = guarded.as_ref().is_ok_and(|guarded| *guarded || !is_loaded);
    fence::settle(pool, open, guarded.unwrap_or(false)) && is_tried
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
    let filesystems = pools.filesystems(&filesystems_guarded(pins));
    let generation = loader::load(pins, &filesystems)?;
    log::info!("loaded, generation {generation}; filesystems guarded: {}", filesystems.len());
    Ok(())
}

/// Those of complete generations: another one may lack a program.
fn filesystems_guarded(pins: &Pins) -> Vec<Uuid> {
    let generations = pins.generations().unwrap_or_else(|e| {
        log::error!("{}", guard::Error::Pins(e));
        Vec::new()
    });
    generations.into_iter().filter(|one| one.complete).flat_map(|one| one.filesystems).collect()
}

//! `cow-guard load`: loads the guard, or the other protection where it cannot be.

use std::path::PathBuf;

use super::pools::{self, Pools};
use super::{fence, refused};
use crate::exit::Exit;
use crate::guard::{self, loader};
use crate::report::{Reason, Shown};

pub(super) fn run(more: &[PathBuf]) -> anyhow::Result<Exit> {
    let pools = Pools::look(more)?;
    pools.problems.iter().for_each(|problem| log::error!("{problem}"));
    let mut whole = pools.problems.is_empty();
    // First: what is not known at the next boot is not guarded then.
    if let Err(e) = pools.register() {
        log::error!("the list of guarded pools cannot be written: {}", Reason(e));
        whole = false;
    }
    let loaded = load(&pools);
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
    Ok(match loaded {
        Err(e) => refused(&e),
        Ok(()) if whole => Exit::Done,
        Ok(()) => Exit::Partial,
    })
}

fn load(pools: &Pools) -> Result<(), guard::Error> {
    let filesystems = pools.filesystems();
    let generation = loader::load(&filesystems)?;
    log::info!("loaded, generation {generation}: it guards {} filesystems", filesystems.len());
    Ok(())
}

//! Settles all detached names of a guest at once.

use std::collections::{BTreeSet, HashSet};
use std::io;
use std::path::Path;

use super::judge::{Settlement, Settling};
use super::together::units;
use crate::ledger::{Entry, Ledger, Stage};
use crate::package::Packages;
use crate::parallel;
use crate::policy::Policy;
use crate::report::{Reason, Shown};
use crate::state::hard_links;
use crate::state::store::Store;
use crate::sys::file::filesystem;
use crate::sys::process::signal;
use crate::sys::share::gate;
use crate::sys::share::swap::{self, Name};
use crate::transaction::error::Error;
use crate::transaction::guest::Guest;

/// What settling came to.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Settled {
    /// Names that share the original inode again.
    pub restored: u64,
    /// Names with new content that are the pool's now: it was within reach.
    pub unified: u64,
    /// Names that wait until their package is configured, or a writer is gone.
    pub postponed: u64,
    /// Names with new content that wait for the host.
    pub new: u64,
    /// Names that stay private for good, each with its reason: they are somebody else's to change.
    pub let_go: Vec<String>,
    /// Names that could not be settled, each with its reason.
    pub failed: Vec<String>,
}

/// Settles every detached name. The caller holds the store's lock, and nobody takes part in the transaction any more.
pub fn settle(
    guest: Guest<'_>,
    store: &Store,
    ledger: &mut Ledger,
    packages: &Packages,
) -> Result<Settled, Error> {
    let settling = Settling::new(guest, store, packages);
    let mut settled = Settled::default();
    let entries: Vec<Entry> = ledger.entries()?.into_iter().filter(|e| e.state == Stage::Detached).collect();
    let again = detached_again(&entries);
    let judge = |entry: &Entry| {
        if again.contains(&entry.id) {
            Ok(Settlement::Drop { changed: false })
        } else {
            settling.judge(entry)
        }
    };
    let mut settlements = parallel::map(parallel::processors(), &entries, judge);
    settling.keep_together(&entries, &mut settlements);
    let mut work = Vec::new();
    let (mut changed, mut later) = (BTreeSet::new(), BTreeSet::new());
    for (entry, settlement) in entries.iter().zip(settlements) {
        match settlement {
            Ok(Settlement::Postpone) => drop(later.insert(entry.intent.place.path())),
            Ok(settlement) => work.push((entry, settlement)),
            Err(e) => settled.failed.push(format!("{}: {}", Shown(&entry.intent.place.path()), Reason(e))),
        }
    }
    let states: Vec<_> = work
        .iter()
        .map(|(entry, settlement)| {
            (
                entry.id,
                if matches!(settlement, Settlement::Restore { .. }) {
                    Stage::Restoring
                } else {
                    Stage::Dropping
                },
            )
        })
        .collect();
    let units = units(&work);
    // First: of a name that was about to be shared again, recovery takes for true what is written down.
    settling.note_links(&entries, &units);
    ledger.set_state(&states)?;

    let blocked = signal::block();
    let ended = parallel::map(parallel::processors(), &units, |unit| settling.carry_out(unit));
    let (mut over, mut back) = (Vec::new(), Vec::new());
    for (unit, ended) in units.iter().zip(ended) {
        let paths = unit.entries.iter().map(|entry| entry.intent.place.path());
        match ended {
            Ok(true) => {
                over.extend(unit.entries.iter().map(|entry| entry.id));
                match unit.settlement {
                    Settlement::LetGo { why } => settled.let_go.extend(paths.map(|path| let_go(&path, why))),
                    Settlement::Restore { .. } => settled.restored += unit.entries.len() as u64,
                    Settlement::Drop { changed: true } => changed.extend(paths),
                    _ => {}
                }
            }
            Ok(false) => {
                back.extend(unit.entries.iter().map(|entry| (entry.id, entry.copy)));
                later.extend(paths);
            }
            Err(swap::Error::Unchanged(e)) if will_not_change(&e) && settling.forget(unit) => {
                let why = Reason(e).to_string();
                over.extend(unit.entries.iter().map(|entry| entry.id));
                settled.let_go.extend(paths.map(|path| let_go(&path, &why)));
            }
            Err(e) => {
                let reason = Reason(&e).to_string();
                settled.failed.extend(paths.map(|path| format!("{}: {reason}", Shown(&path))));
                // Of the others recovery takes care.
                if matches!(e, swap::Error::Unchanged(_))
                    && matches!(unit.settlement, Settlement::Restore { .. })
                {
                    back.extend(unit.entries.iter().map(|entry| (entry.id, entry.copy)));
                }
            }
        }
    }
    if !work.is_empty() {
        filesystem::sync(store.stash()).map_err(Error::stash)?;
        ledger.detached(&back, &over)?;
        gate::wait_for_late_openers();
    }
    drop(blocked);
    let new = changed.union(&packages.unpacked).filter(|path| !later.contains(*path));
    (settled.unified, settled.new) = settling.hand_over(new)?;
    settled.postponed = later.len() as u64;
    hard_links::prune(guest.root, store);
    Ok(settled)
}

/// Entries of names that were detached before: a killed package manager had linked its own new file to another name.
/// The host has unified none of them since, so what such a name was detached from first is what was shared.
fn detached_again(entries: &[Entry]) -> HashSet<i64> {
    let mut known = HashSet::new();
    let again = entries.iter().filter(|entry| !known.insert(&entry.intent.place));
    again.map(|entry| entry.id).collect()
}

/// Hands the host what was just unpacked, where nothing had to be detached for it.
pub fn hand_over(guest: Guest<'_>, store: &Store, packages: &Packages) -> Result<Settled, Error> {
    let settling = Settling::new(guest, store, packages);
    let (unified, new) = settling.hand_over(packages.unpacked.iter())?;
    Ok(Settled { unified, new, ..Settled::default() })
}

/// Lets go of every original in the stash: all names stay private, and wait for the host.
pub fn retire(store: &Store, ledger: &mut Ledger, policy: &Policy) -> Result<Settled, Error> {
    let entries: Vec<Entry> = ledger.entries()?.into_iter().filter(|e| e.state == Stage::Detached).collect();
    ledger.set_state(&entries.iter().map(|entry| (entry.id, Stage::Dropping)).collect::<Vec<_>>())?;
    let mut settled = Settled::default();
    let mut over = Vec::new();
    let mut changed = BTreeSet::new();
    let blocked = signal::block();
    for entry in &entries {
        let name = entry.stashed();
        match swap::unlink_shared(Name { dir: store.stash(), name: &name }, policy.lock_timeout) {
            Ok(_) => {
                over.push(entry.id);
                changed.insert(entry.intent.place.path());
            }
            Err(e) => settled.failed.push(format!("{}: {}", Shown(&entry.intent.place.path()), Reason(e))),
        }
    }
    filesystem::sync(store.stash()).map_err(Error::stash)?;
    gate::wait_for_late_openers();
    drop(blocked);
    ledger.forget(&over)?;
    settled.new = changed.len() as u64;
    store.spool(&changed).map_err(Error::spool)?;
    Ok(settled)
}

/// Whether it is of no use to try again.
fn will_not_change(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EPERM | libc::EACCES | libc::EXDEV | libc::EBUSY))
}

fn let_go(path: &Path, why: &str) -> String {
    format!("{}: {why}; the file stays as it is", Shown(path))
}

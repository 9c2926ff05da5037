//! Settles all detached names of a guest at once.

use std::collections::{BTreeSet, HashSet};
use std::io;
use std::path::{Path, PathBuf};

use super::judge::{Settlement, Settling, Unit};
use super::together::units;
use crate::ledger::{Entry, Ledger, PrivateCopy, Stage};
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
    let entries: Vec<Entry> = ledger.entries()?.into_iter().filter(|e| e.state == Stage::Detached).collect();
    let mut ended = Ended::default();
    let work = ended.postpone(&entries, judge_all(&settling, &entries));
    let units = units(&work);
    // First: of a name that was about to be shared again, recovery takes for true what is written down.
    settling.note_links(&entries, &units);
    let stages: Vec<_> = work.iter().map(|(entry, settlement)| (entry.id, settlement.stage())).collect();
    ledger.set_state(&stages)?;

    let blocked = signal::block();
    let results = parallel::map(parallel::processors(), &units, |unit| settling.carry_out(unit));
    for (unit, result) in units.iter().zip(results) {
        ended.note(&settling, unit, result);
    }
    if !work.is_empty() {
        filesystem::sync(store.stash()).map_err(Error::stash)?;
        ledger.detached(&ended.back, &ended.over)?;
        gate::wait_for_late_openers();
    }
    drop(blocked);
    let Ended { changed, later, mut settled, .. } = ended;
    let new = changed.union(&packages.unpacked).filter(|path| !later.contains(*path));
    (settled.unified, settled.new) = settling.hand_over(new)?;
    settled.postponed = later.len() as u64;
    hard_links::prune(guest.root, store);
    Ok(settled)
}

/// What becomes of each name; names of one file are kept together.
fn judge_all(settling: &Settling<'_>, entries: &[Entry]) -> Vec<io::Result<Settlement>> {
    let again = detached_again(entries);
    let judge = |entry: &Entry| {
        if again.contains(&entry.id) {
            Ok(Settlement::Drop { changed: false })
        } else {
            settling.judge(entry)
        }
    };
    let mut settlements = parallel::map(parallel::processors(), entries, judge);
    settling.keep_together(entries, &mut settlements);
    settlements
}

/// What carrying the settlements out came to: for the ledger, for the host and for the report.
#[derive(Default)]
struct Ended {
    /// Entries that nothing is owed to any more.
    over: Vec<i64>,
    /// Entries that are detached as before.
    back: Vec<(i64, Option<PrivateCopy>)>,
    /// Names with new content.
    changed: BTreeSet<PathBuf>,
    /// Names that a later run settles.
    later: BTreeSet<PathBuf>,
    settled: Settled,
}

impl Ended {
    /// Notes what waits and what could not be judged, and returns the rest.
    fn postpone<'e>(
        &mut self,
        entries: &'e [Entry],
        settlements: Vec<io::Result<Settlement>>,
    ) -> Vec<(&'e Entry, Settlement)> {
        let mut work = Vec::new();
        for (entry, settlement) in entries.iter().zip(settlements) {
            let path = || entry.intent.place.path();
            match settlement {
                Ok(Settlement::Postpone) => drop(self.later.insert(path())),
                Ok(settlement) => work.push((entry, settlement)),
                Err(e) => self.settled.failed.push(format!("{}: {}", Shown(&path()), Reason(e))),
            }
        }
        work
    }

    /// Notes how a unit ended; `false` if it has to wait.
    fn note(&mut self, settling: &Settling<'_>, unit: &Unit<'_>, result: Result<bool, swap::Error>) {
        let paths = unit.entries.iter().map(|entry| entry.intent.place.path());
        let back = unit.entries.iter().map(|entry| (entry.id, entry.copy));
        let is_restored = matches!(unit.settlement, Settlement::Restore { .. });
        match result {
            Ok(true) => {
                self.over.extend(unit.entries.iter().map(|entry| entry.id));
                match unit.settlement {
                    Settlement::LetGo { why } => {
                        self.settled.let_go.extend(paths.map(|path| let_go(&path, why)));
                    }
                    Settlement::Restore { .. } => self.settled.restored += unit.entries.len() as u64,
                    Settlement::Drop { changed: true } => self.changed.extend(paths),
                    _ => {}
                }
            }
            Ok(false) => {
                self.back.extend(back);
                self.later.extend(paths);
            }
            Err(swap::Error::Unchanged(e)) if will_not_change(&e) && settling.forget(unit) => {
                let why = Reason(e).to_string();
                self.over.extend(unit.entries.iter().map(|entry| entry.id));
                self.settled.let_go.extend(paths.map(|path| let_go(&path, &why)));
            }
            Err(e) => {
                let reason = Reason(&e).to_string();
                self.settled.failed.extend(paths.map(|path| format!("{}: {reason}", Shown(&path))));
                // Recovery takes care of the others.
                if matches!(e, swap::Error::Unchanged(_)) && is_restored {
                    self.back.extend(back);
                }
            }
        }
    }
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

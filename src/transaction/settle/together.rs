//! Names of one file stay so: all of them go back to one original, or none, and it is written down which these are.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;

use super::judge::{Settlement, Settling, Unit};
use crate::ledger::Entry;
use crate::report::Reason;
use crate::state::hard_links::HardLinks;
use crate::sys::file::inode::{Inode, InodeId};
use crate::sys::share::swap::Name;

/// What is to be carried out in one step: names of one private file go back together.
pub(super) fn units<'e>(work: &[(&'e Entry, Settlement)]) -> Vec<Unit<'e>> {
    let mut units: Vec<Unit<'e>> = Vec::with_capacity(work.len());
    let mut known: HashMap<InodeId, usize> = HashMap::new();
    for &(entry, settlement) in work {
        let file = if let Settlement::Restore { now, .. } = settlement { Some(now.id) } else { None };
        if let Some(&at) = file.and_then(|file| known.get(&file)) {
            units[at].entries.push(entry);
            continue;
        }
        known.extend(file.map(|file| (file, units.len())));
        units.push(Unit { entries: vec![entry], settlement });
    }
    units
}

impl Settling<'_> {
    /// What the package manager made hard links stays so: all names of a private file go back to one original, or none.
    pub(super) fn keep_together(&self, entries: &[Entry], settlements: &mut [io::Result<Settlement>]) {
        let mut files: BTreeMap<InodeId, Vec<usize>> = BTreeMap::new();
        for (at, settlement) in settlements.iter().enumerate() {
            if let Ok(Settlement::Restore { now, .. }) = settlement {
                files.entry(now.id).or_default().push(at);
            }
        }
        for (file, names) in files {
            let original = entries[names[0]].intent.original.ino;
            let goes_back = |&at: &usize| {
                let all = |now: Inode| now.nlink as usize == names.len();
                matches!(settlements[at], Ok(Settlement::Restore { now, .. }) if all(now))
                    && entries[at].intent.original.ino == original
            };
            if names.iter().all(goes_back) {
                continue;
            }
            let waits = |(entry, settlement): (&Entry, &io::Result<Settlement>)| {
                matches!(settlement, Ok(Settlement::Postpone))
                    && self.inode(entry).is_ok_and(|now| now == Some(file))
            };
            let some_wait = entries.iter().zip(&*settlements).any(waits);
            for at in names {
                settlements[at] =
                    Ok(if some_wait { Settlement::Postpone } else { Settlement::Drop { changed: true } });
            }
        }
    }

    /// Which file the entry's name has now.
    fn inode(&self, entry: &Entry) -> io::Result<Option<InodeId>> {
        let dir = self.guest.root.open_dir(&entry.intent.place.dir)?;
        let inode = Name { dir: dir.as_fd(), name: &entry.intent.place.name }.inode()?;
        Ok(inode.map(|inode| inode.id))
    }

    /// Writes down which names are one file before their inode is shared: those that the package manager made so. Of the
    /// copies that we made it is known.
    pub(super) fn note_links(&self, entries: &[Entry], units: &[Unit<'_>]) {
        let mut copies: HashMap<u64, usize> = HashMap::new();
        entries
            .iter()
            .filter_map(|entry| entry.copy)
            .for_each(|copy| *copies.entry(copy.ino).or_default() += 1);
        let (mut several, mut single) = (Vec::new(), Vec::new());
        for Unit { entries, settlement } in units {
            let Settlement::Restore { now, ours } = settlement else { continue };
            if *ours && copies.get(&now.id.ino) == Some(&entries.len()) {
                continue;
            }
            let names: BTreeSet<PathBuf> = entries.iter().map(|entry| entry.intent.place.path()).collect();
            if names.len() > 1 { several.push(names) } else { single.extend(names) }
        }
        let noted = HardLinks::follow(self.guest.root, &several, &single);
        noted.unwrap_or_else(|e| log::warn!("the list of hard links cannot be updated: {}", Reason(e)));
    }
}

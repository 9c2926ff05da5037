//! Finds the names of damaged inodes in guests.

use std::collections::{BTreeMap, HashMap};

use crate::parallel;
use crate::report::Watch;
use crate::sys::path::resolve::Place;
use crate::sys::process::mounts::MountPoints;
use crate::unify::FailedPath;
use crate::unify::pool::directory::Pool;
use crate::unify::pool::object::PoolFile;
use crate::unify::scan::catalog::GuestIndex;
use crate::unify::scan::guest::GuestTree;
use crate::unify::scan::names;

/// The damaged files of a pool that guests have names of, by inode number.
pub(super) type Damaged = HashMap<u64, PoolFile>;

/// All names that one guest has of one damaged inode.
pub(super) struct DamagedNames<'d> {
    pub damaged: &'d PoolFile,
    pub guest: GuestIndex,
    pub names: Vec<Place>,
}

/// What was found in guests.
#[derive(Default)]
pub(super) struct Found<'d> {
    pub names: Vec<DamagedNames<'d>>,
    /// Names that processes have something mounted on: a replaced name would take the mount away.
    pub mount_points: Vec<DamagedNames<'d>>,
    /// Directories that could not be looked through, with the reason.
    pub failed: Vec<FailedPath>,
}

/// Looks for names of damaged inodes in all guests, on so many threads.
pub(super) fn find<'d>(
    pool: &Pool,
    guests: &[GuestTree],
    damaged: &'d Damaged,
    threads: usize,
    watch: &dyn Watch,
) -> Found<'d> {
    let borders = names::borders(pool, guests);
    watch.begin("searching", 0);
    let searched = parallel::map(threads, guests, |guest| {
        let mut found: BTreeMap<u64, Vec<Place>> = BTreeMap::new();
        let problems = names::walk(guest, &borders, &mut |entry| {
            watch.add(1, 0);
            let is_damaged = |stored: &PoolFile| entry.inode().is_ok_and(|inode| inode.id == stored.inode.id);
            if damaged.get(&entry.ino).is_some_and(is_damaged) {
                let place = Place { dir: entry.dir_path.to_path_buf(), name: entry.name.to_os_string() };
                found.entry(entry.ino).or_default().push(place);
            }
        });
        (found, problems)
    });
    watch.end();
    let mut all = Found::default();
    for (at, (found, problems)) in searched.into_iter().enumerate() {
        let guest = GuestIndex::new(at);
        all.failed.extend(problems);
        let names = |(ino, names)| Some(DamagedNames { damaged: damaged.get(&ino)?, guest, names });
        all.names.extend(found.into_iter().filter_map(names));
    }
    all.leave_mount_points(guests);
    all
}

impl Found<'_> {
    fn leave_mount_points(&mut self, guests: &[GuestTree]) {
        if self.names.is_empty() {
            return;
        }
        let mounted = MountPoints::look().unwrap_or_default();
        for DamagedNames { damaged, guest, names } in &mut self.names {
            let root = &guests[guest.position()].root;
            let (left, free): (Vec<Place>, _) =
                std::mem::take(names).into_iter().partition(|name| mounted.are_at(root, name));
            *names = free;
            if !left.is_empty() {
                self.mount_points.push(DamagedNames { damaged, guest: *guest, names: left });
            }
        }
        self.names.retain(|found| !found.names.is_empty());
    }
}

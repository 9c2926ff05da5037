//! What guests share, and what that saves. Changes nothing.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;

use crate::detach::survey::Tally;
use crate::parallel;
use crate::policy::PatternSet;
use crate::report::Watch;
use crate::state::spool::read_spool;
use crate::state::unable::is_unable;
use crate::sys::path::resolve::is_absent;
use crate::sys::path::tree::TreeEntry;
use crate::unify::eligible::rules::Rules;
use crate::unify::eligible::scope::{self, Eligible, EligibleNames, Scope};
use crate::unify::pool::directory::Pool;
use crate::unify::pool::guard;
use crate::unify::pool::no_guard::NoGuard;
use crate::unify::pool::object::ObjectIndex;
use crate::unify::pool::object::PoolFile;
use crate::unify::pool::protection::PoolProtection;
use crate::unify::pool::settings::Sharing;
use crate::unify::pool::unprotected;
use crate::unify::scan::guest::GuestTree;
use crate::unify::scan::names;
use crate::unify::{At, Error, FailedPath};

/// Looks at guests and their pool.
pub struct StatusReader<'a> {
    pub pool: &'a Pool,
    pub scope: Scope,
    /// What is never unified.
    pub never: &'a PatternSet,
    /// How many threads look.
    pub threads: usize,
    pub watch: &'a dyn Watch,
}

/// What there is.
#[derive(Debug, Default)]
pub struct SharingStatus {
    /// Each guest, in the order they were given.
    pub guests: Vec<GuestStatus>,
    /// Bytes of disk that would be needed more if every one of these guests had copies of its own; none if guests
    /// share blocks, which no inode tells of.
    pub disk_saved: Option<u64>,
    /// Bytes of memory that would be needed more then, were all these files in use: what their pages take.
    pub cache_saved: Option<u64>,
    /// Objects in the pool; bytes of disk they take.
    pub objects: Tally,
    /// Those of them that no guest at all has a link to, or shares blocks with.
    pub unused: Tally,
    /// Files in quarantine.
    pub quarantined: u64,
    /// How objects should be protected.
    pub protection: PoolProtection,
    /// Why the guard that should protect them does not: they should be immutable then.
    pub no_guard: Option<NoGuard>,
    /// Files of the pool that should be protected, and are not.
    pub unprotected: Vec<PathBuf>,
}

/// What one guest has.
#[derive(Debug, Default)]
pub struct GuestStatus {
    pub path: PathBuf,
    /// Names of objects, and the bytes they hold; none if guests share blocks.
    pub shared: Option<Tally>,
    /// The objects these are names of.
    pub shared_inodes: Option<u64>,
    /// Private files that may be unified.
    pub eligible: Tally,
    /// Other private files.
    pub other: Tally,
    /// Names of files that are in quarantine.
    pub damaged: u64,
    /// Paths that its hooks say have changed.
    pub waiting: u64,
    /// It could not make shared files private by itself: nothing of it is unified.
    pub unable: bool,
    /// What could not be looked at, with the reason.
    pub problems: Vec<FailedPath>,
}

impl StatusReader<'_> {
    /// Looks at everything.
    ///
    /// # Errors
    /// If the pool cannot be read. What cannot be read in a guest is in the result.
    pub fn look(&self, guests: &[GuestTree]) -> Result<SharingStatus, Error> {
        let files = self.pool.look_at_all(self.threads)?;
        // If blocks are shared no name is an object's, and another subvolume may have inodes of the same numbers.
        let index = if self.joins_inodes() { ObjectIndex::of(&files) } else { ObjectIndex::default() };
        self.watch.begin("looking", 0);
        let looked = parallel::map(self.threads, guests, |guest| self.look_at(guest, guests, &index));
        self.watch.end();
        let wanted = unprotected::protection(self.pool, &files);
        let (protection, no_guard) = guard::in_effect(self.pool, wanted);
        let mut status = SharingStatus { protection: wanted, no_guard, ..SharingStatus::default() };
        let unprotected = self.pool.unprotected(&files, protection);
        status.unprotected = unprotected.into_iter().map(|file| self.pool.path_of(file)).collect();
        let (quarantined, stored): (Vec<PoolFile>, Vec<PoolFile>) =
            files.into_iter().partition(|file| file.quarantined);
        status.quarantined = quarantined.len() as u64;
        let mut having: HashMap<u64, u64> = HashMap::new();
        for (guest, inodes) in looked {
            for ino in inodes {
                *having.entry(ino).or_default() += 1;
            }
            status.guests.push(guest);
        }
        for object in &stored {
            add(&mut status.objects, object.inode.allocated);
            if self.pool.is_unused(object).at(&self.pool.path_of(object))? {
                add(&mut status.unused, object.inode.allocated);
            }
        }
        if self.joins_inodes() {
            let (disk, cache) = saved(&stored, &having, rustix::param::page_size() as u64);
            (status.disk_saved, status.cache_saved) = (Some(disk), Some(cache));
        }
        Ok(status)
    }

    /// Whether the pool's objects are the guests' own inodes.
    fn joins_inodes(&self) -> bool {
        self.pool.settings.share == Sharing::Hardlink
    }

    /// What a guest has, and the inode numbers of the objects in it.
    fn look_at(
        &self,
        guest: &GuestTree,
        guests: &[GuestTree],
        index: &ObjectIndex,
    ) -> (GuestStatus, HashSet<u64>) {
        let mut status = GuestStatus {
            path: guest.root.path().to_path_buf(),
            unable: is_unable(&guest.root),
            ..GuestStatus::default()
        };
        let load = |scope| Eligible::load(&guest.root, scope, &Rules::default(), self.never);
        let eligible = match load(self.scope) {
            Err(scope::Error::NoDatabase { .. }) => load(Scope::All),
            Err(scope::Error::Database { error, .. }) if error.is_unsupported() => load(Scope::All),
            loaded => loaded,
        };
        let eligible = match eligible {
            Ok(eligible) => Some(eligible),
            Err(e) => {
                status.problems.push(FailedPath::new(status.path.clone(), e));
                None
            }
        };
        match read_spool(&guest.root) {
            Ok(waiting) => status.waiting = waiting.len() as u64,
            Err(e) => status.problems.push(FailedPath::new(status.path.clone(), e)),
        }
        let mut look = GuestReader {
            guest,
            index,
            eligible: eligible.as_ref(),
            here: None,
            names: Tally::default(),
            objects: HashSet::new(),
            linked: HashSet::new(),
            status: &mut status,
        };
        let unread = names::walk(guest, &names::borders(self.pool, guests), &mut |entry| {
            self.watch.add(1, 0);
            look.at(entry);
        });
        let (names, objects) = (look.names, look.objects);
        if self.joins_inodes() {
            status.shared = Some(names);
            status.shared_inodes = Some(objects.len() as u64);
        }
        status.problems.extend(unread);
        (status, objects)
    }
}

/// A look at all names of one guest.
struct GuestReader<'a> {
    guest: &'a GuestTree,
    index: &'a ObjectIndex,
    eligible: Option<&'a Eligible>,
    /// The directory the last name was in, and which of its names are eligible.
    here: Option<(PathBuf, Option<EligibleNames<'a>>)>,
    names: Tally,
    /// The objects seen, by inode number.
    objects: HashSet<u64>,
    /// Private inodes with several names that were counted.
    linked: HashSet<u64>,
    status: &'a mut GuestStatus,
}

impl GuestReader<'_> {
    fn at(&mut self, entry: &TreeEntry<'_>) {
        if self.index.is_quarantined(entry.ino) {
            self.status.damaged += 1;
            return;
        }
        let shared = self.index.holds(entry.ino);
        self.names.files += u64::from(shared);
        if shared && !self.objects.insert(entry.ino) {
            return;
        }
        match entry.inode() {
            Ok(inode) if shared => self.names.bytes += inode.size,
            Ok(inode) => {
                let again = inode.nlink > 1 && !self.linked.insert(inode.id.ino);
                let bytes = if again { 0 } else { inode.size };
                add(
                    if self.is_eligible(entry) { &mut self.status.eligible } else { &mut self.status.other },
                    bytes,
                );
            }
            Err(e) if is_absent(&e) => {}
            Err(e) => {
                let path = names::outer_path(self.guest, &entry.path());
                self.status.problems.push(FailedPath::new(path, e));
            }
        }
    }

    fn is_eligible(&mut self, entry: &TreeEntry<'_>) -> bool {
        if self.here.as_ref().is_none_or(|(dir, _)| dir != entry.dir_path) {
            let names = self.eligible.and_then(|eligible| eligible.directory(entry.dir_path));
            self.here = Some((entry.dir_path.to_path_buf(), names));
        }
        self.here
            .as_ref()
            .is_some_and(|(_, names)| names.as_ref().is_some_and(|names| names.file(entry.name)))
    }
}

fn add(tally: &mut Tally, bytes: u64) {
    tally.files += 1;
    tally.bytes += bytes;
}

/// Bytes of disk and of page cache that guests save: `having` says how many have the inode of each number.
fn saved(objects: &[PoolFile], having: &HashMap<u64, u64>, page: u64) -> (u64, u64) {
    let (mut disk, mut cache) = (0, 0);
    for PoolFile { inode, .. } in objects {
        let copies = having.get(&inode.id.ino).map_or(0, |&guests| guests.saturating_sub(1));
        disk += inode.allocated * copies;
        cache += inode.size.next_multiple_of(page) * copies;
    }
    (disk, cache)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::file::inode::{Inode, InodeId, Kind, Time};
    use crate::unify::pool::identity::Digest;
    use crate::unify::pool::object::ObjectName;

    fn object(ino: u64, size: u64, allocated: u64) -> PoolFile {
        let zero = Time { secs: 0, nanos: 0 };
        let inode = Inode {
            id: InodeId { dev: 1, ino },
            mount: 1,
            kind: Kind::Regular,
            mode: 0o644,
            uid: 0,
            gid: 0,
            nlink: 1,
            size,
            allocated,
            atime: zero,
            mtime: zero,
            ctime: zero,
            immutable: true,
            append_only: false,
            mount_root: false,
        };
        let name = ObjectName { tag: 1, digest: Digest { content: [0; 32], xattrs: 0 }, salt: 0, index: 0 };
        PoolFile { name, file: name.file(), quarantined: false, inode, marked: false, second: false }
    }

    #[test]
    fn what_only_one_guest_has_saves_nothing() {
        let objects = [object(1, 100, 4096), object(2, 5000, 8192), object(3, 4096, 0), object(4, 1, 4096)];
        let having = HashMap::from([(1, 1), (2, 3), (3, 2)]);
        assert_eq!(saved(&objects, &having, 4096), (2 * 8192, 2 * 8192 + 4096));
        assert_eq!(saved(&objects, &HashMap::new(), 4096), (0, 0));
    }
}

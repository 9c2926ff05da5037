//! Finds an intact inode for each damaged object: another inode of the same object, or else a fresh copy of a private file
//! that is what the object must be.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use super::damaged::Damaged;
use crate::report::{Reason, Watch};
use crate::sys::file::filesystem;
use crate::sys::file::inode::Inode;
use crate::sys::path::tree::TreeEntry;
use crate::sys::share::swap::Name;
use crate::unify::pool::identity::{self, Digest};
use crate::unify::pool::object::ObjectName;
use crate::unify::pool::publish::{Copied, Publisher};
use crate::unify::scan::digest::take_lease;
use crate::unify::scan::guest::GuestTree;
use crate::unify::scan::names;
use crate::unify::{Error, FailedPath};

/// What takes the place of a damaged inode.
pub(super) struct Intact {
    pub object: ObjectName,
    /// What is to be the object, as long as it has no name among the objects.
    pub copy: Option<Copied>,
}

/// What was found for damaged objects.
#[derive(Default)]
pub(super) struct Found {
    /// By the objects' names with the index 0.
    pub intact: HashMap<ObjectName, Intact>,
    /// Why the search ended before its time.
    pub failed: Option<FailedPath>,
}

/// Objects that a copy is wanted of, by their tags.
type Wanted = HashMap<u64, Vec<ObjectName>>;

/// Looks for intact inodes.
pub(super) struct Finder<'a> {
    pub(crate) publisher: Publisher<'a>,
    /// The guests whose private files may be copied.
    pub guests: &'a [GuestTree],
    /// Bytes to be left free on the filesystem.
    pub reserve: u64,
    pub threads: usize,
    pub watch: &'a dyn Watch,
}

impl Finder<'_> {
    /// Finds what is intact for each of these objects.
    pub fn find(&self, objects: impl Iterator<Item = ObjectName>, damaged: &Damaged) -> Result<Found, Error> {
        let index = self.publisher.pool.index(self.threads)?;
        let mut found = Found::default();
        let mut wanted = Wanted::new();
        for object in objects {
            match index.newest(&object) {
                Some(intact) => {
                    found.intact.insert(object, Intact { object: intact.name, copy: None });
                }
                None if wanted.get(&object.tag).is_some_and(|objects| objects.contains(&object)) => {}
                None => wanted.entry(object.tag).or_default().push(object),
            }
        }
        let borders = names::borders(self.publisher.pool, self.guests);
        self.watch.begin("searching for copies", 0);
        for guest in self.guests {
            if wanted.values().all(Vec::is_empty) {
                break;
            }
            let mut exhausted = None;
            names::walk(guest, &borders, &mut |entry| {
                self.watch.add(1, 0);
                if exhausted.is_some() || damaged.contains_key(&entry.ino) {
                    return;
                }
                match self.copy_of(entry, &wanted) {
                    Ok(None) => {}
                    Ok(Some((object, copy))) => {
                        wanted.entry(object.tag).or_default().retain(|other| *other != object);
                        found.intact.insert(object, Intact { object, copy: Some(copy) });
                    }
                    Err(e) if is_full(&e) => exhausted = Some(e),
                    Err(e) => log::debug!("{}", Reason(e)),
                }
            });
            if let Some(e) = exhausted {
                found.failed = Some(FailedPath::new(self.publisher.pool.path().to_path_buf(), e));
                break;
            }
        }
        self.watch.end();
        Ok(found)
    }

    /// Copies a guest's file into the run's directory, if it is what one of the objects must be.
    fn copy_of(&self, entry: &TreeEntry<'_>, wanted: &Wanted) -> io::Result<Option<(ObjectName, Copied)>> {
        let tag = identity::tag(&entry.inode()?, self.publisher.pool.settings.mtime);
        let Some(objects) = wanted.get(&tag) else { return Ok(None) };
        let source = Name { dir: entry.dir, name: entry.name }.open()?;
        if take_lease(&source)?.is_none() {
            return Ok(None);
        }
        let (inode, digest) = Digest::of_quiet(&source)?;
        let Some(object) = objects.iter().find(|object| object.digest == digest) else { return Ok(None) };
        self.check_room(&source, &inode)?;
        let copied = self.publisher.copy(&source, &inode, object)?;
        Ok(copied.ok().map(|copy| (*object, copy)))
    }

    /// A further inode of an object that can have no more links, and the bytes written for it.
    pub(crate) fn successor(&self, full: &ObjectName) -> io::Result<(ObjectName, u64)> {
        let shelf = self.publisher.open_shelf(full)?;
        let source = Name { dir: shelf.as_fd(), name: &full.file() }.open()?;
        self.check_room(&source, &Inode::of(&source)?)?;
        self.publisher.successor(full, &source)
    }

    /// Whether there is room for a copy of a file.
    fn check_room(&self, source: &OwnedFd, inode: &Inode) -> io::Result<()> {
        let runs = self.publisher.pool.runs();
        let free = || Ok::<_, io::Error>(filesystem::available(runs)?.bytes.saturating_sub(self.reserve));
        if !filesystem::shares_blocks(source, runs) && free()? < inode.allocated {
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        Ok(())
    }
}

/// Whether there is no use in looking for another copy.
fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

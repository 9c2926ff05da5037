//! A run's place in the pool: its temporary names, and the journal of what it is about to change.
//!
//! A run holds a lock on its directory. A directory that nobody holds is a killed run's: whoever comes next ends what
//! the journal speaks of. Names in guests are told by file handles, which do not depend on who looks from where.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::directory::{Pool, Stored};
use super::object::ObjectName;
use crate::report::{Reason, Shown};
use crate::sys::file::filesystem;
use crate::sys::file::handle::Handle;
use crate::sys::file::inode::Inode;
use crate::sys::path::dirfd;
use crate::sys::path::root::read_at;
use crate::sys::share::lease::Lease;
use crate::sys::share::swap::{self, Name, Shared};
use crate::sys::share::{gate, lock};
use crate::unify::link::batch::Fence;
use crate::unify::scan::catalog::nanoseconds;
use crate::unify::{At, Error};

const JOURNAL: &str = "journal";
const KEPT: &str = ".kept";
/// The first bytes of a journal, and its version.
const MAGIC: &[u8] = b"cow-hooks journal 1\n";

/// A run's own directory. It goes with the value, unless something is left in it for the next run to end.
#[derive(Debug)]
pub struct Run<'p> {
    pool: &'p Pool,
    name: OsString,
    dir: OwnedFd,
    next: AtomicU64,
}

/// A name that is to become a name of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Intent {
    /// Number of the names in the run's directory: of the link that takes its place, and of the inode that loses it.
    pub temporary: u64,
    /// The object, whatever its index.
    pub object: ObjectName,
    /// The directory of the name.
    pub dir: Handle,
    /// The name.
    pub name: OsString,
    /// Number of the inode it had.
    pub ino: u64,
    /// Its length in bytes.
    pub size: u64,
    /// Its time of modification, in nanoseconds.
    pub mtime: i64,
}

impl<'p> Run<'p> {
    /// Begins a run.
    pub fn begin(pool: &'p Pool) -> Result<Run<'p>, Error> {
        let at = pool.path();
        for number in 0.. {
            let name = OsString::from(format!("{}-{number}", std::process::id()));
            match dirfd::create_dir(pool.runs(), &name) {
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => continue,
                made => made.at(at)?,
            }
            if let Some(dir) = claim(pool, &name).at(at)? {
                return Ok(Run { pool, name, dir, next: AtomicU64::new(0) });
            }
        }
        Err(io::Error::from(io::ErrorKind::AlreadyExists)).at(at)
    }

    /// The run's directory.
    pub fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// The first of `count` numbers that no name in the run's directory has had yet.
    pub fn numbers(&self, count: usize) -> u64 {
        self.next.fetch_add(count as u64, Ordering::Relaxed)
    }

    /// Writes down what is about to be changed. The caller flushes the filesystem before it begins.
    pub fn record(&self, protect: bool, intents: &[Intent]) -> io::Result<()> {
        dirfd::replace_file(&self.dir, OsStr::new(JOURNAL), &encode(protect, intents))
    }

    /// All that was written down has been done, and is on the disk.
    pub fn forget(&self) -> io::Result<()> {
        dirfd::remove_file(&self.dir, OsStr::new(JOURNAL))
    }
}

impl Drop for Run<'_> {
    fn drop(&mut self) {
        // Where something is left in it, the next run sees to that.
        let _ = dirfd::remove_dir(self.pool.runs(), &self.name);
    }
}

/// The name of something new in a run's directory.
pub fn temporary(number: u64) -> OsString {
    number.to_string().into()
}

/// The name in a run's directory of an inode that has lost its name in a guest.
pub fn kept(number: u64) -> OsString {
    format!("{number}{KEPT}").into()
}

fn is_kept(name: &OsStr) -> bool {
    name.as_bytes().ends_with(KEPT.as_bytes())
}

/// Opens and locks a run's directory; `None` where somebody holds it, or it is gone.
fn claim(pool: &Pool, name: &OsStr) -> io::Result<Option<OwnedFd>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let dir = match rustix::fs::openat(pool.runs(), name, flags, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(None),
        opened => opened?,
    };
    match lock::exclusive(&dir, Duration::ZERO) {
        Ok(()) => {}
        Err(e) if e.kind() == io::ErrorKind::TimedOut => return Ok(None),
        Err(e) => return Err(e),
    }
    // Whoever held it may have removed it meanwhile.
    let there = Name { dir: pool.runs().as_fd(), name }.inode()?;
    Ok(if there.is_some_and(|inode| inode.id == Inode::of(&dir).map_or(inode.id, |own| own.id)) {
        Some(dir)
    } else {
        None
    })
}

/// What ending killed runs came to.
#[derive(Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Recovered {
    /// Names that became names of their object.
    pub done: u64,
    /// Names that have their own inode again.
    pub undone: u64,
    /// Shared inodes that were protected again.
    pub protected: u64,
    /// Temporary names removed.
    pub removed: u64,
    /// What could not be ended, with the reason; the next run tries again.
    #[serde(skip)]
    pub failed: Vec<(PathBuf, String)>,
}

impl Recovered {
    /// How much there was to do.
    pub fn total(&self) -> u64 {
        self.done + self.undone + self.protected + self.removed
    }
}

/// Ends what killed runs began: every name has its own inode or the object's, every object is protected, nothing is left.
pub fn recover(pool: &Pool, patience: Duration) -> Result<Recovered, Error> {
    let mut recovered = Recovered::default();
    for name in dirfd::names(pool.runs()).at(pool.path())? {
        let Some(dir) = claim(pool, &name).at(pool.path())? else { continue };
        if let Err(e) = (Ending { pool, dir: &dir, patience }).end(&mut recovered) {
            let path = pool.path().join("runs").join(&name);
            recovered.failed.push((path, Reason(e).to_string()));
            continue;
        }
        let path = || pool.path().join("runs").join(&name);
        match dirfd::remove_dir(pool.runs(), &name) {
            Ok(true) => {}
            Ok(false) => log::warn!("{}: it cannot be removed: it is not empty", Shown(&path())),
            Err(e) => log::warn!("{}: {}", Shown(&path()), Reason(e)),
        }
    }
    Ok(recovered)
}

struct Ending<'a> {
    pool: &'a Pool,
    dir: &'a OwnedFd,
    patience: Duration,
}

impl Ending<'_> {
    fn end(&self, recovered: &mut Recovered) -> io::Result<()> {
        let journal = match read_at(self.dir, OsStr::new(JOURNAL)) {
            Ok(journal) => decode(&journal),
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            Err(e) => return Err(e),
        };
        // One name's trouble is that name's: all others are ended, and then the journal stays.
        let mut trouble = None;
        // A journal that was never whole speaks of nothing that was begun.
        if let Some((protect, intents)) = journal {
            let set_aside = self.pool.look_at_quarantine().map_err(io::Error::other)?;
            for family in intents.chunk_by(|a, b| a.object.same_object(&b.object)) {
                let objects = self.pool.inodes_of(&family[0].object).map_err(io::Error::other)?;
                if protect {
                    let damaged =
                        set_aside.iter().filter(|stored| stored.name.same_object(&family[0].object));
                    let files: Vec<Stored> = objects.iter().chain(damaged).cloned().collect();
                    let protected = self.pool.protect(&files, Fence::Immutable, self.patience, 1);
                    let protected = protected.map_err(io::Error::other)?;
                    recovered.protected += protected.files.len() as u64;
                    if let Some((path, reason)) = protected.failed.first() {
                        trouble = Some(io::Error::other(format!("{}: {reason}", Shown(path))));
                    }
                }
                for intent in family {
                    if let Err(e) = self.end_one(intent, &objects, recovered) {
                        trouble = Some(io::Error::other(e));
                    }
                }
            }
        }
        if let Some(trouble) = trouble {
            return Err(trouble);
        }
        for name in dirfd::names(self.dir)? {
            let left = Name { dir: self.dir.as_fd(), name: &name };
            // Only a fault of ours could leave a guest's file here without a journal: its last name is not removed.
            if is_kept(&name) && left.inode()?.is_some_and(|inode| inode.nlink == 1) {
                return Err(io::Error::other("a guest's file has its last name here"));
            }
            if name != JOURNAL {
                swap::unlink_shared(left, self.patience).map_err(io::Error::other)?;
                recovered.removed += 1;
            }
        }
        filesystem::sync(self.dir)?;
        gate::wait_for_late_openers();
        dirfd::remove_file(self.dir, OsStr::new(JOURNAL))
    }

    fn end_one(
        &self,
        intent: &Intent,
        objects: &[Stored],
        recovered: &mut Recovered,
    ) -> Result<(), swap::Error> {
        let (temporary, kept) = (temporary(intent.temporary), kept(intent.temporary));
        let temporary = Name { dir: self.dir.as_fd(), name: &temporary };
        let kept = Name { dir: self.dir.as_fd(), name: &kept };
        // A link of an object that has not come to its place.
        let is_waiting = temporary.inode()?.is_some();
        if is_waiting {
            swap::unlink_shared(temporary, self.patience)?;
        }
        let Some(own) = kept.inode()? else {
            recovered.undone += u64::from(is_waiting);
            return Ok(());
        };
        let is_done = !is_waiting
            && (self.was_left_alone(intent, kept, &own)? || !self.give_back(intent, kept, objects)?);
        if is_done {
            recovered.done += 1;
        } else {
            recovered.undone += 1;
        }
        // In a window if need be: its guest may have protected it meanwhile.
        swap::unlink_shared(kept, self.patience).map(drop)
    }

    /// Whether nobody has changed a guest's own inode since its name was taken.
    fn was_left_alone(&self, intent: &Intent, kept: Name<'_>, own: &Inode) -> io::Result<bool> {
        let file = match kept.open() {
            // Another process has a lease on it: it may write at any time.
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            opened => opened?,
        };
        let quiet = Lease::take(file.as_fd()).map_or(true, |lease| lease.is_some());
        Ok(quiet && (own.size, nanoseconds(own.mtime)) == (intent.size, intent.mtime))
    }

    /// Gives a guest's own inode its name back, if that is the object's still. Tells whether it is.
    fn give_back(&self, intent: &Intent, kept: Name<'_>, objects: &[Stored]) -> Result<bool, swap::Error> {
        let Ok(dir) = intent.dir.open(self.dir) else { return Ok(false) };
        let name = Name { dir: dir.as_fd(), name: &intent.name };
        let is_object = |inode: &Inode| objects.iter().any(|object| object.inode.id == inode.id);
        let Some(now) = name.inode()?.filter(is_object) else { return Ok(false) };
        let shared = Shared::try_lock_at(name.dir, name.name, self.patience)?;
        shared.persist(|| kept.displace(name, now.id, None))?;
        Ok(true)
    }
}

fn encode(protect: bool, intents: &[Intent]) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    out.push(u8::from(protect));
    for intent in intents {
        for number in [intent.temporary, intent.ino, intent.size, intent.mtime as u64] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        let object = intent.object.whole();
        for field in [object.as_bytes(), intent.dir.as_bytes(), intent.name.as_bytes()] {
            out.extend_from_slice(&(field.len() as u32).to_le_bytes());
            out.extend_from_slice(field);
        }
    }
    out.extend_from_slice(MAGIC);
    out
}

/// Reads a journal; `None` where it is not whole.
fn decode(data: &[u8]) -> Option<(bool, Vec<Intent>)> {
    let body = data.strip_prefix(MAGIC)?.strip_suffix(MAGIC)?;
    let (&protect, mut rest) = body.split_first()?;
    let mut intents = Vec::new();
    while !rest.is_empty() {
        let mut numbers = [0; 4];
        for number in &mut numbers {
            let (bytes, tail) = rest.split_first_chunk()?;
            (*number, rest) = (u64::from_le_bytes(*bytes), tail);
        }
        let mut fields = [&[][..]; 3];
        for field in &mut fields {
            let (length, tail) = rest.split_first_chunk()?;
            (*field, rest) = tail.split_at_checked(u32::from_le_bytes(*length) as usize)?;
        }
        intents.push(Intent {
            temporary: numbers[0],
            ino: numbers[1],
            size: numbers[2],
            mtime: numbers[3] as i64,
            object: ObjectName::parse_whole(OsStr::from_bytes(fields[0]))?,
            dir: Handle::from_bytes(fields[1]),
            name: OsString::from_vec(fields[2].to_vec()),
        });
    }
    Some((protect != 0, intents))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::unify::pool::identity::Digest;

    proptest! {
        #[test]
        fn a_journal_is_read_as_it_was_written_or_not_at_all(
            rows in prop::collection::vec((any::<u64>(), any::<[u8; 32]>(), prop::collection::vec(any::<u8>(), 0..40)), 0..5),
            protect: bool,
            cut in 1usize..60,
        ) {
            let intents: Vec<Intent> = rows.into_iter().map(|(number, content, bytes)| Intent {
                temporary: number,
                object: ObjectName { tag: number, digest: Digest { content, xattrs: 3 }, salt: number / 2, index: 9 },
                dir: Handle::from_bytes(&bytes),
                name: OsString::from_vec(bytes),
                ino: !number,
                size: number ^ 5,
                mtime: number as i64,
            }).collect();
            let data = encode(protect, &intents);
            prop_assert_eq!(decode(&data), Some((protect, intents)));
            prop_assert_eq!(decode(&data[..data.len() - cut.min(data.len())]), None);
        }

        #[test]
        fn any_bytes_are_read_without_panic(data in prop::collection::vec(any::<u8>(), 0..100)) {
            decode(&data);
            decode(&[MAGIC, &data, MAGIC].concat());
        }
    }
}

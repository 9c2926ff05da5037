//! Adoption: a guest's own inode becomes a shared one, without a copy, if nobody can change it any more.
//!
//! The guard refuses every change of an inode that is marked and has more than one name. What remains are changes that it
//! was asked about before the mark, and those that it is not asked about. The argument, by where a change can come from
//! (files of the kernel; 6.1, 6.12 and 6.18 agree but for what is said):
//!
//! 1. **The mark is seen.** The inode gets two names of the host's in a directory that no guest reaches, so that it has more
//!    than one name whatever guests do. `vfs_link` and `vfs_fileattr_set` change the count of names and the flags while
//!    they hold the inode's lock.
//! 2. **Metadata.** `notify_change`, `vfs_setxattr`, `vfs_removexattr` and `vfs_set_acl` ask the guard and do what was asked
//!    under the same lock. So a change is over before the mark is set, or is refused. `truncate(2)` and `O_TRUNC` are
//!    among them (`fs/open.c`, `fs/namei.c`).
//! 3. **Flags, project, layout.** `ioctl(2)` asks before it takes the lock; Linux 6.17 asks again under it, for flags alone.
//!    A caller may be held in between, and may clear the mark later, or set the verity flag. [`FlagChanges`] has every task
//!    that is in such a call. `io_uring` has no such command for these filesystems.
//!    [`Candidate::note`] takes down the time of change when it is so old that each later change of flags gives
//!    another one. Then the list is read. If nobody is in it, and if at the end the mark is there and the time the same,
//!    then the mark was there all the time in between: whoever was asked after the note was refused, and whoever was asked
//!    before it has come to an end. The host's clock is taken for granted: who may set it back could forge the time.
//! 4. **Descriptors for writing.** `do_dentry_open` counts a writer (`i_writecount`) before it asks the guard. Between the
//!    count and the look at the flags, and between the mark and the look at the count, there are full barriers: a writer
//!    who was let pass is seen by the read lease that is taken after the note (`check_conflicting_open` of `fs/locks.c`
//!    looks a second time), and makes it fail. What goes on without a descriptor of a process
//!    holds the open file, and by that the count: writable shared mappings, asynchronous I/O and `io_uring` until they are
//!    complete, registered and passed descriptors, loop devices, swap, accounting, overlays, NFS. `__fput` takes the count
//!    back last. Access mode 3 gives no right to write, only to `ioctl(2)`: see 3.
//!    Running programs hold a negative count, which hinders no lease.
//! 5. **Pinned pages.** A page that was pinned for writing through a shared mapping can be written to after `munmap(2)` and
//!    `close(2)`: the target of a direct read, a buffer of RDMA or of a device, `process_vm_writev(2)`. No count tells of
//!    these. All pages are evicted after the lease: `mapping_evict_folio` (`mm/truncate.c`) leaves every page that is dirty,
//!    under writeback, mapped, or has a reference more than the page cache's own. If no page is in memory, none is pinned
//!    that belongs to the file; one that the kernel took away from it by other means (truncation, a direct write) never
//!    comes back. What is read from then on is what is on the disk, and no new pin can come: that needs a writable mapping.
//!    `FOLL_FORCE` writes to private copies only (`check_vma_flags` of `mm/gup.c`).
//!    `mincore(2)` does not show a page that a failed write to the disk has made not uptodate; `cachestat(2)`, from Linux
//!    6.5, does. Without it a second eviction at the end closes that: reading has made the page uptodate by then.
//! 6. **The content is read last**, from the disk, and compared with what the object is to be.
//!
//! Not changes: delayed allocation, writeback, defragmentation, balancing and deduplication (content stays); times of access
//! (the mark ends them); names. Files with DAX have no pages to look at, and are refused; files with verity, too, because
//! others that are equal do not have it. Encrypted, compressed, inline and reflinked files have pages like all others.
//! A filesystem without leases is refused.
//! Outside of this are who may write to the disk itself, load code into the kernel, or has `CAP_LINUX_IMMUTABLE` in the
//! initial user namespace: the guard lets these change flags at any time.
//!
//! Killed in between: the file keeps the mark, and the names of the host's tell whose it is. With one name left the guard
//! ignores it; with several names in the guest it does not, so recovery takes the mark off what has not become an object.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::fs::{AtFlags, StatxAttributes, StatxFlags};

use super::flag_changes::FlagChanges;
use super::lease::Lease;
use super::mark;
use super::swap::Name;
use crate::sys::file::filesystem;
use crate::sys::file::inode::{Inode, InodeId, Time};
use crate::sys::file::pages::{self, InMemory};
use crate::sys::file::times::{TICK, is_settled};

/// How long to wait for tasks that are in a call which may change flags. Such calls take microseconds.
const PATIENCE: Duration = Duration::from_millis(500);

/// Why a file cannot be adopted. It is as it was, but for its time of change.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// A descriptor or a mapping.
    #[error("another process has it open for writing")]
    Writer,
    /// Mapped, pinned, dirty or in use.
    #[error(
        "some of its pages cannot be evicted from memory: programs run from it, or another process writes to it"
    )]
    PagesStay,
    /// Whoever it is, it may be this file.
    #[error("a process is in an ioctl(2) that may change flags of a file")]
    FlagChange,
    /// It is not what it was.
    #[error("it changed while it was examined")]
    Changed,
    /// DAX or verity.
    #[error("the filesystem does not keep it in the page cache as it keeps other files (DAX or verity)")]
    Unlike,
    /// What the system says.
    #[error(transparent)]
    Failed(#[from] io::Error),
}

impl From<rustix::io::Errno> for Refusal {
    fn from(error: rustix::io::Errno) -> Refusal {
        Refusal::Failed(error.into())
    }
}

/// A file that bears the mark and has two names of the host's, until it is adopted or released.
#[derive(Debug)]
pub struct Candidate {
    file: OwnedFd,
    id: InodeId,
    size: u64,
    /// The mark was not there before.
    is_ours: bool,
    /// Its time of change when every later change of its flags shows.
    since: Option<Time>,
}

/// That nobody can change the content of a candidate which stands.
#[derive(Debug)]
#[must_use]
pub struct Proof {
    in_memory: InMemory,
}

impl Candidate {
    /// Gives an open file, which is called `name` in the guest, the two names of the host's and the mark.
    pub fn hold(file: OwnedFd, name: Name<'_>, names: [Name<'_>; 2]) -> Result<Candidate, Refusal> {
        if is_unlike(&file)? {
            return Err(Refusal::Unlike);
        }
        let inode = Inode::of(&file)?;
        let is_ours = !mark::is_set(&file)?;
        let candidate = Candidate { file, id: inode.id, size: inode.size, is_ours, since: None };
        let held = names.iter().try_for_each(|held| {
            name.link(*held)?;
            // The name may be another file's by now.
            let is_it = held.inode()?.is_some_and(|inode| inode.id == candidate.id);
            if is_it { Ok(()) } else { Err(Refusal::Changed) }
        });
        let marked = held.and_then(|()| Ok(mark::set(&candidate.file)?));
        match marked {
            Ok(()) => Ok(candidate),
            Err(refusal) => {
                // What stays is for recovery.
                let _ = candidate.release(names);
                Err(refusal)
            }
        }
    }

    /// Whether this run has set the mark: the administrator's own stays, whatever becomes of the file.
    pub fn is_ours(&self) -> bool {
        self.is_ours
    }

    /// Notes the time of change, if each later change of flags shows in it.
    fn note(&mut self) -> Result<(), Refusal> {
        let inode = Inode::of(&self.file)?;
        let is_marked = mark::is_set(&self.file)?;
        if !is_marked || !is_settled(inode.ctime.nanoseconds()) || inode.size != self.size {
            return Err(Refusal::Changed);
        }
        self.since = Some(inode.ctime);
        Ok(())
    }

    /// Proves that nobody can change the content any more; the caller reads it then, and asks [`Candidate::stands`].
    pub fn prove(&self) -> Result<Proof, Refusal> {
        // Nobody who writes is left, and nobody can come: the lease itself is not needed any more.
        Lease::take(self.file.as_fd())?.map(drop).ok_or(Refusal::Writer)?;
        self.evict().or_else(|refusal| match refusal {
            // What a writer has left who has gone is dirty: it is written to the disk, and is no reason.
            Refusal::PagesStay => {
                rustix::fs::fdatasync(&self.file)?;
                self.evict()
            }
            refusal => Err(refusal),
        })
    }

    /// Whether nothing has changed since the batch was settled. What was read meanwhile then holds for ever.
    pub fn stands(&self, proof: Proof) -> Result<(), Refusal> {
        if proof.in_memory == InMemory::NoneUptodate {
            let _ = self.evict()?;
        }
        let is_marked = mark::is_set(&self.file)?;
        let is_same = self.since.is_some() && self.since == Some(Inode::of(&self.file)?.ctime);
        if is_marked && is_same { Ok(()) } else { Err(Refusal::Changed) }
    }

    fn evict(&self) -> Result<Proof, Refusal> {
        pages::evict(&self.file)?;
        match pages::in_memory(&self.file, self.size)? {
            InMemory::Some => Err(Refusal::PagesStay),
            in_memory => Ok(Proof { in_memory }),
        }
    }

    /// Gives the file back to its guest: takes off the mark, if it was not there before, and then the two names.
    pub fn release(&self, names: [Name<'_>; 2]) -> io::Result<()> {
        if self.is_ours {
            mark::clear(&self.file)?;
        }
        for name in names {
            if name.inode()?.is_some() {
                name.unlink()?;
            }
        }
        Ok(())
    }
}

impl AsFd for Candidate {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Waits until everybody who was let pass before the marks were set has come to an end, once for a batch, and writes the
/// filesystem of `dir` to the disk: dirty pages cannot be evicted. What each candidate came to.
///
/// No other thread of this process may change flags meanwhile.
pub fn settle<'c>(
    dir: impl AsFd,
    changes: &FlagChanges,
    candidates: impl Iterator<Item = &'c mut Candidate>,
) -> Vec<Result<(), Refusal>> {
    let synced = filesystem::sync(dir);
    std::thread::sleep(TICK + TICK / 4);
    let noted: Vec<_> = candidates.map(Candidate::note).collect();
    let calm = synced.and_then(|()| changes.wait(PATIENCE));
    let each = |noted: Result<(), Refusal>| match &calm {
        Ok(true) => noted,
        Ok(false) => Err(Refusal::FlagChange),
        Err(e) => Err(Refusal::Failed(io::Error::new(e.kind(), e.to_string()))),
    };
    noted.into_iter().map(each).collect()
}

fn is_unlike(file: &OwnedFd) -> io::Result<bool> {
    let stat = rustix::fs::statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::TYPE)?;
    Ok(stat.stx_attributes.intersects(StatxAttributes::DAX | StatxAttributes::VERITY))
}

#[cfg(test)]
mod tests;

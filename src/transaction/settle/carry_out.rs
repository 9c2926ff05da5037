//! Gives originals their names back, or lets go of them.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;

use super::judge::{Settlement, Settling, Unit};
use crate::ledger::Entry;
use crate::report::Reason;
use crate::sys::file::inode::{Inode, InodeId};
use crate::sys::share::lease::Lease;
use crate::sys::share::swap::{self, Name, Shared};

impl Settling<'_> {
    /// Carries a settlement out. `false` where it has to wait: somebody is writing.
    pub(super) fn carry_out(&self, unit: &Unit<'_>) -> Result<bool, swap::Error> {
        if let Settlement::Restore { now, .. } = unit.settlement {
            return self.restore(&unit.entries, &now);
        }
        self.drop_originals(unit)?;
        Ok(true)
    }

    fn drop_originals(&self, unit: &Unit<'_>) -> Result<(), swap::Error> {
        for entry in &unit.entries {
            let name = entry.stashed();
            let stashed = Name { dir: self.store.stash(), name: &name };
            swap::unlink_shared(stashed, self.guest.policy.lock_timeout)?;
        }
        Ok(())
    }

    /// Lets go of originals that cannot have their names back. `false` if that cannot be done.
    pub(super) fn forget(&self, unit: &Unit<'_>) -> bool {
        let dropped = self.drop_originals(unit);
        dropped.inspect_err(|e| log::debug!("the stash: {}", Reason(e))).is_ok()
    }

    /// Gives the original the names back that one private file has.
    fn restore(&self, entries: &[&Entry], judged: &Inode) -> Result<bool, swap::Error> {
        let temporary: Vec<[OsString; 2]> =
            entries.iter().map(|entry| [entry.stashed(), entry.temporary()]).collect();
        let dirs = entries.iter().map(|entry| self.guest.root.open_dir(&entry.intent.place.dir));
        let dirs = dirs.collect::<io::Result<Vec<OwnedFd>>>()?;
        let stash = self.store.stash();
        let all = entries.iter().zip(temporary.iter().zip(&dirs));
        let names: Vec<Names<'_>> = all
            .map(|(entry, ([stashed, kept], dir))| Names {
                name: Name { dir: dir.as_fd(), name: &entry.intent.place.name },
                stashed: Name { dir: stash, name: stashed },
                kept: Name { dir: stash, name: kept },
            })
            .collect();
        let Some(Names { name, stashed, .. }) = names.first() else { return Ok(true) };
        let private = name.open()?;
        let lease = match Lease::take(private.as_fd()) {
            Ok(Some(lease)) => Some(lease),
            Ok(None) => return Ok(false),
            // No leases here: the second look must do.
            Err(_) => None,
        };
        let unchanged = || -> io::Result<bool> {
            let leased = lease.as_ref().map_or(Ok(true), Lease::unbroken)?;
            let now = Inode::of(&private)?;
            // One more name that it has got would be cut off from these.
            Ok(leased && now.same_content_as(judged) && now.nlink == judged.nlink)
        };
        if !unchanged()? || name.inode()?.is_none_or(|inode| inode.id != judged.id) {
            return Ok(false);
        }
        let shared = Shared::try_lock_at(stashed.dir, stashed.name, self.guest.policy.lock_timeout)?;
        let original = shared.inode()?.id;
        match shared.persist(|| displace_all(&names, judged.id, original)) {
            // Another file has a name by now.
            Err(swap::Error::Unchanged(e)) if e.raw_os_error() == Some(libc::ESTALE) => return Ok(false),
            changed => changed?,
        };
        if !unchanged()? {
            // A writer came in between: it has the private copy open, so that must have the names.
            shared.persist(|| names.iter().try_for_each(|names| names.give_back(original)))?;
            return Ok(false);
        }
        names.iter().try_for_each(|names| names.kept.unlink()).map_err(io::Error::from)?;
        Ok(true)
    }
}

/// A name that the original is to take back, with those that the two files have in the stash meanwhile.
struct Names<'a> {
    name: Name<'a>,
    stashed: Name<'a>,
    /// The private copy's, until it is certain that no writer has it.
    kept: Name<'a>,
}

impl Names<'_> {
    fn give_back(&self, original: InodeId) -> rustix::io::Result<()> {
        match self.kept.displace(self.name, original, Some(self.stashed)) {
            // It can have no more names: then the stash goes without.
            Err(Errno::MLINK) => self.kept.displace(self.name, original, None),
            given_back => given_back,
        }
    }
}

/// Gives all the names of the file `private` to the original, or none.
fn displace_all(names: &[Names<'_>], private: InodeId, original: InodeId) -> rustix::io::Result<()> {
    for (at, Names { name, stashed, kept }) in names.iter().enumerate() {
        if let Err(e) = stashed.displace(*name, private, Some(*kept)) {
            names[..at].iter().try_for_each(|names| names.give_back(original))?;
            return Err(e);
        }
    }
    Ok(())
}

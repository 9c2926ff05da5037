//! Under the guard: makes a guest's own inode the object, without a copy, if nobody can change it any more.
//!
//! What cannot be adopted is copied, as under any other protection. It is as it was then, but for its time of change.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

use super::linker::Linker;
use super::plan::Work;
use crate::parallel;
use crate::report::{Reason, Shown};
use crate::sys::file::inode::Inode;
use crate::sys::file::times::TICK;
use crate::sys::share::adopt::{self, Candidate, Refusal};
use crate::sys::share::flag_changes::FlagChanges;
use crate::sys::share::mark;
use crate::sys::share::swap::Name;
use crate::unify::pool::protection::PoolProtection;
use crate::unify::pool::publish::Copied;
use crate::unify::pool::run::{adopted, held, temporary};
use crate::unify::pool::settings::Sharing;
use crate::unify::scan::catalog::{Catalog, FileIndex, PrivateFile};
use crate::unify::scan::digest::{OpenDirs, is_gone, is_same};

/// What became of the files of some work before any of them is copied.
#[derive(Debug)]
pub(super) enum Adoption {
    /// One of them is to be the object.
    Adopted(Adopted),
    /// One of them was tried.
    Refused(Touched),
    /// None was tried.
    Untried,
}

/// A file that bears the mark; adopted, nobody can change it any more, and it is what the object must be.
#[derive(Debug)]
pub(super) struct Adopted {
    candidate: Candidate,
    /// The first of its names in guests.
    pub first: FileIndex,
    /// In the run's directory, the name that it gives up when it is an object.
    temporary: OsString,
    /// In the run's directory, the name that keeps it marked until guests have others, and tells recovery of the mark.
    keeper: OsString,
}

/// A file whose time of change is not that of the scan because of us.
#[derive(Clone, Copy, Debug)]
pub(super) struct Touched {
    first: FileIndex,
    /// Its time of change now, in nanoseconds.
    ctime: i64,
}

/// Why a file has no mark.
struct NotHeld {
    /// Its first name, if its time of change may be ours.
    first: Option<FileIndex>,
    refusal: Refusal,
}

impl From<io::Error> for NotHeld {
    fn from(error: io::Error) -> NotHeld {
        NotHeld { first: None, refusal: error.into() }
    }
}

impl Adoption {
    /// What the file with this first name must be to be unchanged.
    pub fn expected(&self, catalog: &Catalog, first: FileIndex) -> PrivateFile {
        match self {
            Adoption::Refused(touched) if touched.first == first => {
                let mut file = catalog[first];
                file.ctime = touched.ctime;
                file
            }
            _ => catalog[first],
        }
    }

    /// The first name of the file that is to be the object.
    pub fn first(&self) -> Option<FileIndex> {
        match self {
            Adoption::Adopted(adopted) => Some(adopted.first),
            Adoption::Refused(_) | Adoption::Untried => None,
        }
    }
}

impl Adopted {
    /// In the run's directory, what is to have its name among the objects.
    pub fn copied(&self) -> Copied {
        Copied { name: self.temporary.clone(), bytes: 0, allocated: 0 }
    }
}

impl Linker<'_> {
    /// Tries to adopt a file of each work that needs an object.
    pub(super) fn adopt(&self, works: &[Work]) -> Vec<Adoption> {
        let untried = || works.iter().map(|_| Adoption::Untried).collect();
        let is_guard = self.publisher.protection == PoolProtection::Guard;
        if !is_guard || self.pool().settings.share != Sharing::Hardlink {
            return untried();
        }
        let Some(changes) = FlagChanges::find() else {
            log::debug!("no file is adopted: the guard's list of flag changes cannot be read");
            return untried();
        };
        let held = parallel::map(self.threads, works, |work| self.hold(work));
        let mut touched = Vec::new();
        let mut held: Vec<Option<Adopted>> = works
            .iter()
            .zip(held)
            .map(|(work, held)| {
                let (held, first) = match held {
                    Ok(held) => (held, None),
                    Err(NotHeld { first, refusal }) => {
                        self.say(first.unwrap_or(work.names[0]), &refusal);
                        (None, first)
                    }
                };
                touched.push(first);
                held
            })
            .collect();
        let candidates = held.iter_mut().flatten().map(|held| &mut held.candidate);
        let mut settled = adopt::settle(self.run().dir(), &changes, candidates).into_iter();
        let tried: Vec<Option<(&Work, Adopted, bool)>> = works
            .iter()
            .zip(held)
            .map(|(work, held)| {
                let held = held?;
                let settled = settled.next()?;
                let is_settled = settled.inspect_err(|refusal| self.say(held.first, refusal)).is_ok();
                Some((work, held, is_settled))
            })
            .collect();
        let proven = parallel::map(self.threads, &tried, |tried| match tried {
            Some((work, held, true)) => self.prove(work, held),
            Some(_) | None => false,
        });
        let refused = |first| Adoption::Refused(Touched { first, ctime: 0 });
        let adoptions =
            tried.into_iter().zip(proven).zip(touched).map(|((tried, proven), first)| match tried {
                None => first.map_or(Adoption::Untried, refused),
                Some((_, held, _)) if proven => Adoption::Adopted(held),
                Some((_, held, _)) => {
                    self.release(&held);
                    refused(held.first)
                }
            });
        self.look_again(adoptions.collect())
    }

    /// Gives the first file of the work that is there the mark.
    fn hold(&self, work: &Work) -> Result<Option<Adopted>, NotHeld> {
        if work.existing.is_some() {
            return Ok(None);
        }
        let mut dirs = OpenDirs::new(self.catalog);
        let mut inodes: Vec<&[FileIndex]> = work.inodes(self.catalog).collect();
        // Of equal files, one may have holes.
        inodes.sort_by_key(|names| self.catalog[names[0]].allocated);
        for names in inodes {
            let first = names[0];
            let file = &self.catalog[first];
            let opened: io::Result<(Rc<OwnedFd>, OwnedFd)> =
                dirs.of(file).and_then(|dir| dirs.file(file).map(|opened| (dir, opened)));
            let (dir, opened) = match opened {
                Err(e) if is_gone(&e) => continue,
                opened => opened?,
            };
            if !is_same(&Inode::of(&opened)?, file) {
                continue;
            }
            let number = self.run().numbers(1);
            // The administrator's own flag stays, whatever becomes of the file.
            let keeper = if mark::is_set(&opened)? { held(number) } else { adopted(number) };
            let temporary = temporary(number);
            let name = Name { dir: dir.as_fd(), name: self.catalog.name(file) };
            // It may have had one of the names, or the mark, for a moment.
            let candidate = Candidate::hold(opened, name, self.names(&temporary, &keeper))
                .map_err(|refusal| NotHeld { first: Some(first), refusal })?;
            return Ok(Some(Adopted { candidate, first, temporary, keeper }));
        }
        Ok(None)
    }

    fn names<'n>(&'n self, temporary: &'n OsStr, keeper: &'n OsStr) -> [Name<'n>; 2] {
        [temporary, keeper].map(|name| Name { dir: self.run().dir(), name })
    }

    /// Proves that the file stays what it is, and reads it: all that was known of it is older than the mark.
    fn prove(&self, work: &Work, held: &Adopted) -> bool {
        let candidate = &held.candidate;
        let proven = candidate.prove().and_then(|proof| {
            if !work.object.describes(candidate, self.pool().settings.mtime)? {
                return Err(Refusal::Changed);
            }
            candidate.stands(proof)
        });
        proven.inspect_err(|refusal| self.say(held.first, refusal)).is_ok()
    }

    fn say(&self, first: FileIndex, refusal: &Refusal) {
        log::debug!("{}: copied, not adopted: {}", Shown(&self.outer_path(first)), Reason(refusal));
    }

    /// Takes down the time of change that files have now that were tried in vain, when a later change would show in it.
    fn look_again(&self, mut adoptions: Vec<Adoption>) -> Vec<Adoption> {
        if adoptions.iter().any(|adoption| matches!(adoption, Adoption::Refused(_))) {
            std::thread::sleep(TICK + Duration::from_millis(5));
        }
        let mut dirs = OpenDirs::new(self.catalog);
        for adoption in &mut adoptions {
            let Adoption::Refused(touched) = adoption else { continue };
            let file = &self.catalog[touched.first];
            let now = dirs.file(file).and_then(Inode::of);
            // Whatever else has changed meanwhile, is seen when it is copied and compared.
            if let Ok(now) = now.inspect_err(|e| log::debug!("{}", Reason(e)))
                && now.id.ino == file.ino
            {
                touched.ctime = now.ctime.nanoseconds();
            }
        }
        adoptions
    }

    /// Gives a file back that is not to be an object.
    pub(super) fn release(&self, held: &Adopted) {
        let released = held.candidate.release(self.names(&held.temporary, &held.keeper));
        // Recovery does it, from the names.
        released.unwrap_or_else(|e| log::warn!("{}: {}", Shown(&self.outer_path(held.first)), Reason(&e)));
    }

    /// Guests have names of the object: the host's own that has kept it marked goes.
    pub(super) fn let_be(&self, held: &Adopted) -> io::Result<()> {
        Ok(Name { dir: self.run().dir(), name: &held.keeper }.unlink()?)
    }
}

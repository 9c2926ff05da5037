//! Gives the names of damaged inodes in guests an intact one.
//!
//! A link of the intact inode takes the place of each name, so that it names the one or the other at every moment; what was
//! begun is in the journal of a run, as it is when names are linked.

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;

use super::damaged::{self, Damaged, DamagedNames};
use super::intact::{self, Finder, Intact};
use super::replace::{Target, replace};
use crate::report::{Reason, Watch};
use crate::state::store::STATE_DIR;
use crate::sys::file::handle::Handle;
use crate::sys::file::{filesystem, times};
use crate::sys::path::resolve::Place;
use crate::sys::process::signal;
use crate::sys::share::swap;
use crate::unify::link::claims::claim_all;
use crate::unify::pool::directory::Pool;
use crate::unify::pool::journal::LinkIntent;
use crate::unify::pool::object::{ObjectName, PoolFile};
use crate::unify::pool::protection::PoolProtection;
use crate::unify::pool::publish::Publisher;
use crate::unify::pool::recover;
use crate::unify::pool::run::RunDir;
use crate::unify::scan::catalog::GuestIndex;
use crate::unify::scan::guest::GuestTree;
use crate::unify::scan::names;
use crate::unify::{At, Error, FailedPath, SharedError};

/// A name of a damaged inode.
#[derive(Debug)]
pub struct FoundName {
    /// The name, from the caller's root.
    pub path: PathBuf,
    /// The damaged file in the pool's quarantine.
    pub damaged: PathBuf,
    /// Why it is a name of the damaged inode still; none if it has been repaired.
    pub left: Option<SharedError>,
}

/// What repairing came to.
#[derive(Debug, Default)]
pub struct Repaired {
    /// Every name that was found.
    pub names: Vec<FoundName>,
    /// Some of these are left because there is no intact copy.
    pub wants_copy: bool,
    /// Objects made anew.
    pub objects: u64,
    /// Bytes written for them.
    pub copied: u64,
    /// Intact objects that somebody tried to write to in a window.
    pub contested: Vec<PathBuf>,
    /// Directories that could not be looked through, with the reason.
    pub failed: Vec<FailedPath>,
}

/// Repairs guests.
pub struct Repairer<'a> {
    /// The pool, locked by the caller and verified.
    pub pool: &'a Pool,
    pub guests: &'a [GuestTree],
    pub protection: PoolProtection,
    /// How long to wait for the lock on one inode.
    pub lock_timeout: Duration,
    /// Bytes to be left free on the filesystem.
    pub reserve: u64,
    /// How many guests are looked through at a time.
    pub threads: usize,
    pub watch: &'a dyn Watch,
}

impl Repairer<'_> {
    /// Looks for names of what is in quarantine in all guests, and repairs them.
    ///
    /// # Errors
    /// If nothing can be done at all. What fails for one name is in the result.
    pub fn repair(&self) -> Result<Repaired, Error> {
        let mut repaired = Repaired::default();
        let in_use = self.pool.look_at_quarantine()?.into_iter().filter(|stored| !stored.is_unused());
        let damaged: Damaged = in_use.map(|stored| (stored.inode.id.ino, stored)).collect();
        if damaged.is_empty() {
            return Ok(repaired);
        }
        let damaged::Found { names, mount_points, failed } =
            damaged::find(self.pool, self.guests, &damaged, self.threads, self.watch);
        repaired.failed.extend(failed);
        for names in mount_points {
            self.note(&names, Some(&Left::MountPoint.into()), &mut repaired);
        }
        let claims = claim_all((0..).map(GuestIndex::new).zip(self.guests));
        let mut free = Vec::new();
        for names in names {
            let busy = claims.busy.iter().find(|(guest, _)| *guest == names.guest);
            match busy {
                Some((_, reason)) => self.note(&names, Some(reason), &mut repaired),
                None if names.names.iter().any(|name| name.dir.starts_with(STATE_DIR)) => {
                    self.note(&names, Some(&Left::Stashed.into()), &mut repaired);
                }
                None => free.push(names),
            }
        }
        if free.is_empty() {
            return Ok(repaired);
        }
        // Names of one object side by side, for the journal.
        free.sort_by_key(|names| (first(&names.damaged.name), names.damaged.inode.id.ino, names.guest));
        if !self.repair_all(&free, &damaged, &mut repaired)? {
            let recovered = recover::recover(self.pool, self.lock_timeout)?;
            repaired.failed.extend(recovered.failed);
        }
        Ok(repaired)
    }

    /// Repairs what there is an intact inode for. `false` if something was left half way, for recovery to end.
    fn repair_all(
        &self,
        all: &[DamagedNames<'_>],
        damaged: &Damaged,
        repaired: &mut Repaired,
    ) -> Result<bool, Error> {
        let run = RunDir::begin(self.pool)?;
        let publisher = Publisher {
            pool: self.pool,
            run: &run,
            protection: self.protection,
            lock_timeout: self.lock_timeout,
        };
        let Repairer { guests, reserve, threads, watch, .. } = *self;
        let finder = Finder { publisher, guests, reserve, threads, watch };
        let objects = all.iter().map(|names| first(&names.damaged.name));
        let intact::Found { mut intact, failed } = finder.find(objects, damaged)?;
        repaired.failed.extend(failed);
        repaired.copied += intact.values().filter_map(|found| Some(found.copy.as_ref()?.bytes)).sum::<u64>();
        let mut curable = Vec::new();
        for names in all {
            if intact.contains_key(&first(&names.damaged.name)) {
                curable.push((names, run.numbers(names.names.len())));
            } else {
                repaired.wants_copy = true;
                self.note(names, Some(&Left::NoCopy.into()), repaired);
            }
        }
        if curable.is_empty() {
            return Ok(true);
        }
        self.repair_these(&finder, &curable, &mut intact, repaired)
    }

    /// Repairs names, each with the number of its first temporary name, after they are in the journal.
    fn repair_these(
        &self,
        finder: &Finder<'_>,
        curable: &[(&DamagedNames<'_>, u64)],
        intact: &mut HashMap<ObjectName, Intact>,
        repaired: &mut Repaired,
    ) -> Result<bool, Error> {
        let (at, run) = (self.pool.path(), finder.publisher.run);
        let intents = curable.iter().flat_map(|(names, first)| intents(names, *first));
        run.record(self.protection == PoolProtection::Immutable, &intents.collect::<Vec<_>>()).at(at)?;
        filesystem::sync(self.pool.runs()).at(at)?;
        let blocked = signal::block();
        self.watch.begin("repairing", curable.iter().map(|(names, _)| names.names.len() as u64).sum());
        let mut finished = true;
        for (names, number) in curable {
            let Some(intact) = intact.get_mut(&first(&names.damaged.name)) else { continue };
            if let Err(e) = self.repair_one(finder, names, *number, intact, repaired) {
                finished = false;
                self.note(names, Some(&(Arc::new(e) as SharedError)), repaired);
            }
            self.watch.add(names.names.len() as u64, 0);
        }
        self.watch.end();
        filesystem::sync(self.pool.runs()).at(at)?;
        if finished {
            run.forget().at(at)?;
        }
        drop(blocked);
        Ok(finished)
    }

    /// Gives all names of a damaged inode in one guest an intact one.
    fn repair_one(
        &self,
        finder: &Finder<'_>,
        names: &DamagedNames<'_>,
        number: u64,
        intact: &mut Intact,
        repaired: &mut Repaired,
    ) -> Result<(), swap::Error> {
        let publisher = &finder.publisher;
        if let Some(copy) = intact.copy.take() {
            if !publisher.publish(&intact.object, &copy.name)? {
                return Err(io::Error::from(io::ErrorKind::AlreadyExists).into());
            }
            repaired.objects += 1;
        }
        let guest = &self.guests[names.guest.position()];
        let targets =
            names.names.iter().zip(number..).map(|(name, number)| Target::open(guest, name, number));
        let targets: Vec<Target<'_>> = targets.collect::<io::Result<_>>()?;
        let replaced = match replace(publisher, names.damaged, &intact.object, &targets) {
            Err(swap::Error::Unchanged(e)) if e.raw_os_error() == Some(libc::EMLINK) => {
                let (next, bytes) = finder.successor(&intact.object)?;
                intact.object = next;
                repaired.objects += 1;
                repaired.copied += bytes;
                replace(publisher, names.damaged, &intact.object, &targets)?
            }
            replaced => replaced?,
        };
        if replaced.contested {
            repaired.contested.push(self.pool.object_path(&intact.object));
        }
        for (target, replaced) in targets.iter().zip(replaced.names) {
            let left: Option<SharedError> = match replaced {
                Ok(()) => None,
                Err(Errno::STALE | Errno::NOENT) => Some(Left::AnotherFile.into()),
                Err(e) => Some(Arc::new(io::Error::from(e)) as SharedError),
            };
            self.note_name(names, target.name, left, repaired);
            times::set_modified(&target.dir, target.modified)
                .unwrap_or_else(|e| log::debug!("{}", Reason(e)));
        }
        Ok(())
    }

    fn note(&self, names: &DamagedNames<'_>, left: Option<&SharedError>, repaired: &mut Repaired) {
        for name in &names.names {
            self.note_name(names, name, left.map(Arc::clone), repaired);
        }
    }

    fn note_name(
        &self,
        names: &DamagedNames<'_>,
        name: &Place,
        left: Option<SharedError>,
        repaired: &mut Repaired,
    ) {
        let path = names::outer_path(&self.guests[names.guest.position()], &name.path());
        repaired.names.push(FoundName { path, damaged: self.pool.path_of(names.damaged), left });
    }
}

/// Why a name is one of a damaged inode still.
#[derive(Debug, thiserror::Error)]
enum Left {
    #[error("a mount point in the mount namespace of another process")]
    MountPoint,
    #[error("an open transaction of the guest's hooks uses it")]
    Stashed,
    #[error("no intact copy in the pool or in these guests")]
    NoCopy,
    #[error("another file has this name now")]
    AnotherFile,
}

impl From<Left> for SharedError {
    fn from(left: Left) -> SharedError {
        Arc::new(left)
    }
}

fn intents(names: &DamagedNames<'_>, first: u64) -> Vec<LinkIntent> {
    let PoolFile { name: object, inode, .. } = names.damaged;
    let intent = |(name, temporary): (&Place, u64)| LinkIntent {
        temporary,
        object: *object,
        // Never needed: a damaged inode is not given back.
        dir: Handle::from_bytes(&[]),
        name: name.name.clone(),
        ino: inode.id.ino,
        size: inode.size,
        mtime: inode.mtime.nanoseconds(),
    };
    names.names.iter().zip(first..).map(intent).collect()
}

/// What the first inode of an object is called.
fn first(name: &ObjectName) -> ObjectName {
    ObjectName { index: 0, ..*name }
}

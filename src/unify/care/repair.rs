//! Finds the names of damaged inodes in guests, and gives these names an intact one.
//!
//! Intact is another inode of the same object, or else a fresh copy of a private file that is what the object must be.
//! A link of that takes the place of each name, so that it names the one or the other at every moment; what was begun is
//! in the journal of a run, as it is when names are linked.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::parallel;
use crate::report::Reason;
use crate::state::store::STATE_DIR;
use crate::sys::file::handle::Handle;
use crate::sys::file::inode::{Inode, InodeId, Time};
use crate::sys::file::{filesystem, times};
use crate::sys::path::resolve::Place;
use crate::sys::path::tree::TreeEntry;
use crate::sys::process::mounts::MountPoints;
use crate::sys::process::signal;
use crate::sys::share::copy::Copier;
use crate::sys::share::swap::{self, Name, Shared};
use crate::unify::link::batch::Fence;
use crate::unify::link::claims::claim_all;
use crate::unify::pool::directory::{Pool, Stored};
use crate::unify::pool::identity::{self, Digest};
use crate::unify::pool::object::ObjectName;
use crate::unify::pool::run::{self, Intent, Run, temporary};
use crate::unify::scan::catalog::{Guest, nanoseconds};
use crate::unify::scan::digest::take_lease;
use crate::unify::scan::names;
use crate::unify::{At, Error, Watch};

/// A name of a damaged inode.
#[derive(Debug)]
pub struct Sighting {
    /// The name, from the caller's root.
    pub path: PathBuf,
    /// The damaged file in the pool's quarantine.
    pub damaged: PathBuf,
    /// Why it is a name of the damaged inode still; none where it has been repaired.
    pub left: Option<String>,
}

/// What repairing came to.
#[derive(Debug, Default)]
pub struct Repaired {
    /// Every name that was found.
    pub names: Vec<Sighting>,
    /// Some of these are left because there is no intact copy.
    pub wants_copy: bool,
    /// Objects made anew.
    pub objects: u64,
    /// Bytes written for them.
    pub copied: u64,
    /// Intact objects that somebody tried to write to in a window.
    pub contested: Vec<PathBuf>,
    /// Directories that could not be looked through, with the reason.
    pub failed: Vec<(PathBuf, String)>,
}

/// Repairs guests.
pub struct Repairer<'a> {
    /// The pool, locked by the caller and verified.
    pub pool: &'a Pool,
    /// The guests that are looked through.
    pub guests: &'a [Guest],
    /// How the pool's inodes are fenced.
    pub fence: Fence,
    /// How long to wait for the lock on one inode.
    pub patience: Duration,
    /// Bytes to be left free on the filesystem.
    pub reserve: u64,
    /// How many guests are looked through at a time.
    pub threads: usize,
    /// Told how far it has got.
    pub watch: &'a dyn Watch,
}

/// All names that one guest has of one damaged inode.
struct Patient<'d> {
    damaged: &'d Stored,
    guest: usize,
    names: Vec<Place>,
}

/// What names are to be names of.
#[derive(Clone)]
struct Cure {
    object: ObjectName,
    /// Its name in the run's directory, as long as it has none among the objects.
    copy: Option<OsString>,
}

/// An open directory, a name in it, and the number of the temporary name that takes its place.
struct Target<'n> {
    dir: OwnedFd,
    modified: Time,
    name: &'n Place,
    number: u64,
}

impl Repairer<'_> {
    /// Looks for names of what is in quarantine in all guests, and repairs them.
    ///
    /// # Errors
    /// Where nothing can be done at all. What fails for one name is in the result.
    pub fn repair(&self) -> Result<Repaired, Error> {
        let mut repaired = Repaired::default();
        let damaged: HashMap<u64, Stored> = self
            .pool
            .look_at_quarantine()?
            .into_iter()
            .filter(|stored| !stored.is_unused())
            .map(|stored| (stored.inode.id.ino, stored))
            .collect();
        if damaged.is_empty() {
            return Ok(repaired);
        }
        let found = self.find(&damaged, &mut repaired);
        let claims = claim_all(self.guests.iter().enumerate());
        let (mut patients, mut left) = (Vec::new(), Vec::new());
        for patient in found {
            let busy = claims.busy.iter().find(|(guest, _)| *guest == patient.guest);
            match busy {
                Some((_, reason)) => left.push((patient, reason.clone())),
                None if patient.names.iter().any(|name| name.dir.starts_with(STATE_DIR)) => {
                    left.push((patient, "a transaction of its hooks holds it".to_owned()));
                }
                None => patients.push(patient),
            }
        }
        for (patient, reason) in left {
            self.note(&patient, Some(&reason), &mut repaired);
        }
        if patients.is_empty() {
            return Ok(repaired);
        }
        // Names of one object side by side, for the journal.
        patients.sort_by_key(|patient| {
            (whole(&patient.damaged.name), patient.damaged.inode.id.ino, patient.guest)
        });
        let run = Run::begin(self.pool)?;
        let cures = self.cures(&run, &patients, &damaged, &mut repaired)?;
        let finished = self.cure_all(&run, &patients, cures, &mut repaired)?;
        drop(run);
        if !finished {
            let recovered = run::recover(self.pool, self.patience)?;
            repaired.failed.extend(recovered.failed);
        }
        Ok(repaired)
    }

    /// Names of damaged inodes, by inode and guest.
    fn find<'d>(&self, damaged: &'d HashMap<u64, Stored>, repaired: &mut Repaired) -> Vec<Patient<'d>> {
        let borders = names::borders(self.pool, self.guests);
        self.watch.begin("searching", 0);
        let searched = parallel::map(self.threads, self.guests, |guest| {
            let mut found: BTreeMap<u64, Vec<Place>> = BTreeMap::new();
            let problems = names::walk(guest, &borders, &mut |entry| {
                self.watch.add(1, 0);
                let is_damaged =
                    |stored: &Stored| entry.inode().is_ok_and(|inode| inode.id == stored.inode.id);
                if damaged.get(&entry.ino).is_some_and(is_damaged) {
                    let place = Place { dir: entry.dir_path.to_path_buf(), name: entry.name.to_os_string() };
                    found.entry(entry.ino).or_default().push(place);
                }
            });
            (found, problems)
        });
        self.watch.end();
        let mut patients = Vec::new();
        for (guest, (found, problems)) in searched.into_iter().enumerate() {
            repaired.failed.extend(problems);
            let patient = |(ino, names)| Some(Patient { damaged: damaged.get(&ino)?, guest, names });
            patients.extend(found.into_iter().filter_map(patient));
        }
        self.leave_mount_points(&mut patients, repaired);
        patients
    }

    /// Leaves names that processes have something mounted on, which would be gone.
    fn leave_mount_points(&self, patients: &mut Vec<Patient<'_>>, repaired: &mut Repaired) {
        if patients.is_empty() {
            return;
        }
        let mounted = MountPoints::look().unwrap_or_default();
        for patient in &mut *patients {
            let root = &self.guests[patient.guest].root;
            let names = std::mem::take(&mut patient.names);
            let (left, names) = names.into_iter().partition(|name| mounted.are_at(root, name));
            patient.names = names;
            for name in left {
                let reason = "a mount point in the mount namespace of some process".to_owned();
                self.note_name(patient, &name, Some(reason), repaired);
            }
        }
        patients.retain(|patient| !patient.names.is_empty());
    }

    /// Finds what is intact for each damaged object, by its name with the index 0.
    fn cures(
        &self,
        run: &Run<'_>,
        patients: &[Patient<'_>],
        damaged: &HashMap<u64, Stored>,
        repaired: &mut Repaired,
    ) -> Result<HashMap<ObjectName, Cure>, Error> {
        let index = self.pool.index(self.threads)?;
        let mut cures = HashMap::new();
        let mut wanted = Wanted::new();
        for patient in patients {
            let object = whole(&patient.damaged.name);
            match index.newest(&object) {
                Some(intact) => drop(cures.insert(object, Cure { object: intact.name, copy: None })),
                None if wanted.get(&object.tag).is_some_and(|objects| objects.contains(&object)) => {}
                None => wanted.entry(object.tag).or_default().push(object),
            }
        }
        let borders = names::borders(self.pool, self.guests);
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
                match self.copy_of(run, entry, &wanted) {
                    Ok(None) => {}
                    Ok(Some((object, copy, bytes))) => {
                        wanted.entry(object.tag).or_default().retain(|other| *other != object);
                        cures.insert(object, Cure { object, copy: Some(copy) });
                        repaired.copied += bytes;
                    }
                    Err(e) if is_full(&e) => exhausted = Some(e),
                    Err(e) => log::debug!("{}", Reason(e)),
                }
            });
            if let Some(e) = exhausted {
                repaired.failed.push((self.pool.path().to_path_buf(), Reason(e).to_string()));
                break;
            }
        }
        self.watch.end();
        Ok(cures)
    }

    /// Copies a guest's file into the run's directory, if it is what one of the objects must be.
    fn copy_of(
        &self,
        run: &Run<'_>,
        entry: &TreeEntry<'_>,
        wanted: &Wanted,
    ) -> io::Result<Option<(ObjectName, OsString, u64)>> {
        let Some(objects) = wanted.get(&identity::tag(&entry.inode()?, self.pool.settings.mtime)) else {
            return Ok(None);
        };
        let source = Name { dir: entry.dir, name: entry.name }.open()?;
        if take_lease(&source)?.is_none() {
            return Ok(None);
        }
        let (_, digest) = Digest::of_quiet(&source)?;
        let Some(object) = objects.iter().find(|object| object.digest == digest) else { return Ok(None) };
        let copied = self.copy(run, &source, object)?;
        Ok(copied.map(|(copy, bytes)| (*object, copy, bytes)))
    }

    /// Copies a file that looked like the object; `None` where the copy is none.
    fn copy(
        &self,
        run: &Run<'_>,
        source: &OwnedFd,
        object: &ObjectName,
    ) -> io::Result<Option<(OsString, u64)>> {
        let inode = Inode::of(source)?;
        let clones = filesystem::shares_blocks(source, self.pool.runs());
        if !clones
            && filesystem::available(self.pool.runs())?.bytes.saturating_sub(self.reserve) < inode.allocated
        {
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        let name = temporary(run.numbers(1));
        let (copy, bytes) = Copier::default().copy(source, &inode, run.dir(), &name)?;
        if object.describes(&copy, self.pool.settings.mtime)? {
            return Ok(Some((name, bytes)));
        }
        Name { dir: run.dir(), name: &name }.unlink()?;
        Ok(None)
    }

    /// Repairs what there is a cure for. `false` where something was left half way, for recovery to end.
    fn cure_all(
        &self,
        run: &Run<'_>,
        patients: &[Patient<'_>],
        mut cures: HashMap<ObjectName, Cure>,
        repaired: &mut Repaired,
    ) -> Result<bool, Error> {
        let mut curable = Vec::new();
        for patient in patients {
            if cures.contains_key(&whole(&patient.damaged.name)) {
                curable.push((patient, run.numbers(patient.names.len())));
            } else {
                repaired.wants_copy = true;
                self.note(patient, Some("no intact copy in the pool or in these guests"), repaired);
            }
        }
        if curable.is_empty() {
            return Ok(true);
        }
        let at = self.pool.path();
        let intents = curable.iter().flat_map(|(patient, first)| self.intents(patient, *first));
        run.record(self.fence == Fence::Immutable, &intents.collect::<Vec<_>>()).at(at)?;
        filesystem::sync(self.pool.runs()).at(at)?;
        let blocked = signal::block();
        self.watch.begin("repairing", curable.iter().map(|(patient, _)| patient.names.len() as u64).sum());
        let mut finished = true;
        for (patient, first) in curable {
            let Some(cure) = cures.get_mut(&whole(&patient.damaged.name)) else { continue };
            if let Err(e) = self.cure(run, patient, first, cure, repaired) {
                finished = false;
                self.note(patient, Some(&Reason(e).to_string()), repaired);
            }
            self.watch.add(patient.names.len() as u64, 0);
        }
        self.watch.end();
        filesystem::sync(self.pool.runs()).at(at)?;
        if finished {
            run.forget().at(at)?;
        }
        drop(blocked);
        Ok(finished)
    }

    fn intents(&self, patient: &Patient<'_>, first: u64) -> Vec<Intent> {
        let Stored { name: object, inode, .. } = patient.damaged;
        let intent = |(name, temporary): (&Place, u64)| Intent {
            temporary,
            object: *object,
            // Never needed: a damaged inode is not given back.
            dir: Handle::from_bytes(&[]),
            name: name.name.clone(),
            ino: inode.id.ino,
            size: inode.size,
            mtime: nanoseconds(inode.mtime),
        };
        patient.names.iter().zip(first..).map(intent).collect()
    }

    /// Gives all names of a damaged inode in one guest an intact one.
    fn cure(
        &self,
        run: &Run<'_>,
        patient: &Patient<'_>,
        first: u64,
        cure: &mut Cure,
        repaired: &mut Repaired,
    ) -> Result<(), swap::Error> {
        if let Some(copy) = cure.copy.take() {
            self.publish(run, &copy, &cure.object)?;
            repaired.objects += 1;
        }
        let targets = self.targets(patient, first)?;
        let replaced = match self.replace(run, patient, &cure.object, &targets, repaired) {
            Err(swap::Error::Unchanged(e)) if e.raw_os_error() == Some(libc::EMLINK) => {
                cure.object = self.successor(run, &cure.object, repaired)?;
                self.replace(run, patient, &cure.object, &targets, repaired)?
            }
            replaced => replaced?,
        };
        for (target, replaced) in targets.iter().zip(replaced) {
            let left = match replaced {
                Ok(()) => None,
                Err(Errno::STALE | Errno::NOENT) => Some("it is another file by now".to_owned()),
                Err(e) => Some(Reason(io::Error::from(e)).to_string()),
            };
            self.note_name(patient, target.name, left, repaired);
            times::set_modified(&target.dir, target.modified)
                .unwrap_or_else(|e| log::debug!("{}", Reason(e)));
        }
        Ok(())
    }

    fn targets<'n>(&self, patient: &'n Patient<'_>, first: u64) -> io::Result<Vec<Target<'n>>> {
        let root = &self.guests[patient.guest].root;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW;
        let target = |(name, number): (&'n Place, u64)| {
            let dir = root.open_at(&name.dir, flags)?;
            Ok(Target { modified: Inode::of(&dir)?.mtime, dir, name, number })
        };
        patient.names.iter().zip(first..).map(target).collect()
    }

    /// Replaces names, in windows on both inodes if there is no other way. For each name, whether it was.
    fn replace(
        &self,
        run: &Run<'_>,
        patient: &Patient<'_>,
        object: &ObjectName,
        targets: &[Target<'_>],
        repaired: &mut Repaired,
    ) -> Result<Vec<rustix::io::Result<()>>, swap::Error> {
        let not_found = || io::Error::from(io::ErrorKind::NotFound);
        let shelf = self.pool.shelf(object.shelf(), false)?.ok_or_else(not_found)?;
        let file = object.file();
        let intact = Name { dir: shelf.as_fd(), name: &file };
        let (intact_shared, damaged_shared) = self.lock_both(intact, patient.damaged)?;
        let done = RefCell::new(Vec::new());
        let change = || {
            done.replace(replace_all(run, intact, targets, patient.damaged.inode.id)?);
            Ok(())
        };
        if change_names_of(&intact_shared, &damaged_shared, change)?.contested {
            repaired.contested.push(self.pool.object_path(object));
        }
        Ok(done.into_inner())
    }

    /// Locks two inodes, that of the smaller number first: nobody waits for us who has what we wait for.
    fn lock_both(&self, intact: Name<'_>, damaged: &Stored) -> io::Result<(Shared, Shared)> {
        let inode = intact.inode()?.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        let quarantine = self.pool.dir_of(damaged)?;
        let lock_damaged = || Shared::try_lock_at(&quarantine, &damaged.file, self.patience);
        let lock_intact = || Shared::try_lock_at(intact.dir, intact.name, self.patience);
        if inode.id.ino < damaged.inode.id.ino {
            let intact = lock_intact()?;
            Ok((intact, lock_damaged()?))
        } else {
            let damaged = lock_damaged()?;
            Ok((lock_intact()?, damaged))
        }
    }

    /// Gives a copy its name among the objects, and fences it before any guest sees it.
    fn publish(&self, run: &Run<'_>, copy: &OsString, object: &ObjectName) -> Result<(), swap::Error> {
        let shelf =
            self.pool.shelf(object.shelf(), true)?.ok_or(io::ErrorKind::NotFound).map_err(io::Error::from)?;
        let file = object.file();
        let (copy, name) = (Name { dir: run.dir(), name: copy }, Name { dir: shelf.as_fd(), name: &file });
        copy.link(name).and_then(|()| copy.unlink()).map_err(io::Error::from)?;
        if self.fence == Fence::Immutable {
            Shared::lock_at(name.dir, name.name, self.patience)?.protect()?;
        }
        Ok(())
    }

    /// A further inode of an object that can have no more links.
    fn successor(
        &self,
        run: &Run<'_>,
        full: &ObjectName,
        repaired: &mut Repaired,
    ) -> Result<ObjectName, swap::Error> {
        let shelf =
            self.pool.shelf(full.shelf(), false)?.ok_or(io::ErrorKind::NotFound).map_err(io::Error::from)?;
        let source = Name { dir: shelf.as_fd(), name: &full.file() }.open()?;
        let copied = self.copy(run, &source, full)?;
        let (copy, bytes) =
            copied.ok_or_else(|| io::Error::other("the pool's object has changed meanwhile"))?;
        filesystem::sync(run.dir())?;
        let next = ObjectName { index: full.index + 1, ..*full };
        self.publish(run, &copy, &next)?;
        repaired.objects += 1;
        repaired.copied += bytes;
        Ok(next)
    }

    fn note(&self, patient: &Patient<'_>, left: Option<&str>, repaired: &mut Repaired) {
        for name in &patient.names {
            self.note_name(patient, name, left.map(str::to_owned), repaired);
        }
    }

    fn note_name(&self, patient: &Patient<'_>, name: &Place, left: Option<String>, repaired: &mut Repaired) {
        let path = names::outer_path(&self.guests[patient.guest], &name.path());
        repaired.names.push(Sighting { path, damaged: self.pool.path_of(patient.damaged), left });
    }
}

/// Objects that a copy is wanted of, by their tags.
type Wanted = HashMap<u64, Vec<ObjectName>>;

/// Whether there is no use in looking for another copy.
fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// What all inodes of an object are called but for the index.
fn whole(name: &ObjectName) -> ObjectName {
    ObjectName { index: 0, ..*name }
}

/// Puts a link of `intact` in the place of each name of the inode `damaged`. For each name, whether it was.
///
/// # Errors
/// If an inode refuses; then all is as before.
fn replace_all(
    run: &Run<'_>,
    intact: Name<'_>,
    targets: &[Target<'_>],
    damaged: InodeId,
) -> rustix::io::Result<Vec<rustix::io::Result<()>>> {
    let numbered: Vec<OsString> = targets.iter().map(|target| temporary(target.number)).collect();
    let temporary = |at: usize| Name { dir: run.dir(), name: &numbered[at] };
    let undo = |links: usize| {
        for at in 0..links {
            // What cannot be removed is left to recovery.
            let _ = temporary(at).unlink();
        }
    };
    for at in 0..targets.len() {
        intact.link(temporary(at)).inspect_err(|_| undo(at))?;
    }
    let mut replaced = Vec::with_capacity(targets.len());
    for (at, target) in targets.iter().enumerate() {
        let name = Name { dir: target.dir.as_fd(), name: &target.name.name };
        let result = temporary(at).displace(name, damaged, None);
        // The damaged inode refuses: the others are its names, too.
        if at == 0 && result == Err(Errno::PERM) {
            undo(targets.len());
            return Err(Errno::PERM);
        }
        if result.is_err() {
            let _ = temporary(at).unlink();
        }
        replaced.push(result);
    }
    Ok(replaced)
}

/// Makes a change to names of two locked inodes, in windows on one or both if there is no other way.
///
/// `change` must leave nothing behind where it fails.
fn change_names_of(
    intact: &Shared,
    damaged: &Shared,
    change: impl Fn() -> rustix::io::Result<()>,
) -> Result<swap::SwapReport, swap::Error> {
    let unprotected = RefCell::new(None);
    // This way round a window that comes to nothing is one on the damaged inode.
    let changed = intact.change_names(|| match damaged.change_names(&change) {
        Ok(_) => Ok(()),
        Err(swap::Error::Unchanged(e)) => Err(Errno::from_io_error(&e).unwrap_or(Errno::IO)),
        Err(swap::Error::Unprotected(e)) => {
            unprotected.replace(Some(e));
            Ok(())
        }
    });
    match unprotected.into_inner() {
        Some(e) => Err(swap::Error::Unprotected(e)),
        None => changed,
    }
}

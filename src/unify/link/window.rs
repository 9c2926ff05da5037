//! One window: links of an object take the place of guests' names, are looked at again, and give way if a writer came.

use std::cell::{Cell, RefCell};
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;

use rustix::io::Errno;

use super::adopt::Adoption;
use super::linked::Linked;
use super::linker::Linker;
use crate::report::{Reason, Shown};
use crate::sys::file::content;
use crate::sys::file::inode::Inode;
use crate::sys::file::traits::Traits;
use crate::sys::file::xattr;
use crate::sys::share::swap::{self, Name, SHARED_LOCK_TIMEOUT, Shared};
use crate::unify::pool::identity::{self, Digest};
use crate::unify::pool::object::ObjectName;
use crate::unify::pool::run::{kept, temporary};
use crate::unify::scan::catalog::FileIndex;
use crate::unify::scan::digest::{Limits, OpenDirs, Quiet, is_gone, is_same, take_lease};
use crate::unify::scan::not_unified::NotUnified;
use crate::unify::{FailedPath, SharedError};

/// A name that is to be the object's.
struct Target {
    at: FileIndex,
    dir: Rc<OwnedFd>,
    /// In the run's directory, the link of the object that is to take its place.
    temporary: OsString,
    /// In the run's directory, the guest's own inode once it has lost the name.
    kept: OsString,
}

/// An inode of a guest that may become the object.
struct Ready<'f> {
    names: Vec<Target>,
    own: &'f OwnedFd,
    quiet: Quiet<'f>,
    before: Inode,
    attributes: xattr::Xattrs,
}

/// As many names as an object gets. ext4 allows 65 000, btrfs 65 535: package managers need some for a moment, for what
/// they replace, and so do we.
const MAX_LINKS_PER_OBJECT: usize = 64_000;

/// How far an inode's names have got.
#[derive(Clone, Debug)]
enum Stage {
    Waiting,
    Linked,
    /// The object has as many links as it can have.
    Full,
    Failed(Errno),
}

/// An object that is locked, and about to get names.
pub(super) struct LinkWindow<'l> {
    pub(crate) linker: &'l Linker<'l>,
    pub object: &'l ObjectName,
    pub shared: &'l Shared,
    pub shelf: &'l OwnedFd,
    pub inode: Inode,
    /// It has its second name in the pool.
    pub held: bool,
    pub attributes: xattr::Xattrs,
    /// What has become of the files of this work already.
    pub adoption: &'l Adoption,
    /// It was made, or compared with a file of equal digests, in this run.
    pub fresh: bool,
    /// Nothing is known of the guest's file but its metadata: these are the limits that it has not been looked at by.
    pub unread: Option<Limits>,
    /// A name could not be given back: that is left to recovery.
    pub unfinished: Cell<bool>,
}

impl LinkWindow<'_> {
    /// Links inodes, in one window. How many of them are settled; fewer than all if the object is full.
    pub fn chunk(
        &self,
        inodes: &[&[FileIndex]],
        own: &[Result<OwnedFd, Arc<io::Error>>],
        mut number: u64,
        dirs: &mut OpenDirs<'_>,
        linked: &mut Linked,
    ) -> Result<usize, swap::Error> {
        let mut ready: Vec<Option<Ready<'_>>> = Vec::new();
        let mut compared = self.fresh;
        for (names, own) in inodes.iter().zip(own) {
            let looked = match own {
                // Gone, or another file by now.
                Err(e) if is_gone(e) => Ok(Err(NotUnified::Changed)),
                Ok(own) => self.look(names, own, number, dirs, &mut compared),
                Err(e) => Err(io::Error::new(e.kind(), Arc::clone(e)).into()),
            };
            number += names.len() as u64;
            ready.push(match looked {
                Ok(Ok(found)) => Some(found),
                Ok(Err(not_unified)) => {
                    linked.left.extend(names.iter().map(|&at| (at, not_unified)));
                    None
                }
                Err(swap::Error::Unchanged(e)) if is_gone(&e) => {
                    linked.left.extend(names.iter().map(|&at| (at, NotUnified::Changed)));
                    None
                }
                Err(e) => {
                    self.fail(names, e, linked);
                    None
                }
            });
        }
        let stages = RefCell::new(vec![Stage::Waiting; ready.len()]);
        let change = self.shared.persist(|| self.link_all(&ready, &mut stages.borrow_mut()))?;
        self.note(change, linked);
        let mut stages = stages.into_inner();
        self.take_back(&ready, &mut stages, linked)?;
        linked.unfinished |= self.unfinished.get();
        let mut settled = 0;
        for ((names, ready), stage) in inodes.iter().zip(&ready).zip(&stages) {
            match (ready, stage) {
                (None, _) => {}
                (Some(_), Stage::Full) => return Ok(settled),
                (Some(ready), Stage::Linked) => self.let_go(ready, linked)?,
                (Some(_), Stage::Failed(Errno::STALE | Errno::NOENT)) => {
                    linked.left.extend(names.iter().map(|&at| (at, NotUnified::Changed)));
                }
                (Some(_), Stage::Failed(e)) => self.fail(names, io::Error::from(*e).into(), linked),
                (Some(_), Stage::Waiting) => {
                    linked.left.extend(names.iter().map(|&at| (at, NotUnified::Writer)))
                }
            }
            settled += 1;
        }
        Ok(settled)
    }

    fn note(&self, change: swap::SwapReport, linked: &mut Linked) {
        linked.contested += u64::from(change.contested);
        if change.leaked {
            linked.leaked.push(*self.object);
        }
    }

    /// Looks at a guest's inode under a lease, and compares it with the object if that was not done yet.
    fn look<'f>(
        &self,
        names: &[FileIndex],
        own: &'f OwnedFd,
        number: u64,
        dirs: &mut OpenDirs<'_>,
        compared: &mut bool,
    ) -> Result<Result<Ready<'f>, NotUnified>, swap::Error> {
        let catalog = self.linker.catalog;
        let Some(quiet) = take_lease(own)? else { return Ok(Err(NotUnified::Writer)) };
        let before = Inode::of(own)?;
        if !is_same(&before, &self.adoption.expected(catalog, names[0])) {
            return Ok(Err(NotUnified::Changed));
        }
        let attributes = xattr::read(own)?;
        let same_metadata = identity::same_metadata(&before, &self.inode, self.linker.pool().settings.mtime)
            && attributes == self.attributes;
        if let Some(limits) = self.unread {
            if let Some(kept) = self.keeps(names[0], own, &attributes, limits, dirs)? {
                return Ok(Err(kept));
            }
            if !same_metadata || !self.has_content_of(own)? {
                return Ok(Err(NotUnified::Different));
            }
        } else if !same_metadata || !*compared && !self.has_content_of(own)? {
            return Err(io::Error::other(ObjectError::Damaged).into());
        }
        *compared = true;
        let mut targets = Vec::with_capacity(names.len());
        for (&at, number) in names.iter().zip(number..) {
            let file = &catalog[at];
            targets.push(Target {
                at,
                dir: dirs.of(file)?,
                temporary: temporary(number),
                kept: kept(number),
            });
        }
        Ok(Ok(Ready { names: targets, own, quiet, before, attributes }))
    }

    /// What keeps a file as it is that has not been read, but for its content.
    fn keeps(
        &self,
        at: FileIndex,
        own: &OwnedFd,
        attributes: &xattr::Xattrs,
        limits: Limits,
        dirs: &mut OpenDirs<'_>,
    ) -> io::Result<Option<NotUnified>> {
        let file = &self.linker.catalog[at];
        if let Some(kept) = limits.keep(file, attributes) {
            return Ok(Some(kept));
        }
        let traits = Traits::of(own)?;
        if !limits.allow_project(traits, || dirs.handed_on(file))? {
            return Ok(Some(NotUnified::Project));
        }
        let is_other = identity::digest_xattrs(attributes, traits) != self.object.digest.xattrs;
        Ok(is_other.then_some(NotUnified::Different))
    }

    /// Links the names of every inode that is ready. Fails as a whole only if the object needs a window.
    fn link_all(&self, ready: &[Option<Ready<'_>>], stages: &mut [Stage]) -> rustix::io::Result<()> {
        let mut names = self.inode.nlink as usize;
        for (ready, stage) in ready.iter().zip(stages) {
            let (Some(ready), Stage::Waiting) = (ready, &*stage) else { continue };
            // A writer who came meanwhile would only be turned away again.
            if !ready.quiet.holds() {
                continue;
            }
            // Another inode would have no more room than one that has only its names in the pool.
            let is_empty = names <= 1 + usize::from(self.held);
            if !is_empty && names + ready.names.len() > MAX_LINKS_PER_OBJECT {
                *stage = Stage::Full;
                break;
            }
            *stage = match self.link_names(ready) {
                Ok(()) => {
                    names += ready.names.len();
                    Stage::Linked
                }
                Err((true, Errno::PERM)) => return Err(Errno::PERM),
                Err((true, Errno::MLINK)) if !is_empty => {
                    *stage = Stage::Full;
                    break;
                }
                Err((_, e)) => Stage::Failed(e),
            };
        }
        Ok(())
    }

    /// All names of an inode, or none. An error says whether the object refused another link.
    fn link_names(&self, ready: &Ready<'_>) -> Result<(), (bool, Errno)> {
        let file = self.object.file();
        let object = Name { dir: self.shelf.as_fd(), name: &file };
        for (at, target) in ready.names.iter().enumerate() {
            let temporary = Name { dir: self.linker.run().dir(), name: &target.temporary };
            let name = Name { dir: target.dir.as_fd(), name: self.name(target.at) };
            let kept = Name { dir: self.linker.run().dir(), name: &target.kept };
            let failed = match object.link(temporary) {
                Err(e) => (true, e),
                Ok(()) => match temporary.displace(name, ready.before.id, Some(kept)) {
                    Ok(()) => continue,
                    Err(e) => {
                        let _ = temporary.unlink();
                        (false, e)
                    }
                },
            };
            for target in &ready.names[..at] {
                self.give_back(target).unwrap_or_else(|e| self.leave_to_recovery(target, e));
            }
            return Err(failed);
        }
        Ok(())
    }

    /// The guest's own inode has its name again, unless that is another file's by now.
    ///
    /// # Errors
    /// `EPERM` if the object needs a window.
    fn give_back(&self, target: &Target) -> rustix::io::Result<()> {
        let kept = Name { dir: self.linker.run().dir(), name: &target.kept };
        let name = Name { dir: target.dir.as_fd(), name: self.name(target.at) };
        match kept.displace(name, self.inode.id, None) {
            Err(Errno::STALE) => kept.unlink(),
            given_back => given_back,
        }
    }

    fn leave_to_recovery(&self, target: &Target, error: Errno) {
        log::debug!("{}: {error}", Shown(self.name(target.at).as_ref()));
        self.unfinished.set(true);
    }

    /// Gives the names back of inodes that a writer has got hold of meanwhile.
    fn take_back(
        &self,
        ready: &[Option<Ready<'_>>],
        stages: &mut [Stage],
        linked: &mut Linked,
    ) -> Result<(), swap::Error> {
        let mut back = Vec::new();
        for (ready, stage) in ready.iter().zip(stages.iter_mut()) {
            let (Some(ready), Stage::Linked) = (ready, &*stage) else { continue };
            let untouched = ready.quiet.holds()
                && Inode::of(ready.own)?.same_content_as(&ready.before)
                && xattr::read(ready.own)? == ready.attributes;
            if !untouched {
                *stage = Stage::Waiting;
                back.push(ready);
            }
        }
        if back.is_empty() {
            return Ok(());
        }
        let change = self.shared.persist(|| {
            for target in back.iter().flat_map(|ready| &ready.names) {
                match self.give_back(target) {
                    Err(Errno::PERM) => return Err(Errno::PERM),
                    // Before the window some may have been given back.
                    Ok(()) | Err(Errno::NOENT) => {}
                    Err(e) => self.leave_to_recovery(target, e),
                }
            }
            Ok(())
        })?;
        self.note(change, linked);
        Ok(())
    }

    /// Lets a guest's own inode go.
    fn let_go(&self, ready: &Ready<'_>, linked: &mut Linked) -> Result<(), swap::Error> {
        for target in &ready.names {
            let kept = Name { dir: self.linker.run().dir(), name: &target.kept };
            // In a window if need be: its guest may have protected it meanwhile.
            swap::unlink_shared(kept, SHARED_LOCK_TIMEOUT)?;
            linked.names.push(target.at);
        }
        if ready.before.nlink as usize == ready.names.len() {
            linked.freed += ready.before.allocated;
        }
        Ok(())
    }

    fn name(&self, at: FileIndex) -> &OsStr {
        self.linker.catalog.name(&self.linker.catalog[at])
    }

    /// Whether the object has the content of a guest's file. Of an error it says whose it is.
    fn has_content_of(&self, own: &OwnedFd) -> io::Result<bool> {
        content::same_content(own, self.shared, self.inode.size).map_err(|e| {
            match Digest::of_quiet(self.shared) {
                Err(of_object) => io::Error::other(ObjectError::Unreadable(of_object)),
                Ok(_) => e,
            }
        })
    }

    fn fail(&self, names: &[FileIndex], error: swap::Error, linked: &mut Linked) {
        let is_objects = |e: &io::Error| e.get_ref().is_some_and(|e| e.is::<ObjectError>());
        if !matches!(&error, swap::Error::Unchanged(e) if is_objects(e)) {
            return self.linker.fail(names, &(Arc::new(error) as SharedError), linked);
        }
        let path = self.linker.pool().object_path(self.object);
        if !linked.failed.iter().any(|failed| failed.path == path) {
            linked.failed.push(FailedPath::new(path, error));
        }
        linked.left.extend(names.iter().map(|&at| (at, NotUnified::Damaged)));
    }
}

/// What is wrong with the object, not with the guest's file.
#[derive(Debug, thiserror::Error)]
enum ObjectError {
    #[error("the pool's object is damaged; run `cow-unify verify GUEST...` to repair it")]
    Damaged,
    #[error("{}", Reason(.0))]
    Unreadable(#[source] io::Error),
}

//! Reads files that may be equal, each inode once, while nobody writes to them.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use super::catalog::{Catalog, DirIndex, FileIndex, PrivateFile};
use super::not_unified::NotUnified;
use crate::parallel;
use crate::report::Watch;
use crate::sys::file::inode::Inode;
use crate::sys::file::times::is_settled;
use crate::sys::file::traits::{Traits, handed_on};
use crate::sys::file::xattr::Xattrs;
use crate::sys::path::resolve::is_absent;
use crate::sys::share::lease::Lease;
use crate::sys::share::swap::Name;
use crate::unify::pool::identity::Digest;

/// Files read by one thread in one go.
const FILES_PER_CHUNK: usize = 32;

/// What reading a file came to.
pub type Read = Result<Digest, Missed>;

/// Why there is no digest of a file.
#[derive(Debug)]
pub enum Missed {
    /// It is not to be unified now.
    NotUnified(NotUnified),
    /// It cannot be read.
    Failed(io::Error),
}

/// What keeps files that are read as they are.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Files with capabilities are read, too.
    pub allow_setid: bool,
    /// Inodes are to be shared, by links.
    pub links: bool,
    /// The project that the pool gives all that is made in it, and without which nothing gets a link in it.
    pub project: Option<u32>,
}

impl Limits {
    /// What keeps a file as it is that has these attributes.
    pub(crate) fn keep(&self, file: &PrivateFile, xattrs: &Xattrs) -> Option<NotUnified> {
        if !is_settled(file.ctime) {
            return Some(NotUnified::Changed);
        }
        (has_capabilities(xattrs) && !self.allow_setid).then_some(NotUnified::Capabilities)
    }

    /// Whether a link can join a file that has these traits with what is in the pool and in the file's directory.
    pub(crate) fn allow_project(
        &self,
        traits: Traits,
        directory: impl FnOnce() -> io::Result<Option<u32>>,
    ) -> io::Result<bool> {
        let is_strange = |handed_on: Option<u32>| handed_on.is_some_and(|only| only != traits.project);
        Ok(!self.links || !is_strange(self.project) && !is_strange(directory()?))
    }
}

/// Reads files that are told by their place in `catalog.files`.
pub(crate) fn digest(
    catalog: &Catalog,
    files: &[FileIndex],
    limits: Limits,
    threads: usize,
    watch: &dyn Watch,
) -> Vec<Read> {
    let chunks: Vec<&[FileIndex]> = files.chunks(FILES_PER_CHUNK).collect();
    let read = parallel::map(threads, &chunks, |chunk| {
        let mut dirs = OpenDirs::new(catalog);
        let mut bytes = 0;
        let results = chunk.iter().map(|&at| {
            let file = &catalog[at];
            bytes += file.size;
            let result = dirs.file(file).and_then(|opened| {
                let traits = Traits::of(&opened)?;
                if !limits.allow_project(traits, || dirs.handed_on(file))? {
                    return Ok(Err(NotUnified::Project));
                }
                read(&opened, file, traits, limits)
            });
            match result {
                Ok(read) => read.map_err(Missed::NotUnified),
                // Looked at again in the next run.
                Err(e) if is_gone(&e) => Err(Missed::NotUnified(NotUnified::Changed)),
                Err(e) => Err(Missed::Failed(e)),
            }
        });
        let results: Vec<Read> = results.collect();
        watch.add(results.len() as u64, bytes);
        results
    });
    read.into_iter().flatten().collect()
}

/// Under a lease: it proves that there was no writer when the reading began. One who has come since and changed
/// anything shows in the time of change, which is that of the scan or not; hence a file that has only just changed waits
/// for the next run.
fn read(
    opened: &OwnedFd,
    file: &PrivateFile,
    traits: Traits,
    limits: Limits,
) -> io::Result<Result<Digest, NotUnified>> {
    let Some(lease) = take_lease(opened)? else { return Ok(Err(NotUnified::Writer)) };
    let xattrs = crate::sys::file::xattr::read(opened)?;
    if let Some(kept) = limits.keep(file, &xattrs) {
        return Ok(Err(kept));
    }
    // A writer that comes is not kept waiting for the end of a large file.
    let Some(digest) = Digest::of(opened, file.size, (&xattrs, traits), || lease.holds())? else {
        return Ok(Err(NotUnified::Writer));
    };
    Ok(if is_same(&Inode::of(opened)?, file) { Ok(digest) } else { Err(NotUnified::Changed) })
}

/// Whether file capabilities are among the attributes (`capabilities(7)`).
fn has_capabilities(xattrs: &Xattrs) -> bool {
    xattrs.contains_key(c"security.capability")
}

/// Whether an inode is the one a scan saw, unchanged.
pub fn is_same(inode: &Inode, file: &PrivateFile) -> bool {
    inode.id.ino == file.ino && inode.size == file.size && inode.ctime.nanoseconds() == file.ctime
}

/// A lease, or what must do if the filesystem has none.
#[derive(Debug)]
pub enum Quiet<'fd> {
    /// Nobody has the file open for writing.
    Leased(Lease<'fd>),
    /// Nobody knows; a second look at the inode must do.
    Unknown,
}

impl Quiet<'_> {
    /// Whether no writer has come.
    pub fn holds(&self) -> bool {
        match self {
            Quiet::Leased(lease) => lease.unbroken().unwrap_or(false),
            Quiet::Unknown => true,
        }
    }
}

/// Takes a lease on a file; `None` if somebody has it open for writing.
pub(crate) fn take_lease(file: &impl AsFd) -> io::Result<Option<Quiet<'_>>> {
    match Lease::take(file.as_fd()) {
        Ok(lease) => Ok(lease.map(Quiet::Leased)),
        Err(e) if matches!(e.raw_os_error(), Some(libc::EINVAL | libc::ENOLCK)) => Ok(Some(Quiet::Unknown)),
        Err(e) => Err(e),
    }
}

/// Directories of a catalog, kept open: files come in runs of neighbours, of as many guests as there are.
pub struct OpenDirs<'c> {
    catalog: &'c Catalog,
    open: HashMap<DirIndex, (Rc<OwnedFd>, Option<Option<u32>>)>,
}

impl<'c> OpenDirs<'c> {
    /// None is open yet.
    pub fn new(catalog: &'c Catalog) -> OpenDirs<'c> {
        OpenDirs { catalog, open: HashMap::new() }
    }

    /// The directory of a file.
    pub fn of(&mut self, file: &PrivateFile) -> io::Result<Rc<OwnedFd>> {
        if !self.open.contains_key(&file.dir) {
            if self.open.len() >= 64 {
                self.open.clear();
            }
            let opened = self.catalog.open_dir(self.catalog.dir(file))?;
            self.open.insert(file.dir, (Rc::new(opened), None));
        }
        let found = self.open.get(&file.dir).map(|(dir, _)| Rc::clone(dir));
        found.ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// The project that the directory of a file gives all that is made in it.
    pub fn handed_on(&mut self, file: &PrivateFile) -> io::Result<Option<u32>> {
        let dir = self.of(file)?;
        match self.open.get_mut(&file.dir) {
            Some((_, Some(known))) => Ok(*known),
            Some((_, unknown)) => Ok(*unknown.insert(handed_on(dir)?)),
            None => handed_on(dir),
        }
    }

    /// Opens a file.
    pub fn file(&mut self, file: &PrivateFile) -> io::Result<OwnedFd> {
        let name = self.catalog.name(file);
        Name { dir: self.of(file)?.as_fd(), name }.open()
    }
}

/// Whether an error only says that the file is not there, or not the one it was.
pub(crate) fn is_gone(error: &io::Error) -> bool {
    is_absent(error) || matches!(error.raw_os_error(), Some(libc::ESTALE | libc::ELOOP))
}

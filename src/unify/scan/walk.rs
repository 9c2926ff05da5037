//! Finds the files of guests that may be unified, and looks again only at what may have changed.
//!
//! A directory whose time of change is the one an earlier run saw has the same names, and each of them the same inode:
//! those that were the pool's still are. So of such a directory only the private files are looked at.

use std::ffi::OsStr;
use std::io;
use std::mem::MaybeUninit;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};

use rustix::fs::OFlags;

use super::cache::{CachedDir, CachedDirs};
use super::catalog::{Catalog, Dir, DirIndex, FileIndex, GuestIndex};
use super::guest::GuestTree;
use super::not_unified::NotUnified;
use crate::parallel;
use crate::sys::budget::{self, Exceeded};
use crate::sys::file::inode::{Inode, InodeId, Kind};
use crate::sys::file::times::is_settled;
use crate::sys::path::resolve::is_absent;
use crate::sys::path::root::relative;
use crate::sys::path::tree;
use crate::unify::FailedPath;
use crate::unify::eligible::scope::Eligible;
use crate::unify::pool::identity::{self, Mtime};
use crate::unify::pool::object::ObjectIndex;
use crate::unify::pool::settings::Sharing;

/// What is looked for.
#[derive(Clone, Copy, Debug)]
pub struct ScanOptions<'a> {
    pub index: &'a ObjectIndex,
    pub share: Sharing,
    /// Whether times of modification must agree.
    pub mtime: Mtime,
    /// The smallest file, in bytes; an empty one never.
    pub min_size: u64,
    /// Unify set-id files and files with capabilities, too.
    pub allow_setid: bool,
    /// Only files of the same path may be equal.
    pub(crate) by_path: bool,
    /// Directories that are none of a guest's: the pool, other guests.
    pub borders: &'a [InodeId],
    /// How many threads look.
    pub threads: usize,
}

/// What is in the guest that has this number.
///
/// `remembered` is what an earlier run saw, by path. `eligible` is asked only if a directory has to be listed; it
/// says nothing if that cannot be known.
pub fn scan<'e>(
    guest: &GuestTree,
    number: GuestIndex,
    eligible: &(dyn Fn() -> Option<&'e Eligible> + Sync),
    remembered: &CachedDirs,
    wanted: &ScanOptions<'_>,
) -> Result<Catalog, Exceeded> {
    let room = Room::default();
    remembered.keys().for_each(|path| room.directory(path));
    let scanner = Scanner { guest, number, eligible, remembered, wanted, room: &room };
    let mut found = Catalog::default();
    let mut tasks = Vec::new();
    if remembered.is_empty() {
        tasks.push(PathBuf::from("/"));
    }
    let rows: Vec<(&PathBuf, &CachedDir)> = remembered.iter().collect();
    let chunks: Vec<&[(&PathBuf, &CachedDir)]> = rows.chunks(64).collect();
    let checked = parallel::map(wanted.threads, &chunks, |chunk| {
        let (mut part, mut again) = (Catalog::default(), Vec::new());
        for (path, row) in *chunk {
            if !scanner.unchanged(path, row, &mut part) {
                again.push((*path).clone());
            }
        }
        (part, again)
    });
    for (part, again) in checked {
        found.absorb(part);
        tasks.extend(again);
    }
    for part in walk(wanted.threads, tasks, |path, part, buffer| scanner.directory(path, part, buffer)) {
        found.absorb(part);
    }
    room.check()?;
    Ok(found)
}

/// What was kept of a guest so far, by all threads.
#[derive(Debug, Default)]
struct Room {
    path_bytes: AtomicUsize,
    files: AtomicUsize,
}

impl Room {
    fn directory(&self, path: &Path) {
        self.path_bytes.fetch_add(path.as_os_str().len() + budget::ENTRY, Ordering::Relaxed);
    }

    fn check(&self) -> Result<(), Exceeded> {
        let path_bytes = self.path_bytes.load(Ordering::Relaxed);
        Exceeded::check_count(path_bytes, budget::TREE_PATHS, "bytes in the paths of its directories")?;
        Exceeded::check_count(self.files.load(Ordering::Relaxed), budget::FILES, "files that may be unified")
    }
}

struct Scanner<'a, 'e> {
    guest: &'a GuestTree,
    number: GuestIndex,
    eligible: &'a (dyn Fn() -> Option<&'e Eligible> + Sync),
    remembered: &'a CachedDirs,
    wanted: &'a ScanOptions<'a>,
    room: &'a Room,
}

impl Scanner<'_, '_> {
    /// Looks at what an earlier run left private in a directory. `false` if the directory has changed.
    fn unchanged(&self, path: &Path, row: &CachedDir, part: &mut Catalog) -> bool {
        match self.guest.root.look(path) {
            Ok(inode)
                if inode.kind == Kind::Directory
                    && self.is_ours(&inode)
                    && inode.id.ino == row.ino
                    && inode.ctime.nanoseconds() == row.ctime => {}
            _ => return false,
        }
        if row.private.is_empty() {
            return true;
        }
        let dir = Dir {
            guest: self.number,
            path: path.to_path_buf(),
            ino: row.ino,
            ctime: row.ctime,
            fresh: false,
        };
        let dir = part.add_dir(dir);
        for private in &row.private {
            let file = path.join(&private.name);
            match self.guest.root.look(&file) {
                Ok(inode) if inode.kind == Kind::Regular => {
                    let at = self.add(part, dir, &private.name, &inode);
                    let same = inode.id.ino == private.ino && inode.ctime.nanoseconds() == private.ctime;
                    match private.digest {
                        Some(digest) if same => {
                            part.set_digest(at, digest);
                            part[at].shares_blocks = private.shares_blocks;
                        }
                        _ => part[dir].fresh |= !same,
                    }
                }
                // The directory has changed since it was looked at: the next run lists it.
                _ => {
                    part[dir].ctime = 0;
                    part[dir].fresh = true;
                }
            }
        }
        true
    }

    fn directory(&self, path: &Path, part: &mut Catalog, buffer: &mut [MaybeUninit<u8>]) -> Vec<PathBuf> {
        let mut below = Vec::new();
        if self.room.check().is_err() {
            return below;
        }
        match self.list(path, part, buffer, &mut below) {
            // Gone, or no longer a directory, since it was listed.
            Err(e) if is_absent(&e) => part.gone.push((self.number, path.to_path_buf())),
            Err(e) => part.unread.push(FailedPath::new(self.outer_path(path), e)),
            Ok(()) => {}
        }
        below
    }

    fn list(
        &self,
        path: &Path,
        part: &mut Catalog,
        buffer: &mut [MaybeUninit<u8>],
        below: &mut Vec<PathBuf>,
    ) -> io::Result<()> {
        let Some(all) = (self.eligible)() else { return Ok(()) };
        let Some(eligible) = all.directory(path) else { return Ok(()) };
        let fd = self.guest.root.open_walked(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW)?;
        let inode = Inode::of(&fd)?;
        let border = path != Path::new("/") && self.wanted.borders.contains(&inode.id);
        if border || !self.is_ours(&inode) {
            part.gone.push((self.number, path.to_path_buf()));
            return Ok(());
        }
        let changed = inode.ctime.nanoseconds();
        let dir = part.add_dir(Dir {
            guest: self.number,
            path: path.to_path_buf(),
            ino: inode.id.ino,
            ctime: if is_settled(changed) { changed } else { 0 },
            fresh: true,
        });
        let linked = self.wanted.share == Sharing::Hardlink;
        tree::entries(&fd, buffer, |name, kind, ino| {
            let looked = match kind {
                Kind::Regular if !eligible.file(name) => return,
                Kind::Regular if linked && self.wanted.index.holds(ino) => {
                    let quarantined = self.wanted.index.is_quarantined(ino);
                    *(if quarantined { &mut part.damaged } else { &mut part.shared }) += 1;
                    return;
                }
                Kind::Regular | Kind::Unknown => Some(Inode::at(&fd, name)),
                Kind::Directory => None,
                _ => return,
            };
            match looked {
                Some(Ok(inode)) if inode.kind == Kind::Regular => {
                    if eligible.file(name) && self.room.check().is_ok() {
                        self.add(part, dir, name, &inode);
                    }
                }
                Some(Ok(inode)) if inode.kind != Kind::Directory => {}
                // Gone since it was listed: the directory has changed again.
                Some(Err(_)) => part[dir].ctime = 0,
                _ => {
                    let mut path = path.join(name);
                    let is_new = !self.remembered.contains_key(&path);
                    if is_new && self.room.check().is_ok() && all.directory(&path).is_some() {
                        self.room.directory(&path);
                        // It has room for twice as much.
                        path.shrink_to_fit();
                        below.push(path);
                    }
                }
            }
        })
    }

    fn outer_path(&self, path: &Path) -> PathBuf {
        self.guest.root.path().join(relative(path))
    }

    /// Whether a file or directory is on the filesystem and mount of the guest's root.
    fn is_ours(&self, inode: &Inode) -> bool {
        inode.id.dev == self.guest.inode.id.dev && inode.mount == self.guest.inode.mount
    }

    fn add(&self, part: &mut Catalog, dir: DirIndex, name: &OsStr, inode: &Inode) -> FileIndex {
        let not_unified = not_unified(inode, self.guest, self.wanted.min_size, self.wanted.allow_setid);
        self.room.files.fetch_add(1, Ordering::Relaxed);
        let salt = identity::salt(self.wanted.by_path, || part[dir].path.join(name));
        part.add_file(dir, name, inode, identity::tag(inode, self.wanted.mtime) ^ salt, not_unified)
    }
}

/// Why a regular file of a guest stays as it is, by its inode alone.
pub fn not_unified(inode: &Inode, guest: &GuestTree, min_size: u64, allow_setid: bool) -> Option<NotUnified> {
    if inode.size < min_size.max(1) {
        Some(NotUnified::Small)
    } else if inode.mode & 0o6000 != 0 && !allow_setid {
        Some(NotUnified::SetId)
    } else if inode.immutable || inode.append_only {
        Some(NotUnified::Protected)
    } else if inode.id.dev != guest.inode.id.dev || inode.mount != guest.inode.mount {
        Some(NotUnified::OtherMount)
    } else {
        None
    }
}

/// Visits directories on several threads, those that a visit returns as well.
fn walk(
    threads: usize,
    tasks: Vec<PathBuf>,
    visit: impl Fn(&Path, &mut Catalog, &mut [MaybeUninit<u8>]) -> Vec<PathBuf> + Sync,
) -> Vec<Catalog> {
    struct Queue {
        waiting: Vec<PathBuf>,
        at_work: usize,
    }
    let queue = Mutex::new(Queue { waiting: tasks, at_work: 0 });
    let more = Condvar::new();
    let work = || {
        let mut part = Catalog::default();
        let mut buffer = tree::listing_buffer();
        let mut state = queue.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(task) = state.waiting.pop() {
                state.at_work += 1;
                drop(state);
                let new = visit(&task, &mut part, &mut buffer);
                state = queue.lock().unwrap_or_else(PoisonError::into_inner);
                state.at_work -= 1;
                state.waiting.extend(new);
                more.notify_all();
            } else if state.at_work == 0 {
                return part;
            } else {
                state = more.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
        }
    };
    parallel::on_each(threads, work)
}

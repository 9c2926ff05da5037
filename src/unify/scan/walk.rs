//! Finds the files of guests that may be unified, and looks again only at what may have changed.
//!
//! A directory whose time of change is the one an earlier run saw has the same names, and each of them the same inode:
//! those that were the pool's still are. So of such a directory only the private files are looked at.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::io;
use std::mem::MaybeUninit;
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, PoisonError};

use rustix::fs::OFlags;

use super::cache::{Remembered, Row};
use super::catalog::{Catalog, Dir, File, Guest, Unfit, nanoseconds};
use crate::parallel;
use crate::report::{Reason, Shown};
use crate::state::store::is_unable;
use crate::sys::file::inode::{Inode, InodeId, Kind};
use crate::sys::file::times::{TICK, now};
use crate::sys::path::resolve::is_absent;
use crate::sys::path::root::relative;
use crate::sys::path::tree;
use crate::sys::process::mounts::MountPoints;
use crate::unify::eligible::scope::Eligible;
use crate::unify::pool::directory::Share;
use crate::unify::pool::identity::{self, Mtime};
use crate::unify::pool::object::Index;

/// Whether a change from now on will show in a time of change that is this one now.
pub fn is_settled(ctime: i64) -> bool {
    ctime < now().saturating_sub(TICK.as_nanos() as i64)
}

/// What is looked for.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// What is known of the pool.
    pub index: &'a Index,
    /// How files are shared.
    pub share: Share,
    /// Whether times of modification must agree.
    pub mtime: Mtime,
    /// The smallest file, in bytes; an empty one never.
    pub min_size: u64,
    /// Unify set-id files and files with capabilities, too.
    pub allow_setid: bool,
    /// Only files of the same path may be equal.
    pub by_path: bool,
    /// Directories that are none of a guest's: the pool, other guests.
    pub borders: &'a [InodeId],
    /// How many threads look.
    pub threads: usize,
}

/// What is in the guest that has this number.
///
/// `remembered` is what an earlier run saw, by path. `eligible` is asked only where a directory has to be listed; it
/// says nothing where that cannot be known.
pub fn scan<'e>(
    guest: &Guest,
    number: u16,
    eligible: &(dyn Fn() -> Option<&'e Eligible> + Sync),
    remembered: &Remembered,
    wanted: &Wanted<'_>,
) -> Catalog {
    let scanner = Scanner { guest, number, eligible, remembered, wanted };
    let mut found = Catalog::default();
    let mut tasks = Vec::new();
    if remembered.is_empty() {
        tasks.push(PathBuf::from("/"));
    }
    let rows: Vec<(&PathBuf, &Row)> = remembered.iter().collect();
    let chunks: Vec<&[(&PathBuf, &Row)]> = rows.chunks(64).collect();
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
    found
}

struct Scanner<'a, 'e> {
    guest: &'a Guest,
    number: u16,
    eligible: &'a (dyn Fn() -> Option<&'e Eligible> + Sync),
    remembered: &'a Remembered,
    wanted: &'a Wanted<'a>,
}

impl Scanner<'_, '_> {
    /// Looks at what an earlier run left private in a directory. `false` where the directory has changed.
    fn unchanged(&self, path: &Path, row: &Row, part: &mut Catalog) -> bool {
        match self.guest.root.look(path) {
            Ok(inode)
                if inode.kind == Kind::Directory
                    && self.is_ours(&inode)
                    && inode.id.ino == row.ino
                    && nanoseconds(inode.ctime) == row.ctime => {}
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
                    self.add(part, dir, &private.name, &inode);
                    let same = inode.id.ino == private.ino && nanoseconds(inode.ctime) == private.ctime;
                    match private.digest {
                        Some(digest) if same => {
                            let at = part.files.len() - 1;
                            part.set_digest(at, digest);
                            part.files[at].shares_blocks = private.shares_blocks;
                        }
                        _ => part.dirs[dir as usize].fresh |= !same,
                    }
                }
                // The directory has changed since it was looked at: the next run lists it.
                _ => {
                    part.dirs[dir as usize].ctime = 0;
                    part.dirs[dir as usize].fresh = true;
                }
            }
        }
        true
    }

    fn directory(&self, path: &Path, part: &mut Catalog, buffer: &mut [MaybeUninit<u8>]) -> Vec<PathBuf> {
        let mut below = Vec::new();
        match self.list(path, part, buffer, &mut below) {
            // Gone, or no longer a directory, since it was listed.
            Err(e) if is_absent(&e) => part.gone.push((self.number, path.to_path_buf())),
            Err(e) => part.unread.push((self.outer_path(path), Reason(e).to_string())),
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
        let fd = self.guest.root.open_at(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW)?;
        let inode = Inode::of(&fd)?;
        let border = path != Path::new("/") && self.wanted.borders.contains(&inode.id);
        if border || !self.is_ours(&inode) {
            part.gone.push((self.number, path.to_path_buf()));
            return Ok(());
        }
        let changed = nanoseconds(inode.ctime);
        let dir = part.add_dir(Dir {
            guest: self.number,
            path: path.to_path_buf(),
            ino: inode.id.ino,
            ctime: if is_settled(changed) { changed } else { 0 },
            fresh: true,
        });
        let linked = self.wanted.share == Share::Hardlink;
        tree::entries(&fd, buffer, |name, kind, ino| {
            let looked = match kind {
                Kind::Regular if !eligible.file(name) => return,
                Kind::Regular if linked && self.wanted.index.holds(ino) => {
                    let set_aside = self.wanted.index.is_set_aside(ino);
                    *(if set_aside { &mut part.damaged } else { &mut part.shared }) += 1;
                    return;
                }
                Kind::Regular | Kind::Unknown => Some(Inode::at(&fd, name)),
                Kind::Directory => None,
                _ => return,
            };
            match looked {
                Some(Ok(inode)) if inode.kind == Kind::Regular => {
                    if eligible.file(name) {
                        self.add(part, dir, name, &inode);
                    }
                }
                Some(Ok(inode)) if inode.kind != Kind::Directory => {}
                // Gone since it was listed: the directory has changed again.
                Some(Err(_)) => part.dirs[dir as usize].ctime = 0,
                _ => {
                    let path = path.join(name);
                    if !self.remembered.contains_key(&path) && all.directory(&path).is_some() {
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

    fn add(&self, part: &mut Catalog, dir: u32, name: &OsStr, inode: &Inode) {
        let unfit = unfit(inode, self.guest, self.wanted.min_size, self.wanted.allow_setid);
        let salt = identity::salt(self.wanted.by_path, || part.dirs[dir as usize].path.join(name));
        part.add_file(dir, name, inode, identity::tag(inode, self.wanted.mtime) ^ salt, unfit);
    }
}

/// Why a regular file of a guest stays as it is, by its inode alone.
pub fn unfit(inode: &Inode, guest: &Guest, min_size: u64, allow_setid: bool) -> Option<Unfit> {
    if inode.size < min_size.max(1) {
        Some(Unfit::Small)
    } else if inode.mode & 0o6000 != 0 && !allow_setid {
        Some(Unfit::SetId)
    } else if inode.immutable || inode.append_only {
        Some(Unfit::Protected)
    } else if inode.id.dev != guest.inode.id.dev || inode.mount != guest.inode.mount {
        Some(Unfit::OtherMount)
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
    std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
        let mut parts = vec![work()];
        for other in others {
            match other.join() {
                Ok(part) => parts.push(part),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        parts
    })
}

/// Marks the files of guests that have said that they cannot clear the immutable flag.
pub fn mark_unable(catalog: &mut Catalog) {
    let unable: Vec<bool> = catalog.guests.iter().map(|guest| is_unable(&guest.root)).collect();
    for (guest, _) in catalog.guests.iter().zip(&unable).filter(|(_, unable)| **unable) {
        log::warn!(
            "{}: left as it is: its hooks may not clear the immutable flag, so its package manager could not replace \
             shared files; what it shares `cow-unify detach {0}` makes private",
            Shown(guest.root.path())
        );
    }
    for file in &mut catalog.files {
        let guest = usize::from(catalog.dirs[file.dir as usize].guest);
        if unable[guest] {
            file.unfit.get_or_insert(Unfit::Unable);
        }
    }
}

/// Marks the files on whose names something is mounted where only some processes see it, under all their names.
pub fn mark_mount_points(catalog: &mut Catalog) {
    if catalog.files.iter().all(|file| file.unfit.is_some()) {
        return;
    }
    let mounted = MountPoints::look().unwrap_or_else(|e| {
        log::warn!("what is mounted in guests cannot be seen: {}", Reason(e));
        MountPoints::default()
    });
    let is_mounted = |file: &&File| mounted.are_on(catalog.name(file), || Some(catalog.dir_id(file)));
    let ids: HashSet<InodeId> =
        catalog.files.iter().filter(is_mounted).map(|file| catalog.id(file)).collect();
    for at in 0..catalog.files.len() {
        if !ids.is_empty() && ids.contains(&catalog.id(&catalog.files[at])) {
            catalog.files[at].unfit.get_or_insert(Unfit::MountPoint);
        }
    }
}

/// Marks the files whose names are not all of the same path: where these alone may be equal, unifying would cut the
/// names off from one another.
pub fn mark_several_names(catalog: &mut Catalog) {
    // Where paths count, they are part of the keys.
    let mut keys: HashMap<InodeId, u64> = HashMap::new();
    let mut several: HashSet<InodeId> = HashSet::new();
    for file in catalog.files.iter().filter(|file| file.nlink > 1) {
        let id = catalog.id(file);
        if *keys.entry(id).or_insert(file.key) != file.key {
            several.insert(id);
        }
    }
    for at in 0..catalog.files.len() {
        let file = &catalog.files[at];
        if file.unfit.is_none() && file.nlink > 1 && several.contains(&catalog.id(file)) {
            catalog.files[at].unfit = Some(Unfit::SeveralNames);
        }
    }
}

/// Marks the files whose names were not all found: unifying these would cut them off from the others.
pub fn mark_linked_elsewhere(catalog: &mut Catalog) {
    let linked = || catalog.files.iter().filter(|file| file.nlink > 1);
    let mut names: HashMap<InodeId, u32> = HashMap::new();
    for file in linked() {
        *names.entry(catalog.id(file)).or_default() += 1;
    }
    let apart: Vec<usize> = (0..catalog.files.len())
        .filter(|&at| {
            let file = &catalog.files[at];
            file.nlink > 1 && names[&catalog.id(file)] < file.nlink
        })
        .collect();
    for at in apart {
        let unfit = &mut catalog.files[at].unfit;
        match unfit {
            None => *unfit = Some(Unfit::LinkedElsewhere),
            // The administrator's own has no names that nobody knows of.
            Some(Unfit::Protected) => *unfit = Some(Unfit::OtherPool),
            Some(_) => {}
        }
    }
}

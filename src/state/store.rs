//! Where ledger, lock, stash and spool lie in a guest.
//!
//! `/var/lib/cow-hooks` holds them all (0700). A host that works on a guest from outside (`--root`) shares the lock
//! and the spool, but has a stash of its own there, in `host/`, and its ledger on its own side: a guest's database is
//! never opened from outside, for nothing a guest says is trusted.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::OFlags;

use crate::report::Shown;
use crate::sys::file::inode::{Inode, Time};
use crate::sys::file::times;
use crate::sys::path::dirfd;
use crate::sys::path::root::{Root, read_at_most};
use crate::sys::seccomp::message::Message;
use crate::sys::share::lock;

/// The directory of everything that is ours in a guest.
pub const STATE_DIR: &str = "/var/lib/cow-hooks";
const LEDGER: &str = "ledger.db";
const STASH: &str = "stash";
const SPOOL: &str = "spool";
const CHANGED: &str = "changed";
const TAKEN: &str = "taken-";
const MEMBERS: &str = "members";
const PLANNED: &str = "planned";
const UNABLE: &str = "unable";
const LOCK: &str = "lock";

/// The largest list that is read, in bytes, and how many the host reads in one run, of how many bytes in all: what a guest
/// holds is not to fill the host's memory.
const LARGEST_LIST: usize = 16 << 20;
const MOST_LISTS: usize = 64;
const MOST_LISTED: usize = 64 << 20;

/// The state directory of a guest, opened or made.
#[derive(Debug)]
pub struct Store {
    top: OwnedFd,
    area: OwnedFd,
    stash: OwnedFd,
    stash_inode: Inode,
    ledger: PathBuf,
}

/// While it lives, no other process of this guest detaches, settles or recovers.
#[derive(Debug)]
pub struct Locked {
    _file: OwnedFd,
}

impl Store {
    /// Opens the guest's store, made where it is missing.
    ///
    /// Who does that changes names of unified files itself: a supervisor must not do it a second time.
    pub fn open(root: &Root) -> io::Result<Store> {
        Message::Exempt.send();
        let top = dirfd::make_dir(root, Path::new(STATE_DIR))?;
        let area = dirfd::make_dir(root, &area_path(root))?;
        let stash = dirfd::make_dir_at(&area, OsStr::new(STASH))?;
        let stash_inode = Inode::of(&stash)?;
        let ledger = ledger_path(root)?;
        if let Some(dir) = ledger.parent().filter(|_| !root.is_own()) {
            dirfd::make_dir(&Root::open(Path::new("/"))?, dir)?;
        }
        Ok(Store { top, area, stash, stash_inode, ledger })
    }

    /// Opens the guest's store if anything was ever kept in it.
    pub fn existing(root: &Root) -> io::Result<Option<Store>> {
        let exists = |path: &Path| match root.open_at(path, OFlags::PATH) {
            Ok(_) => Ok(true),
            Err(e) if crate::sys::path::resolve::is_absent(&e) => Ok(false),
            Err(e) => Err(e),
        };
        let stash = area_path(root).join(STASH);
        if exists(&stash)? { Store::open(root).map(Some) } else { Ok(None) }
    }

    /// Takes the lock of the store, waiting at most `patience`.
    pub fn lock(&self, patience: Duration) -> io::Result<Locked> {
        let file = dirfd::open_lock_file(&self.top, OsStr::new(LOCK))?;
        lock::exclusive(&file, patience)?;
        Ok(Locked { _file: file })
    }

    /// The path of the ledger, for the calling process.
    pub fn ledger_path(&self) -> &Path {
        &self.ledger
    }

    /// The directory of everything that is ours.
    pub fn top(&self) -> BorrowedFd<'_> {
        self.top.as_fd()
    }

    /// The directory of private copies to be, and of originals that may come back.
    pub fn stash(&self) -> BorrowedFd<'_> {
        self.stash.as_fd()
    }

    /// Whether names can move between the stash and a directory with this inode.
    pub fn reaches(&self, inode: &Inode) -> bool {
        // Where cow-hooks was just removed the stash is gone, too.
        let exists = || Inode::of(&self.stash).is_ok_and(|stash| stash.nlink > 0);
        inode.id.dev == self.stash_inode.id.dev && inode.mount == self.stash_inode.mount && exists()
    }

    /// The directory of the processes that take part in the open transaction.
    pub fn members(&self) -> io::Result<OwnedFd> {
        dirfd::make_dir_at(&self.area, OsStr::new(MEMBERS))
    }

    /// What the directory of members is, without opening it.
    pub fn members_inode(&self) -> io::Result<Inode> {
        Inode::at(&self.area, OsStr::new(MEMBERS))
    }

    /// Adds paths to the spool, the host's list of what has changed since it last looked.
    ///
    /// One path after the other, each ended by a NUL byte; replaced whole, so that the host may take it at any time.
    pub fn spool(&self, paths: &BTreeSet<PathBuf>) -> io::Result<()> {
        if paths.is_empty() {
            return Ok(());
        }
        let dir = dirfd::make_dir_at(&self.top, OsStr::new(SPOOL))?;
        let mut all = read_list(&dir, OsStr::new(CHANGED))?;
        all.extend(paths.iter().cloned());
        replace_list(&dir, CHANGED, &all)
    }

    /// Writes down what the open transaction is going to change: only a hint, for what is told once costs less.
    pub fn plan(&self, paths: &BTreeSet<PathBuf>) -> io::Result<()> {
        replace_list(&self.area, PLANNED, paths)
    }

    /// What the open transaction is going to change, as far as that was written down.
    pub fn planned(&self) -> io::Result<BTreeSet<PathBuf>> {
        read_list(&self.area, OsStr::new(PLANNED))
    }

    /// Forgets what was planned.
    pub fn forget_plan(&self) -> io::Result<()> {
        dirfd::remove_file(&self.area, OsStr::new(PLANNED))
    }
}

/// Whether the host may change names in a guest now.
#[derive(Debug)]
pub enum Claim {
    /// No hooks of ours are in it: nobody to agree with.
    Unhooked,
    /// While this lives, no hook in the guest begins or ends anything.
    Held(Locked),
    /// A package manager is at work there, or was killed: its files are detached for it.
    Busy,
}

/// Keeps the hooks of a guest waiting for a moment, from outside.
pub fn claim(root: &Root, patience: Duration) -> io::Result<Claim> {
    let open = |path: &Path| {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW;
        match root.open_at(path, flags) {
            Ok(dir) => Ok(Some(dir)),
            Err(e) if crate::sys::path::resolve::is_absent(&e) => Ok(None),
            Err(e) => Err(e),
        }
    };
    let top = Path::new(STATE_DIR);
    let Some(dir) = open(top)? else { return Ok(Claim::Unhooked) };
    let file = dirfd::open_lock_file(&dir, OsStr::new(LOCK))?;
    match lock::exclusive(&file, patience) {
        Err(e) if e.kind() == io::ErrorKind::TimedOut => return Ok(Claim::Busy),
        locked => locked?,
    }
    for members in [top.join(MEMBERS), top.join("host").join(MEMBERS)] {
        if let Some(members) = open(&members)?
            && !dirfd::names(members)?.is_empty()
        {
            return Ok(Claim::Busy);
        }
    }
    Ok(Claim::Held(Locked { _file: file }))
}

/// Whether a guest has written down that it cannot make shared files private by itself.
pub fn is_unable(root: &Root) -> bool {
    root.open_at(&Path::new(STATE_DIR).join(UNABLE), OFlags::PATH | OFlags::NOFOLLOW).is_ok()
}

/// Writes down in the guest that it cannot, or that it can: the host does not unify what nobody there could change.
pub fn note_unable(root: &Root, unable: bool) -> io::Result<()> {
    if unable == is_unable(root) {
        return Ok(());
    }
    let top = dirfd::make_dir(root, Path::new(STATE_DIR))?;
    if unable {
        dirfd::replace_file(&top, OsStr::new(UNABLE), b"")
    } else {
        dirfd::remove_file(&top, OsStr::new(UNABLE))
    }
}

/// Whether the stash of a guest's own hooks holds originals that may come back.
pub fn stashes(root: &Root) -> io::Result<bool> {
    match root.open_dir(&Path::new(STATE_DIR).join(STASH)) {
        Ok(dir) => Ok(!dirfd::names(dir)?.is_empty()),
        Err(e) if crate::sys::path::resolve::is_absent(&e) => Ok(false),
        Err(e) => Err(e),
    }
}

/// What is missing of the way to a guest's state directory, and when what is there was modified: to leave no trace of
/// work from outside in a guest that has no hooks of ours.
#[derive(Debug)]
pub struct Traces {
    missing: Vec<PathBuf>,
    modified: Vec<(PathBuf, Time)>,
}

impl Traces {
    /// Looks before the work begins.
    pub fn before(root: &Root) -> io::Result<Traces> {
        let mut traces = Traces { missing: Vec::new(), modified: Vec::new() };
        for path in Path::new(STATE_DIR).ancestors() {
            match root.open_dir(path) {
                Ok(dir) => traces.modified.push((path.to_path_buf(), Inode::of(dir)?.mtime)),
                Err(e) if crate::sys::path::resolve::is_absent(&e) => traces.missing.push(path.to_path_buf()),
                Err(e) => return Err(e),
            }
        }
        Ok(traces)
    }

    /// Removes what work from outside has made, as far as it is empty: a killed one's, too.
    pub fn remove(self, root: &Root, patience: Duration) -> io::Result<()> {
        let top = Path::new(STATE_DIR);
        let remove = |path: &Path| match (path.parent(), path.file_name()) {
            (Some(parent), Some(name)) => match root.open_dir(parent) {
                Ok(dir) => dirfd::remove_dir(dir, name).map(drop),
                Err(e) if crate::sys::path::resolve::is_absent(&e) => Ok(()),
                Err(e) => Err(e),
            },
            _ => Ok(()),
        };
        for path in [top.join("host").join(STASH), top.join("host").join(MEMBERS), top.join("host")] {
            remove(&path)?;
        }
        // Under the lock: nobody who has it is at work, whoever comes later makes it anew.
        if let Claim::Held(_lock) = claim(root, patience)? {
            let dir = root.open_dir(top)?;
            if dirfd::names(&dir)?.iter().all(|name| name == LOCK) {
                dirfd::remove_file(&dir, OsStr::new(LOCK))?;
                remove(top)?;
            }
        }
        // From the inside out: only what was made for this.
        self.missing.iter().try_for_each(|path| remove(path))?;
        for (path, modified) in self.modified {
            match root.open_dir(&path) {
                Ok(dir) => times::set_modified(dir, modified)?,
                Err(e) if crate::sys::path::resolve::is_absent(&e) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}

/// The paths in the guest's spool.
pub fn read_spool(root: &Root) -> io::Result<BTreeSet<PathBuf>> {
    match spool_dir(root)? {
        Some(dir) => read_list(&dir, OsStr::new(CHANGED)),
        None => Ok(BTreeSet::new()),
    }
}

/// What the host has taken out of a guest's spool, and not yet worked off.
#[derive(Debug)]
pub struct Taken {
    dir: Option<OwnedFd>,
    files: Vec<OsString>,
    /// The paths; whatever a guest may have written there.
    pub paths: BTreeSet<PathBuf>,
}

impl Taken {
    /// They have been worked off, but for those in `waiting`, which the host looks at again the next time.
    pub fn release(self, waiting: &BTreeSet<PathBuf>) -> io::Result<()> {
        let Some(dir) = &self.dir else { return Ok(()) };
        let mut files = self.files.iter();
        let again: BTreeSet<PathBuf> = self.paths.intersection(waiting).cloned().collect();
        if let Some(file) = files.next().filter(|_| !again.is_empty()) {
            replace_list(dir, file, &again)?;
            return files.try_for_each(|file| dirfd::remove_file(dir, file));
        }
        self.files.iter().try_for_each(|file| dirfd::remove_file(dir, file))
    }
}

/// Takes what is in a guest's spool, and what an interrupted run of the host had taken.
///
/// Until it is released it stays there, under another name: nothing is lost if the host is interrupted. What is too much
/// for one run is left for the next.
pub fn take_spool(root: &Root) -> io::Result<Taken> {
    let Some(dir) = spool_dir(root)? else {
        return Ok(Taken { dir: None, files: Vec::new(), paths: BTreeSet::new() });
    };
    let is_taken = |name: &OsString| name.as_bytes().starts_with(TAKEN.as_bytes());
    let mut taken: Vec<OsString> = dirfd::names(&dir)?.into_iter().filter(is_taken).collect();
    taken.truncate(MOST_LISTS);
    let number =
        (0..).map(|number| OsString::from(format!("{TAKEN}{number}"))).find(|name| !taken.contains(name));
    if let Some(name) = number.filter(|_| taken.len() < MOST_LISTS) {
        match dirfd::rename(&dir, OsStr::new(CHANGED), &name) {
            Ok(()) => taken.push(name),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
    }
    let (mut files, mut paths, mut room) = (Vec::new(), BTreeSet::new(), MOST_LISTED);
    for file in taken {
        let content = read_content(&dir, &file)?;
        let Some(left) = room.checked_sub(content.len()) else { break };
        room = left;
        paths.extend(parse_list(&content));
        files.push(file);
    }
    Ok(Taken { dir: Some(dir), files, paths })
}

fn spool_dir(root: &Root) -> io::Result<Option<OwnedFd>> {
    match root.open_dir(&Path::new(STATE_DIR).join(SPOOL)) {
        Ok(dir) => Ok(Some(dir)),
        Err(e) if crate::sys::path::resolve::is_absent(&e) => Ok(None),
        Err(e) => Err(e),
    }
}

fn replace_list(dir: &OwnedFd, file: impl AsRef<OsStr>, paths: &BTreeSet<PathBuf>) -> io::Result<()> {
    let mut content = Vec::new();
    for path in paths {
        content.extend_from_slice(path.as_os_str().as_bytes());
        content.push(0);
    }
    dirfd::replace_file(dir, file.as_ref(), &content)
}

fn read_list(dir: &OwnedFd, file: &OsStr) -> io::Result<BTreeSet<PathBuf>> {
    Ok(parse_list(&read_content(dir, file)?).collect())
}

/// What is in a list; nothing if it is too large, so that nobody is stuck with it.
fn read_content(dir: &OwnedFd, file: &OsStr) -> io::Result<Vec<u8>> {
    match read_at_most(dir, file, LARGEST_LIST) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) if e.kind() == io::ErrorKind::FileTooLarge => {
            log::warn!(
                "a guest's list {} is too large to be read: `cow-unify` without --changed finds the files it names",
                Shown(Path::new(file))
            );
            Ok(Vec::new())
        }
        content => content,
    }
}

fn parse_list(content: &[u8]) -> impl Iterator<Item = PathBuf> {
    let paths = content.split(|&b| b == 0).filter(|path| !path.is_empty());
    paths.map(|path| PathBuf::from(OsString::from_vec(path.to_vec())))
}

/// The directory of stash and members: the guest's own, or the one for work from outside.
fn area_path(root: &Root) -> PathBuf {
    let top = Path::new(STATE_DIR);
    if root.is_own() { top.to_path_buf() } else { top.join("host") }
}

/// Where the ledger of work on this root lies, as a path of the calling process.
fn ledger_path(root: &Root) -> io::Result<PathBuf> {
    let top = Path::new(STATE_DIR);
    if root.is_own() {
        return Ok(top.join(LEDGER));
    }
    // One directory a root, named after its path.
    let path = std::fs::canonicalize(root.path())?;
    let mut name = Vec::new();
    for &byte in path.as_os_str().as_bytes().iter().skip(1) {
        match byte {
            b'/' => name.extend_from_slice(b"%2f"),
            b'%' => name.extend_from_slice(b"%25"),
            other => name.push(other),
        }
    }
    Ok(top.join("roots").join(OsString::from_vec(name)).join(LEDGER))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spool_is_read_within_limits_and_worked_off_all_the_same() {
        let guest = tempfile::tempdir().unwrap();
        let spool = guest.path().join(&STATE_DIR[1..]).join(SPOOL);
        std::fs::create_dir_all(&spool).unwrap();
        let root = Root::open(guest.path()).unwrap();
        let left = || std::fs::read_dir(&spool).unwrap().count();
        let write = |name: &str, content: &[u8]| std::fs::write(spool.join(name), content).unwrap();

        // One that is too large keeps nobody from the others.
        write("taken-0", &vec![b'x'; LARGEST_LIST + 1]);
        write(CHANGED, b"/a\0/b\0");
        let taken = take_spool(&root).unwrap();
        assert_eq!(taken.paths, [PathBuf::from("/a"), PathBuf::from("/b")].into());
        taken.release(&BTreeSet::new()).unwrap();
        assert_eq!(left(), 0);

        // Too many, and too much in all.
        (0..MOST_LISTS + 3).for_each(|number| write(&format!("{TAKEN}{number}"), b"/c\0"));
        write(CHANGED, b"/d\0");
        let taken = take_spool(&root).unwrap();
        assert_eq!(taken.files.len(), MOST_LISTS);
        taken.release(&BTreeSet::new()).unwrap();
        assert_eq!(left(), 4);
        (0..5).for_each(|number| write(&format!("{TAKEN}{number}"), &vec![0; LARGEST_LIST]));
        let mut runs = 0;
        while left() > 0 {
            let taken = take_spool(&root).unwrap();
            assert!(taken.files.len() <= 7);
            taken.release(&BTreeSet::new()).unwrap();
            runs += 1;
        }
        assert_eq!(runs, 2);
    }
}

//! The spool: what has changed in a guest since the host last looked.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::lists::{parse_list, read_content, read_list, replace_list};
use super::store::{STATE_DIR, Store};
use crate::sys::budget::{self, Exceeded};
use crate::sys::file::inode::Inode;
use crate::sys::path::dirfd;
use crate::sys::path::root::Root;

const SPOOL: &str = "spool";
const CHANGED: &str = "changed";
const TAKEN: &str = "taken-";

impl Store {
    /// Adds paths to the spool, the host's list of what has changed since it last looked.
    ///
    /// One path after the other, each ended by a NUL byte; replaced whole, so that the host may take it at any time.
    pub fn spool(&self, paths: &BTreeSet<PathBuf>) -> io::Result<()> {
        if paths.is_empty() {
            return Ok(());
        }
        let dir = dirfd::make_dir_at(self.top(), OsStr::new(SPOOL))?;
        let mut all = read_list(&dir, OsStr::new(CHANGED))?;
        all.extend(paths.iter().cloned());
        replace_list(&dir, CHANGED, &all)
    }
}

/// The paths in the guest's spool.
pub fn read_spool(root: &Root) -> io::Result<BTreeSet<PathBuf>> {
    match spool_dir(root)? {
        Some(dir) => read_list(&dir, OsStr::new(CHANGED)),
        None => Ok(BTreeSet::new()),
    }
}

/// When the oldest list in the spool was last added to; `None` if there is none.
pub fn waits_since(root: &Root) -> io::Result<Option<SystemTime>> {
    let Some(dir) = spool_dir(root)? else { return Ok(None) };
    let is_list = |name: &OsStr| name == CHANGED || name.as_bytes().starts_with(TAKEN.as_bytes());
    let mut oldest = None;
    for name in dirfd::names_where(&dir, budget::LISTS, is_list)? {
        let changed = Inode::at(&dir, &name)?.mtime;
        let changed = SystemTime::UNIX_EPOCH + Duration::from_secs(changed.secs.try_into().unwrap_or(0));
        oldest = Some(oldest.map_or(changed, |oldest: SystemTime| oldest.min(changed)));
    }
    Ok(oldest)
}

/// What the host has taken out of a guest's spool, and not yet worked off.
#[derive(Debug)]
pub struct Taken {
    dir: Option<OwnedFd>,
    files: Vec<OsString>,
    /// The paths; whatever a guest may have written there.
    pub paths: BTreeSet<PathBuf>,
    /// Lists that were not read, because they are too large, with the reason: paths from the guest's root. They are
    /// removed with the others, or the guest would be stuck with them.
    pub too_large: Vec<(PathBuf, io::Error)>,
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
        return Ok(Taken { dir: None, files: Vec::new(), paths: BTreeSet::new(), too_large: Vec::new() });
    };
    let is_taken = |name: &OsStr| name.as_bytes().starts_with(TAKEN.as_bytes());
    let mut taken = dirfd::names_where(&dir, budget::LISTS, is_taken)?;
    let number =
        (0..).map(|number| OsString::from(format!("{TAKEN}{number}"))).find(|name| !taken.contains(name));
    if let Some(name) = number.filter(|_| taken.len() < budget::LISTS) {
        match dirfd::rename(&dir, OsStr::new(CHANGED), &name) {
            Ok(()) => taken.push(name),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
    }
    let (mut files, mut paths, mut too_large) = (Vec::new(), BTreeSet::new(), Vec::new());
    let mut room = budget::LISTS_BYTES;
    for file in taken {
        match read_content(&dir, &file) {
            Ok(content) => {
                let listed = parse_list(&content).count();
                let Some(left) = room.checked_sub(content.len()) else { break };
                if Exceeded::check_count(paths.len() + listed, budget::LISTED, "paths").is_err() {
                    break;
                }
                room = left;
                paths.extend(parse_list(&content));
            }
            Err(e) if e.kind() == io::ErrorKind::FileTooLarge => {
                too_large.push((Path::new(STATE_DIR).join(SPOOL).join(&file), e));
            }
            Err(e) => return Err(e),
        }
        files.push(file);
    }
    Ok(Taken { dir: Some(dir), files, paths, too_large })
}

fn spool_dir(root: &Root) -> io::Result<Option<OwnedFd>> {
    match root.open_dir(&Path::new(STATE_DIR).join(SPOOL)) {
        Ok(dir) => Ok(Some(dir)),
        Err(e) if crate::sys::path::resolve::is_absent(&e) => Ok(None),
        Err(e) => Err(e),
    }
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
        write("taken-0", &vec![b'x'; budget::LIST + 1]);
        write(CHANGED, b"/a\0/b\0");
        let taken = take_spool(&root).unwrap();
        assert_eq!(taken.paths, [PathBuf::from("/a"), PathBuf::from("/b")].into());
        assert_eq!(taken.too_large[0].0, Path::new(STATE_DIR).join("spool/taken-0"));
        taken.release(&BTreeSet::new()).unwrap();
        assert_eq!(left(), 0);
        write(CHANGED, &b"x\0".repeat(budget::LISTED + 1));
        let taken = take_spool(&root).unwrap();
        assert_eq!((taken.paths.len(), taken.too_large.len()), (0, 1));
        taken.release(&BTreeSet::new()).unwrap();
        assert_eq!(left(), 0);

        // More paths than are read at once, in two lists.
        let many = |list: &str| -> String {
            (0..budget::LISTED * 2 / 3).map(|number| format!("{list}{number}\0")).collect()
        };
        ["taken-7", CHANGED].iter().for_each(|list| write(list, many(list).as_bytes()));
        for waiting in [1, 0] {
            let taken = take_spool(&root).unwrap();
            assert_eq!(taken.paths.len(), budget::LISTED * 2 / 3);
            taken.release(&BTreeSet::new()).unwrap();
            assert_eq!(left(), waiting);
        }
        // Too many, and too much in all.
        (0..budget::LISTS + 3).for_each(|number| write(&format!("{TAKEN}{number}"), b"/c\0"));
        write(CHANGED, b"/d\0");
        let taken = take_spool(&root).unwrap();
        assert_eq!(taken.files.len(), budget::LISTS);
        taken.release(&BTreeSet::new()).unwrap();
        assert_eq!(left(), 4);
        (0..5).for_each(|number| write(&format!("{TAKEN}{number}"), &vec![0; budget::LIST]));
        let mut runs = 0;
        while left() > 0 {
            let taken = take_spool(&root).unwrap();
            assert!(taken.files.len() <= 6);
            taken.release(&BTreeSet::new()).unwrap();
            runs += 1;
        }
        // Two large ones a run, and the small ones in between.
        assert!((3..=5).contains(&runs), "{runs}");
    }
}

//! Which names of a guest were hard links of one another before their inode was shared.
//!
//! Unification gives equal files one inode, so afterwards nothing tells two equal files of a guest from two names of
//! one. Whoever writes to one name of a file expects to see it under the others, and nowhere else: so whoever gives names
//! of a guest to a shared inode writes down first which of them are one file. What is not shared any more is forgotten.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use super::store::{STATE_DIR, Store};
use crate::report::Reason;
use crate::sys::budget;
use crate::sys::file::inode::{Inode, InodeId, Kind, Time};
use crate::sys::path::dirfd;
use crate::sys::path::resolve::is_absent;
use crate::sys::path::root::{Root, read_at};

const FILE: &str = "links";

/// The hard links of a guest, as far as they are known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HardLinks {
    /// The names of each file that has several, by the first of them.
    files: BTreeMap<PathBuf, BTreeSet<PathBuf>>,
    /// The first name of each such file, by its names.
    first: BTreeMap<PathBuf, PathBuf>,
    /// Somebody has looked: names that are not here are files of their own.
    known: bool,
}

impl HardLinks {
    /// What was written down in a guest.
    pub fn read(root: &Root) -> io::Result<HardLinks> {
        match state_dir(root)? {
            Some(dir) => HardLinks::read_in(&dir),
            None => Ok(HardLinks::default()),
        }
    }

    /// Tells what is written down there from what was before: none where nothing is.
    pub fn version(root: &Root) -> Option<(InodeId, Time)> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW;
        let inode = Inode::of(root.open_at(&Path::new(STATE_DIR).join(FILE), flags).ok()?).ok()?;
        Some((inode.id, inode.ctime))
    }

    fn read_in(dir: impl AsFd) -> io::Result<HardLinks> {
        let parsed = match read_at(dir, OsStr::new(FILE), budget::HARD_LINKS) {
            Ok(content) => HardLinks::parse(&content),
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(HardLinks::default()),
            Err(e) if e.kind() == io::ErrorKind::FileTooLarge => None,
            Err(e) => return Err(e),
        };
        Ok(parsed.unwrap_or_else(|| {
            log::warn!(
                "{STATE_DIR}/{FILE} of a guest is too large to be read; all names of an inode there count as \
                 hard links"
            );
            HardLinks::default()
        }))
    }

    /// Writes down in a guest that each of `files` is one file with these names, and that of the `others` each is a file
    /// of its own. A guest without our hooks has no use for it.
    pub fn note(root: &Root, files: &[BTreeSet<PathBuf>], others: &[PathBuf]) -> io::Result<()> {
        change(root, true, |links| links.set(files, others))
    }

    /// As [`HardLinks::note`], if all of the guest was written down: only who has seen all of it can say that what is
    /// not there is a file of its own.
    pub fn follow(root: &Root, files: &[BTreeSet<PathBuf>], others: &[PathBuf]) -> io::Result<()> {
        if files.is_empty() && others.is_empty() {
            return Ok(());
        }
        change(root, false, |links| links.set(files, others))
    }

    /// Forgets names that are gone or have other files, and files that nobody outside of the guest shares: the filesystem
    /// tells which names these have. Nothing that is about to be shared again may be among them.
    pub fn prune(root: &Root) -> io::Result<()> {
        change(root, false, |links| {
            let mut eye = Eye { root, dir: None };
            let before = std::mem::take(&mut links.files);
            links.first.clear();
            before.into_values().flat_map(|names| eye.shared(names)).for_each(|names| links.add(names));
        })
    }

    /// Whether a name that is in no group is known to be a file of its own.
    pub fn are_known(&self) -> bool {
        self.known
    }

    /// The names of each file that has several.
    pub fn all(&self) -> impl Iterator<Item = &BTreeSet<PathBuf>> {
        self.files.values()
    }

    /// All names of the file that `name` is one of; none where it has but one, or nothing is known.
    pub fn of(&self, name: &Path) -> impl Iterator<Item = &Path> {
        let names = self.first.get(name).and_then(|first| self.files.get(first));
        names.into_iter().flatten().map(PathBuf::as_path)
    }

    /// What two names of one inode have in common where they are one file.
    pub fn file<'a>(&'a self, name: &'a Path) -> Option<&'a Path> {
        self.known.then(|| self.first.get(name).map_or(name, PathBuf::as_path))
    }

    fn set(&mut self, files: &[BTreeSet<PathBuf>], others: &[PathBuf]) {
        files.iter().flatten().chain(others).for_each(|name| self.forget(name));
        files.iter().for_each(|names| self.add(names.clone()));
    }

    fn add(&mut self, names: BTreeSet<PathBuf>) {
        let Some(first) = names.first().filter(|_| names.len() > 1).cloned() else { return };
        self.first.extend(names.iter().map(|name| (name.clone(), first.clone())));
        self.files.insert(first, names);
    }

    fn forget(&mut self, name: &Path) {
        let Some(first) = self.first.remove(name) else { return };
        let mut names = self.files.remove(&first).unwrap_or_default();
        names.remove(name);
        names.iter().for_each(|name| drop(self.first.remove(name)));
        self.add(names);
    }

    /// Each name ended by a NUL byte, each file by another. It begins with one more: a file that a power cut has left
    /// without its content is not taken for a list of nothing.
    pub(crate) fn content(&self) -> Vec<u8> {
        let mut content = vec![0];
        for names in self.files.values() {
            for name in names {
                content.extend_from_slice(name.as_os_str().as_bytes());
                content.push(0);
            }
            content.push(0);
        }
        content
    }

    /// None if there are too many names.
    pub(crate) fn parse(content: &[u8]) -> Option<HardLinks> {
        let mut links = HardLinks { known: !content.is_empty(), ..HardLinks::default() };
        let (mut names, mut count) = (BTreeSet::new(), 0);
        // What follows the last NUL byte ends the last file, too.
        for name in content.split(|&byte| byte == 0).chain(std::iter::once(&[][..])) {
            if !name.is_empty() {
                count += 1;
                if count > budget::HARD_LINK_NAMES {
                    return None;
                }
                names.insert(PathBuf::from(OsString::from_vec(name.to_vec())));
                continue;
            }
            let names = std::mem::take(&mut names);
            // A guest may have written anything: each name is in one group.
            if names.iter().all(|name| !links.first.contains_key(name)) {
                links.add(names);
            }
        }
        Some(links)
    }
}

/// Forgets which names were hard links of shared files, as far as they are not shared any more; while originals wait to
/// come back, that is not known.
pub fn prune(root: &Root, store: &Store) {
    let pruned = dirfd::is_empty(store.stash())
        .and_then(|settled| if settled { HardLinks::prune(root) } else { Ok(()) });
    pruned.unwrap_or_else(|e| log::debug!("the list of hard links cannot be updated: {}", Reason(e)));
}

/// Changes what is written down in a guest; where nothing is, only if that is to `begin`.
fn change(root: &Root, begin: bool, work: impl FnOnce(&mut HardLinks)) -> io::Result<()> {
    let Some(dir) = state_dir(root)? else { return Ok(()) };
    let before = HardLinks::read_in(&dir)?;
    if !before.known && !begin {
        return Ok(());
    }
    let mut after = before.clone();
    after.known = true;
    work(&mut after);
    if after == before { Ok(()) } else { dirfd::replace_file(&dir, OsStr::new(FILE), &after.content()) }
}

/// Looks at names of a guest; the last directory stays open.
struct Eye<'a> {
    root: &'a Root,
    dir: Option<(PathBuf, OwnedFd)>,
}

impl Eye<'_> {
    /// These names of one file, by the files that are shared with others; all of them, where that cannot be seen.
    fn shared(&mut self, names: BTreeSet<PathBuf>) -> Vec<BTreeSet<PathBuf>> {
        let mut files: BTreeMap<InodeId, (u32, BTreeSet<PathBuf>)> = BTreeMap::new();
        for name in &names {
            match self.inode(name) {
                Ok(inode) if inode.kind == Kind::Regular => {
                    let (nlink, names) = files.entry(inode.id).or_default();
                    *nlink = inode.nlink;
                    names.insert(name.clone());
                }
                Ok(_) => {}
                Err(e) if is_absent(&e) => {}
                Err(_) => return vec![names],
            }
        }
        files
            .into_values()
            .filter(|(nlink, names)| *nlink as usize > names.len())
            .map(|(_, names)| names)
            .collect()
    }

    fn inode(&mut self, path: &Path) -> io::Result<Inode> {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(io::ErrorKind::NotFound.into());
        };
        match &self.dir {
            Some((open, dir)) if open == parent => Inode::at(dir, name),
            _ => {
                let dir = self.root.open_at(parent, OFlags::PATH | OFlags::DIRECTORY)?;
                let inode = Inode::at(&dir, name);
                self.dir = Some((parent.to_path_buf(), dir));
                inode
            }
        }
    }
}

fn state_dir(root: &Root) -> io::Result<Option<OwnedFd>> {
    match root.open_at(Path::new(STATE_DIR), OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW) {
        Err(e) if is_absent(&e) => Ok(None),
        opened => opened.map(Some),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> BTreeSet<PathBuf> {
        names.iter().map(PathBuf::from).collect()
    }

    fn guest() -> (tempfile::TempDir, Root) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("var/lib/cow-hooks")).unwrap();
        let root = Root::open(dir.path()).unwrap();
        (dir, root)
    }

    #[test]
    fn what_is_written_down_is_read() {
        let (_dir, root) = guest();
        assert_eq!(HardLinks::read(&root).unwrap().file(Path::new("/a")), None);
        HardLinks::note(&root, &[names(&["/a", "/b\n"]), names(&["/c", "/d", "/e"])], &[]).unwrap();
        let links = HardLinks::read(&root).unwrap();
        assert_eq!(links.of(Path::new("/b\n")).collect::<Vec<_>>(), [Path::new("/a"), Path::new("/b\n")]);
        assert_eq!(links.file(Path::new("/e")), Some(Path::new("/c")));
        assert_eq!(links.file(Path::new("/f")), Some(Path::new("/f")));
        assert_eq!(links.of(Path::new("/f")).count(), 0);
    }

    #[test]
    fn a_name_that_is_another_file_now_leaves_the_others() {
        let (_dir, root) = guest();
        HardLinks::note(&root, &[names(&["/a", "/b", "/c"])], &[]).unwrap();
        HardLinks::note(&root, &[names(&["/d", "/e"])], &["/a".into()]).unwrap();
        let links = HardLinks::read(&root).unwrap();
        assert_eq!(links.file(Path::new("/c")), Some(Path::new("/b")));
        assert_eq!(links.file(Path::new("/a")), Some(Path::new("/a")));
        HardLinks::note(&root, &[], &["/b".into()]).unwrap();
        assert_eq!(HardLinks::read(&root).unwrap().of(Path::new("/c")).count(), 0);
    }

    #[test]
    fn what_nobody_began_to_write_down_is_not_followed() {
        let (_dir, root) = guest();
        HardLinks::follow(&root, &[names(&["/a", "/b"])], &[]).unwrap();
        assert!(!HardLinks::read(&root).unwrap().are_known());
        HardLinks::note(&root, &[], &[]).unwrap();
        HardLinks::follow(&root, &[names(&["/a", "/b"])], &[]).unwrap();
        assert_eq!(HardLinks::read(&root).unwrap().of(Path::new("/a")).count(), 2);
    }

    #[test]
    fn what_is_not_shared_is_forgotten() {
        let (dir, root) = guest();
        let path = |name: &str| dir.path().join(name);
        for files in [["a", "b", "c", "elsewhere"], ["d", "e", "f", "g"]] {
            std::fs::write(path(files[0]), b"x").unwrap();
            files[1..].iter().for_each(|name| std::fs::hard_link(path(files[0]), path(name)).unwrap());
        }
        HardLinks::note(&root, &[names(&["/a", "/b", "/c", "/gone"]), names(&["/d", "/e", "/f", "/g"])], &[])
            .unwrap();
        HardLinks::prune(&root).unwrap();
        let links = HardLinks::read(&root).unwrap();
        assert_eq!(links.all().collect::<Vec<_>>(), [&names(&["/a", "/b", "/c"])]);
        for name in ["b", "c"] {
            std::fs::remove_file(path(name)).unwrap();
            std::fs::write(path(name), b"x").unwrap();
        }
        HardLinks::prune(&root).unwrap();
        assert_eq!(HardLinks::read(&root).unwrap().all().count(), 0);
        assert!(HardLinks::read(&root).unwrap().are_known());
    }

    #[test]
    fn a_guest_without_hooks_gets_nothing_written() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path()).unwrap();
        HardLinks::note(&root, &[names(&["/a", "/b"])], &[]).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_name_is_in_one_file_whatever_is_written() {
        let links = HardLinks::parse(b"/a\0/b\0\0/b\0/c\0\0\0/d\0").unwrap();
        assert_eq!(links.file(Path::new("/c")), Some(Path::new("/c")));
        assert_eq!(links.file(Path::new("/b")), Some(Path::new("/a")));
        assert_eq!(links.of(Path::new("/d")).count(), 0);
    }

    #[test]
    fn what_is_too_large_is_not_known() {
        let (dir, root) = guest();
        let path = dir.path().join("var/lib/cow-hooks/links");
        std::fs::write(&path, vec![0; budget::HARD_LINKS]).unwrap();
        assert!(HardLinks::read(&root).unwrap().are_known());
        std::fs::write(&path, vec![0; budget::HARD_LINKS + 1]).unwrap();
        assert!(!HardLinks::read(&root).unwrap().are_known());
        let many = |count: usize| (0..count).map(|number| format!("/{number}\0")).collect::<String>();
        std::fs::write(&path, many(budget::HARD_LINK_NAMES)).unwrap();
        assert_eq!(HardLinks::read(&root).unwrap().of(Path::new("/7")).count(), budget::HARD_LINK_NAMES);
        std::fs::write(&path, many(budget::HARD_LINK_NAMES + 1)).unwrap();
        assert!(!HardLinks::read(&root).unwrap().are_known());
        // It does not stay so.
        HardLinks::note(&root, &[names(&["/a", "/b"])], &[]).unwrap();
        assert_eq!(HardLinks::read(&root).unwrap().of(Path::new("/b")).count(), 2);
    }
}

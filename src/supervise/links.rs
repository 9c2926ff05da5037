//! Which names are one file to the processes that are supervised: hard links that were there before the inode was shared
//! (`state::hard_links`), and those made since.
//!
//! In a guest that others than `cow-unify` have unified, what can be found is taken for hard links. Nothing here is
//! trusted: each name is looked at again before it is used.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::report::Reason;
use crate::state::hard_links::HardLinks;
use crate::state::store::STATE_DIR;
use crate::sys::file::inode::{Inode, InodeId, Kind, Time};
use crate::sys::path::root::Root;
use crate::sys::path::tree::{self, Descend};

/// Names of files, as paths from the supervisor's root.
#[derive(Debug)]
pub struct Links {
    root: Root,
    /// The names of each file that has, or had, several.
    files: Vec<BTreeSet<PathBuf>>,
    /// Which of the files a name is, or last was; `None` if it has become one that has no other name.
    file: HashMap<PathBuf, Option<usize>>,
    /// Which of the files an inode was that has lost this name.
    former: HashMap<(InodeId, PathBuf), usize>,
    parted: HashSet<InodeId>,
    /// There is more to know than is written down.
    is_changed: bool,
    /// When that was written down last, and how long it took.
    written: Option<(Instant, Duration)>,
    before: Option<HardLinks>,
    /// Of what is written down, what was read.
    version: Option<(InodeId, Time)>,
    several: Option<HashMap<u64, Vec<PathBuf>>>,
}

impl Links {
    /// Of the guest at `root`.
    pub fn new(root: Root) -> Links {
        let (files, file, former, parted) = (Vec::new(), HashMap::new(), HashMap::new(), HashSet::new());
        let (is_changed, written, before, version, several) = (false, None, None, None, None);
        Links { root, files, file, former, parted, is_changed, written, before, version, several }
    }

    /// `inode`, whose name `name` is, has got another.
    pub fn linked(&mut self, inode: &Inode, name: &Path, other: PathBuf) {
        let file = self.known_file(inode, name).unwrap_or_else(|| self.add([name.to_path_buf()].into()));
        self.enter(other, file);
        self.is_changed = true;
    }

    /// A name of `inode` was moved.
    pub fn moved(&mut self, inode: &Inode, from: &Path, to: PathBuf) {
        self.is_changed = true;
        match self.known_file(inode, from) {
            Some(file) => {
                self.files[file].remove(from);
                self.enter(to, file);
            }
            None => self.leave(to),
        }
    }

    /// The names of two files were exchanged.
    pub(crate) fn exchanged(&mut self, one: (&Inode, &Path), other: (&Inode, &Path)) {
        self.is_changed = true;
        let files = [one, other].map(|(inode, name)| self.known_file(inode, name));
        for (file, name) in [(files[0], other.1), (files[1], one.1)] {
            match file {
                Some(file) => self.enter(name.to_path_buf(), file),
                None => self.leave(name.to_path_buf()),
            }
        }
    }

    /// A directory was moved, or is about to be.
    pub(crate) fn directory_moved(&mut self, from: &Path, to: &Path) {
        let before = self.before().clone();
        let below = |name: &PathBuf| Some(to.join(name.strip_prefix(from).ok()?));
        for names in before.all().filter(|names| names.iter().any(|name| below(name).is_some())) {
            if !names.iter().any(|name| self.file.contains_key(name)) {
                self.add(names.clone());
            }
        }
        for file in 0..self.files.len() {
            let moved: Vec<PathBuf> = self.files[file].iter().filter_map(below).collect();
            self.is_changed |= !moved.is_empty();
            moved.into_iter().for_each(|name| self.enter(name, file));
        }
    }

    /// Names of `inode` have private copies now.
    pub fn detached(&mut self, inode: InodeId) {
        self.parted.insert(inode);
    }

    /// `inode` has lost a name.
    pub fn removed(&mut self, inode: &Inode, name: &Path) {
        if let Some(file) = self.known_file(inode, name) {
            self.is_changed = true;
            self.files[file].remove(name);
            self.former.insert((inode.id, name.to_path_buf()), file);
        }
        self.parted.insert(inode.id);
    }

    /// Whether the inode has lost a name here: who has it open still has a file of others.
    pub(crate) fn has_lost(&self, inode: InodeId) -> bool {
        self.parted.contains(&inode)
    }

    /// The names of the file that `name` is, or last was.
    pub fn names(&mut self, inode: &Inode, name: &Path) -> Vec<PathBuf> {
        self.refresh();
        let known = self.file.get(name).copied();
        let former = self.former.get(&(inode.id, name.to_path_buf()));
        match known {
            None => self.found(inode, name),
            Some(file) => {
                let former = former.filter(|former| file != Some(**former));
                file.iter().chain(former).flat_map(|&file| &self.files[file]).cloned().collect()
            }
        }
    }

    /// Whether somebody has looked which names of the guest are hard links.
    pub fn are_known(&mut self) -> bool {
        self.before().are_known()
    }

    /// Whether there is something to write down.
    pub fn is_changed(&self) -> bool {
        self.is_changed
    }

    /// Whether there is something to write down, and little time has gone into that.
    pub(crate) fn is_due(&self) -> bool {
        self.is_changed && self.written.is_none_or(|(at, took)| at.elapsed() > WRITE_PAUSE_FACTOR * took)
    }

    /// Writes down what is known. The caller holds the lock of the guest's store.
    pub fn write_down(&mut self) -> io::Result<()> {
        self.refresh();
        if !std::mem::take(&mut self.is_changed) {
            return Ok(());
        }
        let begun = Instant::now();
        let several: Vec<BTreeSet<PathBuf>> =
            self.files.iter().filter(|names| names.len() > 1).cloned().collect();
        let single = self.file.iter().filter(|(_, file)| file.is_none()).map(|(name, _)| name.clone());
        let written = HardLinks::follow(&self.root, &several, &single.collect::<Vec<_>>());
        // What has changed since was written by others.
        self.before = None;
        self.before();
        self.written = Some((Instant::now(), begun.elapsed()));
        written
    }

    /// Others write down what they do: settling, a host.
    fn refresh(&mut self) {
        let Some(old) = self.before.take_if(|_| HardLinks::version(&self.root) != self.version) else {
            return;
        };
        let new = self.before().clone();
        let (was, is): (HashSet<_>, HashSet<_>) = (old.all().collect(), new.all().collect());
        for names in was.difference(&is) {
            let known: Vec<&PathBuf> = names.iter().filter(|name| self.file.contains_key(*name)).collect();
            known.into_iter().for_each(|name| self.leave(name.clone()));
        }
        for names in is.difference(&was) {
            if names.iter().any(|name| self.file.contains_key(name)) {
                self.add((*names).clone());
            }
        }
    }

    fn before(&mut self) -> &HardLinks {
        let Links { before, version, root, .. } = self;
        before.get_or_insert_with(|| {
            // First: what is read then is no older.
            *version = HardLinks::version(root);
            let read = HardLinks::read(root).inspect_err(|e| {
                log::debug!(
                    "the list of hard links cannot be \
                updated: {}",
                    Reason(e)
                )
            });
            read.unwrap_or_default()
        })
    }

    /// The names that the file had when the supervisor began.
    fn found(&mut self, inode: &Inode, name: &Path) -> Vec<PathBuf> {
        if self.are_known() {
            return self.before().of(name).map(Path::to_path_buf).collect();
        }
        let several = self.several.get_or_insert_with(|| several(&self.root));
        let found = several.get(&inode.id.ino).cloned().unwrap_or_default();
        // If no name is out of sight, other guests' are among them.
        if (found.len() as u32) < inode.nlink { found } else { Vec::new() }
    }

    fn known_file(&mut self, inode: &Inode, name: &Path) -> Option<usize> {
        if let Some(file) = self.file.get(name) {
            return *file;
        }
        let found = self.found(inode, name);
        (found.len() > 1).then(|| self.add(found.into_iter().collect()))
    }

    fn add(&mut self, names: BTreeSet<PathBuf>) -> usize {
        let file = self.files.len();
        self.files.push(BTreeSet::new());
        names.into_iter().for_each(|name| self.enter(name, file));
        file
    }

    fn enter(&mut self, name: PathBuf, file: usize) {
        self.leave(name.clone());
        self.file.insert(name.clone(), Some(file));
        self.files[file].insert(name);
    }

    fn leave(&mut self, name: PathBuf) {
        if let Some(Some(file)) = self.file.insert(name.clone(), None) {
            self.files[file].remove(&name);
        }
    }
}

/// How many times longer the pause between writing is than writing takes.
const WRITE_PAUSE_FACTOR: u32 = 20;

/// How many names are read at most; that takes some ten milliseconds.
const MAX_NAMES: usize = 20_000;

/// The inodes with several names, by their numbers; none at all if there are too many names.
fn several(root: &Root) -> HashMap<u64, Vec<PathBuf>> {
    let mut names: HashMap<u64, Vec<PathBuf>> = HashMap::new();
    let mut seen = 0;
    let mut visit = |entry: &tree::TreeEntry<'_>| {
        seen += 1;
        let ours = || entry.path() == Path::new(STATE_DIR);
        if seen > MAX_NAMES || entry.kind == Kind::Directory && ours() {
            return Descend::Past;
        }
        if entry.kind == Kind::Regular {
            names.entry(entry.ino).or_default().push(entry.path());
        }
        Descend::Into
    };
    tree::walk(root, Path::new("/"), &mut visit, &mut |_, _| {});
    names.retain(|_, names| names.len() > 1 && seen <= MAX_NAMES);
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A guest with a file of two names, one of an equal file, and whether that is written down.
    fn guest(known: bool) -> (tempfile::TempDir, Links, Inode) {
        let guest = tempfile::tempdir().unwrap();
        let path = |name: &str| guest.path().join(name);
        for dir in ["d", "var/lib/cow-hooks"] {
            std::fs::create_dir_all(path(dir)).unwrap();
        }
        std::fs::write(path("f"), b"x").unwrap();
        for name in ["d/g", "equal", "var/lib/cow-hooks/elsewhere"] {
            std::fs::hard_link(path("f"), path(name)).unwrap();
        }
        let root = Root::open(guest.path()).unwrap();
        if known {
            HardLinks::note(&root, &[["/f", "/d/g"].map(PathBuf::from).into()], &[]).unwrap();
        }
        let inode = Inode::at(&root, "f".as_ref()).unwrap();
        (guest, Links::new(root), inode)
    }

    fn names(links: &mut Links, inode: &Inode, name: &str) -> Vec<String> {
        let names = links.names(inode, Path::new(name));
        let mut names: Vec<_> = names.into_iter().map(|name| name.display().to_string()).collect();
        names.sort();
        names
    }

    #[test]
    fn equal_files_are_not_one_where_that_is_known() {
        let (_guest, mut links, inode) = guest(true);
        assert_eq!(names(&mut links, &inode, "/d/g"), ["/d/g", "/f"]);
        assert_eq!(names(&mut links, &inode, "/equal"), [""; 0]);
        links.linked(&inode, Path::new("/equal"), "/new".into());
        assert_eq!(names(&mut links, &inode, "/new"), ["/equal", "/new"]);
        assert_eq!(names(&mut links, &inode, "/f"), ["/d/g", "/f"]);
    }

    #[test]
    fn all_names_in_a_small_guest_are_one_file_where_nothing_is_known() {
        let (_guest, mut links, inode) = guest(false);
        assert_eq!(names(&mut links, &inode, "/f"), ["/d/g", "/equal", "/f"]);
    }

    #[test]
    fn names_are_followed_through_links_and_renames() {
        let (_guest, mut links, inode) = guest(true);
        links.moved(&inode, Path::new("/d/g"), "/b/h".into());
        links.directory_moved(Path::new("/b"), Path::new("/c"));
        assert_eq!(names(&mut links, &inode, "/f"), ["/b/h", "/c/h", "/f"]);
        links.removed(&inode, Path::new("/f"));
        assert_eq!(names(&mut links, &inode, "/f"), ["/b/h", "/c/h"], "a name that it had");
        links.exchanged((&inode, Path::new("/c/h")), (&inode, Path::new("/equal")));
        assert_eq!(names(&mut links, &inode, "/equal"), ["/b/h", "/equal"]);
        assert_eq!(names(&mut links, &inode, "/c/h"), [""; 0]);
        links.moved(&inode, Path::new("/other"), "/b/h".into());
        assert_eq!(names(&mut links, &inode, "/equal"), ["/equal"]);
    }

    #[test]
    fn names_that_were_lost_are_known_when_that_is_written_down() {
        let (_guest, mut links, inode) = guest(true);
        links.removed(&inode, Path::new("/d/g"));
        links.write_down().unwrap();
        assert_eq!(names(&mut links, &inode, "/d/g"), ["/f"]);
    }

    #[test]
    fn what_others_write_down_meanwhile_is_known() {
        let (_guest, mut links, inode) = guest(true);
        links.linked(&inode, Path::new("/f"), "/h".into());
        assert_eq!(names(&mut links, &inode, "/h"), ["/d/g", "/f", "/h"]);
        let root = links.root.try_clone().unwrap();
        HardLinks::note(&root, &[["/f", "/equal"].map(PathBuf::from).into()], &["/d/g".into()]).unwrap();
        assert_eq!(names(&mut links, &inode, "/f"), ["/equal", "/f"]);
        assert_eq!(names(&mut links, &inode, "/d/g"), [""; 0]);
    }

    #[test]
    fn what_is_done_is_written_down() {
        let (_guest, mut links, inode) = guest(true);
        links.linked(&inode, Path::new("/equal"), "/new".into());
        links.moved(&inode, Path::new("/d/g"), "/h".into());
        links.write_down().unwrap();
        let written = HardLinks::read(&links.root).unwrap();
        let all: Vec<Vec<_>> =
            written.all().map(|names| names.iter().map(|n| n.to_str().unwrap()).collect()).collect();
        assert_eq!(all, [["/equal", "/new"], ["/f", "/h"]]);
        let (_guest, mut links, inode) = guest(false);
        links.linked(&inode, Path::new("/equal"), "/new".into());
        links.write_down().unwrap();
        assert!(!HardLinks::read(&links.root).unwrap().are_known());
    }

    #[test]
    fn hard_links_move_with_their_directory() {
        let (_guest, mut links, inode) = guest(true);
        links.directory_moved(Path::new("/d"), Path::new("/e"));
        assert_eq!(names(&mut links, &inode, "/e/g"), ["/d/g", "/e/g", "/f"]);
    }
}

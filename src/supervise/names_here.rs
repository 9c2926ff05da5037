//! Whether all names of an immutable file are in this guest: then the file is the administrator's, as it is for a search
//! before a run (`inspect`), and its flag stays.
//!
//! An inode does not say where its names are. So the first question reads all directories of the guest once; every answer
//! after that comes from memory. Names of an immutable inode cannot change unless its time of change does, so what was
//! read is true of each inode that has not changed since. If it cannot be known, the file counts as shared: a package
//! manager could not replace it otherwise.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::state::pool_notice::PoolNotice;
use crate::state::store::STATE_DIR;
use crate::sys::file::inode::{Inode, InodeId, Kind};
use crate::sys::path::root::Root;
use crate::sys::path::tree::{self, Descend};

/// How many files' names are read at most; 8 bytes each while they are read.
const MAX_FILES: usize = 1 << 20;
/// How long reading takes at most.
const MAX_READING: Duration = Duration::from_secs(5);
/// How many times longer than reading the pause is before the next one.
const PAUSE_FACTOR: u32 = 20;
/// What has changed so shortly before reading began may have got a name that was not read. The kernel's clock for files
/// is coarser than this one (`ktime_get_coarse_real_ts64`).
const CLOCK_DIFFERENCE: Duration = Duration::from_secs(1);

/// The names of the guest's inodes, counted.
#[derive(Debug)]
pub struct NamesHere {
    root: Root,
    home: Option<Inode>,
    read: Option<Read>,
    /// Inodes with names elsewhere. They stay the host's, wherever names of them go.
    shared: HashSet<InodeId>,
}

#[derive(Debug)]
struct Read {
    /// How many names the inodes have that have several; none if there were too many to read.
    several: Option<HashMap<u64, u32>>,
    /// When reading began: seconds since 1970.
    began: i64,
    ended: Instant,
    took: Duration,
}

impl NamesHere {
    /// Of the guest at `root`; nothing is read yet.
    pub fn new(root: Root) -> NamesHere {
        let home = Inode::of(&root).ok();
        NamesHere { root, home, read: None, shared: HashSet::new() }
    }

    /// Whether all names of an immutable inode are in this guest, and none in the pool.
    ///
    /// `false` if that is not known: on another mount than the guest's root, too.
    pub fn are_all(&mut self, inode: &Inode) -> bool {
        let is_home = |home: &Inode| (home.id.dev, home.mount) == (inode.id.dev, inode.mount);
        if self.shared.contains(&inode.id) || !self.home.as_ref().is_some_and(is_home) {
            return false;
        }
        if !self.read.as_ref().is_some_and(|read| read.knows(inode) || read.is_recent()) {
            self.read = Some(Read::of(&self.root));
        }
        let Some(read) = self.read.as_ref().filter(|read| read.knows(inode)) else { return false };
        let Some(several) = &read.several else { return false };
        let all = several.get(&inode.id.ino).is_some_and(|names| *names >= inode.nlink);
        if !all {
            self.shared.insert(inode.id);
        }
        all
    }
}

impl Read {
    fn of(root: &Root) -> Read {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let (began, begun) = (now.saturating_sub(CLOCK_DIFFERENCE).as_secs().cast_signed(), Instant::now());
        let several = several(root, begun);
        Read { several, began, ended: Instant::now(), took: begun.elapsed() }
    }

    fn knows(&self, inode: &Inode) -> bool {
        inode.ctime.secs < self.began
    }

    fn is_recent(&self) -> bool {
        self.ended.elapsed() < PAUSE_FACTOR * self.took.max(CLOCK_DIFFERENCE / PAUSE_FACTOR)
    }
}

/// How many names the inodes have that have several, by their numbers; none if there are too many files, or a directory
/// cannot be read. What is in the pool or in our own directory is no name of the guest's.
fn several(root: &Root, begun: Instant) -> Option<HashMap<u64, u32>> {
    let pool = pool(root);
    let (mut files, mut complete) = (Vec::new(), true);
    let mut visit = |entry: &tree::TreeEntry<'_>| {
        complete &= files.len() < MAX_FILES && begun.elapsed() < MAX_READING;
        match entry.kind {
            _ if !complete => return Descend::End,
            Kind::Regular => files.push(entry.ino),
            Kind::Directory if pool == Some(entry.ino) || entry.path() == Path::new(STATE_DIR) => {
                return Descend::Past;
            }
            _ => {}
        }
        Descend::Into
    };
    let mut all_read = true;
    tree::walk(root, Path::new("/"), &mut visit, &mut |_, problem| all_read &= problem.is_none());
    files.sort_unstable();
    let counted = files.chunk_by(|one, other| one == other).filter(|names| names.len() > 1);
    let counted = counted.map(|names| (names[0], u32::try_from(names.len()).unwrap_or(u32::MAX))).collect();
    (complete && all_read).then_some(counted)
}

/// The number of the pool's directory, which lies in the guest only if that is the running system.
fn pool(root: &Root) -> Option<u64> {
    let notice = PoolNotice::of(root)?;
    Some(Inode::of(notice.pool.open(root).ok()?).ok()?.id.ino)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::file::inode::Time;

    /// A guest with the files `f` and `g`, of two names each; `g` has one elsewhere, too.
    fn guest() -> (tempfile::TempDir, NamesHere) {
        let top = tempfile::tempdir().unwrap();
        let path = |name: &str| top.path().join(name);
        std::fs::create_dir_all(path("guest/d")).unwrap();
        std::fs::create_dir_all(path("guest/var/lib/cow-hooks/stash")).unwrap();
        for (name, other) in [("f", "d/f"), ("g", "d/g")] {
            std::fs::write(path("guest").join(name), b"x").unwrap();
            std::fs::hard_link(path("guest").join(name), path("guest").join(other)).unwrap();
        }
        std::fs::hard_link(path("guest/g"), path("elsewhere")).unwrap();
        let root = Root::open(&path("guest")).unwrap();
        (top, NamesHere::new(root))
    }

    /// The inode, as if it had changed long ago, or just now.
    fn inode(here: &NamesHere, name: &str, changed: i64) -> Inode {
        let inode = Inode::at(&here.root, name.as_ref()).unwrap();
        Inode { ctime: Time { secs: changed, nanos: 0 }, ..inode }
    }

    #[test]
    fn a_file_with_all_its_names_here_is_told_from_a_shared_one() {
        let (_top, mut here) = guest();
        let (own, shared) = (inode(&here, "f", 0), inode(&here, "g", 0));
        assert!(here.are_all(&own));
        assert!(!here.are_all(&shared));
        let elsewhere = Inode { mount: own.mount + 1, ..own };
        assert!(!here.are_all(&elsewhere), "on another mount");
    }

    #[test]
    fn what_was_shared_stays_so_when_the_others_are_gone() {
        let (top, mut here) = guest();
        assert!(!here.are_all(&inode(&here, "g", 0)));
        std::fs::remove_file(top.path().join("elsewhere")).unwrap();
        assert!(!here.are_all(&inode(&here, "g", 0)));
    }

    #[test]
    fn of_an_inode_that_has_changed_since_nothing_is_known() {
        let (_top, mut here) = guest();
        assert!(here.are_all(&inode(&here, "f", 0)));
        assert!(!here.are_all(&inode(&here, "f", i64::MAX)));
        assert!(here.shared.is_empty(), "it can be asked again");
    }

    #[test]
    fn originals_in_the_stash_are_no_names_of_the_guest() {
        let (top, mut here) = guest();
        let stashed = top.path().join("guest/var/lib/cow-hooks/stash/1");
        std::fs::hard_link(top.path().join("guest/f"), stashed).unwrap();
        assert!(!here.are_all(&inode(&here, "f", 0)));
    }
}

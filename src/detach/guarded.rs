//! Which files the guard of the host's kernel protects: nobody can change them, and their names are free.
//!
//! The host says so in the guest (`pool.toml`), the file has the mark, and the kernel confirms it: a marked file cannot be
//! opened for writing. Each mount is asked once. A guest that forges the first two is told the truth by the third.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use crate::parallel;
use crate::report::{Reason, Shown};
use crate::state::pool_notice::PoolNotice;
use crate::sys::file::inode::{Inode, Kind};
use crate::sys::path::resolve::Place;
use crate::sys::path::root::Root;
use crate::sys::share::mark;
use crate::sys::share::swap::Name;

/// How many marked files of a mount are tried at most: the kernel says nothing of one that a program runs from
/// (`ETXTBSY`).
const TRIES: usize = 64;

/// Whether the host says that its guard protects the files which this guest shares.
pub fn is_announced(root: &Root) -> bool {
    PoolNotice::of(root).is_some_and(|notice| notice.guard)
}

/// What the guard protects of some files.
#[derive(Debug, Default)]
pub struct Guarded<'f> {
    /// The files that it protects.
    pub files: HashSet<&'f Place>,
    /// A marked file that can be written to, although the host says that its guard protects it.
    pub unguarded: Option<PathBuf>,
}

/// Looks which of these files the guard protects. None of them may be in layers: what is opened for writing there is copied.
pub fn look<'f>(root: &Root, files: impl IntoIterator<Item = (&'f Place, &'f Inode)>) -> Guarded<'f> {
    let mut by_dir: BTreeMap<&Path, Vec<(&Place, &Inode)>> = BTreeMap::new();
    for (place, inode) in files.into_iter().filter(|(_, inode)| may_be_marked(inode)) {
        by_dir.entry(&place.dir).or_default().push((place, inode));
    }
    let dirs: Vec<_> = by_dir.into_iter().collect();
    let marked = parallel::map(parallel::processors(), &dirs, |(dir, files)| marked_in(root, dir, files));
    let mut by_mount: HashMap<u64, Vec<&Place>> = HashMap::new();
    for (place, inode) in marked.into_iter().flatten() {
        by_mount.entry(inode.mount).or_default().push(place);
    }
    let mut guarded = Guarded::default();
    for marked in by_mount.into_values() {
        match is_respected(root, &marked) {
            Some((_, true)) => guarded.files.extend(marked),
            Some((writable, false)) => guarded.unguarded = Some(writable.path()),
            None => {}
        }
    }
    guarded
}

/// Whether a file can have the mark, and mean it.
pub fn may_be_marked(inode: &Inode) -> bool {
    let free = !inode.immutable && !inode.append_only && !inode.is_mounted_on();
    inode.kind == Kind::Regular && inode.nlink > 1 && free
}

/// Whether the file that a name has is this one, and has the mark.
fn is_marked(dir: &OwnedFd, name: &OsStr, inode: &Inode) -> io::Result<bool> {
    let file = Name { dir: dir.as_fd(), name }.open()?;
    Ok(Inode::of(&file)?.id == inode.id && mark::is_set(&file)?)
}

fn marked_in<'f>(root: &Root, dir: &Path, files: &[(&'f Place, &'f Inode)]) -> Vec<(&'f Place, &'f Inode)> {
    // What cannot be opened is not known to be protected.
    let Ok(open) = root.open_dir(dir) else { return Vec::new() };
    let is_marked =
        |(place, inode): &&(&Place, &Inode)| is_marked(&open, &place.name, inode).unwrap_or(false);
    files.iter().filter(is_marked).copied().collect()
}

/// Whether the kernel protects the marked files of a mount, which these are, and the one that told; nothing if none did.
fn is_respected<'f>(root: &Root, marked: &[&'f Place]) -> Option<(&'f Place, bool)> {
    marked.iter().take(TRIES).find_map(|place| {
        let refused = root.open_dir(&place.dir).and_then(|dir| mark::refuses_writers(dir, &place.name));
        let refused = refused.inspect_err(|e| log::debug!("{}: {}", Shown(&place.path()), Reason(e)));
        Some((*place, refused.ok()?))
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::state::store::STATE_DIR;

    fn notice(guard: bool) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join(&STATE_DIR[1..])).unwrap();
        let root = Root::open(dir.path()).unwrap();
        let pool = crate::sys::file::handle::Handle::from_bytes(&[1, 2]);
        PoolNotice { pool, immutable: false, guard, allow_setid: false, min_size: 1 }.leave(&root).unwrap();
        dir
    }

    #[test]
    fn the_host_says_whether_there_is_a_guard() {
        for guard in [true, false] {
            let dir = notice(guard);
            assert_eq!(is_announced(&Root::open(dir.path()).unwrap()), guard);
        }
        let dir = tempfile::tempdir().unwrap();
        assert!(!is_announced(&Root::open(dir.path()).unwrap()));
    }

    #[test]
    fn a_mark_that_the_kernel_does_not_respect_protects_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path()).unwrap();
        fs::write(dir.path().join("x"), "content").unwrap();
        fs::hard_link(dir.path().join("x"), dir.path().join("y")).unwrap();
        if mark::set(fs::File::open(dir.path().join("x")).unwrap()).is_err() {
            return;
        }
        let place = Place { dir: "/".into(), name: "x".into() };
        let inode = Inode::at(&root, OsStr::new("x")).unwrap();
        let guarded = look(&root, [(&place, &inode)]);
        assert_eq!((guarded.files.len(), guarded.unguarded), (0, Some(PathBuf::from("/x"))));
        assert!(is_marked(&root.open_dir(Path::new("/")).unwrap(), OsStr::new("x"), &inode).unwrap());
    }

    #[test]
    fn a_file_with_one_name_means_no_mark() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path()).unwrap();
        fs::write(dir.path().join("x"), "").unwrap();
        let inode = Inode::at(&root, OsStr::new("x")).unwrap();
        assert!(!may_be_marked(&inode));
        assert!(may_be_marked(&Inode { nlink: 2, ..inode }));
        assert!(!may_be_marked(&Inode { nlink: 2, immutable: true, ..inode }));
    }
}

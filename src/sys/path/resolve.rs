//! The canonical name of a guest's directory: no symlink, no `.` or `..` in it.
//!
//! dpkg's lists say `/bin/bash` although a usr-merged guest holds `/usr/bin/bash`. Only the directory part of a
//! path is ever resolved, never its last component: that is the name a package manager replaces.

use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{FileType, OFlags};

use super::root::Root;
use crate::sys::budget;

/// As many symlinks as Linux follows in one path (`path_resolution(7)`).
const MAX_SYMLINKS: u32 = 40;

/// A file's place in a guest: a canonical directory and a name in it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Place {
    /// Canonical directory, from the guest's root.
    pub dir: PathBuf,
    /// Last component; never followed.
    pub name: OsString,
}

impl Place {
    /// The path of the place, from the guest's root.
    pub fn path(&self) -> PathBuf {
        self.dir.join(&self.name)
    }
}

/// Resolves directories beneath a root, each once.
#[derive(Debug)]
pub struct Resolver<'r> {
    root: &'r Root,
    /// By the path asked for.
    known: HashMap<PathBuf, Option<PathBuf>>,
    /// Canonical paths that were found to be directories.
    directories: HashSet<PathBuf>,
    /// Bytes that both take.
    bytes: usize,
}

/// What a name is on the way to a directory.
enum Step {
    Directory,
    Symlink(PathBuf),
    Nothing,
}

impl<'r> Resolver<'r> {
    /// A resolver with nothing resolved yet.
    pub fn new(root: &'r Root) -> Resolver<'r> {
        Resolver { root, known: HashMap::new(), directories: HashSet::new(), bytes: 0 }
    }

    /// Where `path` is: its directory part resolved, its last component as it is.
    ///
    /// `None` if the directory does not exist, or if `path` has no last component (`/`, `..`).
    pub fn place(&mut self, path: &Path) -> io::Result<Option<Place>> {
        let Some(Component::Normal(name)) = path.components().next_back() else { return Ok(None) };
        let parent = path.parent().unwrap_or(Path::new("/"));
        Ok(self.directory(parent)?.map(|dir| Place { dir, name: name.to_os_string() }))
    }

    /// Where `path` leads when its last component is followed as well: what a program that writes to it would hit.
    pub fn followed(&mut self, path: &Path) -> io::Result<Option<Place>> {
        let mut path = path.to_path_buf();
        for _ in 0..MAX_SYMLINKS {
            let Some(place) = self.place(&path)? else { return Ok(None) };
            let fd = match self.root.open_at(&place.path(), OFlags::PATH | OFlags::NOFOLLOW) {
                Ok(fd) => fd,
                Err(e) if is_absent(&e) => return Ok(Some(place)),
                Err(e) => return Err(e),
            };
            let target = match rustix::fs::readlinkat(&fd, "", Vec::new()) {
                Ok(target) => PathBuf::from(OsString::from_vec(target.into_bytes())),
                Err(_) => return Ok(Some(place)),
            };
            path = place.dir.join(target);
        }
        Ok(None)
    }

    /// The canonical path of the directory `path`; `None` if there is no such directory.
    pub fn directory(&mut self, path: &Path) -> io::Result<Option<PathBuf>> {
        if let Some(known) = self.known.get(path) {
            return Ok(known.clone());
        }
        let resolved = self.walk(path)?;
        let length = |path: &Path| path.as_os_str().len() + budget::ENTRY;
        self.note(length(path) + resolved.as_deref().map_or(0, length));
        self.known.insert(path.to_path_buf(), resolved.clone());
        Ok(resolved)
    }

    /// Makes room for so many bytes more.
    fn note(&mut self, bytes: usize) {
        self.bytes += bytes;
        if self.bytes > budget::RESOLVED {
            (self.known, self.directories, self.bytes) = (HashMap::new(), HashSet::new(), bytes);
        }
    }

    /// Goes to `path` from the root, as the kernel does. Nothing a guest holds makes this recurse.
    fn walk(&mut self, path: &Path) -> io::Result<Option<PathBuf>> {
        let mut at = PathBuf::from("/");
        let mut links_left = MAX_SYMLINKS;
        // The next name last.
        let mut rest = names_reversed(path);
        while let Some(name) = rest.pop() {
            if name == ".." {
                at.pop();
                continue;
            }
            at.push(name);
            if self.directories.contains(&at) {
                continue;
            }
            match self.look(&at)? {
                Step::Directory => {
                    self.note(at.as_os_str().len() + budget::ENTRY);
                    self.directories.insert(at.clone());
                }
                Step::Symlink(target) if links_left > 0 => {
                    links_left -= 1;
                    at.pop();
                    if target.is_absolute() {
                        at = PathBuf::from("/");
                    }
                    rest.extend(names_reversed(&target));
                }
                _ => return Ok(None),
            }
        }
        Ok(Some(at))
    }

    fn look(&self, path: &Path) -> io::Result<Step> {
        let fd = match self.root.open_at(path, OFlags::PATH | OFlags::NOFOLLOW) {
            Ok(fd) => fd,
            Err(e) if is_absent(&e) => return Ok(Step::Nothing),
            Err(e) => return Err(e),
        };
        Ok(match FileType::from_raw_mode(rustix::fs::fstat(&fd)?.st_mode) {
            FileType::Directory => Step::Directory,
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(&fd, "", Vec::new())?;
                Step::Symlink(PathBuf::from(OsString::from_vec(target.into_bytes())))
            }
            _ => Step::Nothing,
        })
    }
}

/// The names of a path, `..` included, the last one first.
fn names_reversed(path: &Path) -> Vec<OsString> {
    let is_name = |part: &Component<'_>| matches!(part, Component::Normal(_) | Component::ParentDir);
    path.components().rev().filter(is_name).map(|part| part.as_os_str().to_os_string()).collect()
}

/// Whether the error says that the path leads nowhere.
pub fn is_absent(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR | libc::ELOOP | libc::ENAMETOOLONG))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guest() -> (tempfile::TempDir, Root) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("usr/bin")).unwrap();
        std::os::unix::fs::symlink("usr/bin", dir.path().join("bin")).unwrap();
        std::os::unix::fs::symlink("/usr", dir.path().join("absolute")).unwrap();
        std::os::unix::fs::symlink("../../../../usr", dir.path().join("escape")).unwrap();
        std::os::unix::fs::symlink("loop", dir.path().join("loop")).unwrap();
        let root = Root::open(dir.path()).unwrap();
        (dir, root)
    }

    fn place(root: &Root, path: &str) -> Option<PathBuf> {
        Resolver::new(root).place(Path::new(path)).unwrap().map(|p| p.path())
    }

    #[test]
    fn usrmerge_links_are_followed_in_the_directory_part() {
        let (_dir, root) = guest();
        assert_eq!(place(&root, "/bin/bash"), Some(PathBuf::from("/usr/bin/bash")));
    }

    #[test]
    fn the_last_component_is_never_followed() {
        let (_dir, root) = guest();
        assert_eq!(place(&root, "/bin"), Some(PathBuf::from("/bin")));
    }

    #[test]
    fn absolute_and_climbing_links_stay_beneath_the_root() {
        let (_dir, root) = guest();
        assert_eq!(place(&root, "/absolute/bin/x"), Some(PathBuf::from("/usr/bin/x")));
        assert_eq!(place(&root, "/escape/bin/x"), Some(PathBuf::from("/usr/bin/x")));
    }

    #[test]
    fn a_missing_directory_and_a_loop_lead_nowhere() {
        let (_dir, root) = guest();
        assert_eq!(place(&root, "/nowhere/x"), None);
        assert_eq!(place(&root, "/loop/x"), None);
    }

    #[test]
    fn dots_in_the_directory_part_are_resolved() {
        let (_dir, root) = guest();
        assert_eq!(place(&root, "/bin/../bin/./x"), Some(PathBuf::from("/usr/bin/x")));
    }
    #[test]
    fn a_path_without_end_takes_no_stack() {
        let (dir, root) = guest();
        std::os::unix::fs::symlink(".", dir.path().join("self")).unwrap();
        std::os::unix::fs::symlink("self/".repeat(800), dir.path().join("far")).unwrap();
        assert_eq!(place(&root, &format!("{}x", "/self".repeat(100_000))), None);
        assert_eq!(place(&root, "/far/x"), None);
        assert_eq!(
            place(&root, &format!("{}/usr/x", "/usr/..".repeat(100_000))),
            Some(PathBuf::from("/usr/x"))
        );
    }
}

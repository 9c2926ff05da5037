//! What a path of another process leads to, resolved by the kernel in that process's root and working directory.
//!
//! One `openat2(2)` does it, unless the path passes through `/proc`: there the kernel would show us our own
//! descriptors instead of theirs, so such paths are walked name by name.

use std::cell::{Cell, OnceCell};
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags, ResolveFlags};

use crate::sys::file::inode::{Inode, Kind};
use crate::sys::path::patient;
use crate::sys::path::root::Root;
use crate::sys::process::task::Task;
use crate::sys::share::swap::Name;

/// As many symlinks as Linux follows in one path (`path_resolution(7)`).
const MAX_SYMLINKS: u32 = 40;
/// `PROC_SUPER_MAGIC` of `linux/magic.h`.
const PROC_MAGIC: libc::c_long = 0x9fa0;

/// Resolves paths of one waiting thread.
#[derive(Debug)]
pub struct Lookup<'a> {
    /// The thread.
    pub task: &'a Task,
    /// Its root directory, which is that of our thread, too.
    root: Arc<OwnedFd>,
    /// Whether the kernel did not go some way for us that it may go for the caller.
    by_steps: Cell<bool>,
}

/// A name in an open directory, which may name nothing.
#[derive(Debug)]
pub struct OwnedName {
    /// The directory.
    pub dir: Rc<OpenDir>,
    /// The last component of the path.
    pub name: OsString,
    /// A slash says that it names a directory, or is to.
    pub is_directory: bool,
    /// How the caller has named the directory: the descriptor that the path begins at, and the path. `None` if it has not.
    pub way: Option<(i32, Vec<u8>)>,
}

/// A step on the way to what a path leads to, that the kernel asks rights for.
#[derive(Clone, Copy, Debug)]
pub enum Step<'s> {
    /// Looks up a name in a directory.
    Search(&'s OwnedFd),
    /// Follows a symlink, which is in a directory.
    Follow {
        /// The directory.
        dir: &'s OwnedFd,
        /// The symlink.
        link: &'s OwnedFd,
    },
    /// Follows a magic link of `/proc` in a directory there, to what a process has.
    FollowMagic(&'s OwnedFd),
}

/// An open directory.
#[derive(Debug)]
pub struct OpenDir {
    fd: OwnedFd,
    /// Its path from the supervisor's root, once somebody has asked.
    pub path: OnceCell<PathBuf>,
}

impl AsFd for OpenDir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl OwnedName {
    /// The name `name` in `dir`.
    pub fn new(dir: OwnedFd, name: OsString) -> OwnedName {
        let dir = Rc::new(OpenDir { fd: dir, path: OnceCell::new() });
        OwnedName { dir, name, is_directory: false, way: None }
    }

    /// As the operations on names take it.
    pub(super) fn name(&self) -> Name<'_> {
        Name { dir: self.dir.as_fd(), name: &self.name }
    }

    /// Opens, as a place only (`O_PATH`), what it names; a symlink is not followed.
    pub fn open(&self) -> io::Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(rustix::fs::openat(&self.dir, &self.name, flags, Mode::empty())?)
    }
}

impl<'a> Lookup<'a> {
    /// For `task`, to whose `root` the calling thread was moved.
    pub fn new(task: &'a Task, root: Arc<OwnedFd>) -> Lookup<'a> {
        Lookup { task, root, by_steps: Cell::new(false) }
    }

    /// Its root directory, once more.
    pub fn root(&self) -> io::Result<Root> {
        Ok(Root::from_fd(self.root.try_clone()?, Path::new("/")))
    }

    /// Opens, as a place only (`O_PATH`), what `path` leads to.
    ///
    /// `dir` is the descriptor that a relative path begins at, or `AT_FDCWD`.
    pub fn file(&self, dir: i32, path: &[u8], follow: bool, resolve: ResolveFlags) -> io::Result<OwnedFd> {
        self.resolve(dir, path, if follow { OFlags::empty() } else { OFlags::NOFOLLOW }, resolve)
    }

    /// Whether the kernel has gone all ways for us.
    pub(super) fn is_by_kernel(&self) -> bool {
        !self.by_steps.get()
    }

    /// As [`Lookup::file`], step by step: `judge` fails at one that the caller may not take. Of the restrictions only
    /// `RESOLVE_IN_ROOT` counts.
    pub(super) fn file_by_steps(
        &self,
        (dir, path): (i32, &[u8]),
        follow: bool,
        resolve: ResolveFlags,
        judge: &mut dyn FnMut(Step<'_>) -> io::Result<()>,
    ) -> io::Result<OwnedFd> {
        let in_root = resolve.contains(ResolveFlags::IN_ROOT);
        let base = self.base(dir, path, resolve.intersects(ResolveFlags::BENEATH) || in_root)?;
        let root = if in_root { Arc::clone(&base) } else { Arc::clone(&self.root) };
        self.walk(base, &root, path, if follow { OFlags::empty() } else { OFlags::NOFOLLOW }, judge)
    }

    fn resolve(&self, dir: i32, path: &[u8], flags: OFlags, resolve: ResolveFlags) -> io::Result<OwnedFd> {
        let confined = ResolveFlags::BENEATH | ResolveFlags::IN_ROOT;
        let base = self.base(dir, path, resolve.intersects(confined))?;
        let resolve = resolve - ResolveFlags::CACHED;
        let opened = open(&base, path, flags, resolve | ResolveFlags::NO_MAGICLINKS);
        let plain =
            ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_SYMLINKS | confined | ResolveFlags::NO_XDEV;
        match opened {
            Err(e) if !resolve.intersects(plain) && self.may_pass_through_proc(&base, path, &e) => {
                self.by_steps.set(true);
                self.walk(base, &self.root, path, flags, &mut |_| Ok(()))
            }
            opened => opened,
        }
    }

    /// The directory that holds the last name of `path`, and that name.
    ///
    /// `None` if the path does not end in a name.
    pub fn entry(&self, dir: i32, path: &[u8]) -> io::Result<Option<OwnedName>> {
        let Some((parent, name, is_directory)) = parts(path) else { return Ok(None) };
        let fd = self.resolve(dir, parent, OFlags::DIRECTORY, ResolveFlags::empty())?;
        let way = Some((dir, parent.to_vec()));
        Ok(Some(OwnedName { is_directory, way, ..OwnedName::new(fd, name) }))
    }

    /// As [`Lookup::entry`], for two paths, which often lead to the same directory.
    pub fn entries(&self, one: (i32, &[u8]), other: (i32, &[u8])) -> io::Result<Option<[OwnedName; 2]>> {
        let Some(first) = self.entry(one.0, one.1)? else { return Ok(None) };
        let Some((parent, name, is_directory)) = parts(other.1) else { return Ok(None) };
        let is_same = one.0 == other.0 && parts(one.1).is_some_and(|(first, ..)| first == parent);
        let second = if is_same {
            Some(OwnedName { dir: Rc::clone(&first.dir), name, is_directory, way: first.way.clone() })
        } else {
            self.entry(other.0, other.1)?
        };
        Ok(second.map(|second| [first, second]))
    }

    fn base(&self, dir: i32, path: &[u8], confined: bool) -> io::Result<Arc<OwnedFd>> {
        if path.first() == Some(&b'/') && !confined {
            return Ok(Arc::clone(&self.root));
        }
        let base =
            if dir == libc::AT_FDCWD { self.task.working_directory() } else { self.task.descriptor(dir) };
        base.map(Arc::new)
    }

    /// Whether a path that leads nowhere may do so only because we are ourselves, in `/proc/self` and else.
    fn may_pass_through_proc(&self, base: &OwnedFd, path: &[u8], error: &io::Error) -> bool {
        match error.raw_os_error() {
            // `protected_symlinks` keeps us from following what its owner may follow.
            Some(libc::ELOOP | libc::EACCES) => true,
            Some(libc::ENOENT | libc::ENOTDIR) => {
                let (parent, name) = split(path);
                let parent: &[u8] = if path.starts_with(b"/") && parent.is_empty() {
                    b"/"
                } else if parent.is_empty() {
                    b"."
                } else {
                    parent
                };
                let parent = open(base, parent, OFlags::DIRECTORY, ResolveFlags::NO_MAGICLINKS);
                // A name that is not there yet: the usual case.
                let missing =
                    |dir: &OwnedFd| Inode::at(dir, OsStr::from_bytes(name)).is_err() && !is_proc(dir);
                !parent.is_ok_and(|dir| missing(&dir))
            }
            _ => false,
        }
    }

    /// Goes to `path` name by name, and through the magic links of `/proc` as the waiting thread would.
    fn walk(
        &self,
        base: Arc<OwnedFd>,
        root: &OwnedFd,
        path: &[u8],
        flags: OFlags,
        judge: &mut dyn FnMut(Step<'_>) -> io::Result<()>,
    ) -> io::Result<OwnedFd> {
        let (follow, mut at) = (!flags.contains(OFlags::NOFOLLOW), base.try_clone()?);
        let mut links_left = MAX_SYMLINKS;
        // The next name last.
        let mut rest: Vec<Vec<u8>> = names_reversed(path).collect();
        while let Some(name) = rest.pop() {
            let at_end = rest.is_empty();
            judge(Step::Search(&at))?;
            if name == b".." && is_one(&at, root)? {
                continue;
            }
            if name == b"." || name == b".." {
                at = open(&at, &name, OFlags::DIRECTORY, ResolveFlags::empty())?;
                continue;
            }
            let child = open(&at, &name, OFlags::NOFOLLOW, ResolveFlags::empty())?;
            if Inode::of(&child)?.kind != Kind::Symlink || (at_end && !follow) {
                at = child;
                continue;
            }
            if links_left == 0 {
                return Err(io::Error::from_raw_os_error(libc::ELOOP));
            }
            links_left -= 1;
            let Some(target) = self.target(&at, &name, &child)? else {
                judge(Step::FollowMagic(&at))?;
                // A magic link leads to a file, not to a path.
                at = open(&at, &name, OFlags::empty(), ResolveFlags::empty())?;
                continue;
            };
            judge(Step::Follow { dir: &at, link: &child })?;
            if target.starts_with(b"/") {
                at = root.try_clone()?;
            }
            rest.extend(names_reversed(&target));
        }
        let is_directory = flags.contains(OFlags::DIRECTORY) || path.ends_with(b"/");
        if is_directory && Inode::of(&at)?.kind != Kind::Directory {
            return Err(io::Error::from_raw_os_error(libc::ENOTDIR));
        }
        Ok(at)
    }

    /// The path in a symlink; `None` for a magic link.
    fn target(&self, dir: &OwnedFd, name: &[u8], link: &OwnedFd) -> io::Result<Option<Vec<u8>>> {
        if is_proc(dir) {
            if name == b"self" || name == b"thread-self" {
                return self.own_numbers(name == b"thread-self", link).map(Some);
            }
            let followed = open(dir, name, OFlags::empty(), ResolveFlags::NO_MAGICLINKS);
            if followed.is_err_and(|e| e.raw_os_error() == Some(libc::ELOOP)) {
                return Ok(None);
            }
        }
        Ok(Some(rustix::fs::readlinkat(link, "", Vec::new())?.into_bytes()))
    }

    /// What `/proc/self` or `/proc/thread-self` would be to the waiting thread: numbers of the process namespace that
    /// this procfs shows.
    fn own_numbers(&self, thread: bool, link: &OwnedFd) -> io::Result<Vec<u8>> {
        let status = self.task.status()?;
        let ours = rustix::fs::readlinkat(link, "", Vec::new()).map(|own| own.into_bytes());
        // If the link leads to nothing for us, we are not in that namespace: it is the innermost of theirs.
        let (process, tid) = if ours.is_ok_and(|own| !own.is_empty()) {
            (Some(status.process), Some(self.task.tid))
        } else {
            (status.process_in.last().copied(), status.thread_in.last().copied())
        };
        let (Some(process), Some(tid)) = (process, tid) else { return Err(io::ErrorKind::NotFound.into()) };
        Ok(if thread { format!("{process}/task/{tid}") } else { process.to_string() }.into_bytes())
    }
}

fn open(dir: &OwnedFd, path: &[u8], flags: OFlags, resolve: ResolveFlags) -> io::Result<OwnedFd> {
    Ok(patient::openat2(dir, OsStr::from_bytes(path), flags | OFlags::PATH, resolve)?)
}

fn is_one(dir: &OwnedFd, other: &OwnedFd) -> io::Result<bool> {
    let [dir, other] = [Inode::of(dir)?, Inode::of(other)?];
    Ok((dir.id, dir.mount) == (other.id, other.mount))
}

pub(super) fn is_proc(dir: impl AsFd) -> bool {
    rustix::fs::fstatfs(dir).is_ok_and(|stat| stat.f_type == PROC_MAGIC)
}

/// The directory that holds the last name of a path, that name, and whether a slash follows it.
///
/// `None` if the path does not end in a name.
pub(crate) fn parts(path: &[u8]) -> Option<(&[u8], OsString, bool)> {
    let bare = without_slashes(path);
    let (parent, name) = split(bare);
    let parent: &[u8] = if parent.is_empty() { b"." } else { parent };
    let is_name = !matches!(name, b"" | b"." | b"..");
    is_name.then(|| (parent, OsString::from_vec(name.to_vec()), bare.len() < path.len()))
}

/// A path without the slashes at its end.
fn without_slashes(path: &[u8]) -> &[u8] {
    let end = path.iter().rposition(|&byte| byte != b'/').map_or(0, |last| last + 1);
    &path[..end]
}

/// A path up to its last slash, and what follows that.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|&byte| byte == b'/') {
        None => (b"", path),
        Some(0) => (b"/", &path[1..]),
        Some(at) => (&path[..at], &path[at + 1..]),
    }
}

pub(crate) fn names_reversed(path: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    let names = path.split(|&byte| byte == b'/').rev();
    names.filter(|name| !name.is_empty()).map(<[u8]>::to_vec)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::process::Processes;
    use crate::sys::process::thread_root::ThreadRoot;

    #[test]
    fn a_path_is_split_at_its_last_slash() {
        assert_eq!(split(b"a/b/c"), (&b"a/b"[..], &b"c"[..]));
        assert_eq!(split(b"/c"), (&b"/"[..], &b"c"[..]));
        assert_eq!(split(b"c"), (&b""[..], &b"c"[..]));
        assert_eq!(split(b"c/"), (&b"c"[..], &b""[..]));
    }

    #[test]
    fn descriptors_are_those_of_the_waiting_thread() {
        use std::os::fd::AsRawFd;
        use std::process::{Command, Stdio};

        // Another process, whose standard input we do not share.
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, "x").unwrap();
        let input = std::fs::File::open(&path).unwrap();
        let number = input.as_raw_fd();
        let mut child = Command::new("sleep").arg("60").stdin(input).stdout(Stdio::null()).spawn().unwrap();
        let expected = Inode::of(rustix::fs::open(&path, OFlags::PATH, Mode::empty()).unwrap()).unwrap();
        let found = std::thread::spawn(move || {
            let processes = Processes::open().unwrap();
            let task = Task::open(&processes, child.id() as i32).unwrap();
            let root = ThreadRoot::unshare().unwrap().enter_root_of(&task).unwrap();
            let lookup = Lookup::new(&task, root);
            let found = [&b"/proc/self/fd/0"[..], b"/dev/fd/0", b"/dev/stdin", b"/proc/thread-self/fd/0"]
                .map(|path| {
                    lookup
                        .file(libc::AT_FDCWD, path, true, ResolveFlags::empty())
                        .map(|fd| Inode::of(fd).unwrap().id)
                });
            let missing = format!("/proc/self/fd/{}", number + 100);
            assert!(lookup.file(libc::AT_FDCWD, missing.as_bytes(), true, ResolveFlags::empty()).is_err());
            child.kill().unwrap();
            child.wait().unwrap();
            found
        })
        .join()
        .unwrap();
        for found in found {
            assert_eq!(found.unwrap(), expected.id);
        }
    }
}

//! What is mounted where: on names of a guest, in any process's mount namespace; and what of a filesystem it is.
//!
//! A mount in another namespace cannot be seen from here, and the kernel drops it without a word when another file takes
//! the name that it is on. What a process has mounted is in its `mountinfo` (`proc_pid_mountinfo(5)`), with paths from
//! its own root. A directory looked up from there is the same inode as it is here, whatever path leads to it.

use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::table::Processes;
use crate::sys::file::inode::{Inode, InodeId};
use crate::sys::path::resolve::Place;
use crate::sys::path::root::{Root, relative};

/// How often a path is looked up at most, if a rename gets in its way.
const MAX_LOOKUPS: u32 = 16;

/// All mount points, as far as a process has something mounted on them.
#[derive(Debug, Default)]
pub struct MountPoints {
    /// By their last components: the directories these are in.
    points: HashMap<OsString, HashSet<InodeId>>,
}

impl MountPoints {
    /// Looks at all processes.
    pub fn look() -> io::Result<MountPoints> {
        let processes = Processes::open()?;
        let mut seen = HashSet::new();
        let mut found = MountPoints::default();
        for pid in processes.all()? {
            // Some have ended since; of those with one namespace and root one is enough.
            let Ok((namespace, root)) = processes.surroundings(pid) else { continue };
            if seen.insert((namespace, root.id, root.mount)) {
                let added = processes.mounts(pid).map(|(root, text)| found.add(&root, &text));
                added.unwrap_or_else(|e| log::debug!("process {pid}: {e}"));
            }
        }
        Ok(found)
    }

    /// Whether something is mounted on the `name` in a directory, which is asked only if need be.
    pub fn are_on(&self, name: &OsStr, dir: impl FnOnce() -> Option<InodeId>) -> bool {
        self.points.get(name).is_some_and(|dirs| dir().is_some_and(|dir| dirs.contains(&dir)))
    }

    /// Whether something is mounted on a name of a guest.
    pub fn are_at(&self, root: &Root, place: &Place) -> bool {
        self.are_on(&place.name, || Inode::of(root.open_dir(&place.dir).ok()?).ok().map(|inode| inode.id))
    }

    /// Adds what a process's `mountinfo` lists, whose root is this.
    fn add(&mut self, root: &OwnedFd, mountinfo: &[u8]) {
        for point in mountinfo.split(|&byte| byte == b'\n').filter_map(mount_point) {
            let (Some(dir), Some(name)) = (point.parent(), point.file_name()) else { continue };
            // What is hidden beneath another mount has no path.
            if let Ok(dir) = look_up(root, dir).and_then(Inode::cached) {
                self.points.entry(name.to_os_string()).or_default().insert(dir.id);
            }
        }
    }
}

/// Opens the directory at this path of another process, without asking any filesystem: one that the guest itself serves may
/// never answer. What has something mounted below it is in the kernel's cache.
fn look_up(root: &OwnedFd, path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS | ResolveFlags::CACHED;
    let mut failed = Errno::AGAIN;
    for _ in 0..MAX_LOOKUPS {
        match rustix::fs::openat2(root, relative(path), flags, Mode::empty(), resolve) {
            Err(Errno::AGAIN) => {}
            // Before Linux 5.12.
            Err(Errno::INVAL) => {
                let resolve = resolve - ResolveFlags::CACHED;
                return Ok(rustix::fs::openat2(root, relative(path), flags, Mode::empty(), resolve)?);
            }
            Err(e) => failed = e,
            Ok(dir) => return Ok(dir),
        }
    }
    Err(failed.into())
}

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Its number, as `statx(2)` gives it.
    pub id: u64,
    /// Major and minor number of the filesystem; the same for all subvolumes of btrfs.
    pub device: String,
    /// Which directory of the filesystem is mounted.
    pub root: PathBuf,
    /// The directory it is mounted on, from the root of the process.
    pub point: PathBuf,
}

impl Mount {
    pub(crate) fn parse(line: &[u8]) -> Option<Mount> {
        let mut fields = line.split(|&byte| byte == b' ');
        let id = std::str::from_utf8(fields.next()?).ok()?.parse().ok()?;
        let device = String::from_utf8(fields.nth(1)?.to_vec()).ok()?;
        let root = PathBuf::from(OsString::from_vec(unescaped(fields.next()?)));
        Some(Mount { id, device, root, point: mount_point(line)? })
    }
}

/// The mounts that a process sees; `self` is the calling one.
pub fn of(process: &str) -> io::Result<Vec<Mount>> {
    let text = std::fs::read(format!("/proc/{process}/mountinfo"))?;
    Ok(text.split(|&byte| byte == b'\n').filter_map(Mount::parse).collect())
}

/// A place where something of a directory is mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountedAt {
    /// Where, from the root of the process.
    pub point: PathBuf,
    /// A process that has it mounted.
    pub pid: i32,
}

/// Where a directory, or something in it, is mounted, by any process; or is a layer of an overlay, if who has mounted that
/// calls it by the same path. `path` is canonical, `mount` the number of the mount that it is on.
///
/// # Errors
/// If the process table cannot be read.
pub fn of_directory(mount: u64, path: &Path) -> io::Result<Vec<MountedAt>> {
    let Some((device, inner)) = place(&of("self")?, mount, path) else { return Ok(Vec::new()) };
    let processes = Processes::open()?;
    let own = std::process::id() as i32;
    let (mut seen, mut found) = (HashSet::new(), Vec::new());
    // What is mounted here is told of here.
    for pid in [own].into_iter().chain(processes.all()?) {
        let Ok((namespace, root)) = processes.surroundings(pid) else { continue };
        if !seen.insert((namespace, root.id, root.mount)) {
            continue;
        }
        let Ok((_, text)) = processes.mounts(pid) else { continue };
        for line in text.split(|&byte| byte == b'\n') {
            let Some(Mount { device: of, root, point, .. }) = Mount::parse(line) else { continue };
            let is_part = of == device && root.starts_with(&inner);
            if is_part || layers(line).iter().any(|layer| layer.starts_with(path)) {
                found.push(MountedAt { point, pid });
            }
        }
    }
    Ok(found)
}

/// The directories that an overlay consists of, as who has mounted it named them (`ovl_show_options` of
/// `fs/overlayfs/params.c`); none for other mounts.
fn layers(line: &[u8]) -> Vec<PathBuf> {
    let mut fields = line.split(|&byte| byte == b' ').skip_while(|field| *field != b"-").skip(1);
    let (Some(b"overlay"), Some(options)) = (fields.next(), fields.nth(1)) else { return Vec::new() };
    let mut layers = Vec::new();
    for option in options.split(|&byte| byte == b',') {
        let value = [&b"lowerdir="[..], b"lowerdir+=", b"datadir+=", b"upperdir="]
            .iter()
            .find_map(|key| option.strip_prefix(*key));
        let mut layer = Vec::new();
        let value = value.map(unescaped).unwrap_or_default();
        let mut bytes = value.into_iter();
        while let Some(byte) = bytes.next() {
            match byte {
                b':' => layers.push(std::mem::take(&mut layer)),
                b'\\' => layer.extend(bytes.next()),
                byte => layer.push(byte),
            }
        }
        layers.push(layer);
    }
    layers
        .into_iter()
        .filter(|layer| !layer.is_empty())
        .map(|layer| OsString::from_vec(layer).into())
        .collect()
}

/// Which filesystem a canonical path is on, and where there; `mount` is the number of its mount.
pub fn place(mounts: &[Mount], mount: u64, path: &Path) -> Option<(String, PathBuf)> {
    let mount = mounts.iter().find(|other| other.id == mount)?;
    let below = path.strip_prefix(&mount.point).ok()?;
    Some((mount.device.clone(), mount.root.components().chain(below.components()).collect()))
}

/// The fifth field of a line.
fn mount_point(line: &[u8]) -> Option<PathBuf> {
    let field = line.split(|&byte| byte == b' ').nth(4)?;
    Some(PathBuf::from(OsString::from_vec(unescaped(field))))
}

/// White space and backslashes are written as three octal digits after a backslash.
fn unescaped(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, after)) = rest.split_first() {
        let octal = after.first_chunk::<3>().filter(|_| byte == b'\\');
        let octal = octal.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        bytes.push(octal.unwrap_or(byte));
        rest = if octal.is_some() { &after[3..] } else { after };
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_point_of_a_line_is_read() {
        let line = b"22 20 8:1 /h /etc/a\\040\\134b rw - ext4 /dev/sda1 rw";
        assert_eq!(mount_point(line), Some(PathBuf::from("/etc/a \\b")));
        for line in ["", " ", "1", "1 2 3 4"] {
            assert_eq!(mount_point(line.as_bytes()), None);
        }
        assert_eq!(unescaped(b"\\04\\x\\"), b"\\04\\x\\");
    }

    #[test]
    fn the_layers_of_an_overlay_are_read() {
        let line = b"36 35 0:9 / /mnt rw - overlay o rw,lowerdir=/a\\040b:/c\\134:d,lowerdir+=/e,upperdir=/f,workdir=/w";
        assert_eq!(layers(line), ["/a b", "/c:d", "/e", "/f"].map(PathBuf::from));
        for other in ["", "- overlay", "36 35 0:9 / /mnt rw - ext4 /dev/sda rw,lowerdir=/a"] {
            assert_eq!(layers(other.as_bytes()), Vec::<PathBuf>::new());
        }
    }

    #[test]
    fn a_path_has_a_place_in_its_filesystem() {
        let line = b"36 35 98:0 /mnt1\\040x /mnt\\134y rw,noatime master:1 - ext3 /dev/root rw";
        let mount = Mount::parse(line).unwrap();
        let wanted = Mount { id: 36, device: "98:0".into(), root: "/mnt1 x".into(), point: "/mnt\\y".into() };
        assert_eq!(mount, wanted);
        let place = |path: &str| place(std::slice::from_ref(&mount), 36, Path::new(path));
        assert_eq!(place("/mnt\\y/a"), Some(("98:0".into(), "/mnt1 x/a".into())));
        assert_eq!(place("/mnt\\y").unwrap().1.as_os_str(), "/mnt1 x");
        assert_eq!(place("/mnt"), None);
        assert_eq!(Mount::parse(b""), None);
    }

    #[test]
    fn directories_are_found_by_their_inodes() {
        let proc = Inode::of(std::fs::File::open("/proc").unwrap()).unwrap();
        let root = Inode::of(std::fs::File::open("/").unwrap()).unwrap();
        let found = MountPoints::look().unwrap();
        assert!(found.are_on(OsStr::new("proc"), || Some(root.id)));
        assert!(!found.are_on(OsStr::new("proc"), || Some(proc.id)));
    }
}

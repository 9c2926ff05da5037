//! What keeps programs in the kernel: names in the BPF filesystem.
//!
//! ```text
//! /sys/fs/bpf/cow-guard/     0700, root's; locked by who changes it
//!     7/                     a generation: all programs, loaded together
//!         file_open ...      the link of the program to its hook: while it has a name, the program answers
//!         flag-changes       read it: the tasks that may be about to change flags, `PID TID` each
//!         filesystems/UUID/  the filesystems that these programs guard
//!         complete/          made last: without it, the loader was killed
//! ```
//!
//! What several generations refuse adds up. So a new one is made beside the others, and they are removed when it is
//! complete: no moment is without.

use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountFlags, mount};

use crate::sys::file::inode::Inode;
use crate::sys::file::uuid::Uuid;
use crate::sys::path::dirfd;
use crate::sys::path::resolve::is_absent;
use crate::sys::share::lock;

/// Where the BPF filesystem is mounted.
const BPFFS: &str = "/sys/fs/bpf";
/// `BPF_FS_MAGIC` of `linux/magic.h`.
const BPFFS_MAGIC: u32 = 0xcafe_4a11;
const OURS: &str = "cow-guard";
const FILESYSTEMS: &str = "filesystems";
const COMPLETE: &str = "complete";
/// What the list of tasks is called that may be about to change flags.
pub const FLAG_CHANGES: &str = "flag-changes";

/// How long to wait for another process that loads or unloads.
const LOCK_TIMEOUT: Duration = Duration::from_secs(30);

/// A set of programs that were loaded together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Generation {
    /// Its name; later ones have higher numbers.
    pub number: u64,
    /// Its loader came to the end.
    pub complete: bool,
    /// The programs that answer, by their names.
    pub programs: Vec<String>,
    /// What they guard.
    pub filesystems: Vec<Uuid>,
}

/// All generations, open; while it lives, no other process adds or removes one.
#[derive(Debug)]
pub struct Pins {
    dir: OwnedFd,
}

impl Pins {
    /// Opens and locks the directory of the generations, made if it is missing; mounts the filesystem if it is not.
    ///
    /// # Errors
    /// What mounting meets; `TimedOut` if another process keeps the lock.
    pub fn open() -> io::Result<Pins> {
        mount_bpffs()?;
        Pins::lock(dirfd::make_dir_at(open_bpffs()?, OsStr::new(OURS))?)
    }

    fn lock(dir: OwnedFd) -> io::Result<Pins> {
        let inode = Inode::of(&dir)?;
        // A BPF filesystem that was mounted without a mode lets every user make directories.
        if inode.uid != 0 || inode.mode & 0o077 != 0 {
            return Err(io::Error::other(format!(
                "{OURS}: another user than root could remove the guard; remove this directory"
            )));
        }
        lock::exclusive(&dir, LOCK_TIMEOUT)?;
        Ok(Pins { dir })
    }

    /// As [`Pins::open`], if there are any.
    pub fn existing() -> io::Result<Option<Pins>> {
        let there = if is_bpffs()? { open_dir(open_bpffs()?, OURS) } else { return Ok(None) };
        match there {
            Err(e) if is_absent(&e) => Ok(None),
            Err(e) => Err(e),
            Ok(dir) => Pins::lock(dir).map(Some),
        }
    }

    /// The generations, oldest first.
    pub fn generations(&self) -> io::Result<Vec<Generation>> {
        let mut generations: Vec<Generation> = Vec::new();
        for number in self.numbers()? {
            generations.push(self.look(number)?);
        }
        Ok(generations)
    }

    fn numbers(&self) -> io::Result<Vec<u64>> {
        let names = dirfd::names(self.open_again()?)?;
        let mut numbers: Vec<u64> = names.iter().filter_map(|name| name.to_str()?.parse().ok()).collect();
        numbers.sort_unstable();
        Ok(numbers)
    }

    fn look(&self, number: u64) -> io::Result<Generation> {
        let dir = open_dir(&self.dir, &number.to_string())?;
        let names: Vec<String> =
            dirfd::names(&dir)?.into_iter().filter_map(|name| name.into_string().ok()).collect();
        let filesystems = match open_dir(&dir, FILESYSTEMS) {
            Ok(dir) => dirfd::names(dir)?.iter().filter_map(|name| name.to_str()?.parse().ok()).collect(),
            Err(_) => Vec::new(),
        };
        let complete = names.iter().any(|name| name == COMPLETE);
        let mut programs = names;
        programs.retain(|name| name != FILESYSTEMS && name != COMPLETE);
        programs.sort_unstable();
        Ok(Generation { number, complete, programs, filesystems })
    }

    /// Begins a new generation; returns its number, and the directory for the links of its programs.
    pub fn begin(&self) -> io::Result<(u64, PathBuf)> {
        let number = self.numbers()?.last().map_or(1, |last| last + 1);
        dirfd::create_dir(&self.dir, OsStr::new(&number.to_string()))?;
        Ok((number, Path::new(BPFFS).join(OURS).join(number.to_string())))
    }

    /// Notes that all programs of a generation answer, and what they guard.
    pub fn complete(&self, number: u64, filesystems: &[Uuid]) -> io::Result<()> {
        let dir = open_dir(&self.dir, &number.to_string())?;
        let list = dirfd::make_dir_at(&dir, OsStr::new(FILESYSTEMS))?;
        for uuid in filesystems {
            dirfd::make_dir_at(&list, OsStr::new(&uuid.to_string()))?;
        }
        dirfd::make_dir_at(&dir, OsStr::new(COMPLETE)).map(drop)
    }

    /// Takes the programs of a generation out of the kernel.
    pub fn remove(&self, number: u64) -> io::Result<()> {
        let name = number.to_string();
        let dir = open_dir(&self.dir, &name)?;
        dirfd::remove_dir(&dir, OsStr::new(COMPLETE))?;
        if let Ok(list) = open_dir(&dir, FILESYSTEMS) {
            for name in dirfd::names(&list)? {
                dirfd::remove_dir(&list, &name)?;
            }
        }
        dirfd::remove_dir(&dir, OsStr::new(FILESYSTEMS))?;
        for program in dirfd::names(&dir)? {
            dirfd::remove_file(&dir, &program)?;
        }
        dirfd::remove_dir(&self.dir, OsStr::new(&name)).map(drop)
    }

    /// Another descriptor of the directory, to be read from its begin.
    fn open_again(&self) -> io::Result<OwnedFd> {
        open_dir(&self.dir, ".")
    }
}

fn open_dir(dir: impl std::os::fd::AsFd, name: &str) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(dir, name, flags, Mode::empty())?)
}

fn open_bpffs() -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(BPFFS, flags, Mode::empty())?)
}

fn is_bpffs() -> io::Result<bool> {
    match rustix::fs::statfs(BPFFS) {
        Ok(stat) => Ok(stat.f_type as u32 == BPFFS_MAGIC),
        Err(rustix::io::Errno::NOENT) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

/// As systemd mounts it.
fn mount_bpffs() -> io::Result<()> {
    if is_bpffs()? {
        return Ok(());
    }
    // What is mounted elsewhere goes with the last process that sees it, and the guard goes with it.
    let namespace = |process: &str| std::fs::read_link(format!("/proc/{process}/ns/mnt"));
    if namespace("self")? != namespace("1")? {
        return Err(io::Error::other(
            "no BPF filesystem is mounted; run this in the mount namespace of the host",
        ));
    }
    log::info!("{BPFFS}: mounting the BPF filesystem");
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC | MountFlags::RELATIME;
    Ok(mount("bpf", BPFFS, "bpf", flags, c"mode=0700")?)
}

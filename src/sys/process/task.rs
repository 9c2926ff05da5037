//! A thread of another process: its view of the filesystem, its descriptors, its memory, its rights (`proc(5)`).

#![allow(unsafe_code)]

use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, OwnedFd};

use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::unistd::Pid;
use rustix::fs::{Mode, OFlags};
use rustix::thread::CapabilitySet;

use super::numbers::Numbers;
use super::status::Status;
use super::table::Processes;
use crate::sys::file::inode::{Inode, InodeId};
use crate::sys::procfs;
use crate::sys::seccomp::filter;

/// Longest path of a system call, with its end (`PATH_MAX`, `linux/limits.h`).
const PATH_MAX: usize = 4096;
/// A string is read in parts that lie in one page each: what follows may not be there.
const PAGE: u64 = 4096;

/// With these, neither permissions nor owners of files stand in a process's way.
const ALL_FILES: CapabilitySet = CapabilitySet::DAC_OVERRIDE.union(CapabilitySet::FOWNER);

/// A thread that waits for us.
#[derive(Debug)]
pub struct Task {
    /// Its number.
    pub tid: i32,
    dir: OwnedFd,
}

/// What `/proc/PID/fdinfo` says of a descriptor (`proc_pid_fdinfo(5)`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpenFile {
    /// Offset of the next read or write, in bytes.
    pub position: u64,
    /// Flags as of `open(2)`, `O_CLOEXEC` among them.
    pub flags: u32,
    /// The lock on it.
    pub lock: FileLock,
}

/// A lock on an open file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FileLock {
    /// None.
    #[default]
    None,
    /// One of `flock(2)`, which belongs to the open file.
    Shared,
    /// Likewise.
    Exclusive,
    /// A lease, or a lock of parts, which belongs to the process.
    Other,
}

impl Task {
    /// The thread `tid`.
    pub fn open(processes: &Processes, tid: i32) -> io::Result<Task> {
        Ok(Task { tid, dir: processes.directory(tid)? })
    }

    /// Its root directory.
    pub fn root(&self) -> io::Result<OwnedFd> {
        self.follow("root")
    }

    /// What its root directory is, without opening it.
    ///
    /// # Errors
    /// `ESRCH` or `ENOENT` if the thread has ended, even if its number is another's by now.
    pub fn root_inode(&self) -> io::Result<Inode> {
        Inode::behind(&self.dir, "root")
    }

    /// Its working directory.
    pub fn working_directory(&self) -> io::Result<OwnedFd> {
        self.follow("cwd")
    }

    /// What its descriptor `number` is open on.
    pub fn descriptor(&self, number: i32) -> io::Result<OwnedFd> {
        self.follow(&format!("fd/{number}"))
    }

    /// What its descriptor `number` is open on, without opening that.
    pub fn descriptor_inode(&self, number: i32) -> io::Result<Inode> {
        Inode::behind(&self.dir, &format!("fd/{number}"))
    }

    fn follow(&self, link: &str) -> io::Result<OwnedFd> {
        Ok(rustix::fs::openat(&self.dir, link, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?)
    }

    /// The numbers of its descriptors.
    pub fn descriptors(&self) -> io::Result<Vec<i32>> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = rustix::fs::openat(&self.dir, "fd", flags, Mode::empty())?;
        let mut numbers = Vec::new();
        for entry in rustix::fs::Dir::new(dir)? {
            let entry = entry?;
            numbers.extend(entry.file_name().to_str().ok().and_then(|name| name.parse::<i32>().ok()));
        }
        Ok(numbers)
    }

    /// How its descriptor `number` is open.
    pub fn open_file(&self, number: i32) -> io::Result<OpenFile> {
        Ok(parse_open_file(&self.read(&format!("fdinfo/{number}"))?))
    }

    /// Whether two of its descriptors are one open file, with one position (`kcmp(2)`).
    ///
    /// Without `CONFIG_KCMP` they count as two.
    pub fn is_one_file(&self, a: i32, b: i32) -> bool {
        const KCMP_FILE: libc::c_int = 0;
        if !filter::permits(libc::SYS_kcmp) {
            return false;
        }
        // SAFETY: only numbers are passed.
        unsafe { libc::syscall(libc::SYS_kcmp, self.tid, self.tid, KCMP_FILE, a, b) == 0 }
    }

    /// Its rights.
    pub fn status(&self) -> io::Result<Status> {
        Status::read_at(&self.dir, "status")
    }

    /// Its user namespace.
    pub fn user_namespace(&self) -> io::Result<InodeId> {
        Ok(Inode::behind(&self.dir, "ns/user")?.id)
    }

    /// The users whom its user namespace has numbers for.
    pub fn users(&self) -> io::Result<Numbers> {
        Ok(Numbers::parse(&self.read("uid_map")?))
    }

    /// The groups, likewise.
    pub fn groups(&self) -> io::Result<Numbers> {
        Ok(Numbers::parse(&self.read("gid_map")?))
    }

    /// Its effective capabilities (`capget(2)`), in its own user namespace.
    pub fn capabilities(&self) -> io::Result<CapabilitySet> {
        Ok(rustix::thread::capabilities(rustix::process::Pid::from_raw(self.tid))?.effective)
    }

    /// Whether neither permissions nor owners of files stand in its way, as far as its own user namespace reaches.
    pub fn may_change_all_files(&self) -> bool {
        self.capabilities().is_ok_and(|capabilities| capabilities.contains(ALL_FILES))
    }

    fn read(&self, file: &str) -> io::Result<Vec<u8>> {
        procfs::read(&self.dir, file)
    }

    /// The string at `address` of its memory, without its end.
    ///
    /// # Errors
    /// `EFAULT` if nothing is; `ENAMETOOLONG` if no end is in sight.
    pub fn string(&self, address: u64) -> io::Result<Vec<u8>> {
        let mut string = Vec::with_capacity(256);
        while string.len() < PATH_MAX {
            let at = address.wrapping_add(string.len() as u64);
            let mut part = [0; 256];
            let length = part.len().min((PAGE - at % PAGE) as usize);
            let got = self.memory(at, &mut part[..length])?;
            match part[..got].iter().position(|&byte| byte == 0) {
                Some(end) => {
                    string.extend_from_slice(&part[..end]);
                    return Ok(string);
                }
                None => string.extend_from_slice(&part[..got]),
            }
        }
        Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG))
    }

    /// Fills `buffer` from `address` of its memory; returns how much of it there is.
    ///
    /// # Errors
    /// `EFAULT` if nothing is.
    pub fn memory(&self, address: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let from = RemoteIoVec { base: address as usize, len: buffer.len() };
        match process_vm_readv(Pid::from_raw(self.tid), &mut [IoSliceMut::new(buffer)], &[from])? {
            0 => Err(io::Error::from_raw_os_error(libc::EFAULT)),
            got => Ok(got),
        }
    }
}

impl AsFd for Task {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.dir.as_fd()
    }
}

pub(crate) fn parse_open_file(text: &[u8]) -> OpenFile {
    let mut file = OpenFile::default();
    for (key, value) in procfs::lines(text) {
        match key {
            "pos" => file.position = value.parse().unwrap_or(0),
            "flags" => file.flags = u32::from_str_radix(value, 8).unwrap_or(0),
            "lock" => file.lock = parse_lock(value, file.lock),
            _ => {}
        }
    }
    file
}

/// A line like `1: FLOCK  ADVISORY  WRITE 4242 08:01:1234 0 EOF` (`proc_locks(5)`).
fn parse_lock(line: &str, before: FileLock) -> FileLock {
    let mut words = line.split_ascii_whitespace().skip(1);
    match (words.next(), words.nth(1), before) {
        (Some("FLOCK"), Some("WRITE"), FileLock::None) => FileLock::Exclusive,
        (Some("FLOCK"), Some("READ"), FileLock::None) => FileLock::Shared,
        _ => FileLock::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own() -> Task {
        Task::open(&Processes::open().unwrap(), std::process::id() as i32).unwrap()
    }

    #[test]
    fn capabilities_are_those_that_the_status_tells() {
        let task = own();
        assert_eq!(task.capabilities().unwrap(), task.status().unwrap().capabilities);
    }

    #[test]
    fn a_string_is_read_up_to_its_end() {
        let text = [b'a'; 6000];
        let mut with_end = text.to_vec();
        with_end[5000] = 0;
        let task = own();
        assert_eq!(task.string(with_end.as_ptr() as u64 + 4990).unwrap(), b"aaaaaaaaaa");
        let endless = task.string(text.as_ptr() as u64).unwrap_err();
        assert_eq!(endless.raw_os_error(), Some(libc::ENAMETOOLONG));
        assert_eq!(task.string(8).unwrap_err().raw_os_error(), Some(libc::EFAULT));
    }

    #[test]
    fn a_lock_of_the_open_file_is_told_from_others() {
        let lock = |lines: &str| parse_open_file(lines.as_bytes()).lock;
        let (whole, part) = (
            "lock:\t1: FLOCK  ADVISORY  READ 7 08:01:9 0 EOF\n",
            "lock:\t1: POSIX  ADVISORY  READ 7 08:01:9 0 9\n",
        );
        assert_eq!(lock("pos:\t0\n"), FileLock::None);
        assert_eq!(lock(whole), FileLock::Shared);
        assert_eq!(lock(part), FileLock::Other);
        assert_eq!(lock(&format!("{whole}{part}")), FileLock::Other);
    }

    #[test]
    fn a_descriptor_tells_flags_and_position() {
        use std::io::{Seek, SeekFrom};
        use std::os::fd::AsRawFd;
        let mut file = tempfile::tempfile().unwrap();
        file.seek(SeekFrom::Start(42)).unwrap();
        let copy = file.try_clone().unwrap();
        let task = own();
        let open = task.open_file(file.as_raw_fd()).unwrap();
        assert_eq!((open.position, open.flags & libc::O_ACCMODE as u32), (42, libc::O_RDWR as u32));
        assert!(task.descriptors().unwrap().contains(&file.as_raw_fd()));
        assert!(task.is_one_file(file.as_raw_fd(), copy.as_raw_fd()));
    }
}

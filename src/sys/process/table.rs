//! What the process table says (`proc(5)`).

use std::ffi::{OsStr, OsString};
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use rustix::fs::{Mode, OFlags};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};

use super::status::Status;
use crate::sys::budget::{self, Exceeded};
use crate::sys::file::inode::Inode;
use crate::sys::path::tree;
use crate::sys::procfs;
use crate::sys::seccomp::filter;

/// A process, told from a later one of the same number by when it started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProcessId {
    /// Process number.
    pub pid: i32,
    /// When it started, in clock ticks since boot; 0 if that could not be learnt.
    pub start: u64,
}

/// One line of `/proc/PID/stat` (`proc_pid_stat(5)`), the part we need.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Number and start.
    pub id: ProcessId,
    /// Number of the parent.
    pub parent: i32,
    /// Name of the program, cut to 15 bytes.
    pub command: OsString,
}

/// A line of `/proc/PID/syscall` (`proc_pid_syscall(5)`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SystemCall {
    /// Its number, in the numbering of the thread's own ABI; -1 outside of system calls.
    pub number: libc::c_long,
    /// The registers its arguments came in.
    pub arguments: [u64; 6],
}

/// A procfs: the mounted one, or one of our own if a chroot has none.
#[derive(Debug)]
pub struct Processes {
    proc: OwnedFd,
}

impl Processes {
    /// Opens `/proc`, or a detached procfs if none is mounted there (needs `CAP_SYS_ADMIN`).
    pub fn open() -> io::Result<Processes> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        if let Ok(proc) = rustix::fs::open("/proc", flags, Mode::empty()) {
            let candidate = Processes { proc };
            if candidate.own().is_ok() {
                return Ok(candidate);
            }
        }
        if ![libc::SYS_fsopen, libc::SYS_fsconfig, libc::SYS_fsmount].into_iter().all(filter::permits) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let fs = fsopen("proc", FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_create(&fs)?;
        let proc = fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
        Ok(Processes { proc })
    }

    /// The calling process.
    pub fn own(&self) -> io::Result<Process> {
        self.process(std::process::id() as i32)
    }

    /// The process `pid`.
    pub fn process(&self, pid: i32) -> io::Result<Process> {
        parse_stat(&self.read(pid, "stat")?).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
    }

    /// The numbers of all processes.
    pub fn all(&self) -> io::Result<Vec<i32>> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = rustix::fs::openat(&self.proc, ".", flags, Mode::empty())?;
        let mut all = Vec::new();
        tree::entries(&dir, &mut tree::listing_buffer(), |name, _, _| {
            all.extend(name.to_str().and_then(|name| name.parse::<i32>().ok()));
        })?;
        Ok(all)
    }

    /// Which mount namespace a process is in, and its root directory.
    pub(crate) fn surroundings(&self, pid: i32) -> io::Result<(Vec<u8>, Inode)> {
        let namespace = rustix::fs::readlinkat(&self.proc, format!("{pid}/ns/mnt"), Vec::new())?;
        // A filesystem that the process itself serves is not asked.
        Ok((namespace.into_bytes(), Inode::cached(self.root(pid)?)?))
    }

    /// The root directory of a process, and what it has mounted, with paths from there (`proc_pid_mountinfo(5)`).
    pub fn mounts(&self, pid: i32) -> io::Result<(OwnedFd, Vec<u8>)> {
        Ok((self.root(pid)?, self.read(pid, "mountinfo")?))
    }

    /// Parent, grandparent and so on, up to the first process of the namespace.
    pub fn ancestors(&self) -> io::Result<Vec<Process>> {
        let mut line = Vec::new();
        let mut next = self.own()?.parent;
        while next > 0 {
            // A parent outside of this process namespace cannot be read.
            let Ok(process) = self.process(next) else { break };
            next = process.parent;
            line.push(process);
        }
        Ok(line)
    }

    /// What the process has mapped into its memory, a line each (`proc_pid_maps(5)`).
    pub(crate) fn mappings(&self, pid: i32) -> io::Result<Vec<u8>> {
        self.read(pid, "maps")
    }

    /// The inode behind a mapping of the process; `range` as [`Processes::mappings`] has it.
    pub fn mapped(&self, pid: i32, range: &str) -> io::Result<Inode> {
        Inode::behind(&self.proc, &format!("{pid}/map_files/{range}"))
    }

    /// The arguments the process was started with.
    pub fn command_line(&self, pid: i32) -> io::Result<Vec<OsString>> {
        let mut raw = self.read(pid, "cmdline")?;
        if raw.last() == Some(&0) {
            raw.pop();
        }
        Ok(raw.split(|&b| b == 0).map(|argument| OsString::from_vec(argument.to_vec())).collect())
    }

    /// The working directory of the process.
    pub fn working_directory(&self, pid: i32) -> io::Result<PathBuf> {
        self.path_of(pid, "cwd")
    }

    /// The root directory of the process.
    pub fn root_inode(&self, pid: i32) -> io::Result<Inode> {
        Inode::of(self.root(pid)?)
    }

    /// The root directory of the process, open.
    pub fn root(&self, pid: i32) -> io::Result<OwnedFd> {
        self.directory_of(pid, "root")
    }

    /// What the link `what` of the process leads to, such as `cwd`, as the calling thread would name it.
    pub(crate) fn path_of(&self, pid: i32, what: &str) -> io::Result<PathBuf> {
        let link = rustix::fs::readlinkat(&self.proc, format!("{pid}/{what}"), Vec::new())?;
        Ok(PathBuf::from(OsString::from_vec(link.into_bytes())))
    }

    /// The directory that the link `what` of the process leads to, open.
    pub(crate) fn directory_of(&self, pid: i32, what: &str) -> io::Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(rustix::fs::openat(&self.proc, format!("{pid}/{what}"), flags, Mode::empty())?)
    }

    /// What it may do, and who may do something with it.
    pub fn status(&self, pid: i32) -> io::Result<Status> {
        Status::parse(&self.read(pid, "status")?)
    }

    /// The path of the program that the process runs, as the kernel tells it; the file is not asked.
    pub(crate) fn program_path(&self, pid: i32) -> io::Result<Vec<u8>> {
        Ok(rustix::fs::readlinkat(&self.proc, format!("{pid}/exe"), Vec::new())?.into_bytes())
    }

    /// A setting of the kernel for files, a number, by its name below `fs/` (`proc_sys_fs(5)`).
    pub(crate) fn file_setting(&self, name: &str) -> io::Result<u32> {
        let digits = procfs::read(&self.proc, &format!("sys/fs/{name}"))?;
        let number = std::str::from_utf8(&digits).ok().and_then(|text| text.trim().parse().ok());
        number.ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// The program that the process runs, open for reading.
    pub fn program(&self, pid: i32) -> io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        Ok(rustix::fs::openat(&self.proc, format!("{pid}/exe"), flags, Mode::empty())?)
    }

    /// The system call that the thread `tid` sleeps in; `None` while it runs.
    pub(crate) fn system_call(&self, tid: i32) -> io::Result<Option<SystemCall>> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&self.proc, format!("{tid}/syscall"), flags, Mode::empty())?;
        let mut line = [0; 256];
        let len = rustix::io::read(&fd, &mut line)?;
        Ok(parse_system_call(&line[..len]))
    }

    /// The directory of the thread `tid`.
    pub fn directory(&self, tid: i32) -> io::Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(rustix::fs::openat(&self.proc, tid.to_string(), flags, Mode::empty())?)
    }

    /// What a descriptor of this process is open on, as the calling thread would name it.
    pub(crate) fn own_descriptor(&self, number: i32) -> io::Result<Vec<u8>> {
        Ok(rustix::fs::readlinkat(&self.proc, format!("self/fd/{number}"), Vec::new())?.into_bytes())
    }

    /// Opens anew what an open file of this process is, with these flags.
    pub fn reopen(&self, file: impl AsFd, flags: OFlags) -> io::Result<OwnedFd> {
        let path = format!("self/fd/{}", file.as_fd().as_raw_fd());
        Ok(rustix::fs::openat(&self.proc, path, flags | OFlags::CLOEXEC, Mode::empty())?)
    }

    fn read(&self, pid: i32, file: &str) -> io::Result<Vec<u8>> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&self.proc, format!("{pid}/{file}"), flags, Mode::empty())?;
        let mut content = Vec::new();
        // A file by itself asks for its size first.
        std::fs::File::from(fd).take(budget::PROCESS as u64 + 1).read_to_end(&mut content)?;
        Exceeded::check_bytes(content.len() as u64, budget::PROCESS as u64)?;
        Ok(content)
    }
}

impl ProcessId {
    /// Whether this very process is still there.
    pub fn is_alive(self, processes: Option<&Processes>) -> bool {
        match processes {
            Some(processes) if self.start != 0 => {
                processes.process(self.pid).is_ok_and(|process| process.id.start == self.start)
            }
            _ => {
                let pid = nix::unistd::Pid::from_raw(self.pid);
                nix::sys::signal::kill(pid, None) != Err(nix::errno::Errno::ESRCH)
            }
        }
    }
}

pub(crate) fn parse_stat(line: &[u8]) -> Option<Process> {
    // The name is in parentheses and may hold anything, parentheses too.
    let open = line.iter().position(|&b| b == b'(')?;
    let close = line.iter().rposition(|&b| b == b')')?;
    let pid = std::str::from_utf8(&line[..open]).ok()?.trim().parse().ok()?;
    let rest = std::str::from_utf8(line.get(close + 1..)?).ok()?;
    let mut fields = rest.split_ascii_whitespace();
    let parent = fields.nth(1)?.parse().ok()?;
    // Field 22 of the line; 3 was the first after the name and two more are taken.
    let start = fields.nth(17)?.parse().ok()?;
    let command = OsStr::from_bytes(line.get(open + 1..close)?).to_os_string();
    Some(Process { id: ProcessId { pid, start }, parent, command })
}

pub(crate) fn parse_system_call(line: &[u8]) -> Option<SystemCall> {
    let mut fields = std::str::from_utf8(line).ok()?.split_ascii_whitespace();
    let number = fields.next()?.parse().ok()?;
    let hexadecimal = |field: &str| u64::from_str_radix(field.strip_prefix("0x")?, 16).ok();
    let arguments = std::array::from_fn(|_| fields.next().and_then(hexadecimal).unwrap_or_default());
    Some(SystemCall { number, arguments })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_name_may_hold_parentheses_and_spaces() {
        let line = b"42 (a) b (c) S 7 42 42 0 -1 4194304 1 0 0 0 0 0 0 0 20 0 1 0 123456 0 0";
        let process = parse_stat(line).unwrap();
        assert_eq!(process.id, ProcessId { pid: 42, start: 123_456 });
        assert_eq!(process.parent, 7);
        assert_eq!(process.command, OsStr::new("a) b (c"));
    }

    #[test]
    fn this_process_is_alive_and_its_parent_is_an_ancestor() {
        let processes = Processes::open().unwrap();
        let own = processes.own().unwrap();
        assert!(own.id.is_alive(Some(&processes)));
        assert!(!ProcessId { start: own.id.start + 1, ..own.id }.is_alive(Some(&processes)));
        assert_eq!(processes.ancestors().unwrap()[0].id.pid, own.parent);
    }

    #[test]
    fn a_system_call_has_a_number_and_six_arguments() {
        let line = b"257 0xffffffffffffff9c 0x7ffd0 0x80000 0x0 0x0 0xff 0x7ffc8 0x7f2b\n";
        let call = parse_system_call(line).unwrap();
        assert_eq!((call.number, call.arguments[2], call.arguments[5]), (257, 0x80000, 0xff));
        assert_eq!(parse_system_call(b"running\n"), None);
        assert_eq!(parse_system_call(b"-1 0x7ffc8 0x7f2b\n").unwrap().number, -1);
    }
}

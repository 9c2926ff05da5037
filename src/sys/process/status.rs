//! Whose rights a thread has, and what stands in the way of tracing it (`proc_pid_status(5)`).

use std::io;
use std::os::fd::AsFd;

use rustix::thread::CapabilitySet;

use super::acl::AccessList;
use crate::sys::file::inode::Inode;
use crate::sys::procfs;

/// The part of `/proc/PID/status` that we need.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// Number of its process.
    pub process: i32,
    /// Numbers of its process in each process namespace, the innermost last.
    pub process_in: Vec<i32>,
    /// Number of the thread in each process namespace, the innermost last.
    pub thread_in: Vec<i32>,
    /// How many threads its process has.
    pub threads: u32,
    /// Number of the process that traces it (`ptrace(2)`), 0 without one.
    pub tracer: i32,
    /// The user that file permissions are checked for (the fourth number, `setfsuid(2)`).
    pub uid: u32,
    /// The group, likewise.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Effective capabilities (`capabilities(7)`), in its own user namespace.
    pub capabilities: CapabilitySet,
    /// Whether it can get no more privileges by executing a program (`PR_SET_NO_NEW_PRIVS(2const)`).
    pub(crate) no_new_privileges: bool,
}

impl Status {
    /// Reads it from a file below a directory of procfs.
    pub fn read_at(dir: impl AsFd, path: &str) -> io::Result<Status> {
        Status::parse(&procfs::read(dir, path)?)
    }

    /// Reads the content of the file.
    ///
    /// # Errors
    /// `InvalidData` if it lacks a line that every kernel writes.
    pub(crate) fn parse(content: &[u8]) -> io::Result<Status> {
        let lines = Lines(procfs::lines(content).collect());
        let read = || {
            Some(Status {
                process: lines.last("Tgid")?.parse().ok()?,
                process_in: lines.numbers("NStgid"),
                thread_in: lines.numbers("NSpid"),
                threads: lines.last("Threads")?.parse().ok()?,
                tracer: lines.last("TracerPid")?.parse().ok()?,
                uid: lines.last("Uid")?.parse().ok()?,
                gid: lines.last("Gid")?.parse().ok()?,
                groups: lines.numbers("Groups"),
                capabilities: CapabilitySet::from_bits_retain(
                    u64::from_str_radix(lines.last("CapEff")?, 16).ok()?,
                ),
                no_new_privileges: lines.last("NoNewPrivs")? == "1",
            })
        };
        read().ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// Whether permissions give it these bits of `inode`; `list` is asked for the access control list only if that counts
    /// (`acl_permission_check` of `fs/namei.c`). Capabilities are not looked at.
    pub fn has_access(&self, inode: &Inode, wanted: u32, list: impl FnOnce() -> Option<Vec<u8>>) -> bool {
        // The bits of the group are the list's mask.
        let list = if self.uid != inode.uid && inode.mode & 0o070 != 0 { list() } else { None };
        match list {
            Some(list) => AccessList::parse(&list).is_some_and(|list| {
                list.allows(self.uid, |group| self.is_in_group(group), inode.gid, wanted)
            }),
            None => self.bits(inode) & wanted == wanted,
        }
    }

    /// Whether a group is among its own.
    pub fn is_in_group(&self, group: u32) -> bool {
        self.gid == group || self.groups.contains(&group)
    }

    /// Those permission bits of `inode` that count for it, as the lowest three.
    fn bits(&self, inode: &Inode) -> u32 {
        if self.uid == inode.uid {
            inode.mode >> 6
        } else if self.is_in_group(inode.gid) {
            inode.mode >> 3
        } else {
            inode.mode
        }
    }
}

/// Keys and values of the lines.
struct Lines<'t>(Vec<(&'t str, &'t str)>);

impl Lines<'_> {
    fn value(&self, key: &str) -> Option<&str> {
        self.0.iter().find_map(|(found, value)| (*found == key).then_some(*value))
    }

    /// The last word of a line.
    fn last(&self, key: &str) -> Option<&str> {
        self.value(key)?.split_ascii_whitespace().next_back()
    }

    /// All words of a line that are numbers; none if the kernel has no such line.
    fn numbers<T: std::str::FromStr>(&self, key: &str) -> Vec<T> {
        let words = self.value(key).unwrap_or_default().split_ascii_whitespace();
        words.filter_map(|word| word.parse().ok()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONTENT: &str = "Name:\tThreads\nTgid:\t7\nNStgid:\t7\t1\nTracerPid:\t0\nUid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\n\
        Groups:\t9 10 \nThreads:\t2\nCapEff:\t000001ffffffffff\nNoNewPrivs:\t1\n";

    #[test]
    fn a_status_tells_of_threads_tracer_and_privileges() {
        let status = Status::parse(CONTENT.as_bytes()).unwrap();
        assert_eq!((status.threads, status.tracer, status.no_new_privileges), (2, 0, true));
        assert_eq!(status.capabilities.bits(), 0x1ff_ffff_ffff);
        assert!(Status::parse(b"Name:\tsh\n").is_err());
    }

    #[test]
    fn the_last_of_four_users_is_the_one_that_counts_for_files() {
        let status = Status::parse(CONTENT.as_bytes()).unwrap();
        assert_eq!((status.process, status.uid, status.gid), (7, 4, 8));
        assert_eq!((status.groups.as_slice(), status.process_in.as_slice()), (&[9, 10][..], &[7, 1][..]));
        assert!(status.thread_in.is_empty());
    }

    #[test]
    fn an_access_control_list_counts_before_the_permission_bits() {
        let status = Status::parse(CONTENT.as_bytes()).unwrap();
        let here = rustix::fs::open("/", rustix::fs::OFlags::PATH, rustix::fs::Mode::empty()).unwrap();
        let inode = Inode { mode: 0o664, uid: 1, gid: 2, ..Inode::of(here).unwrap() };
        let list = |entries: &[(u16, u16, u32)]| {
            let mut list = vec![2, 0, 0, 0];
            for (tag, bits, id) in entries {
                list.extend([tag.to_le_bytes(), bits.to_le_bytes()].concat());
                list.extend(id.to_le_bytes());
            }
            move || Some(list)
        };
        let (owner, group, mask, other) = ((1, 6, 0), (4, 4, 0), (0x10, 6, 0), (0x20, 4, 0));
        let may = |entries: &[(u16, u16, u32)], wanted| status.has_access(&inode, wanted, list(entries));
        assert!(status.has_access(&inode, 4, || None) && !status.has_access(&inode, 2, || None));
        assert!(may(&[owner, (2, 6, 4), group, mask, other], 6), "the user");
        assert!(!may(&[owner, (2, 6, 4), group, (0x10, 4, 0), other], 6), "the mask takes it away");
        assert!(!may(&[owner, (2, 0, 4), group, mask, other], 4), "the user may do less than others");
        assert!(may(&[owner, group, (8, 6, 9), mask, other], 6), "a group");
        assert!(!may(&[owner, group, (8, 0, 10), mask, other], 4), "a group that may do less than others");
        assert!(may(&[owner, group, mask, other], 4) && !may(&[owner, group, mask, other], 2));
        let no_group = Inode { mode: 0o604, ..inode };
        assert!(status.has_access(&no_group, 4, || panic!("the kernel does not look at the list")));
    }
}

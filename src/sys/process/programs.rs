//! Which files the programs that run were loaded from (`proc_pid_maps(5)`).
//!
//! A program whose file has lost its name goes on with the displaced inode. That does no harm, but tools that look for
//! programs that want a restart after an upgrade (needrestart, `zypper ps`) find it, and disk and memory are freed only
//! when it ends.

use std::collections::{HashMap, HashSet};
use std::sync::OnceLock;

use super::table::Processes;
use crate::sys::file::inode::InodeId;

/// The programs that run, but for some. Nothing is looked at before the first question.
#[derive(Debug, Default)]
pub struct Programs {
    /// Those that a package manager's run ends with do not count.
    outliving: bool,
    loaded: OnceLock<Loaded>,
}

/// What code is run from.
#[derive(Debug)]
struct Loaded {
    processes: Option<Processes>,
    by_inode: HashMap<u64, Vec<Mapping>>,
}

/// A mapping of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Mapping {
    pid: i32,
    /// Its addresses, as procfs writes them.
    range: String,
}

impl Programs {
    /// All that run in this process namespace.
    pub fn all() -> Programs {
        Programs::default()
    }

    /// Those that outlive a package manager which has called this program: not this one, nor what it descends from but
    /// for the first process, nor others that run the same program.
    pub fn outliving_the_caller() -> Programs {
        Programs { outliving: true, ..Programs::default() }
    }

    /// Numbers of the processes that were loaded from this inode. The first call looks at all that run.
    pub fn loaded_from(&self, inode: InodeId) -> Vec<i32> {
        let Loaded { processes, by_inode } = self.loaded.get_or_init(|| self.look());
        let (Some(processes), Some(mappings)) = (processes, by_inode.get(&inode.ino)) else {
            return Vec::new();
        };
        // On btrfs the line of a mapping has another device than stat(2): the mapping itself is asked. It may be gone
        // with its process, and without CAP_CHECKPOINT_RESTORE nobody tells (`proc_pid_map_files(5)`).
        let is_it = |mapping: &&Mapping| match processes.mapped(mapping.pid, &mapping.range) {
            Ok(mapped) => mapped.id == inode,
            Err(e) => e.raw_os_error() == Some(libc::EPERM),
        };
        mappings.iter().filter(is_it).map(|mapping| mapping.pid).collect()
    }

    fn look(&self) -> Loaded {
        let mut by_inode: HashMap<u64, Vec<Mapping>> = HashMap::new();
        // If nothing can be seen of processes, nobody else looks for them either.
        let Ok(processes) = Processes::open() else { return Loaded { processes: None, by_inode } };
        let spared = if self.outliving { with_the_caller(&processes) } else { HashSet::new() };
        for pid in processes.all().unwrap_or_default() {
            if spared.contains(&pid) {
                continue;
            }
            // It may have ended meanwhile; a thread of the kernel has none.
            let mappings = processes.mappings(pid).unwrap_or_default();
            for (ino, range) in mappings.split(|&b| b == b'\n').filter_map(executable) {
                let known = by_inode.entry(ino).or_default();
                if known.last().is_none_or(|last| last.pid != pid) {
                    known.push(Mapping { pid, range: range.to_owned() });
                }
            }
        }
        Loaded { processes: Some(processes), by_inode }
    }
}

/// The processes that end with the package manager which has called this program.
fn with_the_caller(processes: &Processes) -> HashSet<i32> {
    let own = std::process::id() as i32;
    let ancestors = processes.ancestors().unwrap_or_default();
    let mut those: HashSet<i32> = ancestors.iter().map(|ancestor| ancestor.id.pid).collect();
    those.remove(&1);
    those.insert(own);
    // By its path: the filesystem of somebody's program may not answer.
    let program = |pid| {
        let path = processes.program_path(pid).ok()?;
        Some(path.strip_suffix(b" (deleted)").unwrap_or(&path).to_vec())
    };
    if let Some(ours) = program(own) {
        let all = processes.all().unwrap_or_default();
        those.extend(all.into_iter().filter(|&pid| program(pid).as_ref() == Some(&ours)));
    }
    those
}

/// The number of the inode that a line of `/proc/PID/maps` tells of, and the addresses, if code is run from it.
pub(crate) fn executable(line: &[u8]) -> Option<(u64, &str)> {
    let mut fields = line.split(|&b| b == b' ').map(|field| std::str::from_utf8(field).ok());
    let range = fields.next()??;
    let permissions = fields.next()??;
    let ino: u64 = fields.nth(2)??.parse().ok()?;
    (permissions.as_bytes().get(2) == Some(&b'x') && ino != 0).then_some((ino, range))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::file::inode::Inode;

    #[test]
    fn mappings_that_code_is_run_from_tell_their_inode() {
        let line = b"7f7a2c628000-7f7a2c77d000 r-xp 00026000 fe:00 1847 /usr/lib/libc.so.6 (deleted)";
        assert_eq!(executable(line), Some((1847, "7f7a2c628000-7f7a2c77d000")));
        assert_eq!(executable(b"7f7a2c628000-7f7a2c77d000 r--p 00026000 fe:00 1847 /usr/lib/x"), None);
        assert_eq!(executable(b"7ffd5-7ffd7 r-xp 00000000 00:00 0 [vdso]"), None);
        assert_eq!(executable(b""), None);
    }

    #[test]
    fn this_process_was_loaded_from_its_own_program() {
        let program = Processes::open().unwrap().program(std::process::id() as i32).unwrap();
        let program = Inode::of(program).unwrap().id;
        assert!(Programs::all().loaded_from(program).contains(&(std::process::id() as i32)));
        assert!(
            !Programs::outliving_the_caller().loaded_from(program).contains(&(std::process::id() as i32))
        );
    }
}

//! Tasks that may be about to change a file although the guard has not seen the mark: who was let pass before it was set.
//!
//! The kernel asks the guard about an `ioctl(2)` before it reads what the caller wants and before it locks the inode
//! (`fs/ioctl.c`). A page that is slow to come, by userfaultfd(2) or FUSE, holds the caller there for as long as somebody
//! likes. cow-guard pins a list of all tasks that are in such a call.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Where cow-guard pins what it has loaded: a directory for each generation.
const GENERATIONS: &str = "/sys/fs/bpf/cow-guard";
/// Made last in each.
const COMPLETE: &str = "complete";
/// The list, a line for each task.
const LIST: &str = "flag-changes";
/// `BPF_FS_MAGIC` of `linux/magic.h`.
const BPFFS: u32 = 0xcafe_4a11;
/// The initial PID namespace (`PROC_PID_INIT_INO` of `linux/proc_ns.h`): the list has the tasks of the reader's namespace.
const ALL_TASKS: &str = "pid:[4026531836]";

/// The list of tasks that may be about to change a file.
#[derive(Debug)]
pub struct FlagChanges {
    list: PathBuf,
}

impl FlagChanges {
    /// The list of the guard that is loaded; `None` if there is none, or if it would not have all tasks.
    pub fn find() -> Option<FlagChanges> {
        // In programs of the tests alone: the mark without the guard, to see and time all but the kernel's part.
        if cfg!(feature = "pretend-guard") && std::env::var_os("COW_TESTS_PRETEND_GUARD").is_some() {
            return Some(FlagChanges { list: PathBuf::from("/dev/null") });
        }
        FlagChanges::find_in(Path::new(GENERATIONS))
    }

    fn find_in(generations: &Path) -> Option<FlagChanges> {
        if std::fs::read_link("/proc/self/ns/pid").ok()?.as_os_str() != ALL_TASKS {
            return None;
        }
        if rustix::fs::statfs(generations).ok()?.f_type as u32 != BPFFS {
            return None;
        }
        let names = std::fs::read_dir(generations).ok()?.flatten();
        let numbers = names.filter_map(|entry| entry.file_name().to_str()?.parse::<u64>().ok());
        let complete = numbers.map(|number| (number, generations.join(number.to_string())));
        let (_, newest) = complete.filter(|(_, dir)| dir.join(COMPLETE).exists()).max()?;
        let list = newest.join(LIST);
        list.exists().then_some(FlagChanges { list })
    }

    /// Waits until no task is in such a call. `false` if one still is when `patience` has gone by.
    ///
    /// The tasks of the caller count, too.
    ///
    /// # Errors
    /// As reading the list.
    pub fn wait(&self, patience: Duration) -> io::Result<bool> {
        let deadline = Instant::now() + patience;
        let mut pause = Duration::from_millis(1);
        loop {
            let mut line = [0];
            // Each opening makes a new list. An error is no empty list.
            if File::open(&self.list)?.read(&mut line)? == 0 {
                return Ok(true);
            }
            if Instant::now() >= deadline {
                return Ok(false);
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(50));
        }
    }

    #[cfg(test)]
    pub(super) fn at(list: &Path) -> FlagChanges {
        FlagChanges { list: list.to_path_buf() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_in_the_list_is_waited_for() {
        let list = tempfile::NamedTempFile::new().unwrap();
        let changes = FlagChanges::at(list.path());
        assert!(changes.wait(Duration::ZERO).unwrap());
        std::fs::write(list.path(), "7 7\n").unwrap();
        assert!(!changes.wait(Duration::from_millis(5)).unwrap());
        drop(list);
        changes.wait(Duration::ZERO).unwrap_err();
    }

    #[test]
    fn a_directory_that_is_no_bpf_filesystem_holds_no_list() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("1/complete")).unwrap();
        std::fs::write(dir.path().join("1").join(LIST), "").unwrap();
        assert!(FlagChanges::find_in(dir.path()).is_none());
    }
}

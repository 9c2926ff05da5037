//! Shared files that had a window lately, still open: a name that is linked is often renamed over next, and its other
//! name removed. Opening the file again would ask the gate, which is not gone yet.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;

use crate::sys::file::inode::InodeId;
use crate::sys::process;

/// How many files are kept open at most: as many as most packages have.
const MAX_OPEN_FILES: usize = 256;

/// The files, the oldest first.
#[derive(Debug)]
pub struct Recent {
    files: VecDeque<(InodeId, OwnedFd)>,
    most: usize,
}

impl Recent {
    /// No files, to be fewer than a quarter of what this process may have open.
    pub fn new() -> Recent {
        let limit = process::max_open_files()
            .map_or(MAX_OPEN_FILES, |limit| usize::try_from(limit / 4).unwrap_or(MAX_OPEN_FILES));
        Recent { files: VecDeque::new(), most: limit.clamp(1, MAX_OPEN_FILES) }
    }

    /// The file, if it is among them; it is not any more then.
    pub fn take(&mut self, inode: InodeId) -> Option<OwnedFd> {
        let at = self.files.iter().rposition(|(known, _)| *known == inode)?;
        self.files.remove(at).map(|(_, file)| file)
    }

    /// Adds a file, in the place of the oldest.
    pub fn keep(&mut self, inode: InodeId, file: OwnedFd) {
        if self.files.len() == self.most {
            self.files.pop_front();
        }
        self.files.push_back((inode, file));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_makes_room() {
        let mut recent = Recent { most: 3, ..Recent::new() };
        let id = |ino| InodeId { dev: 1, ino };
        for ino in 0..=3 {
            recent.keep(id(ino), std::fs::File::open("/").unwrap().into());
        }
        assert!(recent.take(id(0)).is_none());
        assert!(recent.take(id(1)).is_some() && recent.take(id(1)).is_none());
    }
}

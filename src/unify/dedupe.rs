//! Sharing of blocks instead of inodes: each file keeps its own, so nothing has to be protected.

use std::io;
use std::os::fd::OwnedFd;

use super::catalog::Unfit;
use super::digest::{Dirs, is_gone, is_same};
use super::link::{Linked, Linker};
use super::object::ObjectName;
use super::plan::Work;
use crate::report::Reason;
use crate::sys::dedupe::share_blocks;
use crate::sys::inode::Inode;
use crate::sys::swap::{self, Name};

impl Linker<'_> {
    /// Lets every inode of the work share the object's blocks.
    pub(super) fn share(
        &self,
        work: &Work,
        object: &ObjectName,
        dirs: &mut Dirs<'_>,
        linked: &mut Linked,
    ) -> Result<(), swap::Error> {
        let shelf = self.open_shelf(object)?;
        let object = Name { dir: std::os::fd::AsFd::as_fd(&shelf), name: &object.file() }.open()?;
        for names in work.inodes(self.catalog) {
            match self.share_one(&object, names[0], dirs) {
                Ok(Ok(freed)) => {
                    linked.freed += freed;
                    linked.names.extend(names);
                }
                Ok(Err(unfit)) => linked.left.extend(names.iter().map(|&at| (at, unfit))),
                Err(e) => {
                    let reason = Reason(&e).to_string();
                    linked.failed.extend(names.iter().map(|&at| (self.outer_path(at), reason.clone())));
                }
            }
        }
        Ok(())
    }

    fn share_one(&self, object: &OwnedFd, at: u32, dirs: &mut Dirs<'_>) -> io::Result<Result<u64, Unfit>> {
        let file = &self.catalog.files[at as usize];
        let own = match dirs.file(file) {
            Err(e) if is_gone(&e) => return Ok(Err(Unfit::Changed)),
            own => own?,
        };
        let inode = Inode::of(&own)?;
        if !is_same(&inode, file) || !share_blocks(object, &own, file.size)? {
            return Ok(Err(Unfit::Changed));
        }
        Ok(Ok(inode.allocated))
    }
}

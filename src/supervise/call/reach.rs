//! Whether the caller may go the way that its path describes: we may go anywhere.

use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::ResolveFlags;
use rustix::io::Errno;
use rustix::thread::CapabilitySet;

use super::lookup::{OwnedName, Step, is_proc};
use super::rights::{SEARCH, STICKY};
use super::waiting::WaitingCall;
use super::windows::may_be_shared;
use crate::sys::file::inode::Inode;
use crate::sys::process::Status;

const OTHERS_WRITE: u32 = 0o002;

impl WaitingCall<'_> {
    /// Opens, as a place only (`O_PATH`), what a path leads to.
    ///
    /// # Errors
    /// `EACCES` for a file that may be shared, if the kernel would not let the caller go there.
    pub(super) fn file(
        &self,
        dir: i32,
        path: &[u8],
        follow: bool,
        resolve: ResolveFlags,
    ) -> io::Result<OwnedFd> {
        let file = self.lookup.file(dir, path, follow, resolve)?;
        let inode = Inode::of(&file)?;
        if may_be_shared(&inode) && !self.reaches(self.status()?, (dir, path), follow, resolve, &inode) {
            return Err(Errno::ACCESS.into());
        }
        Ok(file)
    }

    /// Whether the caller may go to the directory of a name as it has told.
    pub(super) fn reaches_directory(&self, status: &Status, entry: &OwnedName) -> io::Result<bool> {
        let Some((dir, path)) = &entry.way else { return Ok(true) };
        let inode = Inode::of(&entry.dir)?;
        Ok(self.reaches(status, (*dir, path), true, ResolveFlags::empty(), &inode))
    }

    /// Whether a path leads the caller to this inode.
    fn reaches(
        &self,
        status: &Status,
        way: (i32, &[u8]),
        follow: bool,
        resolve: ResolveFlags,
        inode: &Inode,
    ) -> bool {
        // It is as we are.
        if self.lookup.is_by_kernel() && status.uid == 0 && self.may(status, CapabilitySet::DAC_OVERRIDE) {
            return true;
        }
        let mut judge = |step: Step<'_>| -> io::Result<()> {
            if self.may_take(status, step)? { Ok(()) } else { Err(Errno::ACCESS.into()) }
        };
        let found = self.lookup.file_by_steps(way, follow, resolve, &mut judge).and_then(Inode::of);
        found.is_ok_and(|found| found.id == inode.id)
    }

    fn may_take(&self, status: &Status, step: Step<'_>) -> io::Result<bool> {
        Ok(match step {
            Step::Search(dir) => {
                self.has_access(status, dir, &Inode::of(dir)?, SEARCH)
                    || is_proc(dir) && self.is_its_own(status, dir)?
            }
            Step::Follow { dir, link } => self.may_follow(status, &Inode::of(dir)?, &Inode::of(link)?),
            Step::FollowMagic(dir) => self.is_its_own(status, dir)?,
        })
    }

    /// Whether the kernel lets the caller follow a symlink (`may_follow_link` of `fs/namei.c`).
    fn may_follow(&self, status: &Status, dir: &Inode, link: &Inode) -> bool {
        let many = STICKY | OTHERS_WRITE;
        link.uid == status.uid
            || dir.mode & many != many
            || dir.uid == link.uid
            || self.supervisor.processes.file_setting("protected_symlinks").is_ok_and(|set| set == 0)
    }

    /// Whether a directory of `/proc` is that of the caller's own process, or of one that the caller may look into because
    /// both are of one user (`proc_pid_get_link` of `fs/proc/base.c`).
    fn is_its_own(&self, status: &Status, dir: &OwnedFd) -> io::Result<bool> {
        // The kernel gives the files of a process that must not be looked into to root.
        if Inode::of(dir)?.uid == status.uid || self.may(status, CapabilitySet::SYS_PTRACE) {
            return Ok(true);
        }
        let process = Status::read_at(dir, "status").or_else(|_| Status::read_at(dir, "../status"));
        Ok(process.is_ok_and(|process| process.process == status.process))
    }
}

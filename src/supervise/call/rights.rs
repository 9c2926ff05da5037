//! What the caller may do here, and what the kernel would answer if it may not.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::thread::CapabilitySet;

use super::arguments::Times;
use super::lookup::OwnedName;
use super::waiting::WaitingCall;
use crate::sys::file::inode::Inode;
use crate::sys::process::Status;
use crate::sys::seccomp::Response;
use crate::sys::seccomp::calls::Right;

/// The attribute that holds an access control list (`acl(5)`).
const ACCESS_LIST: &str = "system.posix_acl_access";
/// The attribute that holds a program's capabilities (`capabilities(7)`).
const CAPABILITIES: &str = "security.capability";

impl WaitingCall<'_> {
    /// Whether the caller may do with names what we may.
    pub(super) fn is_privileged(&self) -> bool {
        self.task.may_change_all_files() && self.is_here()
    }

    /// Whether the caller's capabilities are capabilities here.
    fn is_here(&self) -> bool {
        self.task.user_namespace().is_ok_and(|theirs| theirs == self.supervisor.user_namespace)
    }

    /// Whether the caller has a capability here.
    pub(super) fn may(&self, status: &Status, capability: CapabilitySet) -> bool {
        self.is_here() && status.capabilities.contains(capability)
    }

    /// Whether the caller may write to what is open as `file`; yes, where an access control list decides.
    pub(super) fn may_write(&self, status: &Status, file: impl AsFd, inode: &Inode) -> bool {
        let has_list = || {
            let file = self.supervisor.processes.reopen(&file, OFlags::RDONLY);
            file.is_ok_and(|file| rustix::fs::fgetxattr(file, ACCESS_LIST, &mut [0u8; 0][..]).is_ok())
        };
        self.may(status, CapabilitySet::DAC_OVERRIDE) || status.may_write(inode) || has_list()
    }

    /// What the kernel would answer to a caller who may not change a private file; `None` where it may.
    pub(super) fn denial(&self, right: Right, file: &OwnedFd, inode: &Inode) -> io::Result<Option<Response>> {
        let status = self.task.status()?;
        let writes = || self.may_write(&status, file, inode);
        let owns = || {
            let any = [CapabilitySet::CHOWN, CapabilitySet::FOWNER, CapabilitySet::SYS_ADMIN];
            status.uid == inode.uid || any.iter().any(|capability| self.may(&status, *capability))
        };
        let denied = Response::Failed(Errno::ACCESS);
        Ok(match right {
            Right::Write => (!writes()).then_some(denied),
            // Capabilities the kernel takes from a file for anybody who does so, set-id bits for the owner alone.
            Right::OwnOrKeep(first) if self.keeps_owner(first) && inode.mode & 0o6000 == 0 => {
                (!self.has_capabilities(file)).then_some(Response::Done(0))
            }
            Right::OwnOrTouch(times) if !owns() && self.times(times)? == Times::Now => {
                (!writes()).then_some(denied)
            }
            Right::OwnOrAttribute(name) | Right::OwnOrRemove(name) if self.is_attribute_of_users(name)? => {
                (!writes()).then_some(denied)
            }
            // The kernel says to everybody but the owner what it says of a protected file.
            _ => (!owns()).then_some(Response::Continue),
        })
    }

    /// Whether the call is to remove what is not there: rpm removes the capabilities of each program that it replaces.
    ///
    /// Of callers who may, and of the attributes that all filesystems answer alike for.
    pub(super) fn removes_nothing(&self, right: Right, file: &OwnedFd) -> io::Result<bool> {
        let Right::OwnOrRemove(name) = right else { return Ok(false) };
        let name = self.task.string(self.call.arguments[usize::from(name)])?;
        let is_plain = name.starts_with(b"user.") || name == b"security.capability";
        if !is_plain || !self.is_privileged() || !self.task.capabilities()?.contains(CapabilitySet::SETFCAP) {
            return Ok(false);
        }
        let file = self.supervisor.processes.reopen(file, OFlags::RDONLY)?;
        let found = rustix::fs::fgetxattr(file, name.as_slice(), &mut [0u8; 0][..]);
        Ok(found == Err(Errno::NODATA))
    }

    fn is_attribute_of_users(&self, name: u8) -> io::Result<bool> {
        Ok(self.task.string(self.call.arguments[usize::from(name)])?.starts_with(b"user."))
    }

    /// Whether a program may have capabilities, which it loses if its owner is set, to whatever (`chown_common` of
    /// `fs/open.c`).
    fn has_capabilities(&self, file: &OwnedFd) -> bool {
        let file = self.supervisor.processes.reopen(file, OFlags::RDONLY);
        let found = file.map(|file| rustix::fs::fgetxattr(file, CAPABILITIES, &mut [0u8; 0][..]));
        !matches!(found, Ok(Err(Errno::NODATA | Errno::NOTSUP)))
    }

    /// Whether the kernel would let the caller read a file, as far as its permission bits and capabilities tell.
    pub(super) fn may_read(&self, inode: &Inode) -> io::Result<bool> {
        let status = self.task.status()?;
        let all = [CapabilitySet::DAC_OVERRIDE, CapabilitySet::DAC_READ_SEARCH];
        Ok(status.may_read(inode) || all.iter().any(|capability| self.may(&status, *capability)))
    }

    /// What the kernel would answer to a caller who may not change a name.
    pub(super) fn denial_of_name(&self, status: &Status, entry: &OwnedName) -> io::Result<Option<Errno>> {
        let dir = Inode::of(&entry.dir)?;
        if !self.may_write(status, &entry.dir, &dir) {
            return Ok(Some(Errno::ACCESS));
        }
        let owns = || entry.name().inode().is_ok_and(|i| i.is_none_or(|i| i.uid == status.uid));
        let is_sticky = dir.mode & 0o1000 != 0 && dir.uid != status.uid;
        Ok((is_sticky && !self.may(status, CapabilitySet::FOWNER) && !owns()).then_some(Errno::PERM))
    }
}

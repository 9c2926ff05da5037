//! What the caller may do here, and what the kernel would answer if it may not.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::thread::CapabilitySet;

use super::arguments::{LARGEST_ATTRIBUTE, Moment, Times};
use super::lookup::OwnedName;
use super::waiting::WaitingCall;
use super::windows::may_be_shared;
use crate::sys::file::filesystem;
use crate::sys::file::inode::{Inode, Kind, Time};
use crate::sys::process::{AccessList, Status};
use crate::sys::seccomp::Response;
use crate::sys::seccomp::calls::Right;

/// The attribute that holds an access control list (`acl(5)`).
const ACCESS_LIST: &str = "system.posix_acl_access";
/// The attribute that holds a program's capabilities (`capabilities(7)`).
const CAPABILITIES: &str = "security.capability";

/// Permission bits.
pub(super) const READ: u32 = 4;
pub(super) const WRITE: u32 = 2;
pub(super) const SEARCH: u32 = 1;

const SET_USER_ID: u32 = 0o4000;
const SET_GROUP_ID: u32 = 0o2000;
pub(super) const STICKY: u32 = 0o1000;
const GROUP_EXECUTES: u32 = 0o010;

/// Who may set an attribute, and who judges that (`xattr(7)`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Attribute {
    /// Whoever may write to the file; likewise if the kernel does not know the attribute.
    Users,
    /// A program's capabilities.
    Capabilities,
    /// A label of a security module.
    Label,
    /// Whoever administrates the machine.
    Administrators,
    /// The owner: access control lists.
    System,
}

fn kind_of(name: &[u8]) -> Attribute {
    if name == CAPABILITIES.as_bytes() {
        Attribute::Capabilities
    } else if name == b"security.selinux" || name.starts_with(b"security.SMACK64") {
        Attribute::Label
    } else if name.starts_with(b"security.") || name.starts_with(b"trusted.") {
        Attribute::Administrators
    } else if name.starts_with(b"system.") {
        Attribute::System
    } else {
        Attribute::Users
    }
}

/// Whether a time becomes what it is.
fn is_at(moment: Moment, now: Time) -> bool {
    moment == Moment::Kept || moment == Moment::At(now)
}

fn is(error: &io::Error, errno: Errno) -> bool {
    Errno::from_io_error(error) == Some(errno)
}

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
        status.capabilities.contains(capability) && self.is_here()
    }

    /// Whether the caller has a capability for this file: in a user namespace, only for files whose owner and group have
    /// numbers there (`capable_wrt_inode_uidgid` of `kernel/capability.c`).
    fn may_with(&self, status: &Status, capability: CapabilitySet, inode: &Inode) -> bool {
        let knows_group = || self.task.groups().is_ok_and(|groups| groups.have(inode.gid));
        status.capabilities.contains(capability)
            && (self.is_here() || self.knows_owner(inode) && knows_group())
    }

    /// Whether the caller's user namespace has a number for the owner of the file.
    fn knows_owner(&self, inode: &Inode) -> bool {
        self.task.users().is_ok_and(|users| users.have(inode.uid))
    }

    /// Whether the kernel would give the caller these permission bits of what is open as `file`: 4 to read, 2 to write, 1 to
    /// search a directory.
    pub(super) fn has_access(&self, status: &Status, file: impl AsFd, inode: &Inode, wanted: u32) -> bool {
        let list = || self.attribute(&file, ACCESS_LIST.as_bytes()).ok();
        self.may_with(status, CapabilitySet::DAC_OVERRIDE, inode)
            || (wanted == READ || inode.kind == Kind::Directory && wanted & WRITE == 0)
                && self.may_with(status, CapabilitySet::DAC_READ_SEARCH, inode)
            || status.has_access(inode, wanted, list)
    }

    /// Whether the caller owns the file, or is as good as its owner (`inode_owner_or_capable` of `fs/inode.c`).
    pub(super) fn owns(&self, status: &Status, inode: &Inode) -> bool {
        let may = || self.is_here() || self.knows_owner(inode);
        status.uid == inode.uid || status.capabilities.contains(CapabilitySet::FOWNER) && may()
    }

    /// What the kernel would answer to a caller who may not change a private file; `None` if it may.
    pub(super) fn denial(&self, right: Right, file: &OwnedFd, inode: &Inode) -> io::Result<Option<Response>> {
        let status = self.status()?;
        let unless = |allowed: bool, answer: Response| Ok((!allowed).then_some(answer));
        let denied = Response::Failed(Errno::ACCESS);
        // To everybody but those who may the kernel says what it says of a protected file.
        let refused = Response::Continue;
        match right {
            Right::Write => unless(self.has_access(status, file, inode, WRITE), denied),
            Right::ReadAndWrite => unless(self.has_access(status, file, inode, READ | WRITE), denied),
            Right::Own | Right::Mode(_) => unless(self.owns(status, inode), refused),
            Right::Owner(first) => unless(self.may_change_owner(status, inode, first)?, refused),
            Right::OwnOrTouch(times) if !self.owns(status, inode) && self.times(times)? == Times::Now => {
                unless(self.has_access(status, file, inode, WRITE), denied)
            }
            Right::OwnOrTouch(_) => unless(self.owns(status, inode), refused),
            Right::OwnOrAttribute(at) | Right::OwnOrRemove(at) => {
                let name = self.task.string(self.call.arguments[usize::from(at)])?;
                let sets = matches!(right, Right::OwnOrAttribute(_));
                if name.is_empty() || sets && self.new_attribute(at)?.is_none() {
                    return Ok(Some(refused));
                }
                if kind_of(&name) == Attribute::Users {
                    return unless(self.has_access(status, file, inode, WRITE), denied);
                }
                unless(self.may_change_attribute(status, inode, &name), refused)
            }
        }
    }

    /// Whether the caller may set owner and group (`chown_ok` and `chgrp_ok` of `fs/attr.c`). Capabilities the kernel takes
    /// from a file for anybody who keeps both.
    fn may_change_owner(&self, status: &Status, inode: &Inode, first: u8) -> io::Result<bool> {
        // Numbers that its user namespace lacks.
        let Some([owner, group]) = self.new_owner_here(first)? else { return Ok(false) };
        // To take set-id bits is to change the mode.
        if self.loses_set_id(status, inode) && !self.owns(status, inode) {
            return Ok(false);
        }
        let owns = status.uid == inode.uid;
        let may_own = owner.is_none_or(|owner| owns && owner == inode.uid);
        let may_group = group.is_none_or(|group| owns && (group == inode.gid || status.is_in_group(group)));
        Ok(may_own && may_group || self.may_with(status, CapabilitySet::CHOWN, inode))
    }

    /// The owner and the group that `chown(2)` is to set, in our numbering; `None` for what has no number here.
    fn new_owner_here(&self, first: u8) -> io::Result<Option<[Option<u32>; 2]>> {
        let [owner, group] = self.new_owner(first);
        if owner.is_none() && group.is_none() || self.is_here() {
            return Ok(Some([owner, group]));
        }
        let here = [
            owner.map(|owner| Ok::<_, io::Error>(self.task.users()?.ours(owner))).transpose()?,
            group.map(|group| Ok::<_, io::Error>(self.task.groups()?.ours(group))).transpose()?,
        ];
        Ok((!here.contains(&Some(None))).then_some(here.map(Option::flatten)))
    }

    /// Whether the kernel takes set-id bits when the caller sets the owner, to whatever (`chown_common` of `fs/open.c`,
    /// `setattr_should_drop_sgid` of `fs/attr.c`).
    fn loses_set_id(&self, status: &Status, inode: &Inode) -> bool {
        let loses_group = || inode.mode & GROUP_EXECUTES != 0 || !self.keeps_set_group(status, inode);
        inode.mode & SET_USER_ID != 0 || inode.mode & SET_GROUP_ID != 0 && loses_group()
    }

    /// Whether the caller may give the file the set-group-id bit (`in_group_or_capable` of `fs/inode.c`).
    fn keeps_set_group(&self, status: &Status, inode: &Inode) -> bool {
        status.is_in_group(inode.gid) || self.may_with(status, CapabilitySet::FSETID, inode)
    }

    /// Whether the caller may set or remove an attribute that is not the users' own (`xattr_permission` of `fs/xattr.c`,
    /// `cap_inode_setxattr` of `security/commoncap.c`, `set_posix_acl` of `fs/posix_acl.c`).
    fn may_change_attribute(&self, status: &Status, inode: &Inode, name: &[u8]) -> bool {
        match kind_of(name) {
            Attribute::Capabilities => self.may_with(status, CapabilitySet::SETFCAP, inode),
            Attribute::Administrators => self.may(status, CapabilitySet::SYS_ADMIN),
            // A security module judges.
            Attribute::Label => {
                let any = CapabilitySet::SYS_ADMIN | CapabilitySet::MAC_ADMIN;
                self.owns(status, inode) || self.is_here() && status.capabilities.intersects(any)
            }
            Attribute::System | Attribute::Users => self.owns(status, inode),
        }
    }

    /// What the kernel would answer to a call that changes nothing of a file, by a caller who may make it. `None` for one
    /// that changes something.
    pub(super) fn change_of_nothing(
        &self,
        right: Right,
        file: &OwnedFd,
        inode: &Inode,
    ) -> io::Result<Option<Response>> {
        let status = self.status()?;
        let nothing = match right {
            Right::Mode(mode) => {
                let same = self.call.arguments[usize::from(mode)] as u32 & 0o7777 == inode.mode;
                same && (inode.mode & SET_GROUP_ID == 0 || self.keeps_set_group(status, inode))
            }
            Right::Owner(first) => {
                let new = self.new_owner_here(first)?;
                let same = new.is_some_and(|[owner, group]| {
                    owner.is_none_or(|owner| owner == inode.uid)
                        && group.is_none_or(|group| group == inode.gid)
                });
                same && !self.loses_set_id(status, inode) && !self.has_capabilities(file)
            }
            Right::OwnOrTouch(times) => match self.times(times)? {
                Times::Given([accessed, changed]) => {
                    is_at(accessed, inode.atime) && is_at(changed, inode.mtime)
                }
                Times::Now | Times::Kept => false,
            },
            Right::OwnOrAttribute(name) => return self.answer_for_attribute(file, inode, name),
            Right::OwnOrRemove(name) => return self.answer_for_removal(file, inode, name),
            _ => false,
        };
        Ok(nothing.then_some(Response::Done(0)))
    }

    /// What the kernel would answer to a call that gives an attribute the value that it has, or that it refuses to give one.
    fn answer_for_attribute(&self, file: &OwnedFd, inode: &Inode, at: u8) -> io::Result<Option<Response>> {
        const CREATE: i32 = libc::XATTR_CREATE;
        const REPLACE: i32 = libc::XATTR_REPLACE;
        let name = self.task.string(self.call.arguments[usize::from(at)])?;
        let Some((value, flags)) = self.new_attribute(at)? else { return Ok(Some(Response::Continue)) };
        if name == ACCESS_LIST.as_bytes() {
            return self.answer_for_list(file, inode, &value);
        }
        // These are not kept as they are given.
        if matches!(kind_of(&name), Attribute::System | Attribute::Label) {
            return Ok(None);
        }
        Ok(match self.attribute(file, &name) {
            Ok(_) if flags & CREATE != 0 => Some(Response::Failed(Errno::EXIST)),
            // Capabilities belong to a user namespace.
            Ok(now) if now == value && (kind_of(&name) != Attribute::Capabilities || self.is_here()) => {
                Some(Response::Done(0))
            }
            Err(e) if is(&e, Errno::NODATA) && flags & REPLACE != 0 => Some(Response::Failed(Errno::NODATA)),
            Err(e) if is(&e, Errno::NOTSUP) => Some(Response::Failed(Errno::NOTSUP)),
            // No name.
            Err(e) if is(&e, Errno::RANGE) => Some(Response::Continue),
            _ => None,
        })
    }

    /// What the kernel would answer to a call that sets the access control list that is there, or none that can be. As the
    /// kernel, it does not look at the flags.
    fn answer_for_list(&self, file: &OwnedFd, inode: &Inode, value: &[u8]) -> io::Result<Option<Response>> {
        // Users and groups have other numbers in other user namespaces; and the kernel may take the bit from the file.
        if !self.is_here() || inode.mode & SET_GROUP_ID != 0 && !self.keeps_set_group(self.status()?, inode) {
            return Ok(None);
        }
        let new = AccessList::parse(value);
        let is_there = match self.attribute(file, ACCESS_LIST.as_bytes()) {
            Ok(now) => new.is_some() && new == AccessList::parse(&now),
            Err(e) if is(&e, Errno::NODATA) => {
                value.is_empty() || new.is_some_and(|new| new.is_mode(inode.mode))
            }
            Err(_) => false,
        };
        Ok(is_there.then_some(Response::Done(0)))
    }

    /// What the kernel would answer to a call that removes what is not there: rpm removes the capabilities of each program
    /// that it replaces.
    fn answer_for_removal(&self, file: &OwnedFd, inode: &Inode, at: u8) -> io::Result<Option<Response>> {
        let name = self.task.string(self.call.arguments[usize::from(at)])?;
        let is_list = name == ACCESS_LIST.as_bytes();
        if matches!(kind_of(&name), Attribute::System | Attribute::Label) && !is_list {
            return Ok(None);
        }
        let missing = self.attribute(file, &name).err();
        if is_list && missing.as_ref().is_some_and(|e| is(e, Errno::NODATA)) {
            return self.answer_for_list(file, inode, &[]);
        }
        let errno = [Errno::NODATA, Errno::NOTSUP, Errno::RANGE].into_iter();
        let mut errno = errno.filter(|errno| missing.as_ref().is_some_and(|e| is(e, *errno)));
        Ok(errno.next().map(Response::Failed))
    }

    /// The value of an attribute.
    fn attribute(&self, file: impl AsFd, name: &[u8]) -> io::Result<Vec<u8>> {
        let file = self.supervisor.processes.reopen(file, OFlags::RDONLY)?;
        let mut value = vec![0; LARGEST_ATTRIBUTE];
        let length = rustix::fs::fgetxattr(file, name, &mut value[..])?;
        value.truncate(length);
        Ok(value)
    }

    /// Whether the kernel lets the caller give a file one more name (`may_linkat` of `fs/namei.c`).
    pub(super) fn may_link(&self, status: &Status, file: &OwnedFd, inode: &Inode) -> bool {
        let everybody =
            || self.supervisor.processes.file_setting("protected_hardlinks").is_ok_and(|set| set == 0);
        let is_safe = inode.mode & SET_USER_ID == 0
            && inode.mode & (SET_GROUP_ID | GROUP_EXECUTES) != SET_GROUP_ID | GROUP_EXECUTES;
        self.owns(status, inode)
            || is_safe && self.has_access(status, file, inode, READ | WRITE)
            || everybody()
    }

    /// Whether the kernel refuses `O_CREAT` for a file of somebody else's in a directory of many (`may_create_in_sticky` of
    /// `fs/namei.c`), whatever capabilities the caller has.
    pub(super) fn is_kept_from_creating(&mut self, file: &OwnedFd) -> io::Result<bool> {
        let setting = self.supervisor.processes.file_setting("protected_regular").unwrap_or(0);
        if setting == 0 {
            return Ok(false);
        }
        let inode = Inode::of(file)?;
        if !may_be_shared(&inode) || inode.uid == self.status()?.uid {
            return Ok(false);
        }
        let Some((root, place)) = self.place_of(file, &inode)? else { return Ok(false) };
        let dir = Inode::of(root.open_dir(&place.dir)?)?;
        let many = dir.mode & 0o002 != 0 || setting > 1 && dir.mode & 0o020 != 0;
        Ok(dir.mode & STICKY != 0 && dir.uid != inode.uid && many)
    }

    /// Whether a program may have capabilities, which it loses if its owner is set, to whatever (`chown_common` of
    /// `fs/open.c`).
    fn has_capabilities(&self, file: &OwnedFd) -> bool {
        let file = self.supervisor.processes.reopen(file, OFlags::RDONLY);
        let found = file.map(|file| rustix::fs::fgetxattr(file, CAPABILITIES, &mut [0u8; 0][..]));
        !matches!(found, Ok(Err(Errno::NODATA | Errno::NOTSUP)))
    }

    /// What the kernel would answer to a caller who may not change a name.
    pub(super) fn denial_of_name(&self, status: &Status, entry: &OwnedName) -> io::Result<Option<Errno>> {
        if !self.reaches_directory(status, entry)? {
            return Ok(Some(Errno::ACCESS));
        }
        if filesystem::is_read_only(&*entry.dir)? {
            return Ok(Some(Errno::ROFS));
        }
        let dir = Inode::of(&entry.dir)?;
        if dir.immutable || dir.append_only {
            return Ok(Some(Errno::PERM));
        }
        if !self.has_access(status, &entry.dir, &dir, WRITE | SEARCH) {
            return Ok(Some(Errno::ACCESS));
        }
        if dir.mode & STICKY == 0 || dir.uid == status.uid {
            return Ok(None);
        }
        let named = entry.name().inode()?;
        Ok(named.is_some_and(|inode| !self.owns(status, &inode)).then_some(Errno::PERM))
    }
}

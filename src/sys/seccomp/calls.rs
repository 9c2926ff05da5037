//! Which system calls may change a file or its names, and where their arguments say which file.
//!
//! One table for each ABI, from `arch/x86/entry/syscalls/syscall_64.tbl` and `syscall_32.tbl` of the kernel, and from
//! `include/uapi/asm-generic/unistd.h` for arm64. Numbers above 424 are the same everywhere.

/// How a call's arguments name a file, and what it does to it. Numbers are positions of arguments.
///
/// If `at` is set a directory's descriptor comes first and paths after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// Opens a path; `flags` as of `open(2)`.
    Open {
        /// As `openat(2)`.
        at: bool,
        /// Where the flags are.
        flags: u8,
    },
    /// `creat(2)`: opens for writing, and truncates.
    Creat,
    /// `openat2(2)`: flags and restrictions are in memory.
    Openat2,
    /// Changes content or metadata of what a path leads to.
    Change {
        /// As the `*at` calls.
        at: bool,
        /// Whether a symlink at the end of the path is followed.
        follow: Follow,
        /// What the kernel asks of the caller.
        right: Right,
    },
    /// Changes metadata of an open file; the descriptor comes first.
    ChangeOpen {
        /// What the kernel asks of the caller.
        right: Right,
    },
    /// `ioctl(2)`; the filter lets only those through that change an inode.
    Ioctl,
    /// `file_setattr(2)`: flags of what a path leads to.
    FileSetattr,
    /// Removes a name.
    Unlink {
        /// As `unlinkat(2)`, with its flags.
        at: bool,
    },
    /// Removes a directory.
    Rmdir,
    /// Moves a name; with `at` two pairs of directory and path.
    Rename {
        /// As `renameat(2)`.
        at: bool,
        /// Where the flags are.
        flags: Option<u8>,
    },
    /// Gives a file one more name.
    Link {
        /// As `linkat(2)`, with its flags.
        at: bool,
    },
    /// Would let a process change files without any further call.
    Absent,
}

impl Shape {
    /// Whether the call changes names alone, and no file.
    pub fn is_of_names(self) -> bool {
        matches!(self, Shape::Unlink { .. } | Shape::Rmdir | Shape::Rename { .. } | Shape::Link { .. })
    }
}

/// Whether a symlink at the end of a path is followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Follow {
    /// Always.
    Yes,
    /// Never.
    No,
    /// Unless the flags in this argument have `AT_SYMLINK_NOFOLLOW`.
    Flags(u8),
}

/// What the kernel asks of a caller who is not privileged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Right {
    /// Permission to write.
    Write,
    /// Permission to read and write.
    ReadAndWrite,
    /// To own the file.
    Own,
    /// To own the file, whose mode is to be the one in this argument.
    Mode(u8),
    /// What `chown(2)` asks for, whose owner and group begin at this argument.
    Owner(u8),
    /// To own the file; permission to write is enough if the times that this argument points to are now.
    OwnOrTouch(u8),
    /// Permission to write for the attributes of users, which the string in this argument names; else to own the file.
    OwnOrAttribute(u8),
    /// The same, to remove the attribute.
    OwnOrRemove(u8),
}

/// A system call ABI, as the filter sees it.
#[derive(Clone, Copy, Debug)]
pub struct Abi {
    /// `AUDIT_ARCH_*` of `linux/audit.h`.
    pub audit: u32,
    /// Calls by number, in order.
    pub calls: &'static [(u32, Shape)],
}

const AT: bool = true;

const fn open(at: bool, flags: u8) -> Shape {
    Shape::Open { at, flags }
}

const fn change(at: bool, follow: Follow, right: Right) -> Shape {
    Shape::Change { at, follow, right }
}

const fn change_open(right: Right) -> Shape {
    Shape::ChangeOpen { right }
}

const RENAME: Shape = Shape::Rename { at: false, flags: None };
const RENAMEAT: Shape = Shape::Rename { at: AT, flags: None };
const RENAMEAT2: Shape = Shape::Rename { at: AT, flags: Some(4) };
const TRUNCATE: Shape = change(false, Follow::Yes, Right::Write);
const CHMOD: Shape = change(false, Follow::Yes, Right::Mode(1));
const CHOWN: Shape = change(false, Follow::Yes, Right::Owner(1));
const LCHOWN: Shape = change(false, Follow::No, Right::Owner(1));
const FCHMOD: Shape = change_open(Right::Mode(1));
const FCHOWN: Shape = change_open(Right::Owner(1));
const FCHMODAT: Shape = change(AT, Follow::Yes, Right::Mode(2));
const FCHOWNAT: Shape = change(AT, Follow::Flags(4), Right::Owner(2));
const UTIME: Shape = change(false, Follow::Yes, Right::OwnOrTouch(1));
const FUTIMESAT: Shape = change(AT, Follow::Yes, Right::OwnOrTouch(2));
const UTIMENSAT: Shape = change(AT, Follow::Flags(3), Right::OwnOrTouch(2));
const SETXATTR: Shape = change(false, Follow::Yes, Right::OwnOrAttribute(1));
const LSETXATTR: Shape = change(false, Follow::No, Right::OwnOrAttribute(1));
const FSETXATTR: Shape = change_open(Right::OwnOrAttribute(1));
const REMOVEXATTR: Shape = change(false, Follow::Yes, Right::OwnOrRemove(1));
const LREMOVEXATTR: Shape = change(false, Follow::No, Right::OwnOrRemove(1));
const FREMOVEXATTR: Shape = change_open(Right::OwnOrRemove(1));

const IO_URING_SETUP: (u32, Shape) = (425, Shape::Absent);
const OPENAT2: (u32, Shape) = (437, Shape::Openat2);
const FCHMODAT2: (u32, Shape) = (452, change(AT, Follow::Flags(3), Right::Mode(2)));
const SETXATTRAT: (u32, Shape) = (463, change(AT, Follow::Flags(2), Right::OwnOrAttribute(3)));
const REMOVEXATTRAT: (u32, Shape) = (466, change(AT, Follow::Flags(2), Right::OwnOrRemove(3)));
const FILE_SETATTR: (u32, Shape) = (469, Shape::FileSetattr);

/// x86-64.
#[cfg(any(target_arch = "x86_64", test))]
pub(crate) const X86_64: Abi = Abi {
    audit: 0xc000_003e,
    calls: &[
        (2, open(false, 1)),
        (16, Shape::Ioctl),
        (76, TRUNCATE),
        (82, RENAME),
        (84, Shape::Rmdir),
        (85, Shape::Creat),
        (86, Shape::Link { at: false }),
        (87, Shape::Unlink { at: false }),
        (90, CHMOD),
        (91, FCHMOD),
        (92, CHOWN),
        (93, FCHOWN),
        (94, LCHOWN),
        (132, UTIME),
        (188, SETXATTR),
        (189, LSETXATTR),
        (190, FSETXATTR),
        (197, REMOVEXATTR),
        (198, LREMOVEXATTR),
        (199, FREMOVEXATTR),
        (235, UTIME),
        (257, open(AT, 2)),
        (260, FCHOWNAT),
        (261, FUTIMESAT),
        (263, Shape::Unlink { at: AT }),
        (264, RENAMEAT),
        (265, Shape::Link { at: AT }),
        (268, FCHMODAT),
        (280, UTIMENSAT),
        (316, RENAMEAT2),
        IO_URING_SETUP,
        OPENAT2,
        FCHMODAT2,
        SETXATTRAT,
        REMOVEXATTRAT,
        FILE_SETATTR,
    ],
};

/// 32-bit x86.
#[cfg(any(target_arch = "x86_64", test))]
pub(crate) const I386: Abi = Abi {
    audit: 0x4000_0003,
    calls: &[
        (5, open(false, 1)),
        (8, Shape::Creat),
        (9, Shape::Link { at: false }),
        (10, Shape::Unlink { at: false }),
        (15, CHMOD),
        (16, LCHOWN),
        (30, UTIME),
        (38, RENAME),
        (40, Shape::Rmdir),
        (54, Shape::Ioctl),
        (92, TRUNCATE),
        (94, FCHMOD),
        (95, FCHOWN),
        (182, CHOWN),
        (193, TRUNCATE),
        (198, LCHOWN),
        (207, FCHOWN),
        (212, CHOWN),
        (226, SETXATTR),
        (227, LSETXATTR),
        (228, FSETXATTR),
        (235, REMOVEXATTR),
        (236, LREMOVEXATTR),
        (237, FREMOVEXATTR),
        (271, UTIME),
        (295, open(AT, 2)),
        (298, FCHOWNAT),
        (299, FUTIMESAT),
        (301, Shape::Unlink { at: AT }),
        (302, RENAMEAT),
        (303, Shape::Link { at: AT }),
        (306, FCHMODAT),
        (320, UTIMENSAT),
        (353, RENAMEAT2),
        (412, UTIMENSAT),
        IO_URING_SETUP,
        OPENAT2,
        FCHMODAT2,
        SETXATTRAT,
        REMOVEXATTRAT,
        FILE_SETATTR,
    ],
};

/// arm64.
#[cfg(any(target_arch = "aarch64", test))]
const ARM64: Abi = Abi {
    audit: 0xc000_00b7,
    calls: &[
        (5, SETXATTR),
        (6, LSETXATTR),
        (7, FSETXATTR),
        (14, REMOVEXATTR),
        (15, LREMOVEXATTR),
        (16, FREMOVEXATTR),
        (29, Shape::Ioctl),
        (35, Shape::Unlink { at: AT }),
        (37, Shape::Link { at: AT }),
        (38, RENAMEAT),
        (45, TRUNCATE),
        (52, FCHMOD),
        (53, FCHMODAT),
        (54, FCHOWNAT),
        (55, FCHOWN),
        (56, open(AT, 2)),
        (88, UTIMENSAT),
        (276, RENAMEAT2),
        IO_URING_SETUP,
        OPENAT2,
        FCHMODAT2,
        SETXATTRAT,
        REMOVEXATTRAT,
        FILE_SETATTR,
    ],
};

/// The ABIs that programs of this machine may use; none if there is no table for it.
#[cfg(target_arch = "x86_64")]
pub const ABIS: &[Abi] = &[X86_64, I386];
/// The ABIs that programs of this machine may use; none if there is no table for it.
#[cfg(target_arch = "aarch64")]
pub const ABIS: &[Abi] = &[ARM64];
/// The ABIs that programs of this machine may use; none if there is no table for it.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
pub const ABIS: &[Abi] = &[];

/// The shape of a call; `None` if it changes nothing.
pub fn shape(audit: u32, number: u32) -> Option<Shape> {
    let abi = ABIS.iter().find(|abi| abi.audit == audit)?;
    let at = abi.calls.binary_search_by_key(&number, |(number, _)| *number).ok()?;
    Some(abi.calls[at].1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_in_order() {
        for abi in [X86_64, I386, ARM64] {
            assert!(abi.calls.is_sorted_by(|a, b| a.0 < b.0), "{:#x}", abi.audit);
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn numbers_are_those_of_the_c_library() {
        let shape = |number: libc::c_long| shape(X86_64.audit, number as u32);
        assert_eq!(shape(libc::SYS_openat), Some(open(AT, 2)));
        assert_eq!(shape(libc::SYS_fchownat), Some(FCHOWNAT));
        assert_eq!(shape(libc::SYS_utimensat), Some(UTIMENSAT));
        assert_eq!(shape(libc::SYS_renameat2), Some(RENAMEAT2));
        assert_eq!(shape(libc::SYS_lremovexattr), Some(LREMOVEXATTR));
        assert_eq!(shape(libc::SYS_fchmodat2), Some(FCHMODAT2.1));
        assert_eq!(shape(libc::SYS_read), None);
    }
}

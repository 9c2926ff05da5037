//! What a file is to us: an inode and the policy, judged without any I/O.

use serde::Serialize;

use crate::policy::Protection;
use crate::sys::file::inode::{Inode, Kind};

/// What stands for a file's protection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum VisibleFence {
    /// `+i`; a guest cannot tell mainline's from VServer's, which lets the name be unlinked.
    Immutable,
    /// The mark, which the guard of the host's kernel respects: nobody changes the file, and its names are free.
    Guard,
    /// Nothing: a plain hard link.
    None,
}

impl VisibleFence {
    /// What an inode says of itself; the mark is not in it.
    pub fn of(inode: &Inode) -> VisibleFence {
        if inode.immutable { VisibleFence::Immutable } else { VisibleFence::None }
    }

    /// Its name for a person.
    pub fn name(self) -> &'static str {
        match self {
            VisibleFence::Immutable => "immutable",
            VisibleFence::Guard => "guard",
            VisibleFence::None => "none",
        }
    }
}

/// What the kernel does about a file, beyond what its inode says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Surroundings {
    /// It lies in layers (overlayfs).
    pub layered: bool,
    /// It has the mark, and the kernel respects it.
    pub guarded: bool,
}

/// What a file is to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "verdict", rename_all = "snake_case")]
pub enum Verdict {
    /// No other guest sees it: free to be changed.
    Private,
    /// Hard links of one another, all of them in this guest.
    PrivateLinks,
    /// Has other links, in a layer below (overlayfs): the kernel copies it before it changes.
    Layered,
    /// Shares its inode with other guests or the pool.
    Unified {
        /// How it is protected.
        fence: VisibleFence,
    },
    /// Has other links, but lacks the protection that the policy takes for unification's.
    UnprotectedLinks,
    /// Immutable, yet shared with nobody: protected by the administrator, not by unification.
    AdministratorsOwn,
    /// Append-only: the administrator's, too.
    AppendOnly,
    /// Nothing that is ever unified.
    NotRegular {
        /// What it is instead.
        kind: Kind,
    },
    /// The policy's `never_touch` names it.
    NeverTouch,
    /// A directory on another filesystem or mount than where the search began.
    OtherFilesystem,
    /// Another file is mounted on the name.
    MountPoint,
    /// Something is mounted on the name where only some processes see it, and would be gone.
    MountedElsewhere,
    /// Linked without protection, on another mount than the guest's root: another root's links, for all that can be seen.
    OtherMount,
    /// On a mount that takes no writes: nothing can change it there.
    ReadOnlyMount,
}

impl Verdict {
    /// One line for a person.
    pub fn describe(self) -> String {
        match self {
            Verdict::Private => "private".into(),
            Verdict::PrivateLinks => "private (hard links within this guest)".into(),
            Verdict::Layered => {
                "shared in a lower layer of overlayfs; the kernel copies it before it changes".into()
            }
            Verdict::Unified { fence: VisibleFence::Immutable } => "unified (immutable)".into(),
            Verdict::Unified { fence: VisibleFence::Guard } => {
                "unified (protected by the host's guard)".into()
            }
            Verdict::Unified { fence: VisibleFence::None } => "unified (not protected)".into(),
            Verdict::UnprotectedLinks => {
                "hard links without protection, which are not unified files by the policy".into()
            }
            Verdict::AdministratorsOwn => "immutable but not shared: protected by the administrator".into(),
            Verdict::AppendOnly => "append-only: protected by the administrator".into(),
            Verdict::NotRegular { kind } => format!("not a regular file ({})", kind.name()),
            Verdict::NeverTouch => "named in the policy's never_touch list".into(),
            Verdict::OtherFilesystem => "on another filesystem or mount".into(),
            Verdict::MountPoint => {
                "a mount point; the file mounted there does not belong to this guest".into()
            }
            Verdict::MountedElsewhere => {
                "a mount point in the mount namespace of another process, which would lose that mount".into()
            }
            Verdict::OtherMount => {
                "hard links without protection, on another mount than the guest's root".into()
            }
            Verdict::ReadOnlyMount => "on a read-only mount".into(),
        }
    }

    /// Whether changing the file would be felt elsewhere, or fail.
    pub fn is_unified(self) -> bool {
        matches!(self, Verdict::Unified { .. })
    }
}

/// Judges a file that is known to have `names_here` names in this guest.
///
/// What the guard protects is unified wherever its names are: nobody can change it.
pub fn inspect(
    inode: &Inode,
    names_here: u32,
    protection: Protection,
    Surroundings { layered, guarded }: Surroundings,
) -> Verdict {
    let shared = inode.nlink > names_here.max(1);
    if inode.is_mounted_on() {
        return Verdict::MountPoint;
    }
    if inode.kind != Kind::Regular {
        return Verdict::NotRegular { kind: inode.kind };
    }
    if inode.append_only {
        return Verdict::AppendOnly;
    }
    match (inode.immutable, shared, protection) {
        (true, true, _) => Verdict::Unified { fence: VisibleFence::Immutable },
        (true, false, _) => Verdict::AdministratorsOwn,
        (false, true, _) if layered => Verdict::Layered,
        (false, ..) if guarded => Verdict::Unified { fence: VisibleFence::Guard },
        (false, true, Protection::Auto | Protection::None) => Verdict::Unified { fence: VisibleFence::None },
        (false, true, Protection::Immutable | Protection::Iunlink) => Verdict::UnprotectedLinks,
        (false, false, _) if inode.nlink > 1 => Verdict::PrivateLinks,
        (false, false, _) => Verdict::Private,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::file::inode::{InodeId, Time};

    const PLAIN: Surroundings = Surroundings { layered: false, guarded: false };
    const LAYERED: Surroundings = Surroundings { layered: true, guarded: false };
    const GUARDED: Surroundings = Surroundings { layered: false, guarded: true };

    fn inode(nlink: u32, immutable: bool) -> Inode {
        let zero = Time { secs: 0, nanos: 0 };
        Inode {
            id: InodeId { dev: 1, ino: 1 },
            mount: 1,
            kind: Kind::Regular,
            mode: 0o644,
            uid: 0,
            gid: 0,
            nlink,
            size: 1,
            allocated: 4096,
            atime: zero,
            mtime: zero,
            ctime: zero,
            immutable,
            append_only: false,
            mount_root: false,
        }
    }

    #[test]
    fn an_immutable_file_with_links_elsewhere_is_unified_under_every_policy() {
        for policy in [Protection::Auto, Protection::Immutable, Protection::Iunlink, Protection::None] {
            assert_eq!(
                inspect(&inode(2, true), 1, policy, PLAIN),
                Verdict::Unified { fence: VisibleFence::Immutable }
            );
        }
    }

    #[test]
    fn an_immutable_file_that_nobody_shares_is_the_administrators() {
        assert_eq!(inspect(&inode(1, true), 1, Protection::Auto, PLAIN), Verdict::AdministratorsOwn);
        assert_eq!(inspect(&inode(2, true), 2, Protection::Auto, PLAIN), Verdict::AdministratorsOwn);
    }

    #[test]
    fn plain_links_are_unified_only_where_the_policy_says_so() {
        assert!(inspect(&inode(2, false), 1, Protection::Auto, PLAIN).is_unified());
        assert!(inspect(&inode(2, false), 1, Protection::None, PLAIN).is_unified());
        assert_eq!(inspect(&inode(2, false), 1, Protection::Immutable, PLAIN), Verdict::UnprotectedLinks);
        assert_eq!(inspect(&inode(2, false), 2, Protection::Auto, PLAIN), Verdict::PrivateLinks);
    }

    #[test]
    fn a_file_of_its_own_is_private_even_if_its_name_was_not_counted() {
        assert_eq!(inspect(&inode(1, false), 0, Protection::None, PLAIN), Verdict::Private);
    }

    #[test]
    fn what_is_mounted_on_a_name_is_not_the_guests() {
        let bound = Inode { mount_root: true, ..inode(2, true) };
        assert_eq!(inspect(&bound, 1, Protection::Auto, PLAIN), Verdict::MountPoint);
        let device = Inode { kind: Kind::CharacterDevice, ..bound };
        assert_eq!(inspect(&device, 1, Protection::None, PLAIN), Verdict::MountPoint);
    }

    #[test]
    fn in_layers_only_the_flag_keeps_a_file_from_being_changed() {
        assert_eq!(inspect(&inode(3, false), 1, Protection::Auto, LAYERED), Verdict::Layered);
        assert_eq!(inspect(&inode(2, false), 2, Protection::None, LAYERED), Verdict::PrivateLinks);
        assert!(inspect(&inode(3, true), 1, Protection::Auto, LAYERED).is_unified());
    }

    #[test]
    fn what_the_guard_protects_is_unified_wherever_its_names_are() {
        for policy in [Protection::Auto, Protection::Immutable, Protection::Iunlink, Protection::None] {
            for names_here in [1, 2] {
                let verdict = inspect(&inode(2, false), names_here, policy, GUARDED);
                assert_eq!(verdict, Verdict::Unified { fence: VisibleFence::Guard });
            }
        }
        let both = inspect(&inode(2, true), 1, Protection::Auto, GUARDED);
        assert_eq!(both, Verdict::Unified { fence: VisibleFence::Immutable });
    }

    #[test]
    fn an_append_only_file_is_never_unified() {
        let log = Inode { append_only: true, ..inode(5, true) };
        assert_eq!(inspect(&log, 1, Protection::Auto, PLAIN), Verdict::AppendOnly);
    }
}

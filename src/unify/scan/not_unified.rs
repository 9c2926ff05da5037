//! Why a file stays as it is.

/// Why a file that its path makes eligible stays as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum NotUnified {
    /// Empty, or smaller than asked for.
    Small,
    /// It has no blocks that could be shared.
    Inline,
    /// Set-id bits, which packages' scripts change in place.
    SetId,
    /// Capabilities, likewise.
    Capabilities,
    /// Immutable or append-only, and none of the pool's: the administrator's own.
    Protected,
    /// Another filesystem or mount is on the name.
    OtherMount,
    /// Something is mounted on the name in a process's own mount namespace, and would be gone.
    MountPoint,
    /// In a guest that could not make it private again.
    Unable,
    /// It has names outside of what was looked at: they would no longer be hard links of these.
    LinkedElsewhere,
    /// It has names of different paths, and only files of the same path are wanted: they would no longer be hard links.
    SeveralNames,
    /// Its directory or the pool is for files of another project (quota): no link can join them.
    Project,
    /// A copy does not get its inode flags or its project.
    Flags,
    /// Somebody has it open for writing.
    Writer,
    /// It changed while it was looked at.
    Changed,
    /// Programs that run were loaded from it.
    InUse,
    /// Its directory is encrypted, and takes only files that are so in the same way.
    Encrypted,
    /// It cannot be read.
    Unreadable,
    /// The object it is equal to has lost its protection.
    Unprotected,
    /// The object it is equal to is damaged.
    Damaged,
    /// The one object of its metadata has another content.
    Different,
    /// Immutable, with names outside of what was looked at: an object of another pool.
    OtherPool,
}

impl NotUnified {
    /// The reason, for people.
    pub fn describe(self) -> &'static str {
        match self {
            NotUnified::Small => "empty or too small",
            NotUnified::Inline => "stored in their inodes, without blocks to share",
            NotUnified::SetId => "set-id",
            NotUnified::Capabilities => "file capabilities",
            NotUnified::Protected => "immutable or append-only, protected by the administrator",
            NotUnified::OtherMount => "on another mount",
            NotUnified::Unable => "in guests that could not make them private again",
            NotUnified::MountPoint => "mount points in the mount namespace of another process",
            NotUnified::LinkedElsewhere => "with hard links outside of the files that may be unified",
            NotUnified::SeveralNames => "with several names, which --reference leaves as they are",
            NotUnified::Project => "of another project (quota) than their directory or the pool",
            NotUnified::Flags => "with inode flags that a copy cannot have",
            NotUnified::Writer => "open for writing",
            NotUnified::Changed => "changed while they were examined",
            NotUnified::InUse => "used by running programs",
            NotUnified::Encrypted => "in a directory that is encrypted in another way than the pool",
            NotUnified::Unreadable => "cannot be read",
            NotUnified::Damaged => "equal to an object of the pool that is damaged",
            NotUnified::Different => "equal to no object of the pool",
            NotUnified::OtherPool => "immutable, and shared by another pool",
            NotUnified::Unprotected => {
                "equal to an object of the pool that has lost its protection; the next run on the host \
                 protects it"
            }
        }
    }
}

//! Why a guest is not removed.

use std::io;
use std::path::{Path, PathBuf};

use crate::report::{Reason, Shown};
use crate::sys::process::inside::Inside;
use crate::sys::process::mounts::MountedAt;

/// As many paths are named of one kind at most.
const EXAMPLES: usize = 10;

/// Files or directories that cannot be removed as they are.
#[derive(Clone, Debug, Default)]
pub struct Flagged {
    /// How many inodes.
    pub count: u64,
    /// Paths of some of them, as the host sees them.
    pub examples: Vec<PathBuf>,
}

impl Flagged {
    pub(super) fn add(&mut self, path: PathBuf) {
        self.count += 1;
        if self.examples.len() < EXAMPLES {
            self.examples.push(path);
        }
    }
}

/// What can lie in a guest that must not be removed with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Held {
    /// A pool that this host knows.
    Pool,
    /// A guest that one of these pools has seen.
    Guest,
}

impl Held {
    fn name(self) -> &'static str {
        match self {
            Held::Pool => "a pool",
            Held::Guest => "another guest",
        }
    }
}

/// What may be removed besides.
#[derive(Clone, Copy, Debug, Default)]
pub struct Allowed {
    /// Files and directories that are immutable or append-only, if no name of theirs is elsewhere.
    pub flagged: bool,
    /// A guest that processes are in, that is mounted elsewhere, or in which a package manager was killed.
    pub used: bool,
}

/// Why a guest is not removed. Nothing of it was touched.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// A file or directory.
    #[error("{}: {}", Shown(path), Reason(source))]
    At {
        /// The file or directory.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A link to a guest.
    #[error("{}: a symbolic link, which is not followed", Shown(path))]
    Link {
        /// The link.
        path: PathBuf,
    },
    /// Something else, or nothing.
    #[error("{}: not a guest: {what}", Shown(path))]
    NoGuest {
        /// The path.
        path: PathBuf,
        /// What it is instead.
        what: &'static str,
    },
    /// The running system.
    #[error("{}: contains the running system ({})", Shown(path), Shown(part))]
    System {
        /// The guest.
        path: PathBuf,
        /// What of the system it holds.
        part: PathBuf,
    },
    /// A mount on the guest's directory, or in it.
    #[error("{}: something is mounted here{}", Shown(&points[0]), others(*count, "mount", "mounts"))]
    Mounted {
        /// Where, some of them.
        points: Vec<PathBuf>,
        /// How many there are.
        count: u64,
    },
    /// A mount of the guest's directory, or of something in it, or an overlay above it.
    #[error(
        "{}: this guest, or something in it, is mounted on {} by process {}{}",
        Shown(path), Shown(&at[0].point), at[0].pid, others(at.len() as u64, "mount", "mounts")
    )]
    MountedElsewhere {
        /// The guest.
        path: PathBuf,
        /// Where.
        at: Vec<MountedAt>,
    },
    /// A directory that nothing can be removed from, whoever asks.
    #[error("{}: read-only, so that nothing in it can be removed", Shown(path))]
    ReadOnly {
        /// The directory.
        path: PathBuf,
    },
    /// The guest cannot get another name, nor lose the one it has.
    #[error(
        "{}: this directory is immutable or append-only, so that its names cannot be removed",
        Shown(path)
    )]
    Kept {
        /// The directory that the guest lies in.
        path: PathBuf,
    },
    /// This process may not clear the flags of what is in it.
    #[error("{}: the immutable flag cannot be set and cleared: {}", Shown(path), Reason(source))]
    Capability {
        /// The guest.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A pool, or another guest.
    #[error("{}: {} lies in this guest ({})", Shown(path), what.name(), Shown(inner))]
    Holds {
        /// The guest.
        path: PathBuf,
        /// What is in it.
        what: Held,
        /// Where.
        inner: PathBuf,
    },
    /// Processes that have their root or working directory in it.
    #[error("{}: {}", Shown(path), in_use(inside))]
    InUse {
        /// The guest.
        path: PathBuf,
        /// The processes.
        inside: Vec<Inside>,
    },
    /// Its hooks.
    #[error("{}: a package manager is running in this guest, or was killed", Shown(path))]
    Busy {
        /// The guest.
        path: PathBuf,
    },
    /// Files that somebody protects who is not cow-unify.
    #[error(
        "{}: immutable or append-only, and not shared: protected by an administrator{}",
        Shown(&flagged.examples[0]), others(flagged.count, "file or directory", "files and directories")
    )]
    Flagged {
        /// Which they are.
        flagged: Flagged,
    },
    /// Append-only files that have names elsewhere.
    #[error(
        "{}: append-only, with another hard link outside of this guest{}",
        Shown(&flagged.examples[0]), others(flagged.count, "file", "files")
    )]
    Stuck {
        /// Which they are.
        flagged: Flagged,
    },
}

/// ", and 3 more mounts".
fn others(count: u64, one: &str, several: &str) -> String {
    match count {
        0 | 1 => String::new(),
        2 => format!(" (and 1 more {one})"),
        count => format!(" (and {} more {several})", count - 1),
    }
}

fn in_use(inside: &[Inside]) -> String {
    let named: Vec<String> = inside
        .iter()
        .take(3)
        .map(|Inside { pid, command }| format!("{pid} ({})", Shown(command.as_ref())))
        .collect();
    let processes = if inside.len() == 1 { "a process has its" } else { "processes have their" };
    let more = if inside.len() > named.len() {
        format!(" and {} more", inside.len() - named.len())
    } else {
        String::new()
    };
    format!("{processes} root or working directory in this guest: {}{more}", named.join(", "))
}

impl Refusal {
    /// The same of a guest that had the path `from`, and has the path `to` again.
    pub(super) fn renamed(self, from: &Path, to: &Path) -> Refusal {
        let path = to.to_path_buf();
        match self {
            Refusal::InUse { inside, .. } => Refusal::InUse { path, inside },
            Refusal::MountedElsewhere { at, .. } => Refusal::MountedElsewhere { path, at },
            Refusal::Mounted { points, count } => {
                let now =
                    |point: PathBuf| point.strip_prefix(from).map(|inner| to.join(inner)).unwrap_or(point);
                Refusal::Mounted { points: points.into_iter().map(now).collect(), count }
            }
            other => other,
        }
    }

    /// What a person can do about it, if that is more than the message says.
    pub fn remedy(&self) -> Option<String> {
        Some(match self {
            Refusal::Link { .. } => "name the guest's directory itself".into(),
            Refusal::Mounted { .. } => {
                "unmount it, then run this again; `grep PATH /proc/[0-9]*/mountinfo` shows which processes have \
                 mounted something there"
                    .into()
            }
            Refusal::MountedElsewhere { .. } => {
                "unmount it; with --force the guest is removed all the same, and the mount is empty then".into()
            }
            Refusal::ReadOnly { path } => format!(
                "remount the filesystem read-write, or run `btrfs property set -t subvol {} ro false` if it is a \
                 read-only subvolume",
                Shown(path)
            ),
            Refusal::Kept { .. } => "run `chattr -i -a` on it while you remove the guest".into(),
            Refusal::Capability { .. } => {
                "run this as root of the host, outside of containers: it takes CAP_LINUX_IMMUTABLE in the first user \
                 namespace"
                    .into()
            }
            Refusal::Holds { what: Held::Pool, .. } => {
                "move the pool out of the guest, or run `cow-unify detach` on all of its guests".into()
            }
            Refusal::Holds { .. } => "remove or move that guest first".into(),
            Refusal::InUse { .. } => {
                "stop the guest, or leave the directory; with --force the guest is removed all the same"
                    .into()
            }
            Refusal::Busy { .. } => {
                "wait until it has ended; if it was killed, use --force: nothing of it is needed any more"
                    .into()
            }
            Refusal::Flagged { .. } => {
                "run `chattr -i -a` on it, or use --clear-flags, which does that for all such files and \
                 directories of this guest"
                    .into()
            }
            Refusal::Stuck { .. } => "run `chattr -a` on it if it may change; then run this again".into(),
            Refusal::System { .. } | Refusal::NoGuest { .. } | Refusal::At { .. } => return None,
        })
    }
}

//! The only room with unsafe code, and the only one that writes to guests' files. It knows no policy, and works on
//! descriptors.
//!
//! From the outside in; each knows only those below it:
//!
//! - [`ptrace`]: installs a filter in another process that waits for us.
//! - [`share`]: how a name changes its inode (`swap`, with `lock`, `lease` and `gate`; `iunlink` on Linux-VServer), how a
//!   private copy is made (`copy`), how files share blocks (`dedupe`).
//! - [`process`]: what the process table says, other threads, and threads of ours with a root directory of their own.
//! - [`path`]: where a file is, beneath a guest's root directory; our own files in a guest.
//! - [`mod@file`]: what a file is, and the filesystem that it is on.
//! - [`seccomp`]: system calls that wait for us, and those that a filter forbids this process.

#![allow(clippy::disallowed_methods)]

pub mod file;
pub mod path;
pub mod process;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
pub mod ptrace;
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
#[path = "ptrace/unsupported.rs"]
pub mod ptrace;
pub mod seccomp;
pub mod share;

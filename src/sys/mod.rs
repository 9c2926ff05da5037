//! The only room that changes guests' files and their names. It knows no policy, and works on descriptors.
//!
//! `clippy.toml` forbids the functions that write, rename or change inodes everywhere else. All unsafe code is in here
//! too, with one exception: `hooks/rpm/ffi.rs` speaks rpm's C plugin API. Its functions are called by rpm and call rpm
//! back, through raw pointers; none of them is a system call, and none touches a file.
//! (`hooks/rpm/plugin.rs` has the attribute that exports the symbol rpm looks up, and no unsafe block.)
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
//! - [`budget`]: how much is read of what a guest holds.
//! - `procfs`: reads small files of procfs, and knows their form.

#![allow(clippy::disallowed_methods)]

pub mod budget;
pub mod file;
pub mod path;
pub mod process;
mod procfs;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
pub mod ptrace;
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
#[path = "ptrace/unsupported.rs"]
pub mod ptrace;
pub mod seccomp;
pub mod share;

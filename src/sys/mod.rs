//! The only room with unsafe code, and the only one that writes to guests' files.
//!
//! It knows no policy: where a file is (`root`, `resolve`, `tree`), what it is (`inode`, `attributes`, `xattr`, `handle`), how a
//! private copy is made (`copy`, `metadata`), how a name changes its inode (`swap`, with `lock`, `lease` and `gate`; `iunlink`; `layer` on overlayfs), what
//! the filesystem and the process table say (`filesystem`, `process`, `programs`, `mounts`, `page`), our own files (`state`), a root directory
//! that another thread cannot change (`outside`, `view`), other processes whose calls wait for us (`seccomp`, `task`; `filter` for what forbids calls of our own;
//! `remote` for those that did not ask for it).
//! Everything works on descriptors.

#![allow(clippy::disallowed_methods)]

pub mod attributes;
pub mod copy;
pub mod dedupe;
pub mod encryption;
pub mod extents;
pub mod filesystem;
pub mod filter;
#[cfg(test)]
pub mod fnmatch;
pub mod gate;
pub mod handle;
pub mod inode;
pub mod iunlink;
pub mod layer;
pub mod lease;
pub mod lock;
pub mod metadata;
pub mod mounts;
pub mod outside;
pub mod page;
pub mod process;
pub mod programs;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
pub mod remote;
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
#[path = "remote/unsupported.rs"]
pub mod remote;
pub mod resolve;
pub mod root;
pub mod seccomp;
pub mod signal;
pub mod state;
pub mod swap;
pub mod task;
pub mod times;
pub mod traits;
pub mod tree;
pub mod view;
pub mod xattr;

//! The only room with unsafe code, and the only one that writes to guests' files.
//!
//! It knows no policy: where a file is (`root`, `resolve`, `tree`), what it is (`inode`, `xattr`, `handle`), how a
//! private copy is made (`copy`, `metadata`), how a name changes its inode (`swap`, with `lock`, `lease` and `gate`; `iunlink`), what
//! the filesystem and the process table say (`filesystem`, `process`, `page`), our own files (`state`), a root directory
//! that another thread cannot change (`outside`).
//! Everything works on descriptors.

#![allow(clippy::disallowed_methods)]

pub mod copy;
pub mod dedupe;
pub mod filesystem;
#[cfg(test)]
pub mod fnmatch;
pub mod gate;
pub mod handle;
pub mod inode;
pub mod iunlink;
pub mod lease;
pub mod lock;
pub mod metadata;
pub mod outside;
pub mod page;
pub mod process;
pub mod resolve;
pub mod root;
pub mod signal;
pub mod state;
pub mod swap;
pub mod times;
pub mod tree;
pub mod xattr;

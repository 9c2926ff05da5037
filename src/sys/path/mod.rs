//! Where a file is: paths beneath a guest's root directory, and our own files there.

pub mod descent;
pub mod dirfd;
#[cfg(test)]
pub mod fnmatch;
pub mod patient;
pub mod regular;
pub mod resolve;
pub mod root;
pub mod tree;

//! Where a file is: paths beneath a guest's root directory, and our own files there.

#[cfg(test)]
pub mod fnmatch;
pub mod own_files;
pub mod resolve;
pub mod root;
pub mod tree;

//! What a file is, and the filesystem that it is on.

pub mod content;
pub mod encryption;
pub mod extents;
pub mod filesystem;
pub mod flags;
pub mod handle;
pub mod inode;
pub mod layer;
pub mod metadata;
pub mod pages;
pub mod times;
pub mod traits;
pub mod uuid;
pub mod xattr;

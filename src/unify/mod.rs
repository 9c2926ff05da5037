//! Makes equal files one inode again.

pub mod identity;
pub mod rules;
pub mod scope;

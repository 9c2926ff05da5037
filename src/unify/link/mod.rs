//! Makes equal files names of one inode, in steps for which there is room.

pub mod batch;
pub mod claims;
pub mod dedupe;
pub mod noted;
pub mod plan;
pub mod room;
pub mod window;

//! How a name changes between a shared inode and a private copy.

pub mod adopt;
pub mod copy;
pub mod dedupe;
pub mod flag_changes;
pub mod gate;
pub mod iunlink;
pub mod lease;
pub mod lock;
pub mod mark;
pub mod remove;
pub mod swap;

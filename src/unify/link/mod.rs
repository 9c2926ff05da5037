//! Makes equal files names of one inode, in steps for which there is room.
//!
//! [`plan`] says which files are to become one, [`batch`] does it: in a [`window`] on each object, or with shared blocks
//! ([`dedupe`]). Under the guard, [`adopt`] saves the copy for a new object. [`space`] says for how much there is room, [`claims`] keeps the guests' hooks waiting meanwhile, and
//! [`hard_links`] tells the guests what were hard links before.

mod adopt;
pub mod batch;
pub(crate) mod claims;
pub mod dedupe;
pub mod hard_links;
pub mod linked;
pub(crate) mod linker;
pub mod plan;
pub mod space;
pub mod window;

//! Gives names private copies of the inodes they share with other guests.
//!
//! `survey` finds what is unified among the paths of a plan, `preflight` refuses what would fail half way, `apply`
//! makes the copies and gives them the names, `lift` has the kernel copy what is in layers. `guarded` knows what the host's
//! guard protects.

pub mod apply;
mod error;
pub mod guarded;
pub mod layers;
pub mod lift;
pub mod preflight;
pub mod recover;
pub mod request;
pub mod survey;

pub use self::error::Error;

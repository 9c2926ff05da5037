//! The story of one run of a package manager: begin, then it runs, then settle; and recover, before anything.
//!
//! Whoever starts takes part as a *member*; a nested hook (dpkg's, under apt's) joins what is open. When the last
//! member leaves, the run is settled.

mod begin;
pub mod course;
mod error;
mod finish;
mod guest;
mod refusal;
pub mod release;
pub mod settle;

pub use self::begin::{Begun, RunOptions, Supervision};
pub use self::error::Error;
pub use self::guest::{Guest, member};
pub use self::refusal::Refusal;

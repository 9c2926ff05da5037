//! Gives names private copies of the inodes they share with other guests.
//!
//! `survey` finds what is unified among the paths of a plan, `preflight` refuses what would fail half way, `apply`
//! makes the copies and gives them the names, `lift` has the kernel copy what is in layers.

pub mod apply;
pub mod lift;
pub mod preflight;
pub mod recover;
pub mod survey;

/// Somebody who watches a batch being copied.
pub trait Watch: Sync + std::fmt::Debug {
    /// The batch begins.
    fn begin(&self, files: u64, bytes: u64);
    /// Some of it is done.
    fn add(&self, files: u64, bytes: u64);
    /// The batch is over.
    fn end(&self);
}

/// Nobody watches.
#[derive(Debug)]
pub struct Unwatched;

impl Watch for Unwatched {
    fn begin(&self, _: u64, _: u64) {}
    fn add(&self, _: u64, _: u64) {}
    fn end(&self) {}
}

//! What a batch that is copied tells of itself.

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

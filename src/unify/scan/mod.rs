//! Finds the files of guests that may be unified, and reads those of which at least two could be equal.

pub mod cache;
pub mod catalog;
pub mod digest;
pub mod names;
pub mod walk;

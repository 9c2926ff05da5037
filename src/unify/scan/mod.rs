//! Finds the files of guests that may be unified, and reads those that could be equal to another.
//!
//! [`walk`] finds the files of a [`guest`], with the help of the [`cache`]; a [`catalog`] holds them; [`marks`] says which
//! stay as they are, and [`not_unified`] why; [`digest`] reads them. [`names`] goes through all names, whatever they are.

pub mod cache;
pub mod catalog;
pub(crate) mod digest;
pub mod guest;
pub mod marks;
pub mod names;
pub mod not_unified;
pub mod walk;

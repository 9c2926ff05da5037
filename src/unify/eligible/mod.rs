//! Which files may be unified, by their paths alone.

pub mod line;
pub mod rules;
pub mod scope;
pub mod vserver;

//! One pass over guests: over all of each ([`whole`]), over what their hooks say has changed ([`changed`]), or from
//! [`inside`] a guest that reaches the pool.

pub mod changed;
pub mod in_use;
pub mod inside;
pub mod known;
pub mod reach;
pub mod steps;
pub mod system;
pub mod whole;

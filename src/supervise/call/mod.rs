//! One call of a supervised thread: what it leads to, and what is to be done before it goes on.

pub mod caller;
pub mod change;
pub mod lookup;
pub mod names;

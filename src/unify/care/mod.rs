//! Keeps a pool whole: looks at its protection, reads all of it, replaces what is damaged, removes what nobody has.

pub mod gc;
pub mod protection;
pub mod repair;
pub mod status;
pub mod verify;

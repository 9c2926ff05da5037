//! Keeps a pool whole: reads all of it, replaces what is damaged, removes what nobody has, and says what it saves.
//!
//! [`repair`] finds the names of [`damaged`] inodes in guests, finds an [`intact`] inode for each, and [`replace`]s them.

mod damaged;
pub mod gc;
mod intact;
pub mod repair;
mod replace;
pub mod status;
pub mod verify;

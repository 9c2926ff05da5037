//! The end of a transaction: what has not changed goes back to the inode it came from, what is new is handed over.

mod carry_out;
mod hand_over;
mod judge;
mod settled;
mod together;

pub use self::settled::Settled;
pub(super) use self::settled::{hand_over, retire, settle};

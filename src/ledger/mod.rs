//! The guest's SQLite database of transactions: which names are about to change their inode, which have, and what
//! is still owed to them.
//!
//! An entry is durable before the name it speaks of is touched, and forgotten when nothing is owed any more.

mod aside;
mod database;
mod error;
mod records;
pub(crate) mod rows;
mod schema;

pub use self::database::Ledger;
pub use self::error::Error;
pub use self::records::{Entry, Intent, PrivateCopy, Run, Stage, Window};

#[cfg(test)]
mod tests;

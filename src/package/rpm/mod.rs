//! rpm: what its database says of the packages that are installed, what a package's file says, and what installing it
//! touches. Read only, and without rpm or SQLite: on the host, the database is a guest's.

pub mod command_line;
pub mod database;
pub mod file;
pub mod header;
pub(crate) mod ndb;
pub mod plan;
pub mod sqlite;
pub mod wal;

use std::io;
use std::os::fd::AsFd;

pub use database::Rpm;
pub use file::PackageFile;

use crate::sys::budget::{self, Exceeded};
use crate::sys::file::inode::Inode;

/// The size of a file that is not too large.
fn checked_size(file: impl AsFd) -> io::Result<u64> {
    let size = Inode::of(file)?.size;
    Exceeded::check_bytes(size, budget::RPM_DATABASE)?;
    Ok(size)
}

/// What is not as the format has it.
fn malformed(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.into())
}

//! dpkg: its database, its command line, and what a run of it may touch.

pub mod after;
pub mod apt;
pub mod changes;
pub mod command_line;
pub mod control;
pub mod database;
pub mod deb;
pub mod diversions;
pub mod listed;
pub mod lists;
pub mod plan;
pub mod statoverride;
pub mod status;

use std::io;
use std::path::PathBuf;

use crate::report::{Reason, Shown};

pub use changes::Change;
pub use command_line::Invocation;
pub use database::{Admindir, Database};
pub use listed::Listed;
pub use plan::Plan;
pub use status::Package;

/// A part of dpkg's database that could not be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot read dpkg's database, {}: {}", Shown(path), Reason(source))]
pub struct Error {
    /// The file or directory, as the guest names it.
    pub path: PathBuf,
    /// Why not.
    pub source: io::Error,
}

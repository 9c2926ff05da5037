//! What can go wrong with a ledger.

use std::io;
use std::path::PathBuf;

use super::schema::VERSION;
use crate::report::{Reason, Shown};

/// What went wrong with the ledger.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// SQLite's word.
    #[error("ledger {}: {source}", Shown(path))]
    Database {
        /// The database.
        path: PathBuf,
        /// What SQLite says.
        source: rusqlite::Error,
    },
    /// Its tables are of another version of this program.
    #[error(
        "ledger {}: written by another version of cow-hooks: its format is {found}, this version needs {VERSION}",
        Shown(path)
    )]
    Version {
        /// The database.
        path: PathBuf,
        /// The version it holds.
        found: i64,
    },
    /// The database could not be put aside.
    #[error("ledger {}: {}", Shown(path), Reason(source))]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

impl Error {
    /// Whether a fresh ledger in this one's place would do better: damaged, foreign, or of another version.
    pub(super) fn is_unreadable(&self) -> bool {
        use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase, Unknown};
        match self {
            // Unknown is SQLite's plain "SQL error": a table or column is not there.
            Error::Database { source: rusqlite::Error::SqliteFailure(e, _), .. } => {
                matches!(e.code, DatabaseCorrupt | NotADatabase | Unknown)
            }
            Error::Version { .. } => true,
            _ => false,
        }
    }
}

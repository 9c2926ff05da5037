//! What the open transaction is going to change, as far as that is known.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io;
use std::path::PathBuf;

use super::lists::{read_list, replace_list};
use super::store::Store;
use crate::sys::path::dirfd;

const PLANNED: &str = "planned";

impl Store {
    /// Writes down what the open transaction is going to change: only a hint, for what is told once costs less.
    pub fn plan(&self, paths: &BTreeSet<PathBuf>) -> io::Result<()> {
        replace_list(self.area(), PLANNED, paths)
    }

    /// What the open transaction is going to change, as far as that was written down.
    pub fn planned(&self) -> io::Result<BTreeSet<PathBuf>> {
        read_list(self.area(), OsStr::new(PLANNED))
    }

    /// Forgets what was planned.
    pub fn forget_plan(&self) -> io::Result<()> {
        dirfd::remove_file(self.area(), OsStr::new(PLANNED))
    }
}

//! All package managers of a guest.

use std::io;
use std::path::PathBuf;

use super::dpkg::after::Dpkg;
use super::{PackageManager, Packages};
use crate::sys::root::Root;

/// All package managers of a guest.
#[derive(Debug)]
pub struct Managers<'r> {
    dpkg: Dpkg<'r>,
}

impl<'r> Managers<'r> {
    /// Those of the guest at `root`.
    pub fn of(root: &'r Root) -> Managers<'r> {
        Managers { dpkg: Dpkg::new(root, None) }
    }
}

impl PackageManager for Managers<'_> {
    fn after_run(&self, since: i64) -> io::Result<Packages> {
        self.dpkg.after_run(since)
    }

    fn essential(&self) -> io::Result<Vec<PathBuf>> {
        self.dpkg.essential()
    }
}

//! The progress bar of a command.

use std::sync::{Mutex, PoisonError};

use crate::report::{Progress, Watch};

/// The bar, from the moment it is known how many files there are.
#[derive(Debug)]
pub struct Bar {
    quiet: bool,
    shown: Mutex<Option<Progress>>,
}

impl Bar {
    /// None is shown yet; with `quiet`, none ever is.
    pub fn new(quiet: bool) -> Bar {
        Bar { quiet, shown: Mutex::new(None) }
    }

    fn show(&self, progress: Option<Progress>) {
        *self.shown.lock().unwrap_or_else(PoisonError::into_inner) = progress;
    }

    fn count(&self, files: u64, bytes: u64) {
        if let Some(progress) = &*self.shown.lock().unwrap_or_else(PoisonError::into_inner) {
            progress.add(files, bytes);
        }
    }
}

impl Watch for Bar {
    fn begin(&self, action: &'static str, files: u64) {
        self.show(Some(Progress::new(action, Some(files).filter(|&files| files > 0), self.quiet)));
    }

    fn add(&self, files: u64, bytes: u64) {
        self.count(files, bytes);
    }

    fn end(&self) {
        self.show(None);
    }
}

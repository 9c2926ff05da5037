//! What all parts of linking work with.

use std::path::PathBuf;
use std::sync::Arc;

use super::linked::Linked;
use crate::unify::pool::directory::Pool;
use crate::unify::pool::publish::Publisher;
use crate::unify::pool::run::RunDir;
use crate::unify::scan::catalog::{Catalog, FileIndex};
use crate::unify::{FailedPath, SharedError};

/// Links one catalog's files.
pub struct Linker<'a> {
    pub(crate) publisher: Publisher<'a>,
    pub catalog: &'a Catalog,
    /// How many threads link.
    pub threads: usize,
    /// Told of each name that is done, and of bytes copied.
    pub done: &'a (dyn Fn(u64, u64) + Sync),
}

impl<'a> Linker<'a> {
    pub(super) fn pool(&self) -> &'a Pool {
        self.publisher.pool
    }

    pub(super) fn run(&self) -> &'a RunDir<'a> {
        self.publisher.run
    }

    /// Notes that names stay as they are, and why.
    pub(super) fn fail(&self, names: &[FileIndex], error: &SharedError, linked: &mut Linked) {
        linked.failed.extend(
            names.iter().map(|&at| FailedPath { path: self.outer_path(at), source: Arc::clone(error) }),
        );
    }

    pub(super) fn outer_path(&self, at: FileIndex) -> PathBuf {
        self.catalog.outer_path(&self.catalog[at])
    }
}

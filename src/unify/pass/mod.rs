//! One pass over guests: over all files of each ([`full`]), over what their hooks say has changed ([`changed`]), or from
//! inside a guest that reaches the pool ([`in_guest`]).
//!
//! Each [`begin`]s with what an interrupted run left and with the pool's protection, finds files by a scan or as they are
//! [`listed`], and links what is equal in [`steps`], but for what is [`in_use`] or in a directory that is [`encrypted`]
//! otherwise. [`pools`] tells which pool guests belong to, [`running_system`] what is no guest.

pub mod begin;
pub mod changed;
pub mod encrypted;
pub mod full;
pub mod in_guest;
pub mod in_use;
pub mod listed;
pub mod pools;
pub mod running_system;
pub mod steps;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::policy::PatternSet;
use crate::report::Watch;
use crate::sys::process::programs::Programs;
use crate::unify::FailedPath;
use crate::unify::care::repair::Repaired;
use crate::unify::care::verify::Verified;
use crate::unify::eligible::rules::Rules;
use crate::unify::eligible::scope::Scope;
use crate::unify::link::linked::Linked;
use crate::unify::pool::directory::Pool;
use crate::unify::pool::protection::PoolProtection;
use crate::unify::pool::recover::RecoveredRuns;
use crate::unify::pool::settings::PoolSettings;
use crate::unify::scan::catalog::{Catalog, FileIndex, GuestIndex};
use crate::unify::scan::not_unified::NotUnified;

/// What is to be done.
#[derive(Debug)]
pub struct PassOptions {
    /// Which files are looked at.
    pub scope: Scope,
    /// What the command line includes and excludes.
    pub rules: Rules,
    /// What is never unified unless it is asked for.
    pub never: PatternSet,
    /// The smallest file that is unified, in bytes.
    pub min_size: u64,
    /// Unify set-id files and files with capabilities, too.
    pub allow_setid: bool,
    /// The guest that is the model: only files of the same path as one of its are unified.
    pub reference: Option<GuestIndex>,
    pub protection: PoolProtection,
    /// They are immutable, or will be once it is not only tried: who cannot clear the flag is not to have them.
    pub immutable: bool,
    /// How many threads look and read.
    pub threads: usize,
    /// How long to wait for the lock on one shared inode.
    pub lock_timeout: Duration,
    /// Bytes to be left free on the filesystem.
    pub reserve: u64,
    /// Keep the paths of what is linked and of what is left.
    pub list: bool,
    /// Files that running programs were loaded from.
    pub in_use: InUse,
}

/// What becomes of files that running programs were loaded from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum InUse {
    /// Link them too; the programs keep the replaced inodes until they end
    Replace,
    /// Leave them until the programs have ended
    Wait,
}

/// What a pass came to.
#[derive(Debug, Default)]
pub struct Passed {
    /// What an interrupted run had left.
    pub recovered: RecoveredRuns,
    /// Private names that were looked at.
    pub looked_at: u64,
    /// Names seen that were the pool's before; those of directories that have not changed are not counted.
    pub shared_before: u64,
    /// Names of objects that are in quarantine.
    pub damaged: u64,
    /// Damaged files, set aside, that guests have names of.
    pub still_seen: u64,
    /// Objects that somebody has written to meanwhile.
    pub changed_objects: u64,
    pub linked: Linked,
    /// The paths of the names linked, or to be linked.
    pub names: Vec<PathBuf>,
    /// Bytes that a dry run would free, at most.
    pub would_free: u64,
    /// How many names stay private, by reason.
    pub left: BTreeMap<NotUnified, u64>,
    /// The paths of these names, if they are wanted.
    pub left_names: Vec<(PathBuf, NotUnified)>,
    /// Guests that were left out, with the reason.
    pub skipped: Vec<FailedPath>,
    /// Those of them in which a package manager is at work, and their paths.
    pub busy: BTreeMap<GuestIndex, PathBuf>,
    /// Names left for programs that run.
    pub waiting: Vec<FileIndex>,
    /// Names that were linked although programs run from what they named.
    pub displaced: u64,
    /// Numbers of these programs' processes.
    pub programs: BTreeSet<i32>,
    /// Files of the pool that are not protected, and were left so by a dry run.
    pub unprotected: u64,
    /// What the look at the pool's protection came to: what was lost, and what had changed meanwhile.
    pub verified: Verified,
    /// What became of the guests' names of what had changed.
    pub repaired: Repaired,
}

/// A pass over some guests.
pub struct Pass<'a> {
    pub pool: Option<&'a Pool>,
    pub settings: PoolSettings,
    pub options: &'a PassOptions,
    pub watch: &'a dyn Watch,
    /// The caller holds the locks of the guests.
    pub locked: bool,
    /// The programs that run; none if the caller has looked after what they use.
    pub programs: Option<&'a Programs>,
}

impl Pass<'_> {
    /// Counts the files that stay as they are, and names those that could not be read.
    pub(super) fn note_left(&self, catalog: &Catalog, passed: &mut Passed) {
        let not_unified = catalog.indices().filter_map(|at| Some((at, catalog[at].not_unified?)));
        self.leave(catalog, not_unified, passed);
        let path = |at: &FileIndex| catalog.outer_path(&catalog[*at]);
        let failed =
            catalog.unreadable.iter().map(|(at, e)| FailedPath { path: path(at), source: Arc::clone(e) });
        passed.linked.failed.extend(failed);
    }

    /// Counts names that stay as they are, and names them if that is wanted.
    pub(super) fn leave(
        &self,
        catalog: &Catalog,
        names: impl Iterator<Item = (FileIndex, NotUnified)>,
        passed: &mut Passed,
    ) {
        for (at, not_unified) in names {
            *passed.left.entry(not_unified).or_default() += 1;
            if self.options.list {
                passed.left_names.push((catalog.outer_path(&catalog[at]), not_unified));
            }
        }
    }
}

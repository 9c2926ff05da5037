//! What the threads of a worker share.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::journal::{self, Journal};
use super::links::Links;
use super::names_here::NamesHere;
use super::options::Options;
use super::recent::Recent;
use crate::policy::LastLink;
use crate::report::{count, size};
use crate::sys::file::inode::{Inode, InodeId, Kind};
use crate::sys::path::root::Root;
use crate::sys::process::task::Task;
use crate::sys::process::{ProcessId, Processes};
use crate::sys::seccomp::Listener;

/// What the threads of a worker share: the guest, the journal, and what is known of files.
#[derive(Debug)]
pub struct Supervisor<'a> {
    /// Where calls come from.
    pub listener: &'a Listener,
    /// What to do.
    pub options: &'a Options,
    /// Whose windows the ledger names.
    owner: ProcessId,
    /// The process table.
    pub processes: Processes,
    /// Our user namespace: capabilities in another one are no capabilities here.
    pub user_namespace: InodeId,
    /// The root directory we began in.
    pub home: Root,
    journal: Mutex<Option<Journal>>,
    links: Mutex<Links>,
    names_here: Mutex<NamesHere>,
    recent: Mutex<Recent>,
    /// Names that were made private and that nobody settles.
    pub changed: Mutex<BTreeSet<PathBuf>>,
    /// What all of it came to.
    pub counts: Counts,
}

/// How much was done.
#[derive(Debug, Default)]
pub struct Counts {
    /// Calls that were looked at.
    pub calls: AtomicU64,
    /// Names made private.
    pub detached: AtomicU64,
    /// Bytes copied for them.
    pub bytes: AtomicU64,
    /// Calls about names that were carried out.
    pub names: AtomicU64,
}

impl<'a> Supervisor<'a> {
    /// For a supervisor whose windows are recorded as those of `owner`; nothing is opened in the guest yet.
    pub fn new(listener: &'a Listener, options: &'a Options, owner: ProcessId) -> io::Result<Supervisor<'a>> {
        let processes = Processes::open()?;
        let own = Task::open(&processes, processes.own()?.id.pid)?;
        let home = Root::open(Path::new("/"))?;
        Ok(Supervisor {
            listener,
            options,
            owner,
            user_namespace: own.user_namespace()?,
            processes,
            links: Mutex::new(Links::new(home.try_clone()?)),
            names_here: Mutex::new(NamesHere::new(home.try_clone()?)),
            home,
            journal: Mutex::new(None),
            recent: Mutex::new(Recent::new()),
            changed: Mutex::new(BTreeSet::new()),
            counts: Counts::default(),
        })
    }

    /// Whether a file is shared with others, so that it must be made private before it changes.
    pub fn is_shared(&self, inode: &Inode) -> bool {
        if inode.kind != Kind::Regular || inode.append_only || inode.is_mounted_on() {
            return false;
        }
        match (inode.immutable, inode.nlink > 1) {
            (true, links) => {
                self.options.policy.last_link == LastLink::Detach
                    || links && !lock(&self.names_here).are_all(inode)
            }
            (false, links) => links && self.options.unprotected,
        }
    }

    /// Does `work` with the open journal. The calling thread must be at home.
    pub(crate) fn with_journal<T>(
        &self,
        work: impl FnOnce(&mut Journal) -> Result<T, journal::Error>,
    ) -> Result<T, journal::Error> {
        let mut slot = lock(&self.journal);
        let journal = match slot.as_mut() {
            Some(journal) => journal,
            None => slot.insert(Journal::open(&self.home, self.owner, self.options.policy.lock_timeout)?),
        };
        work(journal)
    }

    /// What is known of names that are one file.
    pub fn links(&self) -> MutexGuard<'_, Links> {
        lock(&self.links)
    }

    /// Files that had a window lately.
    pub(crate) fn recent(&self) -> MutexGuard<'_, Recent> {
        lock(&self.recent)
    }

    /// Lets those who come later know which names are one file.
    pub(crate) fn write_links(&self, patience: Duration) {
        if !self.links().is_changed() {
            return;
        }
        if let Some(journal) = lock(&self.journal).as_mut() {
            let written = journal.write_links(&mut self.links(), patience);
            written.unwrap_or_else(|e| log::debug!("hard links: {e}"));
        }
    }

    /// Nobody is supervised any more: what was recorded is put in order.
    pub fn end(&self) {
        self.write_links(self.options.policy.lock_timeout);
        let changed = std::mem::take(&mut *lock(&self.changed));
        if let Some(journal) = lock(&self.journal).as_mut() {
            journal.prune_links().unwrap_or_else(|e| log::debug!("hard links: {e}"));
            journal.close(&changed).unwrap_or_else(|e| log::warn!("{e}"));
        }
    }

    /// Says what all of it came to, to those who want to know everything.
    pub fn report(&self) {
        let Counts { calls, detached, bytes, names } = &self.counts;
        let value = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        log::debug!(
            "{} made private ({}), {} carried out, {} inspected",
            count(value(detached), "file"),
            size(value(bytes)),
            count(value(names), "change") + " of names",
            count(value(calls), "system call")
        );
    }
}

/// A lock that outlives a panic: what it guards is a record, checked where it is used.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

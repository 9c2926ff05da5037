//! The process that answers: a few threads, each with a root directory of its own.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::Options;
use super::journal::{self, Journal, STATE_LOCK_TIMEOUT};
use super::links::Links;
use super::recent::Recent;
use crate::report::{Reason, size};
use crate::supervise::call::caller::Caller;
use crate::sys::file::inode::{Inode, InodeId, Kind};
use crate::sys::path::root::Root;
use crate::sys::process::task::Task;
use crate::sys::process::thread_root::ThreadRoot;
use crate::sys::process::{self, ProcessId, Processes};
use crate::sys::seccomp::calls::{Shape, shape};
use crate::sys::seccomp::inflight::InFlight;
use crate::sys::seccomp::message::{AGREED, Message};
use crate::sys::seccomp::{Call, Listener, Response};

/// Threads that answer: one may have to wait for a filesystem that another serves.
const THREADS: usize = 4;

/// Threads of others that a thread of ours knows: programs with threads are served by turns.
const KNOWN: usize = 8;

/// What the threads of a worker share.
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
    recent: Mutex<Recent>,
    passing: Mutex<Vec<ProcessId>>,
    /// Names that were made private and that nobody settles.
    pub changed: Mutex<BTreeSet<PathBuf>>,
    /// What all of it came to.
    pub tally: Tally,
}

/// A thread that has called before.
#[derive(Debug)]
struct Known {
    task: Task,
    /// Its process, once somebody has asked.
    process: Option<ProcessId>,
}

/// What was done.
#[derive(Debug, Default)]
pub struct Tally {
    /// Calls that were looked at.
    pub calls: AtomicU64,
    /// Names made private.
    pub detached: AtomicU64,
    /// Bytes copied for them.
    pub bytes: AtomicU64,
    /// Calls about names that were carried out.
    pub names: AtomicU64,
}

/// Answers until nobody is supervised any more; returns the exit code.
pub fn work(listener: &Listener, options: &Options, owner: ProcessId, calls: &InFlight) -> i32 {
    let Ok(supervisor) = Supervisor::new(listener, options, owner) else { return 1 };
    let supervisor = &supervisor;
    std::thread::scope(|scope| {
        let threads = (0..THREADS).map(|slot| {
            let answer = move || supervisor.serve(slot, calls);
            std::thread::Builder::new().name("supervisor".into()).spawn_scoped(scope, answer)
        });
        let threads: Vec<_> = threads.collect();
        if threads.iter().all(Result::is_err) {
            return 1;
        }
        supervisor.wait_for_the_end();
        supervisor.end();
        // The threads wait for calls that will not come.
        std::process::exit(0)
    })
}

const NOW: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };

/// Lets every call go on.
pub fn let_all_pass(listener: &Listener) {
    while !listener.has_hung_up(Some(&NOW)) {
        if let Ok(call) = listener.receive() {
            let _ = listener.respond(call.id, Response::Continue);
        }
    }
}

impl<'a> Supervisor<'a> {
    fn new(listener: &'a Listener, options: &'a Options, owner: ProcessId) -> io::Result<Supervisor<'a>> {
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
            home,
            journal: Mutex::new(None),
            recent: Mutex::new(Recent::new()),
            passing: Mutex::new(Vec::new()),
            changed: Mutex::new(BTreeSet::new()),
            tally: Tally::default(),
        })
    }

    fn wait_for_the_end(&self) {
        if let Some(end) = self.options.talk.and_then(|front| process::open_pidfd(front).ok()) {
            let mut polled =
                [PollFd::new(self.listener, PollFlags::empty()), PollFd::new(&end, PollFlags::IN)];
            while poll(&mut polled, None).is_err() {}
        }
        self.write_links(self.options.policy.lock_timeout);
        self.report();
        process::silence_stderr();
        while !self.listener.has_hung_up(None) {}
    }

    fn serve(&self, slot: usize, calls: &InFlight) {
        let Ok(mut thread_root) = ThreadRoot::unshare() else { return };
        let mut known = Vec::new();
        loop {
            let call = match self.listener.receive() {
                Ok(call) => call,
                Err(_) if self.listener.has_hung_up(Some(&NOW)) => return,
                // The caller was killed before we had its call.
                Err(_) => continue,
            };
            calls.begin(slot, call.id);
            let answer = catch_unwind(AssertUnwindSafe(|| self.decide(&call, &mut known, &mut thread_root)));
            let answer = answer.unwrap_or_else(|_| self.options.without_an_answer());
            let _ = self.listener.respond(call.id, answer);
            calls.end(slot);
        }
    }

    /// What is to become of a call; `known` are the threads whose calls the last ones were.
    fn decide(&self, call: &Call, known: &mut Vec<Known>, thread_root: &mut ThreadRoot) -> Response {
        self.tally.calls.fetch_add(1, Ordering::Relaxed);
        let Some(shape) = shape(call.audit, call.number) else { return Response::Continue };
        if shape == Shape::Openat2
            && let Some(message) = Message::in_call(call)
        {
            return self.reply(call, message);
        }
        let met = self.meet(call.tid, known, thread_root);
        let done = met.and_then(|(known, root)| {
            if self.passes(known) {
                return Ok(Response::Continue);
            }
            Caller::new(self, call, &known.task, root, thread_root).answer(shape)
        });
        // A package manager's hook asks for it when it is needed; with cow-run there may be none.
        if self.options.talk.is_some() && self.links().is_due() {
            self.write_links(Duration::ZERO);
        }
        done.unwrap_or_else(|e| {
            if let Some(errno @ (Errno::NOSPC | Errno::DQUOT)) = Errno::from_io_error(&e) {
                return Response::Failed(errno);
            }
            if self.options.unprotected {
                return Response::Failed(Errno::from_io_error(&e).unwrap_or(Errno::IO));
            }
            // What we cannot look at the kernel can: it says the same to the caller.
            log::trace!("call {} of {}: {}", call.number, call.tid, Reason(e));
            Response::Continue
        })
    }

    /// The thread `tid`, to whose root the calling thread is moved. It may be one that is `known`; it is then.
    fn meet<'k>(
        &self,
        tid: i32,
        known: &'k mut Vec<Known>,
        thread_root: &mut ThreadRoot,
    ) -> io::Result<(&'k mut Known, Arc<OwnedFd>)> {
        let mut found = None;
        if let Some(at) = known.iter().position(|known| known.task.tid == tid) {
            let met = known.remove(at);
            // Where it has ended, its number is another's now, and it has no root any more.
            found = thread_root.enter_root_of(&met.task).ok().map(|root| (met, root));
        }
        let (met, root) = match found {
            Some(found) => found,
            None => {
                let task = Task::open(&self.processes, tid)?;
                let root = thread_root.enter_root_of(&task)?;
                (Known { task, process: None }, root)
            }
        };
        if known.len() == KNOWN {
            known.remove(0);
        }
        known.push(met);
        let last = known.len() - 1;
        Ok((&mut known[last], root))
    }

    fn reply(&self, call: &Call, message: Message) -> Response {
        if message == Message::IsSameRoot {
            return if self.is_at_home(call.tid) { Response::Done(AGREED) } else { Response::Continue };
        }
        if message != Message::Ping
            && let Ok(process) = Task::open(&self.processes, call.tid).and_then(|task| self.process_of(&task))
        {
            let mut passing = lock(&self.passing);
            passing.retain(|id| *id != process && id.is_alive(Some(&self.processes)));
            if message == Message::Exempt {
                passing.push(process);
                drop(passing);
                self.write_links(STATE_LOCK_TIMEOUT);
            }
        }
        Response::Done(AGREED)
    }

    /// Whether the root of the thread `tid` is the one we began in.
    fn is_at_home(&self, tid: i32) -> bool {
        let root = Task::open(&self.processes, tid).and_then(|task| task.root_inode());
        root.is_ok_and(|root| Inode::of(&self.home).is_ok_and(|home| home.id == root.id))
    }

    fn process_of(&self, task: &Task) -> io::Result<ProcessId> {
        Ok(self.processes.process(task.status()?.process)?.id)
    }

    /// Whether the process does by itself what we would do.
    fn passes(&self, known: &mut Known) -> bool {
        if lock(&self.passing).is_empty() {
            return false;
        }
        if known.process.is_none() {
            known.process = self.process_of(&known.task).ok();
        }
        known.process.is_some_and(|process| lock(&self.passing).contains(&process))
    }

    /// Whether a file is shared with others, so that it must be made private before it changes.
    pub fn is_shared(&self, inode: &Inode) -> bool {
        use crate::policy::LastLink;
        if inode.kind != Kind::Regular || inode.append_only || inode.is_mounted_on() {
            return false;
        }
        match (inode.immutable, inode.nlink > 1) {
            (true, true) => true,
            (true, false) => self.options.policy.last_link == LastLink::Detach,
            (false, links) => links && self.options.unprotected,
        }
    }

    /// Does `work` with the open journal. The calling thread must be at home.
    pub fn with_journal<T>(
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
    pub fn recent(&self) -> MutexGuard<'_, Recent> {
        lock(&self.recent)
    }

    /// Nobody is supervised any more: what was recorded is put in order.
    fn end(&self) {
        self.write_links(self.options.policy.lock_timeout);
        let changed = std::mem::take(&mut *lock(&self.changed));
        if let Some(journal) = lock(&self.journal).as_mut() {
            journal.prune_links().unwrap_or_else(|e| log::debug!("hard links: {e}"));
            journal.close(&changed).unwrap_or_else(|e| log::warn!("{e}"));
        }
    }

    /// Lets those who come later know which names are one file.
    fn write_links(&self, patience: Duration) {
        if !self.links().is_changed() {
            return;
        }
        if let Some(journal) = lock(&self.journal).as_mut() {
            let written = journal.write_links(&mut self.links(), patience);
            written.unwrap_or_else(|e| log::debug!("hard links: {e}"));
        }
    }

    /// Says what all of it came to, to those who want to know everything.
    fn report(&self) {
        let Tally { calls, detached, bytes, names } = &self.tally;
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        log::debug!(
            "{} files made private ({}), {} changes of names carried out, {} system calls looked at",
            count(detached),
            size(count(bytes)),
            count(names),
            count(calls)
        );
    }
}

/// A lock that outlives a panic: what it guards is a record, checked where it is used.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

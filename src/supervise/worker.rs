//! The process that answers: a few threads, each with a root directory of its own, by turns of the users (`turns`).

use std::io;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::call::WaitingCall;
use super::journal::STATE_LOCK_TIMEOUT;
use super::options::Options;
use super::shared::{Supervisor, lock};
use super::turns::{Admitted, Turn, Turns};
use crate::report::Reason;
use crate::sys::file::inode::Inode;
use crate::sys::process::task::Task;
use crate::sys::process::thread_root::ThreadRoot;
use crate::sys::process::{self, ProcessId};
use crate::sys::seccomp::calls::{Shape, shape};
use crate::sys::seccomp::inflight::{self, InFlight};
use crate::sys::seccomp::message::{AGREED, Message};
use crate::sys::seccomp::{Call, Listener, Response};

/// How many threads answer: one may have to wait for a filesystem that another serves.
const THREADS: usize = inflight::SLOTS;

/// How many threads of other processes a thread of ours remembers: programs with threads are served by turns.
const MAX_KNOWN_THREADS: usize = 8;

/// The threads of this process, by what they share.
#[derive(Debug)]
struct Worker<'a> {
    shared: Supervisor<'a>,
    turns: Turns<'a>,
    /// Processes that do by themselves what a supervisor would do.
    passing: Mutex<Vec<ProcessId>>,
}

/// Nobody is supervised any more.
struct HungUp;

/// A thread that has called before.
#[derive(Debug)]
struct Known {
    task: Task,
    /// Its process, once somebody has asked.
    process: Option<ProcessId>,
}

/// Answers until nobody is supervised any more; returns the exit code.
pub fn work(listener: &Listener, options: &Options, owner: ProcessId, calls: &InFlight) -> i32 {
    let Ok(shared) = Supervisor::new(listener, options, owner) else { return 1 };
    let worker = &Worker { shared, turns: Turns::new(calls), passing: Mutex::new(Vec::new()) };
    std::thread::scope(|scope| {
        let threads = (0..THREADS).map(|slot| {
            let answer = move || worker.serve(slot, calls);
            std::thread::Builder::new().name("supervisor".into()).spawn_scoped(scope, answer)
        });
        let threads: Vec<_> = threads.collect();
        if threads.iter().all(Result::is_err) {
            return 1;
        }
        worker.wait_for_the_end();
        worker.shared.end();
        // The threads wait for calls that will not come.
        std::process::exit(0)
    })
}

const NOW: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };

/// Lets every call go on.
pub(crate) fn let_all_pass(listener: &Listener) {
    while !listener.has_hung_up(Some(&NOW)) {
        if let Ok(call) = listener.receive() {
            let _ = listener.respond(call.id, Response::Continue);
        }
    }
}

impl Worker<'_> {
    fn wait_for_the_end(&self) {
        if let Some(end) = self.shared.options.talk.and_then(|front| process::open_pidfd(front).ok()) {
            let mut polled =
                [PollFd::new(self.shared.listener, PollFlags::empty()), PollFd::new(&end, PollFlags::IN)];
            while poll(&mut polled, None).is_err() {}
        }
        self.shared.write_links(self.shared.options.policy.lock_timeout);
        self.shared.report();
        process::silence_stderr();
        while !self.shared.listener.has_hung_up(None) {}
    }

    fn serve(&self, slot: usize, calls: &InFlight) {
        let Ok(mut thread_root) = ThreadRoot::unshare() else { return };
        let mut known = Vec::new();
        let mut next: Option<(Call, Turn)> = None;
        loop {
            let (call, turn) = match next.take() {
                Some(begun) => begun,
                None => match self.receive(slot, calls) {
                    Ok(Some(begun)) => begun,
                    Ok(None) => continue,
                    Err(HungUp) => return,
                },
            };
            let answer = catch_unwind(AssertUnwindSafe(|| self.decide(&call, &mut known, &mut thread_root)));
            let answer = answer.unwrap_or_else(|_| self.shared.options.without_an_answer());
            let _ = self.shared.listener.respond(call.id, answer);
            calls.end(slot);
            // Who waited may have been killed.
            next = self.turns.end(turn, slot);
            while let Some((_, turn)) = next.take_if(|(call, _)| !self.shared.listener.waits(call.id)) {
                calls.end(slot);
                next = self.turns.end(turn, slot);
            }
        }
    }

    /// The next call, if it is its user's turn; others wait, or pass if too many do.
    fn receive(&self, slot: usize, calls: &InFlight) -> Result<Option<(Call, Turn)>, HungUp> {
        let call = match self.shared.listener.receive() {
            Ok(call) => call,
            Err(_) if self.shared.listener.has_hung_up(Some(&NOW)) => return Err(HungUp),
            // The caller was killed before we had its call.
            Err(_) => return Ok(None),
        };
        calls.begin(slot, call.id);
        let user = || Some(Task::open(&self.shared.processes, call.tid).ok()?.status().ok()?.uid);
        match self.turns.admit(call, user) {
            Admitted::Now(turn) => return Ok(Some((call, turn))),
            Admitted::Later => {}
            Admitted::Never => {
                let _ = self.shared.listener.respond(call.id, self.shared.options.without_an_answer());
            }
        }
        calls.end(slot);
        Ok(None)
    }

    /// What is to become of a call; `known` are the threads whose calls the last ones were.
    fn decide(&self, call: &Call, known: &mut Vec<Known>, thread_root: &mut ThreadRoot) -> Response {
        self.shared.counts.calls.fetch_add(1, Ordering::Relaxed);
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
            WaitingCall::new(&self.shared, call, &known.task, root, thread_root).answer(shape)
        });
        // A package manager's hook asks for it when it is needed; with cow-run there may be none.
        if self.shared.options.talk.is_some() && self.shared.links().is_due() {
            self.shared.write_links(Duration::ZERO);
        }
        done.unwrap_or_else(|e| {
            if let Some(errno @ (Errno::NOSPC | Errno::DQUOT)) = Errno::from_io_error(&e) {
                return Response::Failed(errno);
            }
            if self.shared.options.unprotected {
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
            // If it has ended, its number is another's now, and it has no root any more.
            found = thread_root.enter_root_of(&met.task).ok().map(|root| (met, root));
        }
        let (met, root) = match found {
            Some(found) => found,
            None => {
                let task = Task::open(&self.shared.processes, tid)?;
                let root = thread_root.enter_root_of(&task)?;
                (Known { task, process: None }, root)
            }
        };
        if known.len() == MAX_KNOWN_THREADS {
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
            && let Ok(process) =
                Task::open(&self.shared.processes, call.tid).and_then(|task| self.process_of(&task))
        {
            let mut passing = lock(&self.passing);
            passing.retain(|id| *id != process && id.is_alive(Some(&self.shared.processes)));
            if message == Message::Exempt {
                passing.push(process);
                drop(passing);
                self.shared.write_links(STATE_LOCK_TIMEOUT);
            }
        }
        Response::Done(AGREED)
    }

    /// Whether the root of the thread `tid` is the one we began in.
    fn is_at_home(&self, tid: i32) -> bool {
        let root = Task::open(&self.shared.processes, tid).and_then(|task| task.root_inode());
        root.is_ok_and(|root| Inode::of(&self.shared.home).is_ok_and(|home| home.id == root.id))
    }

    fn process_of(&self, task: &Task) -> io::Result<ProcessId> {
        Ok(self.shared.processes.process(task.status()?.process)?.id)
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
}

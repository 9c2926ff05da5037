//! Copy on write for a process tree: whatever is about to change a unified file gets its private copy first.
//!
//! A filter stops the calls that may change a file (`sys::seccomp`); a *supervisor*, a process of its own, looks at
//! what each of them leads to (`call`), makes it private or, if the call concerns names alone, carries it out, and lets it
//! go on. All of it is recorded in the guest's ledger (`journal`).
//!
//! It makes things work, it does not make them safe: between our look and the kernel's a path may come to mean another
//! file. The protection of the shared inodes is what keeps them unchanged then; the call fails.
//!
//! The supervisor is two processes: a *guardian*, which does nothing, and a *worker*. If the worker dies, the guardian
//! has ended what that had begun, lets the calls go on that were waiting for it, and starts another. Both end with the
//! last supervised process.

pub(crate) mod call;
mod guardian;
mod journal;
mod links;
mod names_here;
mod options;
mod recent;
mod shared;
mod start;
mod turns;
mod worker;

pub use self::options::Options;
pub use self::start::{
    Error, Supervised, inherited, is_supervised, may_supervise, may_supervise_this_thread, pause, process,
    resume, serve, this_thread, this_thread_by,
};

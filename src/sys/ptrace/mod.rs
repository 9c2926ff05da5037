//! A seccomp filter for a process that waits for us and has not asked for one (`ptrace(2)`, `seccomp(2)`).
//!
//! Every process installs filters for itself alone. So the other one is stopped while it waits for a child, and makes
//! the system call by the very instruction that it waits in; then it waits again. Debuggers, and CRIU, run code in
//! other processes the same way.
//!
//! What it has on its stack is not changed, nor does it see a signal, a descriptor or a result that is not its own:
//!
//! - Signals that come meanwhile are held back by its mask, and come to it in its wait. `SIGSTOP` cannot be held back:
//!   then it is stopped as soon as we have let it go, and its parent is told at once.
//! - The wait is not patched up but made again and interrupted again, for on 64-bit Arm only the kernel knows what a
//!   signal would change about it. A child that has ended meanwhile is found by it.
//! - It sends us the listener by a socket (`unix(7)`, `SCM_RIGHTS`). Before it gets the filter, which nobody can take
//!   away again, it has sent us another descriptor in the same way.
//! - The listener is closed there as soon as we have it. Were it left open, then after our end whoever makes a call
//!   that is to be notified would wait for ever; so such calls fail with `ENOSYS`.
//!
//! A call of ours that fails there changes nothing: it gets its registers back. Only if we end while they are
//! changed, or cannot give them back, it is killed (`PTRACE_O_EXITKILL`): else it would take our result for that of its
//! wait. So if a filter of somebody else's may kill us, all of it is done with children of ours first.

mod arch;
mod attempt;
mod calls;
mod channel;
mod listen;
mod refusal;
mod rehearsal;
mod target;

pub use self::listen::{listen_in, may_listen_in};

#[cfg(test)]
mod tests;

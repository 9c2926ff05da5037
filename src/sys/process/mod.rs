//! Processes: what the process table says, other threads, the calling process, and threads of ours with a root directory
//! of their own.

mod acl;
mod end;
pub mod inside;
pub mod mounts;
mod numbers;
mod own;
pub mod programs;
pub mod signal;
mod status;
pub(crate) mod table;
pub mod task;
pub mod thread_root;
pub mod unconfined;

pub use self::acl::AccessList;
pub use self::end::{has_ended, kill_child, open_pidfd, wait_for_end};
pub use self::numbers::Numbers;
pub use self::own::{
    avoid_oom_kill, close_all_but, fork, fork_among_threads, lock_memory, max_open_files, program_memory,
    raise_resource_limits, silence_stderr, spawn_detached, wait,
};
pub use self::status::Status;
pub use self::table::{Process, ProcessId, Processes, SystemCall};

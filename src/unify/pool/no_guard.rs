//! Why the guard in the host's kernel does not protect a pool.

use std::io;
use std::path::PathBuf;

use crate::report::{Reason, Shown};

/// Why the guard does not protect a pool.
#[derive(Debug, thiserror::Error)]
pub enum NoGuard {
    /// There is no such program.
    #[error("cow-guard is not installed")]
    Missing,
    /// It cannot be run.
    #[error("{}: {}", Shown(program), Reason(source))]
    Run {
        /// The program.
        program: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// It could not load the guard.
    #[error("{said}")]
    Refused {
        /// What it says, in one line.
        said: String,
    },
    /// It is loaded, but a marked file can be written to.
    #[error("the guard does not protect files of this filesystem")]
    Open,
    /// It was loaded in another way, or this process does not see all tasks.
    #[error("the guard's list of tasks that may be about to change flags cannot be found")]
    NoList,
    /// A task may clear the mark of a file although the guard has not let it.
    #[error("a process is about to change the flags of a file, and may not have seen the mark of the guard")]
    FlagChange,
    /// It cannot be tried out.
    #[error("the guard cannot be tried out: {}", Reason(.0))]
    Trial(#[source] io::Error),
}

//! Whether the guard in the host's kernel protects a pool. It is loaded by the program `cow-guard`, a package of its own;
//! nothing but a trial in the pool itself tells that it protects.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::directory::Pool;
use super::protection::PoolProtection;
use crate::report::{Reason, Shown};
use crate::sys::share::mark;

/// The program, beside ours or installed.
const PROGRAM: &str = "cow-guard";
const INSTALLED: &str = "/usr/sbin/cow-guard";

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
    /// It cannot be tried out.
    #[error("the guard cannot be tried out: {}", Reason(.0))]
    Trial(#[source] io::Error),
}

/// Whether the guard protects this pool now: tried on a file that is made for it in the pool.
pub fn is_there(pool: &Pool) -> Result<(), NoGuard> {
    match is_guarded(pool) {
        Ok(true) => Ok(()),
        Ok(false) => Err(NoGuard::Open),
        Err(e) => Err(NoGuard::Trial(e)),
    }
}

/// Has the guard loaded for this pool, now and at each boot, and tries it out.
pub fn load(pool: &Pool) -> Result<(), NoGuard> {
    if !pretends() {
        run(pool.path())?;
    }
    is_there(pool)
}

/// How a pool's objects are to be protected at this moment: without the guard that they should have, by `+i`.
pub fn instead(pool: &Pool, protection: PoolProtection) -> PoolProtection {
    if protection != PoolProtection::Guard {
        return protection;
    }
    match is_there(pool).or_else(|_| load(pool)) {
        Ok(()) => protection,
        Err(e) => {
            log::warn!(
                "{}: {e}: objects are made immutable until `cow-guard load` succeeds",
                Shown(pool.path())
            );
            PoolProtection::Immutable
        }
    }
}

fn is_guarded(pool: &Pool) -> io::Result<bool> {
    if pretends() { Ok(true) } else { mark::is_guarded(pool.runs()) }
}

/// In programs of the tests alone: the mark without the guard, to see and time all but the kernel's part.
fn pretends() -> bool {
    cfg!(feature = "pretend-guard") && std::env::var_os("COW_TESTS_PRETEND_GUARD").is_some()
}

fn run(pool: &Path) -> Result<(), NoGuard> {
    let beside = std::env::current_exe().ok().and_then(|own| own.parent().map(|dir| dir.join(PROGRAM)));
    let programs = beside.into_iter().chain([PathBuf::from(INSTALLED)]);
    let program = programs.into_iter().find(|program| program.is_file()).ok_or(NoGuard::Missing)?;
    let ran = Command::new(&program).arg("load").arg("--pool").arg(pool).stdin(Stdio::null()).output();
    let output = ran.map_err(|source| NoGuard::Run { program, source })?;
    let said = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
    log::debug!("cow-guard load: {}: {said}", output.status);
    if output.status.success() { Ok(()) } else { Err(NoGuard::Refused { said }) }
}

//! Gives a guest private copies of all it shares, from the host: its part in unification is over.
//!
//! Nothing the guest says counts: neither its policy nor a database of its own.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use super::begin::{Begun, RunOptions};
use super::guest::Guest;
use super::refusal::Refusal;
use crate::detach::request::Request;
use crate::policy::Policy;
use crate::report::{Reason, Shown, Watch};
use crate::state::lock::{Claim, claim};
use crate::state::pool_notice::PoolNotice;
use crate::state::store::stashes;
use crate::state::traces::Traces;
use crate::sys::path::root::Root;
use crate::unify::pass::pools;
use crate::unify::pool::directory::Pool;

/// How long a guest's hook may keep us waiting before we take its transaction for an open one.
const PATIENCE: Duration = Duration::from_secs(2);

/// Why the guest is left as it is.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Its files could not be detached.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The root of the calling process, which holds the pool and all other guests as well: which they are, the pool
    /// tells.
    #[error("{}: the root of this host shares no file with a known pool", Shown(path))]
    Own {
        /// The root.
        path: PathBuf,
    },
    /// What its hooks have set aside is to come back yet.
    #[error("{}: a package manager is running in this guest, or was killed", Shown(path))]
    Busy {
        /// The guest.
        path: PathBuf,
    },
    /// Our directory in the guest.
    #[error("{}: {}", Shown(path), Reason(source))]
    At {
        /// The guest.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

impl Error {
    /// What a person can do about it, where that is more than the message says.
    pub fn remedy(&self) -> Option<String> {
        match self {
            Error::Refused(refusal) => Some(refusal.remedy()),
            Error::Own { .. } => Some(
                "name the pool with --pool; to make single files private, use `cow-prepare PATH...` of \
                    the package cow-hooks"
                    .into(),
            ),
            Error::Busy { .. } => Some(
                "wait until it has ended; if it was killed, run `cow-prepare --recover` in the guest".into(),
            ),
            Error::At { .. } => None,
        }
    }
}

/// Detaches everything the guest shares with others, whatever protects it, by `policy`.
///
/// In a guest without hooks nothing of ours is left, whatever comes of it.
///
/// # Errors
/// Nothing was changed. Names that could not be detached later on are in the result.
pub fn detach(root: &Root, pool: Option<&Pool>, policy: &Policy, watch: &dyn Watch) -> Result<Begun, Error> {
    let path = || root.path().to_path_buf();
    let at = |source| Error::At { path: path(), source };
    let own = root.is_own();
    let bounded = match pool {
        Some(pool) if own => root.try_clone().map_err(at)?.bounded(pools::neighbours(pool)),
        None if own => return Err(Error::Own { path: path() }),
        _ => root.try_clone().map_err(at)?,
    };
    let root = &bounded;
    let busy = matches!(claim(root, PATIENCE).map_err(at)?, Claim::Busy);
    if busy || stashes(root).map_err(at)? {
        return Err(Error::Busy { path: path() });
    }
    let traces = Traces::before(root).map_err(at)?;
    let options = RunOptions {
        front_end: "cow-unify",
        member: None,
        hand_over: false,
        progress: watch,
        supervise: None,
    };
    let begun = Guest { root, policy }.begin(&options, &Request::of_tree("/"));
    PoolNotice::retract(root).unwrap_or_else(|e| log::warn!("{}: {}", Shown(root.path()), Reason(e)));
    // The files are what matters: they are done.
    let removed = traces.remove(root, PATIENCE);
    removed.unwrap_or_else(|e| log::warn!("{}: {}", Shown(root.path()), Reason(e)));
    Ok(begun?)
}

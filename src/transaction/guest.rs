//! A guest: its root, and the policy it is treated by.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::error::Error;
use crate::detach::recover::{self, Recovered};
use crate::detach::request::Request;
use crate::detach::survey::survey;
use crate::inspect::VisibleFence;
use crate::ledger::Ledger;
use crate::package::PackageManager;
use crate::policy::Policy;
use crate::report::Reason;
use crate::state::lock::Locked;
use crate::state::members::{Coverage, Member, Members};
use crate::state::store::{STATE_DIR, Store};
use crate::supervise;
use crate::sys::file::filesystem;
use crate::sys::path::root::Root;
use crate::sys::process::ProcessId;

/// How long a hook waits for another one of the same guest; that one may be copying thousands of files.
const HOOK_LOCK_TIMEOUT: Duration = Duration::from_secs(600);

/// A guest and the policy it is treated by.
#[derive(Clone, Copy, Debug)]
pub struct Guest<'a> {
    /// Its root.
    pub root: &'a Root,
    /// Its policy.
    pub policy: &'a Policy,
}

impl Guest<'_> {
    /// Whether the guest holds a protected file that it shares with others, in the packages that all guests have.
    pub fn has_protected(self, manager: &dyn PackageManager) -> bool {
        let request = Request::of_paths(manager.essential().unwrap_or_default());
        survey(self.root, self.policy, &request).unified.iter().any(|found| found.inode.immutable)
    }

    /// Whether the host's guard protects what the guest shares: all that it shares of the packages that every guest has.
    pub fn is_guarded(self, manager: &dyn PackageManager) -> bool {
        let request = Request::of_paths(manager.essential().unwrap_or_default());
        let unified = survey(self.root, self.policy, &request).unified;
        !unified.is_empty() && unified.iter().all(|found| found.fence == VisibleFence::Guard)
    }

    /// Whether the host has begun to unify this guest.
    pub(super) fn shares_any(self, manager: &dyn PackageManager) -> Result<bool, Error> {
        let essential = manager.essential().map_err(Error::Packages)?;
        // Hard links of one another, as equal files are in a guest that was unified once, are shared with nobody.
        let request = Request { other_names: true, ..Request::of_paths(essential) };
        Ok(!survey(self.root, self.policy, &request).unified.is_empty())
    }

    pub(super) fn existing(self) -> Result<Option<(Store, Locked)>, Error> {
        let store = match Store::existing(self.root) {
            Ok(Some(store)) => store,
            Ok(None) => return Ok(None),
            Err(e) if e.raw_os_error() == Some(libc::EROFS) => return Ok(None),
            Err(e) => return Err(Error::state("", e)),
        };
        // Before the lock is taken, which the supervisor needs, too.
        supervise::pause();
        // Nothing of ours can be begun or ended on a filesystem that takes no writes.
        if filesystem::is_read_only(store.stash()).map_err(|e| Error::state("", e))? {
            return Ok(None);
        }
        let lock = self.lock(&store)?;
        Ok(Some((store, lock)))
    }

    pub(super) fn lock(self, store: &Store) -> Result<Locked, Error> {
        store.lock(HOOK_LOCK_TIMEOUT).map_err(|e| Error::state("lock", e))
    }

    pub(super) fn recover_in(self, store: &Store, ledger: &mut Ledger) -> Result<Recovered, Error> {
        Ok(recover::recover(self.root, store, ledger, self.policy.lock_timeout)?)
    }

    pub(super) fn leave(self, store: &Store, member: Option<Member>) {
        let Some(member) = member else { return };
        let left = Members::open(store).and_then(|members| members.leave(member.id.pid));
        left.unwrap_or_else(|e| log::debug!("{STATE_DIR}/members: {}", Reason(e)));
    }
}

/// The member that a process becomes which joins now.
pub fn member(id: ProcessId, covers: Coverage) -> Member {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Member { id, covers, since: i64::try_from(now.as_nanos()).unwrap_or(i64::MAX) }
}

/// Seconds since 1970.
pub(super) fn seconds_now() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_secs()).unwrap_or(i64::MAX)
}

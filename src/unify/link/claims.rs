//! Keeps the hooks of guests waiting while names in them change.

use std::sync::Arc;
use std::time::Duration;

use crate::state::lock::{Claim, claim};
use crate::unify::SharedError;
use crate::unify::scan::catalog::GuestIndex;
use crate::unify::scan::guest::GuestTree;

/// How long a guest's hook may keep us waiting before its guest is left for the next run.
const HOOK_LOCK_TIMEOUT: Duration = Duration::from_secs(2);

/// Guests in which nobody else begins or ends anything while this lives.
#[derive(Debug, Default)]
pub struct Claims {
    /// The others, with the reason.
    pub busy: Vec<(GuestIndex, SharedError)>,
    _held: Vec<Claim>,
}

/// Somebody else has begun something in the guest.
#[derive(Debug, thiserror::Error)]
#[error(
    "a package manager is running in this guest, or was killed; if it was killed, run `cow-prepare --recover` \
     in the guest"
)]
struct Busy;

/// Claims these guests, as far as no package manager is at work in them.
pub(crate) fn claim_all<'g>(guests: impl IntoIterator<Item = (GuestIndex, &'g GuestTree)>) -> Claims {
    let mut claims = Claims::default();
    for (at, guest) in guests {
        match claim(&guest.root, HOOK_LOCK_TIMEOUT) {
            Ok(Claim::Busy) => claims.busy.push((at, Arc::new(Busy))),
            Ok(held) => claims._held.push(held),
            Err(e) => claims.busy.push((at, Arc::new(e))),
        }
    }
    claims
}

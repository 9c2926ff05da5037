//! How a run of a package manager goes: what a hook does, and what `cow-status` says beforehand.

use super::guest::Guest;
use super::refusal::Refusal;
use crate::detach::preflight;
use crate::detach::survey::Found;
use crate::inspect::VisibleFence;
use crate::policy::SuperviseMode;
use crate::supervise;

/// How a run goes.
#[derive(Debug)]
pub enum Course {
    /// No unified file needs to be looked after.
    Unneeded,
    /// The host's guard protects all unified files: only what is changed in place is made private, beforehand.
    Guarded,
    /// With copy on write.
    Supervised,
    /// What it is known to touch is made private beforehand.
    Prepared(Unsupervised),
    /// It does not begin where it would touch a unified file.
    Refused(Refusal),
}

/// Why a run is not supervised.
#[derive(Debug, thiserror::Error)]
pub enum Unsupervised {
    /// The policy.
    #[error("the policy says `supervise = \"never\"`")]
    Never,
    /// The guest is another root than that of the package manager.
    #[error("only a run inside the guest can be supervised")]
    OtherRoot,
    /// Without protection a path that comes to mean another file between the supervisor's look and the kernel's would
    /// do harm.
    #[error("shared files are not protected")]
    Unprotected,
    /// It cannot be.
    #[error(transparent)]
    Impossible(#[from] supervise::Error),
}

impl Guest<'_> {
    /// How a run goes that touches these unified files, if any; `may` tells whether it could be supervised, `needed`
    /// whether there is anything to protect where it is known to touch none.
    pub fn course(
        self,
        unified: &[Found],
        needed: &dyn Fn() -> bool,
        may: &dyn Fn() -> Result<(), supervise::Error>,
    ) -> Course {
        let prepared =
            |why: Unsupervised| match preflight::check(self.root, unified, Some(self.policy.reserve)) {
                Ok(()) => Course::Prepared(why),
                Err(e) => Course::Refused(e.into()),
            };
        if !unified.is_empty() && unified.iter().all(|found| found.fence == VisibleFence::Guard) {
            return match preflight::check(self.root, unified, Some(self.policy.reserve)) {
                Ok(()) => Course::Guarded,
                Err(e) => Course::Refused(e.into()),
            };
        }
        if self.policy.supervise == SuperviseMode::Never {
            return prepared(Unsupervised::Never);
        }
        if !self.root.is_own() {
            return prepared(Unsupervised::OtherRoot);
        }
        if !unified.iter().all(|found| found.inode.immutable) {
            return prepared(Unsupervised::Unprotected);
        }
        if unified.is_empty() && !needed() {
            return Course::Unneeded;
        }
        if let Err(e) = preflight::check(self.root, unified, None) {
            return Course::Refused(e.into());
        }
        match may() {
            Ok(()) => Course::Supervised,
            Err(e) if self.policy.supervise == SuperviseMode::Always => {
                Course::Refused(Refusal::Unsupervised(e))
            }
            Err(e) => prepared(e.into()),
        }
    }
}

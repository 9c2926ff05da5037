//! What a supervisor is to do.

use rustix::io::Errno;

use crate::policy::Policy;
use crate::sys::seccomp::Response;

/// What a supervisor is to do.
#[derive(Clone, Debug)]
pub struct Options {
    /// The guest's policy.
    pub policy: Policy,
    /// Also files that share their inode without protection.
    pub unprotected: bool,
    /// The host's guard protects shared files: names are free, and only files that have the mark are made private.
    pub guarded: bool,
    /// Keeps standard error while this process lives, to say what goes wrong.
    pub talk: Option<i32>,
}

impl Options {
    /// What a call gets that nobody could judge: protected files speak for themselves, others do not.
    pub(super) fn without_an_answer(&self) -> Response {
        if self.unprotected { Response::Failed(Errno::PERM) } else { Response::Continue }
    }
}

//! Why a run of a package manager is refused, before anything was touched.

use std::path::PathBuf;

use super::error::Error;
use crate::detach;
use crate::state::store::STATE_DIR;
use crate::supervise;

/// Why a run does not begin.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// A unified file that it touches cannot be given a private copy.
    #[error(transparent)]
    Detach(#[from] detach::Error),
    /// The policy wants the run supervised, and it cannot be.
    #[error("the run cannot be supervised: {0}")]
    Unsupervised(#[source] supervise::Error),
}

impl Refusal {
    /// What a person can do about it.
    pub fn remedy(&self) -> String {
        match self {
            Refusal::Detach(e) => e.remedy(),
            Refusal::Unsupervised(e @ supervise::Error::Lost(_)) => e.remedy().into(),
            Refusal::Unsupervised(e) => {
                format!("{}, or set `supervise` in cow-hooks.toml to auto", e.remedy())
            }
        }
    }
}

impl From<crate::ledger::Error> for Refusal {
    fn from(error: crate::ledger::Error) -> Refusal {
        detach::Error::from(error).into()
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Refusal {
        let error = match error {
            Error::Ledger(e) => detach::Error::Ledger(e),
            Error::State { path, source } => detach::Error::State { path, source },
            Error::Forbidden { call } => detach::Error::Forbidden { path: PathBuf::from(STATE_DIR), call },
            Error::Packages(source) => detach::Error::State { path: PathBuf::from(STATE_DIR), source },
        };
        error.into()
    }
}

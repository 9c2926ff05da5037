//! Whether package managers run with copy on write here.

use std::io::{self, Write};

use serde::Serialize;

use crate::policy;
use crate::supervise;
use crate::sys::process::Processes;
use crate::transaction::Guest;

/// What the policy says, and what the kernel and the container make of it.
#[derive(Debug, Serialize)]
pub struct Supervision {
    supervised: bool,
    policy: policy::Supervise,
    /// Why not.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

impl Supervision {
    /// Asks what a hook would ask; changes nothing.
    pub fn of(guest: Guest<'_>) -> Supervision {
        let policy = guest.policy.supervise;
        let reason = match policy {
            policy::Supervise::Never => Some("the policy says never".to_owned()),
            _ if !guest.root.is_own() => Some("only from within the guest".to_owned()),
            _ => available().err().map(|e| e.to_string()),
        };
        Supervision { supervised: reason.is_none(), policy, reason }
    }

    /// Prints it for a person.
    pub fn print(&self, out: &mut dyn Write) -> io::Result<()> {
        match &self.reason {
            None => writeln!(out, "  supervision    package managers run with copy on write"),
            Some(reason) => {
                writeln!(out, "  supervision    none, files are made private beforehand: {reason}")
            }
        }
    }
}

/// Whether a caller of ours could be supervised: the nearest with a single thread, as package managers are.
fn available() -> Result<(), supervise::Error> {
    let ancestors = Processes::open().and_then(|processes| processes.ancestors()).unwrap_or_default();
    for process in ancestors {
        match supervise::may_supervise(process.id.pid) {
            Err(supervise::Error::Filter(e)) if e.kind() == io::ErrorKind::Unsupported => {}
            answer => return answer,
        }
    }
    supervise::may_supervise(std::process::id() as i32)
}

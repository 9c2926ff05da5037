//! How package managers run here: what a hook would do.

use std::io::{self, Write};

use serde::Serialize;

use crate::detach::survey::Found;
use crate::policy;
use crate::supervise;
use crate::sys::process::Processes;
use crate::transaction::Guest;
use crate::transaction::course::Course;

/// What the policy says, and what the kernel and the container make of it.
#[derive(Debug, Serialize)]
pub struct Supervision {
    supervised: bool,
    /// The host's guard protects the unified files: there is nothing to supervise.
    guarded: bool,
    /// A run that touches unified files is refused.
    refused: bool,
    policy: policy::SuperviseMode,
    /// Why it is not supervised, or refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    /// What a person can do about a refusal.
    #[serde(skip_serializing_if = "Option::is_none")]
    remedy: Option<String>,
}

impl Supervision {
    /// Asks what a hook would ask of a run that touches these unified files; changes nothing.
    pub fn of(guest: Guest<'_>, unified: &[Found]) -> Supervision {
        let course = course(guest, unified);
        let guarded = matches!(course, Course::Guarded);
        let (reason, remedy) = match course {
            Course::Unneeded | Course::Supervised | Course::Guarded => (None, None),
            Course::Prepared(why) => (Some(why.to_string()), None),
            Course::Refused(refusal) => (Some(refusal.to_string()), Some(refusal.remedy())),
        };
        Supervision {
            supervised: reason.is_none() && !guarded,
            guarded,
            refused: remedy.is_some(),
            policy: guest.policy.supervise,
            reason,
            remedy,
        }
    }

    /// How package managers run, in a few words.
    pub fn describe(&self) -> String {
        match (&self.reason, &self.remedy) {
            _ if self.guarded => {
                "none is needed: the host's guard protects unified files, and package managers replace \
                 them freely"
                    .into()
            }
            (None, _) => "package managers run with copy on write".into(),
            (Some(reason), None) => format!("none, files are made private beforehand: {reason}"),
            (Some(reason), Some(_)) => format!("none, a run that touches unified files is refused: {reason}"),
        }
    }

    /// What a person can do about a refusal; `None` if there is none.
    pub fn remedy(&self) -> Option<&str> {
        self.remedy.as_deref()
    }

    /// Prints it for a person.
    pub fn print(&self, out: &mut dyn Write) -> io::Result<()> {
        writeln!(out, "  supervision    {}", self.describe())?;
        self.remedy.iter().try_for_each(|remedy| writeln!(out, "  remedy         {remedy}"))
    }
}

/// The course of a run that touches these unified files.
pub fn course(guest: Guest<'_>, unified: &[Found]) -> Course {
    guest.course(unified, &|| true, &may_supervise)
}

/// Whether a caller of ours could be supervised: the nearest with a single thread, as package managers are.
fn may_supervise() -> Result<(), supervise::Error> {
    let ancestors = Processes::open().and_then(|processes| processes.ancestors()).unwrap_or_default();
    for process in ancestors {
        match supervise::may_supervise(process.id.pid) {
            Err(supervise::Error::Filter(e)) if e.kind() == io::ErrorKind::Unsupported => {}
            answer => return answer,
        }
    }
    supervise::may_supervise(std::process::id() as i32)
}

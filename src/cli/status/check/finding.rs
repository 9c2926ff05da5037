//! One thing that `cow-status --check` has found.

use serde::Serialize;

/// How bad a finding is; the last is the worst.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Ok,
    /// Package managers run; a person should look at it.
    Attention,
    /// The next run that touches a unified file is refused, or fails.
    Refused,
}

impl Level {
    /// What the first column says.
    pub fn name(self) -> &'static str {
        match self {
            Level::Ok => "ok",
            Level::Attention => "attention",
            Level::Refused => "REFUSED",
        }
    }
}

/// What was found of one subject.
#[derive(Debug, Serialize)]
pub struct Finding {
    /// One word or two.
    pub subject: &'static str,
    /// How bad it is.
    pub level: Level,
    /// What is so, and why.
    pub text: String,
    /// What to do; always there if there is something to see to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

impl Finding {
    /// There is nothing to see to.
    pub fn ok(subject: &'static str, text: impl Into<String>) -> Finding {
        Finding { subject, level: Level::Ok, text: text.into(), remedy: None }
    }

    /// Package managers run, and a person should see to this.
    pub fn attention(subject: &'static str, text: impl Into<String>, remedy: impl Into<String>) -> Finding {
        Finding { subject, level: Level::Attention, text: text.into(), remedy: Some(remedy.into()) }
    }

    /// Package managers fail because of this.
    pub fn refused(subject: &'static str, text: impl Into<String>, remedy: impl Into<String>) -> Finding {
        Finding { level: Level::Refused, ..Finding::attention(subject, text, remedy) }
    }
}

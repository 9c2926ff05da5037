//! The words that keys of the policy take.

use serde::{Deserialize, Serialize};

/// What is done when a planned file would stay unified.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// The transaction is refused.
    Enforce,
    /// A warning.
    Warn,
    /// The hooks do nothing at all.
    Off,
}

/// How unified files are recognised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protection {
    /// By links outside the guest's known names, immutable or not.
    Auto,
    /// Immutable, with more than one link.
    Immutable,
    /// As `Immutable`: that, and not the flag of its own, is what a guest can see.
    Iunlink,
    /// Plain hard links.
    None,
}

/// What is done with an immutable file that has one link and belongs to a planned package.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LastLink {
    /// It is the administrator's own: it stays as it is.
    Leave,
    /// It was shared once: it is detached like a unified file.
    Detach,
}

/// Whether package managers run with copy on write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SuperviseMode {
    /// If the kernel and the container allow it.
    Auto,
    /// A transaction that cannot be supervised is refused.
    Always,
    /// Never.
    Never,
}

//! One line of a file of rules, of ours or of Linux-VServer's: what it says, and why it may be none.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::policy::pattern::PatternError;
use crate::report::Shown;

/// What a rule says of the paths it matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Choice {
    /// Unify them.
    Include,
    /// Do not.
    Exclude,
}

/// A line of a file of rules that is none. Displayed with the line, without the file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, `{}`: {why}", Shown(Path::new(OsStr::from_bytes(text))))]
pub struct Error {
    /// Counted from 1.
    pub line: usize,
    pub text: Vec<u8>,
    pub why: LineProblem,
}

/// Why a line is no rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LineProblem {
    /// Patterns are text.
    #[error("not UTF-8; `?` matches any one byte")]
    NotUtf8,
    /// It is no pattern of ours.
    #[error(transparent)]
    Pattern(PatternError),
    /// It is none of Linux-VServer's.
    #[error(transparent)]
    Vserver(Unusable),
}

/// Why a line of a list is refused. vunify takes it, and then it matches nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// `etc/passwd`, or `/etc/`.
    #[error("it matches no path: a path begins with `/` and does not end with `/`")]
    NoPath,
    /// `/a\`.
    #[error("it ends in a backslash that escapes nothing")]
    Backslash,
    /// `[[:letters:]]`, `[[=a=]]`, `[[.a.]]`.
    #[error("an unknown class of characters, or one that depends on the locale")]
    Class,
}

/// The lines of a file that are neither blank nor a comment, white space around them removed, with their numbers.
pub(super) fn lines(text: &[u8]) -> impl Iterator<Item = (usize, &[u8])> {
    let lines = text.split(|&byte| byte == b'\n').map(<[u8]>::trim_ascii);
    (1..).zip(lines).filter(|(_, line)| !line.is_empty() && !line.starts_with(b"#"))
}

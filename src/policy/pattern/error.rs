//! Why a text is no pattern.

/// Why a text is no pattern.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// Nothing to match.
    #[error("a pattern may not be empty")]
    Empty,
    /// `a/b`: anchored or not?
    #[error("a pattern with a slash begins with one: write `/a/b`, or `/**/a/b` for any depth")]
    NotAbsolute,
    /// `.` or `..` as a component: no path that is matched has any.
    #[error("`.` and `..` are not allowed as components")]
    Dots,
    /// `a**`.
    #[error("`**` must be a whole component")]
    PartialAnyDepth,
    /// `[abc`.
    #[error("`[` has no closing `]`; a literal one is written `[[]`")]
    UnclosedSet,
    /// `[z-a]`.
    #[error("a range in `[...]` runs backwards")]
    BackwardRange,
    /// `[é]`: matching is by byte.
    #[error("`[...]` may hold ASCII characters only")]
    WideSet,
    /// `{a,b}`.
    #[error("there is no `{{a,b}}`: write one pattern for each; a literal brace is written `[{{]`")]
    Braces,
    /// `!a`.
    #[error("there are no exceptions with `!`; begin with `?` to match a name that starts with one")]
    Exception,
    /// A NUL byte, which no path holds.
    #[error("a NUL byte is in no path")]
    Nul,
}

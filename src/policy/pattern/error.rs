//! Why a text is no pattern.

/// Why a text is no pattern.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// Nothing to match.
    #[error("a pattern may not be empty")]
    Empty,
    /// `a/b`: anchored or not?
    #[error(
        "a pattern that contains a slash must begin with a slash: write `/a/b`, or `/**/a/b` for any \
        depth"
    )]
    NotAbsolute,
    /// `.` or `..` as a component: no path that is matched has any.
    #[error("`.` and `..` are not allowed as components")]
    Dots,
    /// `a**`.
    #[error("`**` must be a whole component")]
    PartialAnyDepth,
    /// `[abc`.
    #[error("`[` has no closing `]`; write `[[]` for a literal `[`")]
    UnclosedSet,
    /// `[z-a]`.
    #[error("a range in `[...]` is in reverse order")]
    BackwardRange,
    /// `[é]`: matching is by byte.
    #[error("`[...]` may hold ASCII characters only")]
    WideSet,
    /// `{a,b}`.
    #[error("`{{a,b}}` is not supported: write one pattern for each, and `[{{]` for a literal brace")]
    Braces,
    /// `!a`.
    #[error("exceptions with `!` are not supported; write `?` to match a name that begins with `!`")]
    Exception,
    /// A NUL byte, which no path holds.
    #[error("a path cannot contain a NUL byte")]
    Nul,
}

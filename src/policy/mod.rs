//! Configuration: what is never touched, what is always prepared, how strict to be.
//!
//! Reading it is the only I/O here. The defaults, and what each key means, are in `default.toml`.

pub(crate) mod file;
mod load;
pub mod pattern;
mod value;

pub use self::file::{Invalid, size};
pub use self::load::{DEFAULT, Error, Policy};
pub use self::pattern::{Pattern, PatternSet};
pub use self::value::{LastLink, Mode, Protection, SuperviseMode};

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "files of a guest made for the test")]
mod tests;

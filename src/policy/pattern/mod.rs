//! Path patterns: the language of the policy's lists, on raw bytes.
//!
//! - A pattern that begins with `/` is a path from the guest's root. One without a slash matches a
//!   name at any depth: `*.dpkg-new` is `/**/*.dpkg-new`.
//! - Within one component, `*` is any run of bytes, `?` any one byte, `[a-z]` one of a set and
//!   `[!a-z]` one outside it. None of them ever matches a `/`. A leading dot is nothing special.
//! - `**`, as a component of its own, is any number of components, none included.
//! - A pattern that names a directory covers everything below it.
//!
//! There is no escape character: `[*]` is a literal star. What other languages give a meaning and this
//! one does not (`{a,b}`, `!exception`, `a/b` without a leading slash) is an error, never a pattern that
//! silently matches nothing.

mod component;
mod error;
mod set;
mod token;
mod whole;

pub use self::component::NamePattern;
pub use self::error::PatternError;
pub use self::set::PatternSet;
pub(crate) use self::token::{Token, tokens_after, tokens_match};
pub use self::whole::{DirectoryMatch, Pattern};

#[cfg(test)]
mod tests;

//! A pattern, and what it says about paths.

use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::component::{Component, NamePattern, components_after, matches_all};
use super::error::PatternError;

/// One pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern {
    text: String,
    /// Always ends in `AnyDepth`: a directory covers what is below it.
    components: Vec<Component>,
    fixed_prefix: PathBuf,
}

/// What a pattern says about the names in one directory; see [`Pattern::within`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DirectoryMatch<'p> {
    /// It matches the directory, and with it all of them.
    All,
    /// It matches those that this matches.
    Names(&'p NamePattern),
    /// It matches none of them; perhaps one further below.
    None,
}

impl Pattern {
    /// Parses `text`.
    pub fn parse(text: &str) -> Result<Pattern, PatternError> {
        if text.is_empty() {
            return Err(PatternError::Empty);
        }
        if text.starts_with('!') {
            return Err(PatternError::Exception);
        }
        if text.contains('\0') {
            return Err(PatternError::Nul);
        }
        let mut components = Vec::new();
        if !text.starts_with('/') {
            if text.trim_end_matches('/').contains('/') {
                return Err(PatternError::NotAbsolute);
            }
            components.push(Component::AnyDepth);
        }
        for part in names(text.as_bytes()) {
            components.push(Component::parse(part)?);
        }
        components.push(Component::AnyDepth);
        components.dedup_by(|a, b| *a == Component::AnyDepth && *b == Component::AnyDepth);

        let mut fixed_prefix = PathBuf::from("/");
        fixed_prefix.extend(components.iter().map_while(Component::literal));
        Ok(Pattern { text: text.to_owned(), components, fixed_prefix })
    }

    /// Whether the pattern names `path` or a directory above it.
    ///
    /// `path` is a guest's absolute path, its directories without symlinks.
    pub fn matches(&self, path: &Path) -> bool {
        self.matches_names(&split(path))
    }

    /// Whether anything below the directory `dir` can match.
    pub fn may_match_below(&self, dir: &Path) -> bool {
        self.may_match_below_names(&split(dir))
    }

    /// What the pattern says about the names in the directory `dir`.
    ///
    /// For many files of one directory this is much faster than [`Pattern::matches`] for each.
    pub fn within(&self, dir: &Path) -> DirectoryMatch<'_> {
        self.within_names(&split(dir))
    }

    pub(super) fn within_names(&self, dir: &[&[u8]]) -> DirectoryMatch<'_> {
        match self.rest_after(dir) {
            None => return DirectoryMatch::None,
            Some(rest) if rest.iter().all(Component::is_any_depth) => return DirectoryMatch::All,
            Some(_) => {}
        }
        // If the directory is not covered, the name has to be what the last component but `**` matches.
        match self.components.as_slice() {
            [above @ .., Component::Name(name), Component::AnyDepth] if matches_all(above, dir) => {
                DirectoryMatch::Names(name)
            }
            _ => DirectoryMatch::None,
        }
    }

    /// The pattern's components. The last one is always [`Component::AnyDepth`], since a directory covers
    /// what is below it.
    pub fn components(&self) -> &[Component] {
        &self.components
    }

    /// The leading components without a wildcard, as a path: every match is this path or is below it.
    pub fn fixed_prefix(&self) -> &Path {
        &self.fixed_prefix
    }

    /// The pattern with its leading directory `from` replaced by `to`; itself if it does not begin with `from`.
    pub(super) fn moved(&self, from: &Path, to: &Path) -> Pattern {
        let Ok(rest) = self.fixed_prefix.strip_prefix(from) else { return self.clone() };
        let literal = |name: &[u8]| Component::Name(NamePattern::of_name(name));
        let mut components: Vec<Component> = split(to).into_iter().map(literal).collect();
        components.extend_from_slice(&self.components[split(from).len()..]);
        Pattern { text: self.text.clone(), components, fixed_prefix: to.join(rest) }
    }

    pub(super) fn matches_names(&self, names: &[&[u8]]) -> bool {
        matches_all(&self.components, names)
    }

    /// Some names can always be appended to satisfy what is left of the pattern.
    pub(super) fn may_match_below_names(&self, names: &[&[u8]]) -> bool {
        self.rest_after(names).is_some()
    }

    pub(super) fn rest_after(&self, names: &[&[u8]]) -> Option<&[Component]> {
        components_after(&self.components, names)
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

pub(super) fn split(path: &Path) -> Vec<&[u8]> {
    names(path.as_os_str().as_bytes()).collect()
}

fn names(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.split(|&b| b == b'/').filter(|name| !name.is_empty())
}

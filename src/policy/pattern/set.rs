//! Several patterns; a file matches if one of them does.

use std::path::Path;

use super::component::NamePattern;
use super::whole::{DirectoryMatch, Pattern, split};

/// A list of patterns.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PatternSet {
    patterns: Vec<Pattern>,
}

impl PatternSet {
    /// Whether one of the patterns matches `path`; see [`Pattern::matches`].
    pub fn matches(&self, path: &Path) -> bool {
        let names = split(path);
        self.patterns.iter().any(|pattern| pattern.matches_names(&names))
    }

    /// Whether anything below the directory `dir` can match one of the patterns.
    pub fn may_match_below(&self, dir: &Path) -> bool {
        let names = split(dir);
        self.patterns.iter().any(|pattern| pattern.may_match_below_names(&names))
    }

    /// What the patterns say about the names in the directory `dir`: `None` if one of them covers it, else those
    /// of which any that matches a name matches the file.
    pub fn within(&self, dir: &Path) -> Option<Vec<&NamePattern>> {
        let dir = split(dir);
        let mut names = Vec::with_capacity(self.patterns.len());
        for pattern in &self.patterns {
            match pattern.within_names(&dir) {
                DirectoryMatch::All => return None,
                DirectoryMatch::Names(name) => names.push(name),
                DirectoryMatch::None => {}
            }
        }
        Some(names)
    }

    /// The patterns with their leading directory `from` replaced by `to`, if they begin with it: what they mean
    /// when `from` is a symlink.
    pub fn moved(&self, from: &Path, to: &Path) -> PatternSet {
        self.iter().map(|pattern| pattern.moved(from, to)).collect()
    }

    /// The patterns, in the order they were written.
    pub fn iter(&self) -> std::slice::Iter<'_, Pattern> {
        self.patterns.iter()
    }

    /// Whether there is no pattern, so that nothing matches.
    pub fn is_empty(&self) -> bool {
        self.patterns.is_empty()
    }
}

impl FromIterator<Pattern> for PatternSet {
    fn from_iter<I: IntoIterator<Item = Pattern>>(patterns: I) -> PatternSet {
        PatternSet { patterns: patterns.into_iter().collect() }
    }
}

impl Extend<Pattern> for PatternSet {
    fn extend<I: IntoIterator<Item = Pattern>>(&mut self, patterns: I) {
        self.patterns.extend(patterns);
    }
}

impl IntoIterator for PatternSet {
    type Item = Pattern;
    type IntoIter = std::vec::IntoIter<Pattern>;

    fn into_iter(self) -> Self::IntoIter {
        self.patterns.into_iter()
    }
}

impl<'a> IntoIterator for &'a PatternSet {
    type Item = &'a Pattern;
    type IntoIter = std::slice::Iter<'a, Pattern>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

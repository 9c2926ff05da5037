//! What a run is about to touch, as a value: front ends build it, a survey looks at it.

use std::path::PathBuf;

use crate::package::touched::Touched;
use crate::policy::PatternSet;

/// What is to be looked at in a guest.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// Paths that a person has given. Symlinks are followed: whoever writes to one changes what it leads to. Of a
    /// directory all that is below it is meant; a path that does not exist cannot be looked at. All names in the guest
    /// that are one file with these are looked at, too.
    pub given: Vec<PathBuf>,
    /// What packages touch.
    pub touched: Touched,
    /// Where scripts write.
    pub patterns: PatternSet,
    /// Also all other names in the guest of the inodes that were found.
    pub other_names: bool,
    /// A package manager replaces, renames or removes these files: what the host's guard protects stays shared, but for what
    /// is known to be changed in place.
    pub by_name: bool,
}

impl Request {
    /// These names and no others; a symlink among them is not followed.
    pub fn of_paths(paths: impl IntoIterator<Item = PathBuf>) -> Request {
        let touched = Touched { paths: paths.into_iter().collect(), ..Touched::default() };
        Request { touched, ..Request::default() }
    }

    /// All that is below a directory.
    pub fn of_tree(top: impl Into<PathBuf>) -> Request {
        let touched = Touched { trees: vec![top.into()], ..Touched::default() };
        Request { touched, ..Request::default() }
    }
}

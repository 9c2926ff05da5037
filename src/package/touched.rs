//! Which of the files that exist now are about to be touched.

use std::path::PathBuf;

use super::sort_paths;

/// Files that may be touched: paths of the guest, sorted, which need not exist.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Touched {
    /// Names that may be replaced, removed or changed; of directories, the name alone.
    pub paths: Vec<PathBuf>,
    /// Names that become files. If one is a directory now, all that is in it is removed.
    pub non_directories: Vec<PathBuf>,
    /// Those of `paths` that are followed if they are symlinks: what they lead to may be changed.
    pub followed: Vec<PathBuf>,
    /// Directories in which everything may be touched.
    pub trees: Vec<PathBuf>,
    /// Those of `paths` whose files are changed in place: they do not only lose their names.
    pub in_place: Vec<PathBuf>,
}

impl Touched {
    /// Adds what something else touches.
    pub fn add(&mut self, more: Touched) {
        self.paths.extend(more.paths);
        self.non_directories.extend(more.non_directories);
        self.followed.extend(more.followed);
        self.trees.extend(more.trees);
        self.in_place.extend(more.in_place);
    }

    /// The same, each path once.
    pub fn sorted(mut self) -> Touched {
        let Touched { paths, non_directories, followed, trees, in_place } = &mut self;
        [paths, non_directories, followed, trees, in_place].into_iter().for_each(sort_paths);
        self
    }
}

//! How results are shown: sizes, paths, progress.

mod path;
mod progress;
mod size;

pub use path::{Shown, json_path};
pub use progress::{Progress, without_progress};
pub use size::size;

//! How results are shown: numbers, sizes, paths, reasons, progress.

mod count;
mod path;
mod progress;
mod reason;
mod size;
mod writers;

pub use count::{count, word};
pub use path::{Shown, json_path};
pub use progress::{Progress, Silent, Watch, without_progress};
pub use reason::Reason;
pub use size::size;
pub use writers::{tell_of_prevented_write, warn_of_missing_guard, warn_of_possible_write};

//! How results are shown: sizes, paths, reasons, progress.

mod path;
mod progress;
mod reason;
mod size;

pub use path::{Shown, json_path};
pub use progress::{Progress, Silent, Watch, without_progress};
pub use reason::Reason;
pub use size::size;

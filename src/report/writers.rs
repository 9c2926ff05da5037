//! Other processes that wrote to a shared file while it could be written to: one wording for every command and hook.

use std::path::Path;

use super::Shown;

/// Says that a process tried to write to the shared file, and could not.
pub fn tell_of_prevented_write(path: &Path) {
    log::info!(
        "{}: another process tried to write to the shared file while its name was replaced; this was prevented",
        Shown(path)
    );
}

/// Warns that a process may have written to the shared file, which other guests see.
pub fn warn_of_possible_write(path: &Path) {
    log::warn!(
        "{}: another process may have written to the shared file while its name was replaced; run `cow-unify verify` on \
         the host",
        Shown(path)
    );
}

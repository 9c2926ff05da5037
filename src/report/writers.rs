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

/// Warns that a file which the host says its guard protects can be written to.
pub fn warn_of_missing_guard(path: &Path) {
    log::warn!(
        "{}: the host says that its guard protects this file, but the kernel lets it be opened for writing: the guard is \
         not loaded; shared files are made private before they change; remedy: run `cow-guard load` on the host, \
         `cow-guard status` says what prevents it",
        Shown(path)
    );
}

//! Panics of crates that read hostile input, as errors.

use std::cell::Cell;
use std::io;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Once;

thread_local! {
    /// This thread's panics are caught, and not reported.
    static IS_CAUGHT: Cell<bool> = const { Cell::new(false) };
}

/// What `read` comes to; `InvalidData` if it panics, and then nothing is printed.
pub(crate) fn caught<T>(read: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let report = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !IS_CAUGHT.get() {
                report(info);
            }
        }));
    });
    let before = IS_CAUGHT.replace(true);
    // Whatever it leaves half done is dropped with it.
    let result = panic::catch_unwind(AssertUnwindSafe(read));
    IS_CAUGHT.set(before);
    result.unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::InvalidData, "it is invalid")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_an_error_and_what_comes_after_it_is_reported_again() {
        assert_eq!(caught(|| Ok(1)).unwrap(), 1);
        let empty: &[u8] = &[];
        let error = caught(|| Ok(empty[0])).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        assert!(!IS_CAUGHT.get());
    }
}

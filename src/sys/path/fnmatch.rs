//! The C library's fnmatch(3), for tests to compare with.

use std::ffi::CString;

/// Whether `pattern` matches `subject`, neither of which holds a NUL; no flags.
#[allow(unsafe_code)]
pub fn fnmatch(pattern: &[u8], subject: &[u8]) -> bool {
    let [pattern, subject] = [pattern, subject].map(|text| CString::new(text).unwrap());
    // SAFETY: both are strings that end in a NUL.
    unsafe { libc::fnmatch(pattern.as_ptr(), subject.as_ptr(), 0) == 0 }
}

//! Killed anywhere, nothing is lost.

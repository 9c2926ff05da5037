//! `cow-prepare` as a person calls it.

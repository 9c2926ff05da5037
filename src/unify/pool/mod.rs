//! The pool: the host's directory of shared inodes, one per filesystem.
//!
//! [`directory`] is the pool itself, [`object`] what lies in it, [`identity`] which files may be one object, [`run`] a
//! run's place in it, with the journal of what was begun and not ended.

pub mod directory;
pub mod identity;
pub mod object;
pub mod run;

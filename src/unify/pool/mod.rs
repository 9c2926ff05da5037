//! The pool: the host's directory of shared inodes, one per filesystem.
//!
//! [`directory`] is the pool itself, [`object`] what lies in it, [`identity`] which files may be one object, [`settings`]
//! how files are shared in it, [`protection`] how its inodes are protected; [`unprotected`] finds those that are not,
//! [`second`] gives an object the name by which the guard protects it even if no guest has it; [`protect`] turns all to
//! another protection, [`guard`] tells whether the one in the kernel is there, and [`no_guard`] why not.
//! [`run`] is a run's place in it, [`journal`] what a run is about to change, [`publish`] makes objects of files, and [`recover`]
//! ends what a killed run began.

pub mod directory;
pub mod guard;
pub mod identity;
pub mod journal;
pub mod no_guard;
pub mod object;
pub mod protect;
pub mod protection;
pub(crate) mod publish;
pub mod recover;
pub mod run;
pub(crate) mod second;
pub mod settings;
pub mod unprotected;

//! cow-hooks: package-manager hooks for guests whose files are unified.
//!
//! Many guests on one filesystem share their equal files: hard links to one inode, protected so that no guest can
//! change a file for the others. Before a package manager touches such a file, the guest gets a private copy; when it
//! has run, what did not change is shared again.
//!
//! The rooms, from the outside in; each knows only those below it, and those of one line do not know each other
//! (`tests/arrows.rs` checks that, here and in the rooms that have such a list of their own):
//!
//! - `fuzzing`: the door through which tests/fuzz reaches all parsers; in no program of a package.
//! - [`cli`], [`rpm_plugin`]: what a person calls; what rpm loads, which is this library itself. With the entry points in
//!   `src/bin` and `hooks` they are all that is called from outside.
//! - [`hook`]: what the hooks of all package managers share.
//! - [`exit`], [`logging`]: how a program ends, and where its messages go.
//! - [`transaction`]: the story of one run of a package manager: begin, settle, release.
//! - [`supervise`]: gives a process tree copy on write, call by call.
//! - [`unify`]: makes equal files of many guests one inode, and keeps them so. The host's side.
//! - `guard`: BPF programs that keep guests from changing these inodes, loaded into the host's kernel.
//! - [`detach`]: finds unified files, gives their names private copies, and ends what a killed process had begun.
//! - [`inspect`]: what a file is to us; pure.
//! - [`package`], [`policy`]: what package managers say they will touch; what the administrator wants.
//! - [`ledger`]: SQLite: what was begun and not yet ended.
//! - [`state`]: our other files in a guest.
//! - [`report`]: how results are shown.
//! - `parallel`: work on all processors.
//! - [`sys`]: the only room that changes guests' files, which `clippy.toml` enforces, and the only one with unsafe code
//!   but for `hooks/rpm/ffi.rs`: rpm calls its plugin through C pointers.
//!
//! What always holds:
//!
//! - A name never disappears: it names the shared inode or a whole copy at every moment.
//! - A shared inode is protected, but for the moment of a window, which is locked and recorded.
//! - What is recorded is durable before the name it speaks of is touched; the next run of anything ends it.
//! - After a package manager has run, nothing of ours makes it fail.

#![cfg_attr(test, allow(clippy::disallowed_methods))]
// The documentation is for those who work on it, and made with private items.
#![allow(rustdoc::private_intra_doc_links)]

pub mod cli;
pub mod detach;
pub mod exit;
#[cfg(feature = "fuzzing")]
#[path = "../tests/fuzz/parsers/mod.rs"]
pub mod fuzzing;
#[cfg(feature = "guard")]
pub mod guard;
pub mod hook;
pub mod inspect;
pub mod ledger;
pub mod logging;
pub mod package;
mod parallel;
pub mod policy;
pub mod report;
#[path = "../hooks/rpm/plugin.rs"]
pub mod rpm_plugin;
pub mod state;
pub mod supervise;
pub mod sys;
pub mod transaction;
pub mod unify;

//! cow-hooks: package-manager hooks for guests whose files are unified.
//!
//! Many guests on one filesystem share their equal files: hard links to one inode, protected so that no guest can
//! change a file for the others. Before a package manager touches such a file, the guest gets a private copy; when it
//! has run, what did not change is shared again.
//!
//! The rooms, from the outside in; each knows only those below it:
//!
//! - [`cli`], and the entry points in `src/bin` and `hooks`: what a person or a package manager calls.
//! - [`hook`]: what the hooks of all package managers share; [`rpm_plugin`]: rpm's, which is this library itself.
//! - [`report`], [`logging`], [`exit`]: how results are shown.
//! - [`transaction`]: begin, settle, recover; the story of one run of a package manager.
//! - [`detach`]: finds unified files and gives their names private copies. [`unify`]: makes equal files one inode.
//! - [`supervise`]: gives a process tree copy on write, call by call.
//! - [`inspect`]: what a file is to us; pure. [`policy`]: what the administrator wants. [`package`]: what package
//!   managers say they will touch. [`ledger`]: what was begun and not yet ended.
//! - [`sys`]: the only room that changes guests' files, which `clippy.toml` enforces, and the only one with unsafe code
//!   but for `hooks/rpm/ffi.rs`.
//!
//! What always holds:
//!
//! - A name never disappears: it names the shared inode or a whole copy at every moment.
//! - A shared inode is protected, but for the moment of a window, which is locked and recorded.
//! - What is recorded is durable before the name it speaks of is touched; the next run of anything ends it.
//! - After a package manager has run, nothing of ours makes it fail.

#![cfg_attr(test, allow(clippy::disallowed_methods))]

pub mod cli;
pub mod detach;
pub mod exit;
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

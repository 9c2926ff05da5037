//! Real filesystems, real flags, real package managers. Tests whose names begin with `privileged_` need root: plain
//! `cargo test` counts them as ignored. `tests/run` runs them too, in a mount namespace of their own.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, missing_docs)]

mod archive;
mod arrows;
mod budgets;
mod commands;
mod containers;
mod detach;
mod detach_race;
mod dpkg_roots;
mod farm;
mod faults;
mod filters;
mod full;
mod given;
mod guard;
mod guard_guests;
mod guard_package;
#[cfg(feature = "pretend-guard")]
mod guard_steps;
mod guests;
mod hard_links;
mod hostile;
mod ignored;
mod interruption;
mod layers;
mod let_go;
mod mounts;
mod one_program;
mod other_hooks;
mod package_files;
mod pool;
mod pool_interruption;
mod prepare;
mod prepare_paths;
mod programs;
mod protection;
mod race;
mod refusal;
mod remove;
mod remove_race;
mod retire;
mod rpm;
mod rpm_failures;
mod rpm_front_ends;
mod rpm_interruption;
mod rpm_triggers;
mod rpm_versions;
mod run_fairness;
mod run_lifetime;
mod run_nesting;
mod run_operations;
mod run_own;
mod run_race;
mod run_random;
mod run_rights;
mod run_stopped;
mod settle_calls;
mod soak;
mod status;
mod supervised;
mod support;
mod system;
mod unify;
mod unify_deep;
mod unify_failures;
mod unify_figures;
mod unify_flags;
#[cfg(feature = "pretend-guard")]
mod unify_guard;
mod unify_interruption;
mod unify_race;
mod unify_room;
mod units;
mod unreadable;

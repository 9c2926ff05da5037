//! The door to every parser of what the program did not write itself: each as a function of bytes that panics if what
//! comes of them is not sound. Compiled with the feature `fuzzing`, which is in no package.
//!
//! A parser that is not here is not fuzzed; tests/fuzz/README.md says how one is added.

#![allow(missing_docs, reason = "names of parsers, and functions that are called through the table alone")]
#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "a test")]

mod dpkg;
mod ledger;
mod lists;
mod processes;
mod rpm;
mod rules;
mod sound;

/// A name for the command line, and what an input is given to.
pub type Parser = (&'static str, fn(&[u8]));

/// All of them.
pub const PARSERS: [Parser; 43] = [
    ("apt-stream", dpkg::apt_stream),
    ("deb-control", dpkg::deb_control),
    ("deb-payload", dpkg::deb_payload),
    ("dpkg-command-line", dpkg::command_line),
    ("dpkg-control", dpkg::control),
    ("dpkg-diversions", dpkg::diversions),
    ("dpkg-lists", dpkg::lists),
    ("dpkg-statoverride", dpkg::statoverride),
    ("dpkg-status", dpkg::status),
    ("pacman", dpkg::pacman),
    ("rpm-command-line", rpm::command_line),
    ("rpm-file", rpm::file),
    ("rpm-header", rpm::header),
    ("rpm-ndb", rpm::ndb),
    ("rpm-sqlite", rpm::sqlite),
    ("policy-file", rules::policy_file),
    ("policy-options", rules::policy_options),
    ("pattern", rules::pattern),
    ("size", rules::size),
    ("exclude-list", rules::exclude_list),
    ("vserver-list", rules::vserver_list),
    ("spool", lists::spool),
    ("hard-links", lists::hard_links),
    ("member", lists::member),
    ("series", lists::series),
    ("pool-notice", lists::pool_notice),
    ("pool-settings", lists::pool_settings),
    ("pool-journal", lists::pool_journal),
    ("object-name", lists::object_name),
    #[cfg(feature = "guard")]
    ("guarded-pools", lists::guarded_pools),
    #[cfg(feature = "guard")]
    ("kernel-types", processes::kernel_types),
    ("shown", lists::shown),
    ("ledger-file", ledger::file),
    ("ledger-rows", ledger::rows),
    ("proc-fdinfo", processes::fdinfo),
    ("proc-maps", processes::maps),
    ("proc-mountinfo", processes::mountinfo),
    ("proc-stat", processes::stat),
    ("proc-status", processes::status),
    ("proc-syscall", processes::system_call),
    ("call-path", processes::call_path),
    ("call-how", processes::call_how),
    ("call-times", processes::call_times),
];

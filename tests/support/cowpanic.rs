//! A plugin of rpm's that panics in the hook its options name: rpm must not notice.

#![allow(unsafe_code)]

use std::ffi::{OsStr, OsString};
use std::path::Path;

use cow_hooks::rpm_plugin::ffi::{Action, Hooks, Plugin, Transaction, hooks};

/// What rpm looks up.
#[allow(non_upper_case_globals)]
#[unsafe(no_mangle)]
pub static cowpanic_hooks: Hooks = hooks::<Panicking>();

struct Panicking {
    hook: String,
}

impl Panicking {
    fn panic_in(&self, hook: &str) {
        assert_ne!(self.hook, hook, "on purpose");
    }
}

impl Plugin for Panicking {
    fn new(_: &Path, options: &str) -> Option<Panicking> {
        let panicking = Panicking { hook: options.trim().to_owned() };
        panicking.panic_in("init");
        Some(panicking)
    }

    fn transaction_begins(&mut self, _: &Transaction<'_>) -> bool {
        self.panic_in("tsm_pre");
        true
    }

    fn transaction_ended(&mut self, _: &[OsString]) {
        self.panic_in("tsm_post");
    }

    fn package_begins(&mut self, _: &OsStr) {
        self.panic_in("psm_pre");
    }

    fn file_begins(&mut self, _: &Path, _: Action) {
        self.panic_in("fsm_file_pre");
    }
}

impl Drop for Panicking {
    fn drop(&mut self) {
        if self.hook == "cleanup" {
            panic!("on purpose");
        }
    }
}

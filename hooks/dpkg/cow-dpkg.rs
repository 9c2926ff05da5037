//! What apt and dpkg call: before they touch anything, and when they have run.
//!
//! A hook prints nothing when there was nothing to do, and one line otherwise. After dpkg has run it never fails:
//! apt would stop half way.

mod caller;
mod post;
mod pre;

use std::process::ExitCode;

/// The environment variable that switches everything off for one run, by the value `off`.
const SWITCH: &str = "COW_HOOKS";

fn main() -> ExitCode {
    cow_hooks::logging::init("cow-hooks", 0, u8::from(is_set_to("debug")));
    let mut arguments = std::env::args().skip(1);
    let (Some(hook), None) = (arguments.next(), arguments.next()) else { return usage() };
    let off = is_set_to("off");
    match hook.as_str() {
        "apt-pre" | "dpkg-pre" | "apt-post" | "dpkg-post" | "triggered" if off => ExitCode::SUCCESS,
        "apt-pre" => pre::apt(),
        "dpkg-pre" => pre::dpkg(),
        "apt-post" => post::apt(),
        "dpkg-post" => post::dpkg(),
        "triggered" => post::triggered(),
        "retire" => post::retire(),
        _ => usage(),
    }
}

fn is_set_to(value: &str) -> bool {
    std::env::var_os(SWITCH).is_some_and(|set| set == value)
}

fn usage() -> ExitCode {
    eprintln!(
        "usage: cow-dpkg apt-pre|apt-post|dpkg-pre|dpkg-post|triggered|retire (called by apt and dpkg)"
    );
    ExitCode::from(2)
}

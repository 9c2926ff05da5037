//! What apt and dpkg call: before they touch anything, and when they have run.
//!
//! After dpkg has run a hook never fails: apt would stop half way.

mod caller;
mod post;
mod pre;

use std::process::ExitCode;

use cow_hooks::hook;

/// Does what the arguments of this process say.
pub fn main() -> ExitCode {
    hook::log();
    let mut arguments = std::env::args().skip(1);
    let (Some(called), options, None) = (arguments.next(), arguments.next(), arguments.next()) else {
        return usage();
    };
    match (called.as_str(), options) {
        ("supervise", Some(options)) => hook::supervise(&options),
        ("tell", Some(front_end)) => post::tell(&front_end),
        (_, Some(_)) => usage(),
        (called, None) => by(called),
    }
}

fn by(called: &str) -> ExitCode {
    match called {
        "apt-around" | "apt-pre" | "dpkg-pre" | "apt-post" | "dpkg-post" | "triggered" if hook::is_off() => {
            ExitCode::SUCCESS
        }
        "apt-around" => {
            pre::around();
            ExitCode::SUCCESS
        }
        "apt-pre" => pre::apt().into(),
        "dpkg-pre" => pre::dpkg().into(),
        "apt-post" => post::apt(),
        "dpkg-post" => post::dpkg(),
        "triggered" => post::triggered(),
        "retire" => post::retire(),
        _ => usage(),
    }
}

fn usage() -> ExitCode {
    eprintln!(
        "usage: cow-dpkg apt-around|apt-pre|apt-post|dpkg-pre|dpkg-post|triggered|retire (called by apt and dpkg)\n       \
         cow-dpkg supervise OPTIONS (called by its hooks, with a socket as input)\n       \
         cow-dpkg tell \"PID START\" (called by its apt-post)"
    );
    ExitCode::from(2)
}

//! `cow-guard`: loads the guard into the kernel, and says what it protects. The host's side.

pub(in crate::cli) mod arguments;

use self::arguments::Arguments;
use super::failed;
use crate::exit::Exit;

/// Runs the command with the arguments of this process.
pub fn main() -> Exit {
    let arguments: Arguments = match super::parse() {
        Ok(arguments) => arguments,
        Err(exit) => return exit,
    };
    crate::logging::init("cow-guard", arguments.common.quiet, arguments.common.verbose);
    failed(&anyhow::anyhow!("this version cannot load the guard yet"), Exit::Refused)
}

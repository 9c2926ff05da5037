//! What a command's exit code says.

use std::process::{ExitCode, Termination};

/// The exit code of every command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Everything is done, or there was nothing to do.
    Done = 0,
    /// Some files could not be done; each was named, with the reason. The others are done.
    Partial = 1,
    /// The command line or the configuration makes no sense, whatever is on the disk. Nothing was touched.
    Usage = 2,
    /// Refused before anything was touched: not root, no capability, no space, a lock that is held, or a file, guest or
    /// pool that is not there.
    Refused = 3,
}

impl Exit {
    /// The number the shell sees.
    pub fn code(self) -> u8 {
        self as u8
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit.code())
    }
}

impl Termination for Exit {
    fn report(self) -> ExitCode {
        self.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_the_documented_ones() {
        let codes = [Exit::Done, Exit::Partial, Exit::Usage, Exit::Refused].map(Exit::code);
        assert_eq!(codes, [0, 1, 2, 3]);
        assert_eq!(Exit::Refused.report(), ExitCode::from(3));
    }
}

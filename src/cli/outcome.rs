//! How a command begins and ends: it runs for root alone, the same mistake has the same exit code in every command, and a
//! result that could not be written is an error.

use std::io::{self, Write};

use serde::Serialize;

use crate::exit::Exit;
use crate::report::Reason;
use crate::{policy, unify};

/// The command line makes no sense, whatever is on the disk.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Misuse(pub(super) String);

/// Every command reads what only root may read: checked before anything else, so that nobody looks for another cause.
///
/// # Errors
/// If the effective user is not root, of this user namespace.
pub(super) fn require_root() -> anyhow::Result<()> {
    anyhow::ensure!(
        rustix::process::geteuid().is_root(),
        "needs root: run the same command as root, for example with sudo"
    );
    Ok(())
}

/// Says why a command could not do its work, and what to do about it; returns its exit code.
pub(super) fn failed(error: &anyhow::Error) -> Exit {
    log::error!("{}", Reason(error));
    if let Some(remedy) = error.downcast_ref::<unify::Error>().and_then(unify::Error::remedy) {
        log::error!("remedy: {remedy}");
    }
    code(error)
}

/// What a person has to correct in the command or the configuration is one code, what the disk, the kernel or other
/// processes do not allow is the other.
fn code(error: &anyhow::Error) -> Exit {
    let contradicts_pool =
        matches!(error.downcast_ref::<unify::Error>(), Some(unify::Error::PoolSettings { .. }));
    if contradicts_pool || error.is::<Misuse>() || error.is::<policy::Error>() {
        Exit::Usage
    } else {
        Exit::Refused
    }
}

/// Has `write` print a result on standard output. Returns `exit`, or a failure if the result did not get there.
pub(super) fn print(exit: Exit, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Exit {
    print_to(io::stdout().lock(), exit, write)
}

fn print_to(to: impl Write, exit: Exit, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Exit {
    let mut out = io::BufWriter::new(to);
    match write(&mut out).and_then(|()| out.flush()) {
        // Whoever reads it has read enough.
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => {
            log::error!("standard output: {}; the result is not complete", Reason(e));
            if exit == Exit::Done { Exit::Partial } else { exit }
        }
        _ => exit,
    }
}

/// One JSON object on a line.
pub(super) fn json(out: &mut dyn Write, report: &impl Serialize) -> io::Result<()> {
    serde_json::to_writer(&mut *out, report)?;
    writeln!(out)
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;
    use std::path::PathBuf;

    use super::*;

    #[test]
    fn a_result_that_is_not_written_is_an_error_unless_nobody_reads() {
        let full = || OpenOptions::new().write(true).open("/dev/full").unwrap();
        let pipe = || {
            let (reader, writer) = io::pipe().unwrap();
            drop(reader);
            writer
        };
        let text = |out: &mut dyn Write| writeln!(out, "text");
        for (exit, on_full) in
            [(Exit::Done, Exit::Partial), (Exit::Partial, Exit::Partial), (Exit::Refused, Exit::Refused)]
        {
            assert_eq!(print_to(full(), exit, text), on_full);
            assert_eq!(print_to(full(), exit, |out| json(out, &"text")), on_full);
            assert_eq!(print_to(pipe(), exit, text), exit);
            assert_eq!(print_to(io::sink(), exit, text), exit);
        }
    }

    #[test]
    fn the_exit_code_tells_what_to_correct_from_what_is_not_allowed() {
        let misuse = anyhow::Error::from(Misuse("x".into()));
        assert_eq!(code(&misuse), Exit::Usage);
        let settings = unify::Error::PoolSettings { path: PathBuf::new(), made: String::new() };
        assert_eq!(code(&settings.into()), Exit::Usage);
        let policy =
            policy::Error::Read { path: PathBuf::new(), source: io::ErrorKind::PermissionDenied.into() };
        assert_eq!(code(&policy.into()), Exit::Usage);
        assert_eq!(code(&unify::Error::Busy { path: PathBuf::new() }.into()), Exit::Refused);
        assert_eq!(code(&io::Error::from(io::ErrorKind::NotFound).into()), Exit::Refused);
        assert_eq!(code(&anyhow::anyhow!("/x: there is no pool here")), Exit::Refused);
    }
}

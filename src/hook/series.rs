//! Front ends that run apt's library many times in a row: each run is settled when it ends, and one line at the end of
//! the front end says what all of them came to.
//!
//! A run does not know that it is the last one. So the first of them leaves a process behind that waits for the front
//! end. Where that is killed, as with a container that ends with its command, only the line is lost.

use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::process::{Command, Stdio};

use super::caller::Caller;
use super::post;
use crate::report::Reason;
use crate::state::store::STATE_DIR;
use crate::sys::budget;
use crate::sys::path::dirfd;
use crate::sys::path::root::{Root, read_at};
use crate::sys::process::{self, ProcessId, Processes};
use crate::transaction::Error;
use crate::transaction::settle::Settled;

/// The programs, their names cut to 15 bytes as the kernel does: unattended-upgrades, in minimal steps.
const PROGRAMS: [&str; 1] = ["unattended-upgr"];

/// The file beside the ledger that has the sum so far, and the front end it is of.
const SUM: &str = "series";

/// The front end that runs this run and others.
pub fn of(caller: &Caller) -> Option<ProcessId> {
    let is_one = |command: &OsStr| PROGRAMS.iter().any(|program| command == *program);
    caller.ancestors.iter().rfind(|process| is_one(&process.command)).map(|process| process.id)
}

/// Adds what a run of `front_end` came to. `command` is to call [`tell`].
pub fn add(root: &Root, front_end: ProcessId, done: Result<Option<Settled>, Error>, command: Command) {
    let mut settled = match done {
        Ok(settled) => settled.unwrap_or_default(),
        Err(e) => return post::report(Err(e)),
    };
    let let_go = std::mem::take(&mut settled.let_go);
    for problem in let_go.into_iter().chain(std::mem::take(&mut settled.failed)) {
        log::warn!("{problem}");
    }
    if settled == Settled::default() {
        return;
    }
    let added = try_add(root, front_end, &settled, command);
    added.unwrap_or_else(|e| {
        log::debug!("{STATE_DIR}/{SUM}: {}", Reason(e));
        post::report(Ok(Some(settled)));
    });
}

fn try_add(root: &Root, front_end: ProcessId, run: &Settled, mut command: Command) -> io::Result<()> {
    let dir = dirfd::make_dir(root, Path::new(STATE_DIR))?;
    let sum = match read(&dir, front_end) {
        Some(sum) => add_up(&sum, run),
        None => {
            let status = command.stdin(Stdio::null()).stdout(Stdio::null()).status()?;
            if !status.success() {
                return Err(io::Error::other("nobody waits for the end of the front end"));
            }
            Settled { let_go: Vec::new(), failed: Vec::new(), ..*run }
        }
    };
    let ProcessId { pid, start } = front_end;
    let Settled { restored, unified, new, postponed, .. } = sum;
    let line = format!("{pid} {start} {restored} {unified} {new} {postponed}\n");
    dirfd::replace_file(&dir, OsStr::new(SUM), line.as_bytes())
}

/// The sum of what was, and of a run.
pub(crate) fn add_up(sum: &Settled, run: &Settled) -> Settled {
    Settled {
        // Whatever is written in the file.
        restored: sum.restored.saturating_add(run.restored),
        unified: sum.unified.saturating_add(run.unified),
        new: sum.new.saturating_add(run.new),
        // Those that waited before are among them, or settled.
        postponed: run.postponed,
        ..Settled::default()
    }
}

/// The sum so far, if it is of this front end.
fn read(dir: impl std::os::fd::AsFd, front_end: ProcessId) -> Option<Settled> {
    parse(&read_at(dir, OsStr::new(SUM), budget::SMALL).ok()?, front_end)
}

pub(crate) fn parse(content: &[u8], front_end: ProcessId) -> Option<Settled> {
    let mut numbers = std::str::from_utf8(content).ok()?.split_ascii_whitespace().map(str::parse::<u64>);
    let mut next = || numbers.next()?.ok();
    let (pid, start) = (next()?, next()?);
    let is_of = pid == u64::try_from(front_end.pid).ok()? && start == front_end.start;
    let (restored, unified, new, postponed) = (next()?, next()?, next()?, next()?);
    is_of.then_some(Settled { restored, unified, new, postponed, ..Settled::default() })
}

/// Waits, in a process of its own, for the end of a front end, and says what its runs came to.
pub fn tell(root: &Root, front_end: ProcessId) -> io::Result<()> {
    let dir = dirfd::make_dir(root, Path::new(STATE_DIR))?;
    process::spawn_detached(move || {
        use std::os::fd::AsFd;
        process::close_all_but(&[dir.as_fd()], true);
        let _ = rustix::process::chdir("/");
        let waited = Processes::open().and_then(|processes| process::wait_for_end(front_end, &processes));
        if waited.is_ok()
            && let Some(sum) = read(&dir, front_end)
        {
            post::report(Ok(Some(sum)));
            let _ = dirfd::remove_file(&dir, OsStr::new(SUM));
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sum_of_any_size_is_added_to() {
        let front_end = ProcessId { pid: 7, start: 9 };
        let most = u64::MAX;
        let sum = parse(format!("7 9 {most} {most} {most} {most}\n").as_bytes(), front_end).unwrap();
        let again =
            add_up(&sum, &Settled { restored: 1, unified: 2, new: 3, postponed: 4, ..Settled::default() });
        assert_eq!((again.restored, again.unified, again.new, again.postponed), (most, most, most, 4));
    }
}

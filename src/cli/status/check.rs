//! `cow-status --check`: whether the next run of a package manager will work, and what a person should see to before.
//!
//! Whether a run would be refused is what the hooks themselves would find ([`Supervision::of`]). The other findings are
//! what makes no run fail by itself: hooks that are not called, a host that does not come, a run that was killed.

mod finding;
mod hooks;
mod place;

use std::io::{self, Write};
use std::path::Path;
use std::time::{Duration, SystemTime};

use serde::Serialize;

use self::finding::{Finding, Level};
use super::summary::{TransactionState, Tree};
use super::supervision::Supervision;
use crate::exit::Exit;
use crate::policy::{Mode, Policy};
use crate::report::{Shown, count, size};
use crate::state::pool_notice::PoolNotice;
use crate::state::spool;
use crate::state::store::{STATE_DIR, Store};
use crate::sys::path::root::Root;
use crate::sys::share::gate;
use crate::transaction::Guest;

/// A host whose timers run comes every quarter of an hour.
const MAX_WAITING: Duration = Duration::from_secs(2 * 24 * 3600);

/// Everything that was found.
#[derive(Debug, Serialize)]
pub struct Check {
    result: Level,
    findings: Vec<Finding>,
}

impl Check {
    /// Looks at a guest; changes nothing.
    ///
    /// # Errors
    /// If its records cannot be read.
    pub fn of(root: &Root) -> anyhow::Result<Check> {
        let (policy, about_policy) = policy(root)?;
        let guest = Guest { root, policy: &policy };
        let mut seen = Exit::Done;
        let tree = Tree::walk(guest, "/".into(), &mut seen);
        let mut findings = vec![place::finding(root), about_policy];
        findings.extend(hooks::findings(root, tree.has_unified()));
        findings.push(protection(&tree));
        findings.push(supervision(&Supervision::of(guest, &tree.examples)));
        findings.extend(window(root, &tree));
        findings.push(pool(root));
        let state = TransactionState::read(guest)?;
        findings.extend(waiting(root, &state)?);
        findings.extend(lock(root));
        findings.extend(transaction(&state));
        if seen != Exit::Done {
            let remedy = "see the messages above, which name each of them";
            findings.push(Finding::attention("files", "some could not be looked at", remedy));
        }
        let result = findings.iter().map(|finding| finding.level).max().unwrap_or(Level::Ok);
        Ok(Check { result, findings })
    }

    /// The code for a monitoring program.
    pub fn exit(&self) -> Exit {
        match self.result {
            Level::Ok => Exit::Done,
            Level::Attention => Exit::Partial,
            Level::Refused => Exit::Refused,
        }
    }

    /// Prints it for a person; the last line is the result.
    pub fn print(&self, out: &mut dyn Write) -> io::Result<()> {
        for Finding { subject, level, text, remedy } in &self.findings {
            writeln!(out, "{:<10} {subject:<12} {text}", level.name())?;
            if let Some(remedy) = remedy {
                writeln!(out, "{:<10} {:<12} remedy: {remedy}", "", "")?;
            }
        }
        let number = |level| self.findings.iter().filter(|finding| finding.level == level).count();
        let (refused, attention) = (number(Level::Refused), number(Level::Attention));
        let more = if attention > 0 {
            format!("; {} to look at", count(attention as u64, "other thing"))
        } else {
            String::new()
        };
        match self.result {
            Level::Ok => writeln!(out, "cow-hooks is ready"),
            Level::Attention => {
                writeln!(out, "cow-hooks is ready; {} to look at", count(attention as u64, "thing"))
            }
            Level::Refused => writeln!(
                out,
                "REFUSED: package managers will fail, {}{more}",
                if refused == 1 { "for one reason".to_owned() } else { format!("for {refused} reasons") }
            ),
        }
    }
}

/// The policy that the hooks would use.
fn policy(root: &Root) -> anyhow::Result<(Policy, Finding)> {
    const SUBJECT: &str = "policy";
    match Policy::load(root) {
        Err(e) => {
            let text = format!("{e}; the hooks use the built-in policy");
            let remedy = "correct the file; cow-hooks.toml(5) describes each key";
            Ok((Policy::builtin()?, Finding::attention(SUBJECT, text, remedy)))
        }
        Ok(policy) => {
            let finding = match policy.mode {
                Mode::Enforce => {
                    Finding::ok(SUBJECT, "a run is refused if a file that it changes would stay unified")
                }
                Mode::Warn => Finding::attention(
                    SUBJECT,
                    "`mode = \"warn\"`: a run goes on if a file that it changes stays unified, and may fail half way",
                    "set `mode` in cow-hooks.toml to enforce",
                ),
                Mode::Off => Finding::attention(
                    SUBJECT,
                    "`mode = \"off\"`: the hooks do nothing, and package managers fail at unified files",
                    "set `mode` in cow-hooks.toml to enforce",
                ),
            };
            Ok((policy, finding))
        }
    }
}

fn protection(tree: &Tree) -> Finding {
    const SUBJECT: &str = "files";
    if let Some(path) = &tree.unguarded {
        return Finding::attention(
            SUBJECT,
            format!("{}: the host's guard should protect this file, and does not", Shown(path)),
            "run `cow-guard load` on the host; `cow-guard status` says what prevents it",
        );
    }
    let (unified, private) = (tree.unified, tree.private);
    let files = |tally: crate::detach::survey::Tally| {
        format!("{} ({})", count(tally.files, "file"), size(tally.bytes))
    };
    Finding::ok(SUBJECT, format!("{} unified, {} private", files(unified), files(private)))
}

fn supervision(supervision: &Supervision) -> Finding {
    let (subject, text) = ("runs", supervision.describe());
    match supervision.remedy() {
        Some(remedy) => Finding::refused(subject, text, remedy),
        None => Finding::ok(subject, text),
    }
}

/// Whether writers are kept out while a name of an immutable file changes.
fn window(root: &Root, tree: &Tree) -> Option<Finding> {
    let has_windows = root.is_own() && tree.examples.iter().any(|found| found.inode.immutable);
    (has_windows && !gate::is_available()).then(|| {
        Finding::ok(
            "fanotify",
            "not available here: in the microseconds in which a name of a shared file changes, root of another guest may \
             write to that file; with cow-guard on the host there are no such moments",
        )
    })
}

fn pool(root: &Root) -> Finding {
    let Some(notice) = PoolNotice::of(root) else {
        return Finding::ok("pool", "none is known here: new files are listed for the host's cow-unify");
    };
    let reached = root.open_dir(Path::new(STATE_DIR)).is_ok_and(|dir| notice.pool.open(&dir).is_ok());
    let text = if reached {
        "within reach: new files are shared at the end of each run, if the pool has them"
    } else {
        "out of reach: new files are listed for the host's cow-unify"
    };
    Finding::ok("pool", text)
}

fn waiting(root: &Root, state: &TransactionState) -> io::Result<Option<Finding>> {
    let number = count(state.waiting, "file");
    let Some(since) = spool::waits_since(root)? else { return Ok(None) };
    let age = SystemTime::now().duration_since(since).unwrap_or_default();
    if age < MAX_WAITING {
        return Ok(Some(Finding::ok("waiting", format!("{number} for the host's cow-unify"))));
    }
    let days = count(age.as_secs() / (24 * 3600), "day");
    Ok(Some(Finding::attention(
        "waiting",
        format!("{number}, some for {days}: the host's cow-unify does not take the list"),
        "start cow-unify-changed.timer on the host, with this guest in its configuration, or run `cow-unify --changed` there",
    )))
}

/// A lock is its process's: it is never left over.
fn lock(root: &Root) -> Option<Finding> {
    let store = Store::existing(root).ok()??;
    let error = store.lock(Duration::ZERO).err()?;
    (error.kind() == io::ErrorKind::TimedOut).then(|| {
        Finding::attention(
            "lock",
            format!("another process holds {STATE_DIR}/lock: a hook or the host's cow-unify is at work here"),
            format!("wait for it; `fuser -v {STATE_DIR}/lock` names the process if it is in this container"),
        )
    })
}

fn transaction(state: &TransactionState) -> Vec<Finding> {
    const SUBJECT: &str = "last run";
    const RECOVER: &str = "run `cow-prepare --recover`; the next run of a package manager does the same";
    let mut findings = Vec::new();
    if state.unfinished > 0 {
        findings.push(Finding::attention(
            SUBJECT,
            format!("it was killed while the names of {} changed", count(state.unfinished, "file")),
            RECOVER,
        ));
    } else if state.is_left() {
        findings.push(Finding::attention(
            SUBJECT,
            format!("it was killed before {} could be shared again", count(state.detached, "file")),
            RECOVER,
        ));
    }
    if state.unable {
        findings.push(Finding::attention(
            SUBJECT,
            "the immutable flag could not be cleared: the host shares nothing more with this guest",
            "give the container CAP_LINUX_IMMUTABLE, or use cow-guard on the host; the next run notices it",
        ));
    }
    findings
}

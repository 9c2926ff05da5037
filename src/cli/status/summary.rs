//! The guest as a whole: what is shared, what is private, what is still owed.

use std::collections::HashSet;
use std::io::{self, Write};
use std::path::PathBuf;

use serde::Serialize;

use crate::detach::request::Request;
use crate::detach::survey::{Found, Tally, survey};
use crate::exit::Exit;
use crate::inspect::Verdict;
use crate::ledger::{Ledger, Stage};
use crate::report::{Reason, Shown, count, json_path, size, word};
use crate::state::members::Members;
use crate::state::spool::read_spool;
use crate::state::store::{STATE_DIR, Store};
use crate::state::unable::is_unable;
use crate::sys::file::inode::InodeId;
use crate::sys::process::Processes;
use crate::transaction::Guest;

/// The files below one directory.
#[derive(Debug, Serialize)]
pub struct Tree {
    #[serde(flatten, serialize_with = "json_path")]
    path: PathBuf,
    pub unified: Tally,
    pub private: Tally,
    administrators_own: u64,
    unprotected_links: u64,
    never_touched: u64,
    /// Names that something is mounted on.
    mount_points: u64,
    /// Shared files on a mount that takes no writes.
    on_read_only_mounts: u64,
    /// Directories on other filesystems or mounts, which are not looked into.
    other_filesystems: u64,
    /// A unified file of each mount.
    #[serde(skip)]
    pub examples: Vec<Found>,
    /// A file that the host's guard should protect, and does not.
    #[serde(skip)]
    pub unguarded: Option<PathBuf>,
}

impl Tree {
    /// Looks at every file below `path`; what cannot be looked at is logged and makes `exit` partial.
    pub fn walk(guest: Guest<'_>, path: PathBuf, exit: &mut Exit) -> Tree {
        let request = Request { other_names: true, ..Request::of_tree(&path) };
        let survey = survey(guest.root, guest.policy, &request);
        for unseen in &survey.unseen {
            log::error!("{}: {}", Shown(&unseen.path), Reason(&unseen.source));
            *exit = Exit::Partial;
        }
        let mut tree = Tree {
            unified: Tally::default(),
            private: survey.single,
            administrators_own: 0,
            unprotected_links: 0,
            never_touched: 0,
            mount_points: 0,
            on_read_only_mounts: 0,
            other_filesystems: 0,
            examples: Vec::new(),
            unguarded: survey.unguarded,
            path,
        };
        let mut seen: HashSet<InodeId> = HashSet::new();
        let mut add = |tally: &mut Tally, id: InodeId, bytes: u64| {
            tally.files += 1;
            tally.bytes += if seen.insert(id) { bytes } else { 0 };
        };
        for found in survey.unified.iter().filter(|found| found.place.dir.starts_with(&tree.path)) {
            add(&mut tree.unified, found.inode.id, found.inode.size);
            let place = |found: &Found| (found.inode.id.dev, found.inode.mount, found.fence);
            if !tree.examples.iter().any(|example| place(example) == place(found)) {
                tree.examples.push(found.clone());
            }
        }
        for found in survey.linked.iter().filter(|found| found.place.dir.starts_with(&tree.path)) {
            add(&mut tree.private, found.inode.id, found.inode.size);
        }
        for left in survey.left.iter().filter(|left| left.path.starts_with(&tree.path)) {
            match left.verdict {
                Verdict::AdministratorsOwn | Verdict::AppendOnly => tree.administrators_own += 1,
                Verdict::UnprotectedLinks => tree.unprotected_links += 1,
                Verdict::NeverTouch if !left.path.starts_with(STATE_DIR) => tree.never_touched += 1,
                Verdict::MountPoint => tree.mount_points += 1,
                Verdict::ReadOnlyMount => tree.on_read_only_mounts += 1,
                Verdict::OtherFilesystem if !guest.policy.never_unify.matches(&left.path) => {
                    tree.other_filesystems += 1;
                }
                _ => {}
            }
        }
        tree
    }

    /// Whether any file in it is unified.
    pub fn has_unified(&self) -> bool {
        self.unified.files > 0
    }

    /// Prints it for a person.
    pub fn print(&self, out: &mut dyn Write) -> io::Result<()> {
        let tally = |tally: Tally| format!("{}, {}", count(tally.files, "file"), size(tally.bytes));
        writeln!(out, "{}", Shown(&self.path))?;
        line(out, "unified", &tally(self.unified))?;
        line(out, "private", &tally(self.private))?;
        for (number, what) in [
            (self.mount_points, "that something is mounted on"),
            (self.on_read_only_mounts, "unified, on a read-only mount"),
            (self.administrators_own, "immutable or append-only, protected by the administrator"),
            (self.unprotected_links, "with hard links, without protection"),
            (self.never_touched, "unified, named in the policy's never_touch list"),
        ] {
            if number > 0 {
                line(out, "left", &format!("{} {what}", count(number, "file")))?;
            }
        }
        if self.other_filesystems > 0 {
            let directories = count(self.other_filesystems, "directory");
            let mounts = word(self.other_filesystems, "another mount", "other mounts");
            line(out, "left", &format!("{directories} on {mounts}; give one as PATH to see its files"))?;
        }
        Ok(())
    }
}

/// Transactions, and what waits.
#[derive(Debug, Serialize)]
pub struct TransactionState {
    /// Names whose new content waits for the host.
    pub waiting: u64,
    /// Names that are private for now; the stash holds their originals.
    pub detached: u64,
    /// Intents that a killed process left.
    pub unfinished: u64,
    /// The immutable flag could not be cleared here: the host unifies nothing of this guest.
    pub unable: bool,
    /// Processes that take part in an open transaction.
    members: Vec<i32>,
    /// The newest run in the ledger.
    #[serde(skip_serializing_if = "Option::is_none")]
    last: Option<LastRun>,
}

#[derive(Debug, Serialize)]
struct LastRun {
    front_end: String,
    began: i64,
    settled: Option<i64>,
    detached: u64,
    bytes_copied: u64,
    shared_again: u64,
    handed_over: u64,
    failed: u64,
}

impl TransactionState {
    /// Reads ledger, members and spool; changes nothing.
    pub fn read(guest: Guest<'_>) -> anyhow::Result<TransactionState> {
        let mut state = TransactionState {
            waiting: read_spool(guest.root)?.len() as u64,
            detached: 0,
            unfinished: 0,
            unable: is_unable(guest.root),
            members: Vec::new(),
            last: None,
        };
        let Some(store) = Store::existing(guest.root)? else { return Ok(state) };
        let processes = Processes::open().ok();
        let members = Members::open(&store)?.all()?;
        let alive = members.iter().filter(|member| member.id.is_alive(processes.as_ref()));
        state.members = alive.map(|member| member.id.pid).collect();
        if let Some(ledger) = Ledger::view(&store) {
            for entry in ledger.entries()? {
                match entry.state {
                    Stage::Detached => state.detached += 1,
                    _ => state.unfinished += 1,
                }
            }
            state.last = ledger.last_run()?.map(|run| LastRun {
                front_end: run.front_end,
                began: run.began,
                settled: run.settled,
                detached: run.detached,
                bytes_copied: run.bytes,
                shared_again: run.restored,
                handed_over: run.waiting,
                failed: run.failed,
            });
        }
        Ok(state)
    }

    /// Whether a killed run has left something that nobody is at work on.
    pub fn is_left(&self) -> bool {
        self.detached > 0 && self.members.is_empty()
    }

    /// Prints it for a person.
    pub fn print(&self, out: &mut dyn Write) -> io::Result<()> {
        line(out, "waiting", &format!("{} for the host", count(self.waiting, "file")))?;
        if self.detached > 0 {
            let files = count(self.detached, "file");
            line(out, "detached", &format!("{files} until the transaction settles"))?;
        }
        if self.unfinished > 0 {
            let files = count(self.unfinished, "file");
            line(out, "unfinished", &format!("{files} of an interrupted run; run `cow-prepare --recover`"))?;
        }
        if self.unable {
            line(
                out,
                "unable",
                "to clear the immutable flag at the last attempt: cow-unify leaves this guest as it is",
            )?;
        }
        let Some(run) = &self.last else {
            return line(out, "transaction", "none yet");
        };
        let state = match (run.settled, self.members.as_slice()) {
            (Some(_), []) => "settled".to_owned(),
            (_, [_, ..]) => format!(
                "open, by process {}",
                self.members.iter().map(i32::to_string).collect::<Vec<_>>().join(", ")
            ),
            (None, []) => "not settled: the next run or `cow-prepare --recover` settles it".to_owned(),
        };
        line(out, "transaction", &format!("{} ({state})", run.front_end))?;
        let came_to = format!(
            "{} made private, {} copied, {} shared again, {} listed for the host, {} failed",
            count(run.detached, "file"),
            size(run.bytes_copied),
            run.shared_again,
            run.handed_over,
            run.failed
        );
        line(out, "", &came_to)
    }
}

/// A line of the summary.
fn line(out: &mut dyn Write, label: &str, text: &str) -> io::Result<()> {
    writeln!(out, "  {label:<14} {text}")
}

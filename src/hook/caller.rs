//! Who called a hook: the package manager's process, through a shell or not, and the guest it works in.

use std::io;
use std::path::Path;

use crate::report::Reason;
use crate::state::members::{Member, Members};
use crate::state::store::Store;
use crate::sys::file::inode::Inode;
use crate::sys::path::root::Root;
use crate::sys::process::{Process, Processes};

/// Programs that stand between a package manager and its hook.
const SHELLS: [&str; 5] = ["sh", "dash", "bash", "ash", "busybox"];

/// The guest that is worked on, and who works on it.
#[derive(Debug)]
pub struct Caller {
    /// The guest's root.
    pub root: Root,
    /// The process table; none in a chroot without `/proc` where we may not make one.
    pub processes: Option<Processes>,
    /// The hook's ancestors, the nearest first.
    pub ancestors: Vec<Process>,
}

impl Caller {
    /// The caller, and the guest at `root`.
    pub fn of(root: &Path) -> io::Result<Caller> {
        let processes =
            Processes::open().inspect_err(|e| log::debug!("no process table: {}", Reason(e))).ok();
        let ancestors = processes.as_ref().and_then(|p| p.ancestors().ok()).unwrap_or_default();
        Ok(Caller { root: Root::open(root)?, processes, ancestors })
    }

    /// The nearest ancestor that is no shell: the package manager's front end, or whatever uses its library.
    pub fn front_end(&self) -> Option<&Process> {
        self.ancestors.iter().find(|process| !SHELLS.iter().any(|shell| process.command == *shell))
    }

    /// The process that runs hooks one after the other from a child of its own, and that child: as apt does, for those
    /// that are told nothing.
    pub fn front_end_and_child(&self) -> Vec<&Process> {
        let mut programs =
            self.ancestors.iter().skip_while(|process| SHELLS.iter().any(|shell| process.command == *shell));
        let Some(child) = programs.next() else { return Vec::new() };
        let command_line = |process: &Process| self.processes.as_ref()?.command_line(process.id.pid).ok();
        // A child that has executed nothing is called as its parent is.
        let parent = programs.next().filter(|parent| {
            parent.command == child.command
                && command_line(parent).is_some_and(|line| command_line(child) == Some(line))
        });
        parent.into_iter().chain([child]).collect()
    }

    /// Whether a process has the same root directory as this one.
    pub fn shares_root(&self, process: &Process) -> bool {
        let root = self.processes.as_ref().and_then(|processes| processes.root_inode(process.id.pid).ok());
        root.is_some_and(|root| {
            Inode::of(&self.root).is_ok_and(|own| self.root.is_own() && own.id == root.id)
        })
    }

    /// The nearest ancestor that runs this program.
    pub fn running(&self, program: &str) -> Option<&Process> {
        self.ancestors.iter().find(|process| process.command == program)
    }

    /// The living member that has already planned for what this hook's caller is about to do, or had it looked at.
    pub fn covered_by(&self) -> Option<Member> {
        let store = Store::existing(&self.root).ok()??;
        Members::open(&store).ok()?.covering(&self.ancestors).ok()?
    }
}

//! Hooks that are given the paths of a transaction on standard input: rpm's file triggers, pacman's hooks. And those
//! that are told only when one begins and ends: libzypp's.

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::caller::Caller;
use super::post;
use super::pre::{Decision, HookRun, Start, refuse};
use crate::detach::request::Request;
use crate::package::dpkg::lists;
use crate::package::touched::Touched;
use crate::package::{Managers, PackageManager};
use crate::policy::Policy;
use crate::report::Reason;
use crate::state::members::{Coverage, Members};
use crate::state::store::{STATE_DIR, Store};
use crate::supervise;
use crate::sys::path::root::Root;
use crate::transaction::{Guest, member};

/// What a package manager calls its hook with.
#[derive(Clone, Copy, Debug)]
pub struct Called<'a> {
    /// Who called.
    pub caller: &'a Caller,
    /// The guest's policy.
    pub policy: &'a Policy,
    /// The program that changes files: `rpm`.
    pub program: &'a str,
}

/// Does `work` for `program`, which works in the root we are in; nothing where there is no policy.
///
/// # Errors
/// The root cannot be opened.
pub fn called<T>(
    program: &str,
    policy: impl FnOnce(&Root) -> Option<Policy>,
    work: impl FnOnce(Called<'_>, &Managers<'_>) -> T,
) -> io::Result<Option<T>> {
    let caller = Caller::of(Path::new("/"))?;
    let policy = policy(&caller.root);
    Ok(policy.map(|policy| {
        work(Called { caller: &caller, policy: &policy, program }, &Managers::new(&caller.root))
    }))
}

impl<'a> Called<'a> {
    /// The guest, as its policy says.
    pub fn guest(&self) -> Guest<'a> {
        Guest { root: &self.caller.root, policy: self.policy }
    }

    /// Detaches what is unified among the paths, and in the places scripts write; unless somebody has already, for
    /// all of the run. `more` are paths that the caller was not given.
    pub fn pre(&self, manager: &dyn PackageManager, more: impl FnOnce(&Caller) -> Vec<PathBuf>) -> Decision {
        let mut paths = match read() {
            Ok(paths) => paths,
            Err(e) => {
                let reason = format!("the list of files cannot be read: {}", Reason(e));
                return refuse(self.policy, self.program, &[reason], "run the command again");
            }
        };
        if self.caller.covered_by().is_some() {
            return Decision::GoOn;
        }
        paths.extend(more(self.caller));
        let process = self.caller.front_end().map(|process| member(process.id, Coverage::Nothing));
        let run =
            HookRun { guest: self.guest(), front_end: self.program, program: self.program, member: process };
        // Whoever supervises this run already keeps the originals for its end.
        let is_inherited = supervise::inherited().is_ok_and(|inherited| inherited);
        let supervise = is_inherited.then_some(Start { may: &|| Ok(()), begin: &|| Ok(()) });
        run.prepare(manager, supervise, &request(paths, self.policy))
    }

    /// Whether what [`Called::pre`] would do can be done; does nothing.
    pub fn check(&self) -> Decision {
        let checked = read().map(|paths| self.guest().check(&request(paths, self.policy)));
        match checked {
            // The hook that follows meets the same.
            Err(_) | Ok(Ok(())) => Decision::GoOn,
            Ok(Err(refusal)) => refuse(self.policy, self.program, &[refusal.to_string()], &refusal.remedy()),
        }
    }

    /// The run is over, as far as this caller knows.
    pub fn post(&self, manager: &dyn PackageManager) {
        // Nobody is to be stopped by a pipe that is closed too early.
        let _ = io::copy(&mut io::stdin().lock(), &mut io::sink());
        self.leave(manager);
    }

    /// A run begins whose single steps plan for themselves: none of them is to settle.
    pub fn join(&self) {
        let Some(process) = self.caller.front_end() else { return };
        let member = member(process.id, Coverage::Nothing);
        let joined = Store::open(&self.caller.root).and_then(|store| Members::open(&store)?.join(member));
        // Each step settles by itself then.
        joined.unwrap_or_else(|e| log::debug!("{STATE_DIR}: {}", Reason(e)));
    }

    /// The run is over: settles, unless the caller is part of another one.
    pub fn leave(&self, manager: &dyn PackageManager) {
        if self.caller.covered_by().is_some() {
            return;
        }
        let done: Vec<_> = self.caller.front_end().map(|process| process.id).into_iter().collect();
        post::report(self.guest().finish(&done, manager));
    }
}

fn read() -> io::Result<Vec<PathBuf>> {
    let mut text = Vec::new();
    io::stdin().lock().read_to_end(&mut text)?;
    Ok(lists::list(&text)?)
}

/// What a run touches that was told of these paths: their files, what symlinks among them lead to, and where scripts
/// write.
fn request(paths: Vec<PathBuf>, policy: &Policy) -> Request {
    let touched = Touched { followed: paths.clone(), paths, ..Touched::default() };
    Request { touched, patterns: policy.prepare.clone(), by_name: true, ..Request::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_hook_is_told_is_looked_at_with_what_symlinks_lead_to() {
        let policy = Policy::builtin().unwrap();
        let paths = vec![PathBuf::from("/usr/bin/x"), PathBuf::from("/etc/y")];
        let request = request(paths.clone(), &policy);
        assert_eq!((&request.touched.paths, &request.touched.followed), (&paths, &paths));
        assert_eq!(request.patterns, policy.prepare);
        assert!(request.given.is_empty() && request.touched.trees.is_empty() && !request.other_names);
    }
}

//! Which processes take part in the open transaction.
//!
//! One small file a process: apt has one for its whole run, dpkg one for its own. Nothing settles while one of them
//! lives. Reading these few files is all that a nested hook does, so dpkg may be run two hundred times.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::OwnedFd;

use crate::state::store::Store;
use crate::sys::budget;
use crate::sys::path::dirfd;
use crate::sys::path::root::read_at;
use crate::sys::process::{Process, ProcessId, Processes};

/// A process that takes part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// The process.
    pub id: ProcessId,
    /// What is done already for the processes it starts.
    pub covers: Coverage,
    /// When it joined, nanoseconds since 1970.
    pub since: i64,
}

/// What is done already for the processes that a member starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coverage {
    /// Nothing: they plan for themselves.
    Nothing = 0,
    /// All that they will touch was planned for.
    Planned = 1,
    /// All that they will touch was looked at; they are to be supervised.
    Supervised = 2,
}

/// The members of a guest's transaction.
#[derive(Debug)]
pub struct Members {
    dir: OwnedFd,
}

impl Members {
    /// Opens the list.
    pub fn open(store: &Store) -> io::Result<Members> {
        Ok(Members { dir: store.members()? })
    }

    /// Adds a member, or replaces what is said of the same process.
    pub fn join(&self, member: Member) -> io::Result<()> {
        let line = format!("{} {} {}\n", member.id.start, member.covers as u8, member.since);
        dirfd::replace_file(&self.dir, &file_name(member.id.pid), line.as_bytes())
    }

    /// Removes a member.
    pub fn leave(&self, pid: i32) -> io::Result<()> {
        dirfd::remove_file(&self.dir, &file_name(pid))
    }

    /// Takes everybody off the list.
    pub fn clear(&self) -> io::Result<()> {
        dirfd::names(&self.dir)?.iter().try_for_each(|name| dirfd::remove_file(&self.dir, name))
    }

    /// Everybody on the list, the dead too.
    pub fn all(&self) -> io::Result<Vec<Member>> {
        let mut members = Vec::new();
        for name in dirfd::names(&self.dir)? {
            let pid = name.to_str().and_then(|name| name.parse().ok());
            let content = pid.and_then(|pid| Some((pid, read_at(&self.dir, &name, budget::SMALL).ok()?)));
            match content.and_then(|(pid, content)| parse(pid, &content)) {
                Some(member) => members.push(member),
                // Half written by a process that was killed.
                None => dirfd::remove_file(&self.dir, &name)?,
            }
        }
        Ok(members)
    }

    /// Takes those off the list that are `done` or dead, and says when the first of all joined, and who is left.
    pub fn sweep(
        &self,
        done: &[ProcessId],
        processes: Option<&Processes>,
    ) -> io::Result<(Option<i64>, Vec<Member>)> {
        let all = self.all()?;
        let since = all.iter().map(|member| member.since).min();
        let stays = |member: &Member| !done.contains(&member.id) && member.id.is_alive(processes);
        let (staying, leaving): (Vec<_>, Vec<_>) = all.into_iter().partition(stays);
        for member in leaving {
            self.leave(member.id.pid)?;
        }
        Ok((since, staying))
    }

    /// The living member that covers a process with these ancestors, by its plan or by supervision.
    pub fn covering(&self, ancestors: &[Process]) -> io::Result<Option<Member>> {
        let all = self.all()?;
        Ok(all
            .into_iter()
            .find(|member| member.covers != Coverage::Nothing && ancestors.iter().any(|a| a.id == member.id)))
    }
}

fn file_name(pid: i32) -> OsString {
    OsStr::new(&pid.to_string()).to_os_string()
}

pub(crate) fn parse(pid: i32, content: &[u8]) -> Option<Member> {
    let mut words = std::str::from_utf8(content).ok()?.split_ascii_whitespace();
    let start = words.next()?.parse().ok()?;
    let covers = match words.next()? {
        "1" => Coverage::Planned,
        "2" => Coverage::Supervised,
        _ => Coverage::Nothing,
    };
    let since = words.next()?.parse().ok()?;
    Some(Member { id: ProcessId { pid, start }, covers, since })
}

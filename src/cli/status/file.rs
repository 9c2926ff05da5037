//! One file: what it is, whose it is, what will become of it.

use std::collections::HashMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::supervision;
use crate::detach::layers::Layers;
use crate::detach::request::Request;
use crate::detach::survey::{Found, survey};
use crate::inspect::{Surroundings, Verdict, VisibleFence, inspect};
use crate::ledger::Ledger;
use crate::package::Managers;
use crate::package::owners::Owners;
use crate::report::{Shown, count, json_path, size, warn_of_missing_guard};
use crate::state::spool::read_spool;
use crate::state::store::Store;
use crate::sys::file::inode::Inode;
use crate::transaction::course::Course;
use crate::transaction::{Guest, Refusal};

/// What is to be said of a file.
#[derive(Debug, Serialize)]
pub struct FileReport {
    #[serde(flatten, serialize_with = "json_path")]
    path: PathBuf,
    #[serde(flatten)]
    verdict: Verdict,
    inode: u64,
    links: u32,
    immutable: bool,
    /// The host's guard protects it.
    guarded: bool,
    bytes: u64,
    packages: Vec<String>,
    configuration_file: bool,
    /// The stash holds the original this file was copied from.
    stashed: bool,
    waiting_for_host: bool,
    next: String,
}

/// Explains each of these files, which exist; the paths are canonical.
pub(crate) fn explain(guest: Guest<'_>, paths: &[PathBuf]) -> anyhow::Result<Vec<FileReport>> {
    let owners = Owners::load(&Managers::new(guest.root))?;
    let waiting = read_spool(guest.root)?;
    let stashed = stashed(guest)?;
    let request = Request { other_names: true, ..Request::of_paths(paths.iter().cloned()) };
    let survey = survey(guest.root, guest.policy, &request);
    survey.unguarded.iter().for_each(|path| warn_of_missing_guard(path));
    let mut verdicts: HashMap<PathBuf, Verdict> = HashMap::new();
    for Found { place, inode, fence } in &survey.unified {
        let surroundings = Surroundings { layered: false, guarded: *fence == VisibleFence::Guard };
        verdicts.insert(place.path(), inspect(inode, 1, guest.policy.protection, surroundings));
    }
    let mut layers = Layers::default();
    for Found { place, inode, .. } in &survey.linked {
        let layered = layers.hold(guest.root, &place.dir, inode);
        let verdict = if layered { Verdict::Layered } else { Verdict::PrivateLinks };
        verdicts.insert(place.path(), verdict);
    }
    for left in survey.left {
        verdicts.insert(left.path, left.verdict);
    }
    let course = supervision::course(guest, &survey.unified);
    let mut files = Vec::new();
    for path in paths {
        let dir = guest.root.open_dir(path.parent().unwrap_or(Path::new("/")))?;
        let inode = Inode::at(dir, path.file_name().unwrap_or_default())?;
        let verdict = verdicts.get(path).copied().unwrap_or(Verdict::Private);
        let packages: Vec<String> = owners.of(path).map(str::to_owned).collect();
        let stashed = stashed.contains(path);
        let mut file = FileReport {
            next: String::new(),
            path: path.clone(),
            verdict,
            inode: inode.id.ino,
            links: inode.nlink,
            immutable: inode.immutable,
            guarded: verdict == Verdict::Unified { fence: VisibleFence::Guard },
            bytes: inode.size,
            configuration_file: owners.is_conffile(path),
            packages,
            stashed,
            waiting_for_host: waiting.contains(path),
        };
        file.next = next(guest, &file, &inode, &course);
        files.push(file);
    }
    Ok(files)
}

/// What the next transaction would do with the file.
fn next(guest: Guest<'_>, file: &FileReport, inode: &Inode, course: &Course) -> String {
    let FileReport { path, verdict, packages, stashed, .. } = file;
    if file.guarded && !matches!(course, Course::Refused(_)) {
        return next_of_guarded(guest, file, inode);
    }
    if verdict.is_unified() {
        match course {
            Course::Refused(refusal) => return refused(packages, refusal),
            Course::Supervised if !packages.is_empty() || guest.policy.prepare.matches(path) => {
                return "made private just before a package manager changes it (copy on write)".into();
            }
            _ => {}
        }
        if guest.policy.prepare.matches(path) {
            return "made private before every transaction (the policy's prepare list)".into();
        }
        if packages.is_empty() {
            return format!(
                "nothing: no package owns it; run `cow-prepare {}` before you change it",
                Shown(path)
            );
        }
        return format!("made private before {} is upgraded, configured or removed", packages.join(", "));
    }
    match verdict {
        Verdict::AdministratorsOwn if !packages.is_empty() => {
            "left as it is: the package manager cannot replace it until you run `chattr -i` on it".into()
        }
        Verdict::MountPoint if !packages.is_empty() => {
            "left as it is: the package manager cannot replace it while something is mounted on it".into()
        }
        Verdict::ReadOnlyMount if !packages.is_empty() => {
            "left as it is: the package manager cannot replace it while the mount is read-only".into()
        }
        Verdict::Private if *stashed => {
            "shared again when the transaction settles, if it has not changed".into()
        }
        _ => "nothing".into(),
    }
}

/// The same, of a file that the host's guard protects.
fn next_of_guarded(guest: Guest<'_>, file: &FileReport, inode: &Inode) -> String {
    let FileReport { path, packages, configuration_file, .. } = file;
    if packages.is_empty() || *configuration_file {
        if guest.policy.prepare.matches(path) {
            return "made private before every transaction (the policy's prepare list)".into();
        }
        return format!(
            "stays shared; it can be replaced or removed at any time; run `cow-prepare {}` before you write to it",
            Shown(path)
        );
    }
    let packages = packages.join(", ");
    if inode.mode & 0o7000 != 0 {
        return format!(
            "made private before {packages} is upgraded or removed, because dpkg changes its mode"
        );
    }
    format!("stays shared until {packages} is upgraded or removed, which replaces or removes only this name")
}

fn refused(packages: &[String], refusal: &Refusal) -> String {
    let runs = match packages {
        [] => "a run of a package manager that changes it is".to_owned(),
        packages => format!("upgrade, configuration and removal of {} are", packages.join(", ")),
    };
    format!("{runs} refused: {refusal}; {}", refusal.remedy())
}

fn stashed(guest: Guest<'_>) -> anyhow::Result<Vec<PathBuf>> {
    let Some(store) = Store::existing(guest.root)? else { return Ok(Vec::new()) };
    let Some(ledger) = Ledger::view(&store) else { return Ok(Vec::new()) };
    Ok(ledger.entries()?.into_iter().map(|entry| entry.intent.place.path()).collect())
}

impl FileReport {
    /// Prints it for a person.
    pub fn print(&self, out: &mut dyn Write) -> io::Result<()> {
        let line = |out: &mut dyn Write, label: &str, value: &str| writeln!(out, "  {label:<14} {value}");
        writeln!(out, "{}", Shown(&self.path))?;
        line(out, "verdict", &self.verdict.describe())?;
        line(out, "inode", &format!("{}, {}, {}", self.inode, count(self.links, "link"), size(self.bytes)))?;
        let protection = match (self.immutable, self.guarded) {
            (true, _) => VisibleFence::Immutable,
            (false, true) => VisibleFence::Guard,
            (false, false) => VisibleFence::None,
        };
        line(out, "protection", protection.name())?;
        let kind = if self.configuration_file { " (configuration file)" } else { "" };
        let owner = if self.packages.is_empty() { "none".to_owned() } else { self.packages.join(", ") };
        line(out, "package", &format!("{owner}{kind}"))?;
        if self.stashed {
            line(out, "stash", "holds the original")?;
        }
        if self.waiting_for_host {
            line(out, "waiting", "for the host to unify it")?;
        }
        line(out, "next", &self.next)
    }
}

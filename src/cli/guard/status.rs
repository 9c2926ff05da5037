//! `cow-guard status`: what is loaded, and what it protects. Changes nothing but for a probe of its own in each pool.

use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;

use serde::Serialize;

use super::arguments::Common;
use super::pools::{self, GuardedPool, Pools};
use crate::cli::outcome;
use crate::exit::Exit;
use crate::guard::{kernel, loader, pins, programs};
use crate::parallel;
use crate::report::{Shown, count, json_path};
use crate::sys::share::mark;
use crate::sys::share::swap::Name;
use crate::unify::pool::directory::Pool;
use crate::unify::pool::object::PoolFile;
use crate::unify::pool::protection::PoolProtection;

/// What there is, for machines. What is not known is null.
#[derive(Debug, Serialize)]
struct Report {
    kernel: String,
    /// The kernel asks BPF programs before it changes files.
    bpf_lsm: Option<bool>,
    lockdown: Option<String>,
    loaded: bool,
    /// The number of the complete generation.
    generation: Option<u64>,
    /// Generations whose loader was killed.
    incomplete: usize,
    hooks: Vec<Hook>,
    /// Tasks that are about to change flags can be listed.
    lists_flag_changes: bool,
    /// UUIDs of the filesystems that are guarded.
    filesystems: Vec<String>,
    /// Why the guard cannot be loaded, or does not answer.
    cannot_load: Option<String>,
    remedy: Option<String>,
    pools: Vec<Row>,
    problems: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Hook {
    name: &'static str,
    /// The kernel has it.
    known: bool,
    /// A program of the guard answers it.
    answered: bool,
}

#[derive(Debug, Serialize)]
struct Row {
    #[serde(flatten, serialize_with = "json_path")]
    path: PathBuf,
    /// Of its filesystem.
    uuid: String,
    /// Its filesystem is mounted.
    mounted: bool,
    protection: Option<PoolProtection>,
    /// A marked file cannot be written to.
    guarded: Option<bool>,
    objects: Option<usize>,
    /// Objects with the mark.
    marked: Option<usize>,
    immutable: Option<usize>,
}

pub(super) fn run(json: bool, common: &Common) -> anyhow::Result<Exit> {
    let report = look()?;
    let is_open = |row: &&Row| row.relies() && !row.is_protected();
    let open = report.pools.iter().filter(is_open).count();
    let exit = if open == 0 && report.problems.is_empty() { Exit::Done } else { Exit::Partial };
    Ok(outcome::print(exit, |out| {
        if json {
            outcome::json(out, &report)
        } else if common.quiet > 0 {
            Ok(())
        } else {
            text(out, &report)
        }
    }))
}

fn look() -> anyhow::Result<Report> {
    let pools = Pools::look(&[], &[])?;
    let generations = loader::generations()?;
    let current = generations.iter().rev().find(|generation| generation.complete);
    let programs = || generations.iter().flat_map(|generation| &generation.programs);
    let is_pinned = |name: &str| programs().any(|program| program == name);
    let hooks = programs::hooks().unwrap_or_default();
    let hooks = hooks.into_iter().map(|(name, known)| Hook { name, known, answered: is_pinned(name) });
    let answers = current.is_some() && !kernel::has_stopped_programs();
    let failure = if answers { None } else { loader::attempt().err() };
    let active = kernel::security_modules().ok();
    Ok(Report {
        kernel: kernel::release(),
        bpf_lsm: active.map(|active| active.iter().any(|name| name == "bpf")),
        lockdown: kernel::lockdown(),
        loaded: current.is_some(),
        generation: current.map(|generation| generation.number),
        incomplete: generations.iter().filter(|generation| !generation.complete).count(),
        hooks: hooks.collect(),
        lists_flag_changes: is_pinned(pins::FLAG_CHANGES),
        filesystems: current.iter().flat_map(|one| &one.filesystems).map(ToString::to_string).collect(),
        cannot_load: failure.as_ref().map(ToString::to_string),
        remedy: failure.as_ref().and_then(|e| e.remedy()),
        pools: pools.all.iter().map(Row::of).collect(),
        problems: pools.problems,
    })
}

impl Row {
    fn of(pool: &GuardedPool) -> Row {
        let open = pool.open.as_ref();
        let files = open.and_then(|pool| pool.look_at_all(parallel::processors()).ok());
        let marked = open.zip(files.as_ref()).map(|(pool, files)| marked(pool, files));
        Row {
            path: pool.path.clone(),
            uuid: pool.uuid.to_string(),
            mounted: open.is_some(),
            protection: open.and_then(|pool| pool.settings.protection),
            guarded: open.and_then(|pool| pools::is_guarded(pool).ok()),
            objects: files.as_ref().map(Vec::len),
            marked,
            immutable: files.map(|files| files.iter().filter(|file| file.inode.immutable).count()),
        }
    }

    fn relies(&self) -> bool {
        self.protection == Some(PoolProtection::Guard)
    }

    /// Whether guests cannot change the objects; an unmounted pool cannot be changed either.
    fn is_protected(&self) -> bool {
        !self.mounted || self.guarded == Some(true) || self.immutable == self.objects
    }
}

/// How many of these files have the mark.
fn marked(pool: &Pool, files: &[PoolFile]) -> usize {
    let is_marked = |file: &PoolFile| {
        let dir = pool.dir_of(file)?;
        mark::is_set(Name { dir: dir.as_fd(), name: &file.file }.open()?)
    };
    let marked = parallel::map(parallel::processors(), files, is_marked);
    marked.into_iter().filter(|is_marked| matches!(is_marked, Ok(true))).count()
}

fn text(out: &mut dyn Write, report: &Report) -> io::Result<()> {
    let modules = match report.bpf_lsm {
        Some(true) => "BPF is an active security module",
        Some(false) => "BPF is no active security module",
        None => "its security modules are not known",
    };
    write!(out, "kernel: {}, {modules}", report.kernel)?;
    match report.lockdown.as_deref() {
        None | Some("none") => writeln!(out)?,
        Some(level) => writeln!(out, ", lockdown={level}")?,
    }
    let known = report.hooks.iter().filter(|hook| hook.known);
    let answered = known.clone().filter(|hook| hook.answered).count();
    match report.generation {
        Some(number) => writeln!(
            out,
            "guard: loaded, generation {number}, {answered} of {}, filesystems guarded: {}",
            count(known.clone().count(), "hook"),
            report.filesystems.len()
        )?,
        None => writeln!(out, "guard: not loaded")?,
    }
    for hook in known.filter(|hook| report.loaded && !hook.answered) {
        writeln!(out, "hook {}: not answered", hook.name)?;
    }
    if report.incomplete > 0 {
        writeln!(out, "incomplete generations: {}; `cow-guard load` removes them", report.incomplete)?;
    }
    if let Some(reason) = &report.cannot_load {
        let what = if report.loaded { "it does not answer" } else { "it cannot be loaded" };
        writeln!(out, "{what}: {reason}")?;
    }
    if let Some(remedy) = &report.remedy {
        writeln!(out, "remedy: {remedy}")?;
    }
    report.pools.iter().try_for_each(|row| print_row(out, row, &report.filesystems))?;
    report.problems.iter().try_for_each(|problem| writeln!(out, "{problem}"))
}

fn print_row(out: &mut dyn Write, row: &Row, guarded: &[String]) -> io::Result<()> {
    write!(out, "pool {}: ", Shown(&row.path))?;
    if !row.mounted {
        let then = if guarded.contains(&row.uuid) {
            "guarded as soon as it is mounted"
        } else {
            "NOT guarded: when it is mounted, run `cow-guard load` before a guest on it starts"
        };
        return writeln!(out, "not mounted, filesystem {}, {then}", row.uuid);
    }
    let state = match row.guarded {
        Some(true) => "guarded",
        _ if row.is_protected() => "not guarded, immutable instead",
        Some(false) if row.relies() => "NOT PROTECTED",
        Some(false) => "not guarded",
        None => "the guard cannot be tried out",
    };
    let number = |number: Option<usize>| number.map_or("?".to_owned(), |number| number.to_string());
    let objects = row.objects.map_or("? objects".to_owned(), |objects| count(objects, "object"));
    writeln!(
        out,
        "{state}, protection {}, {objects}, {} marked, {} immutable",
        row.protection.map_or("not written down", PoolProtection::name),
        number(row.marked),
        number(row.immutable)
    )?;
    if row.relies() && !row.is_protected() {
        writeln!(
            out,
            "guests can change shared files of this pool; run `cow-guard load`, which loads the guard or makes them immutable"
        )?;
    }
    Ok(())
}

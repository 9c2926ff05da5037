//! `cow-unify GUEST...`: the pass itself.

use std::collections::{BTreeMap, HashSet};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::ArgMatches;
use serde::Serialize;

use super::arguments::{Common, PassArguments, ProtectionArgument};
use super::guests::Guests;
use super::{place, shared, verify};
use crate::cli::bar::Bar;
use crate::cli::outcome::Misuse;
use crate::cli::{Named, Problem};
use crate::exit::Exit;
use crate::report::{Reason, Shown, count, json_path, size, word};
use crate::sys::file::filesystem;
use crate::sys::path::root::Root;
use crate::sys::process::programs::Programs;
use crate::sys::share::iunlink;
use crate::unify::care::gc::{Collected, Collector};
use crate::unify::care::repair::FoundName;
use crate::unify::eligible::rules::Rules;
use crate::unify::pass::{InUse, Pass, PassOptions, Passed};
use crate::unify::pass::{pools, running_system};
use crate::unify::pool::directory::{Pool, may_change};
use crate::unify::pool::guard;
use crate::unify::pool::identity::Mtime;
use crate::unify::pool::protection::PoolProtection;
use crate::unify::pool::settings::{PoolSettings, Sharing};
use crate::unify::scan::catalog::GuestIndex;
use crate::unify::scan::guest::GuestTree;
use crate::unify::scan::not_unified::NotUnified;
use crate::unify::{Error, FailedPath, SharedError};

/// What happened, for machines.
#[derive(Debug, Serialize)]
struct Report {
    dry_run: bool,
    pool: Named,
    guests: u64,
    /// Private names that were looked at.
    looked_at: u64,
    /// Names linked.
    linked: u64,
    /// Objects made for them.
    objects: u64,
    /// Guests' own files among these, which were not copied.
    adopted: u64,
    /// Bytes that the filesystem gets back, less what new objects take.
    bytes_freed: u64,
    bytes_copied: u64,
    /// Names in directories that were read which were the pool's already.
    shared_before: u64,
    /// Names of objects in quarantine.
    damaged: u64,
    /// Files in quarantine that guests still have names of.
    still_seen: u64,
    left: BTreeMap<NotUnified, u64>,
    /// Names that stay as they are; only with --verbose.
    left_names: Vec<LeftName>,
    /// Paths that are no guests, and what they are.
    no_guests: Vec<Problem>,
    #[serde(skip)]
    verbose: bool,
    recovered: u64,
    /// Names linked; only with --verbose and --dry-run.
    names: Vec<Named>,
    skipped: Vec<Problem>,
    failed: Vec<Problem>,
    /// Windows in which somebody tried in vain to write to a shared inode.
    contested: u64,
    /// Objects that somebody has written to in one.
    changed_objects: u64,
    /// Names linked although running programs were loaded from what they named.
    displaced: u64,
    /// How many processes these are.
    displaced_programs: u64,
    /// Files of the pool that had lost their protection, and have it again.
    protected: Vec<Named>,
    /// Files of the pool that are not protected, and were left so by a dry run.
    unprotected_objects: u64,
    /// Objects that had changed without protection, and are set aside.
    set_aside: Vec<Named>,
    /// Names of these in guests that have an intact file again.
    repaired: u64,
    /// Objects removed that no guest had; only with --gc.
    collected: Option<u64>,
    /// Bytes of disk that they took.
    bytes_collected: u64,
}

#[derive(Debug, Serialize)]
struct LeftName {
    #[serde(flatten, serialize_with = "json_path")]
    path: PathBuf,
    reason: NotUnified,
}

pub fn run(arguments: &PassArguments, matches: &ArgMatches, common: &Common) -> anyhow::Result<Exit> {
    let policy = shared::policy()?;
    let rules = rules(arguments, matches)?;
    let guests = Guests::open(&arguments.guests, arguments.scope)?;
    for guest in guests.open.iter().filter(|_| !arguments.unify_running_system) {
        if let Some(part) = running_system::part_of(guest) {
            return Err(Error::System { path: guest.root.path().to_path_buf(), part }.into());
        }
    }
    let path = place::of(common, &guests.open)?;
    let existing = Pool::open(&path)?;
    let settings = settings(&path, existing.as_ref(), arguments)?;
    let Guests { open: guests, left, others } = guests.in_reach(&path, settings.share)?;
    let reference = arguments.reference.as_ref().map(|path| reference(&guests, path)).transpose()?;
    let mut protection =
        if arguments.dry_run { PoolProtection::None } else { protection(&path, settings, arguments)? };
    // All has been tried: a pool that would be refused is not made.
    let mut pool = match existing {
        None if !arguments.dry_run => Some(Pool::create(&path, settings)?),
        existing => existing,
    };
    if let Some(pool) = pool.as_ref().filter(|_| !arguments.dry_run) {
        protection = guarded(pool, arguments.protection, protection)?;
    }
    let options = PassOptions {
        scope: arguments.scope,
        rules,
        never: policy.never_unify.clone(),
        min_size: arguments.min_size,
        allow_setid: arguments.allow_setid,
        reference,
        protection,
        immutable: if arguments.dry_run {
            is_immutable(arguments, settings)
        } else {
            protection == PoolProtection::Immutable
        },
        threads: shared::threads(common),
        lock_timeout: policy.lock_timeout,
        reserve: policy.reserve,
        list: common.verbose > 0,
        in_use: arguments.in_use.unwrap_or(if arguments.changed { InUse::Wait } else { InUse::Replace }),
    };
    let _lock = pool.as_ref().map(|pool| shared::lock(pool, &policy)).transpose()?;
    if let Some(pool) = pool.as_mut().filter(|_| !arguments.dry_run) {
        record(pool, &options)?;
        pools::remember(pool, &guests).unwrap_or_else(|e| log::debug!("the list of pools: {}", Reason(e)));
    }
    let bar = Bar::new(common.quiet > 0 || common.json);
    let programs = Programs::all();
    let pass = Pass {
        pool: pool.as_ref(),
        settings,
        options: &options,
        watch: &bar,
        locked: false,
        programs: Some(&programs),
    };
    let number = guests.len() as u64;
    let passed = match (arguments.changed, arguments.dry_run) {
        (true, _) => pass.changed(guests)?,
        (_, true) => pass.rehearse(guests)?,
        _ => pass.unify(guests)?,
    };
    let collected = match pool.as_ref().filter(|_| arguments.gc) {
        Some(pool) => {
            let PassOptions { lock_timeout, threads, .. } = options;
            Collector { pool, dry_run: arguments.dry_run, lock_timeout, threads, watch: &bar }.collect()?
        }
        None => Collected::default(),
    };
    Ok(report(arguments, common, Named { path }, number, Left { guests: left, others }, (passed, collected)))
}

/// The rules of the command line, in the order they stand there.
fn rules(arguments: &PassArguments, matches: &ArgMatches) -> anyhow::Result<Rules> {
    let read =
        |path: &PathBuf| std::fs::read(path).map_err(|e| anyhow::anyhow!("{}: {}", Shown(path), Reason(e)));
    let mut ordered: BTreeMap<usize, Rules> = BTreeMap::new();
    let at = |option: &str| matches.indices_of(option).into_iter().flatten().collect::<Vec<_>>();
    for (at, pattern) in at("exclude").into_iter().zip(&arguments.exclude) {
        let mut rules = Rules::default();
        rules.push_exclude(pattern).map_err(|e| Misuse(format!("--exclude {pattern}: {e}")))?;
        ordered.insert(at, rules);
    }
    for (at, pattern) in at("include").into_iter().zip(&arguments.include) {
        let mut rules = Rules::default();
        rules.push_include(pattern).map_err(|e| Misuse(format!("--include {pattern}: {e}")))?;
        ordered.insert(at, rules);
    }
    for (at, path) in at("exclude_from").into_iter().zip(&arguments.exclude_from) {
        let rules = Rules::read(&read(path)?).map_err(|e| Misuse(format!("{}: {e}", Shown(path))))?;
        ordered.insert(at, rules);
    }
    for (at, path) in at("vserver_excludes").into_iter().zip(&arguments.vserver_excludes) {
        let rules = Rules::read_vserver(&read(path)?).map_err(|e| Misuse(format!("{}: {e}", Shown(path))))?;
        ordered.insert(at, rules);
    }
    let mut all = Rules::default();
    ordered.into_values().for_each(|rules| all.append(rules));
    Ok(all)
}

/// Which of the guests is the model; it must be one of them.
fn reference(guests: &[GuestTree], path: &Path) -> anyhow::Result<GuestIndex> {
    let reference = GuestTree::open(path)?;
    let found = guests.iter().position(|guest| guest.inode.id == reference.inode.id);
    found.map(GuestIndex::new).ok_or_else(|| {
        Misuse(format!("--reference {}: not one of the guests given; add it to them", Shown(path))).into()
    })
}

/// How files are shared: as the pool was made, or is to be.
fn settings(path: &Path, pool: Option<&Pool>, arguments: &PassArguments) -> Result<PoolSettings, Error> {
    let asked = |default: PoolSettings| PoolSettings {
        share: arguments.share.unwrap_or(default.share),
        mtime: arguments.mtime.unwrap_or(default.mtime),
        ..default
    };
    let Some(made) = pool.map(|pool| pool.settings) else { return Ok(asked(PoolSettings::default())) };
    // Protection can be had later; what has it keeps it.
    let turns = match (arguments.protection, made.protection) {
        (Some(ProtectionArgument::None), Some(protection)) => protection != PoolProtection::None,
        (Some(ProtectionArgument::Guard), Some(protection)) => {
            !matches!(protection, PoolProtection::Guard | PoolProtection::None)
        }
        (Some(ProtectionArgument::Immutable | ProtectionArgument::Iunlink), Some(protection)) => {
            protection == PoolProtection::Guard
        }
        _ => false,
    };
    if turns || asked(made) != made {
        let share = if made.share == Sharing::Hardlink { "hardlink" } else { "reflink" };
        let mtime = if made.mtime == Mtime::Match { "match" } else { "ignore" };
        let protection = made.protection.map(|protection| format!(" --protection {}", protection.name()));
        let made = format!("--share {share} --mtime {mtime}{}", protection.unwrap_or_default());
        return Err(Error::PoolSettings { path: path.to_path_buf(), made });
    }
    Ok(made)
}

/// How this host can fence shared inodes, tried before anything is touched: in the pool, or in the directory that it is to
/// be made in.
fn protection(
    path: &Path,
    settings: PoolSettings,
    arguments: &PassArguments,
) -> Result<PoolProtection, Error> {
    let reflink = settings.share == Sharing::Reflink;
    let near = if path.exists() { path } else { path.parent().unwrap_or(path) };
    let dir = Root::open(near).map_err(|source| Error::At { path: near.to_path_buf(), source })?;
    if reflink && !filesystem::can_clone(&dir) {
        return Err(Error::NoReflink { path: path.to_path_buf() });
    }
    let best = || if iunlink::is_known() { PoolProtection::Iunlink } else { PoolProtection::Immutable };
    let protection = match (arguments.protection, settings.protection) {
        _ if reflink => PoolProtection::None,
        (Some(ProtectionArgument::Iunlink), _) if !iunlink::is_known() => {
            return Err(Error::NoIunlink { path: path.to_path_buf() });
        }
        (Some(ProtectionArgument::Guard), _) => PoolProtection::Guard,
        (None | Some(ProtectionArgument::Auto), Some(PoolProtection::Guard)) => PoolProtection::Guard,
        (None, Some(PoolProtection::Iunlink))
        | (None, None)
        | (Some(ProtectionArgument::Auto | ProtectionArgument::Iunlink), _) => best(),
        (None, Some(made)) => made,
        (Some(ProtectionArgument::Immutable), _) => PoolProtection::Immutable,
        (Some(ProtectionArgument::None), _) => PoolProtection::None,
    };
    may_change(&dir, path, protection == PoolProtection::Immutable).map(|()| protection)
}

/// The guard, if it protects this pool and nothing else is asked for; without it, `other`.
fn guarded(
    pool: &Pool,
    asked: Option<ProtectionArgument>,
    other: PoolProtection,
) -> Result<PoolProtection, Error> {
    let made = pool.settings.protection;
    let is_auto = matches!(asked, None | Some(ProtectionArgument::Auto));
    match other {
        PoolProtection::Guard if made == Some(PoolProtection::Guard) => Ok(guard::instead(pool, other)),
        PoolProtection::Guard => match guard::load(pool) {
            Ok(()) => Ok(other),
            Err(source) => Err(Error::NoGuard { path: pool.path().to_path_buf(), source }),
        },
        PoolProtection::Immutable if is_auto && made.is_none() => match guard::load_unasked(pool) {
            Ok(()) => Ok(PoolProtection::Guard),
            Err(e) => {
                log::debug!("{}: {e}: objects are made immutable", Shown(pool.path()));
                Ok(other)
            }
        },
        _ => Ok(other),
    }
}

/// Whether shared inodes are immutable, or will be.
fn is_immutable(arguments: &PassArguments, settings: PoolSettings) -> bool {
    match (arguments.protection, settings.protection) {
        _ if settings.share == Sharing::Reflink => false,
        (Some(ProtectionArgument::None), _) | (None, Some(PoolProtection::None)) => false,
        (Some(ProtectionArgument::Guard), _) | (_, Some(PoolProtection::Guard)) => false,
        (Some(ProtectionArgument::Immutable), _) | (None, Some(PoolProtection::Immutable)) => true,
        _ => !iunlink::is_known(),
    }
}

/// Writes down how the pool is protected from now on; what was made without protection gets it.
fn record(pool: &mut Pool, options: &PassOptions) -> Result<(), Error> {
    let PassOptions { protection, lock_timeout, threads, .. } = *options;
    let made = pool.settings.protection;
    // What is immutable only while the guard is not there relies on the guard still.
    if made != Some(protection) && made != Some(PoolProtection::Guard) {
        pool.set_protection(protection)?;
        if let Some(limit) = protection.limit().filter(|_| pool.settings.share == Sharing::Hardlink) {
            log::warn!(
                "{}: files are shared with the protection {}: {limit}. For guests whose root you do not trust, install \
                 cow-guard, then run `cow-unify protect --to guard`; see PROTECTION in cow-unify(8)",
                Shown(pool.path()),
                protection.name()
            );
        }
    }
    if made == Some(PoolProtection::None) && protection != PoolProtection::None {
        pool.protect(&pool.look_at_all(threads)?, protection, lock_timeout, threads)?;
    }
    Ok(())
}

/// What took no part.
struct Left {
    /// Guests that could not, with the reason.
    guests: Vec<Problem>,
    /// What is no guest, and what it is instead.
    others: Vec<(PathBuf, String)>,
}

/// A name of a damaged inode that could not be repaired.
#[derive(Debug, thiserror::Error)]
#[error("damaged, not repaired: {}", Reason(.0))]
struct DamagedLeft(#[source] SharedError);

fn report(
    arguments: &PassArguments,
    common: &Common,
    pool: Named,
    guests: u64,
    left: Left,
    (passed, collected): (Passed, Collected),
) -> Exit {
    let linked = passed.linked;
    let (verified, repaired) = (passed.verified, passed.repaired);
    let paths = |paths: Vec<PathBuf>| paths.into_iter().map(|path| Named { path }).collect();
    let mended = repaired.names.iter().filter(|name| name.left.is_none()).count() as u64;
    let left_damaged =
        |FoundName { path, left, .. }: FoundName| Some(FailedPath::new(path, DamagedLeft(left?)));
    let failed = verified
        .failed
        .into_iter()
        .chain(repaired.failed)
        .chain(repaired.names.into_iter().filter_map(left_damaged))
        .chain(linked.failed)
        .chain(collected.failed);
    let named = arguments.dry_run || common.verbose > 0;
    let busy: HashSet<PathBuf> = passed.busy.into_values().collect();
    let report = Report {
        dry_run: arguments.dry_run,
        pool,
        guests,
        looked_at: passed.looked_at,
        linked: if arguments.dry_run { passed.names.len() as u64 } else { linked.names.len() as u64 },
        objects: linked.objects,
        adopted: linked.adopted,
        bytes_freed: if arguments.dry_run {
            passed.would_free
        } else {
            linked.freed.saturating_sub(linked.taken)
        },
        bytes_copied: linked.copied,
        shared_before: passed.shared_before,
        damaged: passed.damaged,
        still_seen: passed.still_seen,
        left: passed.left,
        left_names: passed.left_names.into_iter().map(|(path, reason)| LeftName { path, reason }).collect(),
        no_guests: left.others.into_iter().map(|(path, reason)| Problem { path, reason }).collect(),
        verbose: common.verbose > 0,
        recovered: passed.recovered.total(),
        names: if named { passed.names.into_iter().map(|path| Named { path }).collect() } else { Vec::new() },
        skipped: passed.skipped.into_iter().map(Problem::from).chain(left.guests).collect(),
        failed: failed.map(Problem::from).collect(),
        contested: linked.contested,
        changed_objects: passed.changed_objects,
        displaced: passed.displaced,
        displaced_programs: passed.programs.len() as u64,
        protected: paths(verified.protected),
        unprotected_objects: passed.unprotected,
        set_aside: paths(verified.damaged.into_iter().map(|(path, _)| path).collect()),
        repaired: mended,
        collected: arguments.gc.then_some(collected.removed.len() as u64),
        bytes_collected: collected.freed,
    };
    tell_of_protection(&report);
    shared::complain(&report.failed, common);
    shared::tell_of_left(&report.skipped);
    if repaired.wants_copy {
        log::warn!("{}", verify::WANTS_COPY);
    }
    let damaged = report.damaged > 0 || report.still_seen > 0;
    if damaged {
        // Names are counted in directories that were read alone, files in all.
        let number = report.still_seen.max(1);
        log::error!(
            "{} {} still in use; run `cow-unify verify GUEST...` to find and repair {}",
            count(number, "damaged file"),
            word(number, "is", "are"),
            word(number, "it", "them")
        );
    }
    if report.changed_objects > 0 {
        log::error!(
            "another process wrote to {} of the pool while guests' names were linked to {}; run `cow-unify verify \
             GUEST...` to find and repair the damage",
            count(report.changed_objects, "object"),
            word(report.changed_objects, "it", "them")
        );
    }
    let protected =
        report.protected.is_empty() && report.set_aside.is_empty() && report.unprotected_objects == 0;
    // What a guest has listed in which a package manager is at work waits for the next time.
    let all_done = report.skipped.iter().all(|guest| arguments.changed && busy.contains(&guest.path));
    let done = report.changed_objects == 0 && report.failed.is_empty() && all_done;
    let whole = done && protected && !damaged;
    shared::print(common, &report, text, if whole { Exit::Done } else { Exit::Partial })
}

/// One line on protection that was lost, and on what came of it.
fn tell_of_protection(report: &Report) {
    let Report { protected, set_aside, repaired, .. } = report;
    let mut changed = match set_aside.len() {
        0 => "none has changed".to_owned(),
        number => {
            format!("{number} {} quarantined", word(number, "has changed and was", "have changed and were"))
        }
    };
    if *repaired > 0 {
        changed += &format!(", {} in guests repaired", count(*repaired, "file"));
    }
    if let Some(Named { path }) = protected.first() {
        log::error!(
            "{} of the pool had lost {} protection, such as {}: protected again and verified, {changed}",
            count(protected.len(), "object"),
            word(protected.len(), "its", "their"),
            Shown(path)
        );
    } else if let Some(Named { path }) = set_aside.first() {
        log::error!("objects of the pool, such as {}, had lost their protection: {changed}", Shown(path));
    } else if report.unprotected_objects > 0 {
        log::error!(
            "{} of the pool {} protection; a run without --dry-run protects and verifies {}",
            count(report.unprotected_objects, "object"),
            word(report.unprotected_objects, "has lost its", "have lost their"),
            word(report.unprotected_objects, "it", "them")
        );
    }
}

fn text(out: &mut dyn Write, report: &Report) -> io::Result<()> {
    for Named { path } in &report.names {
        writeln!(out, "{}", Shown(path))?;
    }
    for LeftName { path, reason } in &report.left_names {
        writeln!(out, "{}: left as it is: {}", Shown(path), reason.describe())?;
    }
    let (linked, freed) =
        if report.dry_run { ("would be linked", "to be freed") } else { ("linked", "freed") };
    write!(
        out,
        "{}, {} looked at, {} {linked}, {} {freed}",
        count(report.guests, "guest"),
        count(report.looked_at, "private file"),
        report.linked,
        size(report.bytes_freed)
    )?;
    if !report.dry_run {
        write!(out, ", {} new in the pool (", report.objects)?;
        if report.adopted > 0 {
            write!(out, "{} adopted, ", report.adopted)?;
        }
        write!(out, "{} copied)", size(report.bytes_copied))?;
    }
    if let Some(collected) = report.collected {
        let removed = if report.dry_run { "would be removed from the pool" } else { "removed from the pool" };
        write!(out, ", {} {removed} ({})", count(collected, "object"), size(report.bytes_collected))?;
    }
    if !report.failed.is_empty() {
        write!(out, ", {} failed", report.failed.len())?;
    }
    writeln!(out)?;
    let left: Vec<String> = report
        .left
        .iter()
        .map(|(not_unified, count)| format!("{count} {}", not_unified.describe()))
        .collect();
    if !left.is_empty() {
        writeln!(out, "left as they are: {}", left.join("; "))?;
    }
    shared::print_others(out, &report.no_guests, report.verbose)?;
    if report.displaced > 0 {
        writeln!(
            out,
            "{} {} in use by {}, which {}",
            count(report.displaced, "linked file"),
            word(report.displaced, "is", "are"),
            count(report.displaced_programs, "running program"),
            word(
                report.displaced_programs,
                "keeps the replaced inodes until it ends",
                "keep the replaced inodes until they end"
            )
        )?;
    }
    Ok(())
}

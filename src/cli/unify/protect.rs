//! `cow-unify protect`: changes how the pool's objects are protected.
//!
//! Killed anywhere, all objects are protected, in the one way or the other, and the same command ends it.

use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

use super::arguments::{Common, ProtectTo};
use super::guests::Guests;
use super::{place, shared};
use crate::cli::bar::Bar;
use crate::cli::outcome::Misuse;
use crate::cli::{Named, Problem};
use crate::exit::Exit;
use crate::report::{Reason, Shown, count, word};
use crate::state::pool_notice::PoolNotice;
use crate::sys::file::handle::Handle;
use crate::unify::Error;
use crate::unify::care::verify::Verifier;
use crate::unify::eligible::scope::Scope;
use crate::unify::pool::directory::Pool;
use crate::unify::pool::guard;
use crate::unify::pool::protect::{Turn, Turned};
use crate::unify::pool::protection::PoolProtection;
use crate::unify::pool::recover;
use crate::unify::pool::settings::Sharing;
use crate::unify::scan::guest::GuestTree;

/// What happened, for machines.
#[derive(Debug, Serialize)]
struct Report {
    pool: Named,
    /// How objects are protected now.
    protection: PoolProtection,
    /// Files that had another protection before.
    turned: u64,
    /// Files that had lost their protection, and have it again.
    protected: Vec<Named>,
    /// Objects that had changed without protection, and are set aside.
    set_aside: Vec<Named>,
    /// Guests that know it.
    told: Vec<Named>,
    recovered: u64,
    failed: Vec<Problem>,
}

pub fn run(to: ProtectTo, guests: &[PathBuf], common: &Common) -> anyhow::Result<Exit> {
    let policy = shared::policy()?;
    let guests = Guests::open(guests, Scope::All)?;
    let mut pool = place::existing(common, &guests.open)?;
    let guests = guests.in_reach(pool.path(), pool.settings.share)?;
    let _lock = shared::lock(&pool, &policy)?;
    let from = from(&pool)?;
    let to = choose(&pool, to)?;
    pool.may_change(true)?;
    let (lock_timeout, threads) = (policy.lock_timeout, shared::threads(common));
    let bar = Bar::new(common.quiet > 0 || common.json);
    let mut recovered = recover::recover(&pool, lock_timeout)?;
    // What has lost the protection of now must not be taken for intact by the other.
    let now = guard::instead(&pool, from);
    let files = pool.look_at_all(threads)?;
    let verified = Verifier { pool: &pool, lock_timeout, threads, watch: &bar }.check(&files, now)?;
    let mut failed = std::mem::take(&mut recovered.failed);
    failed.extend(verified.failed);
    let mut turned = Turned::default();
    if failed.is_empty() {
        turned = turn(&mut pool, to, lock_timeout, threads)?;
    }
    failed.append(&mut turned.failed);
    let protection = pool.settings.protection.unwrap_or(from);
    let named = |path: PathBuf| Named { path };
    let told = guests.open.iter().filter(|guest| tell(&pool, protection, guest));
    let no_guest = guests.others.into_iter().map(|(path, reason)| Problem { path, reason });
    let report = Report {
        pool: named(pool.path().to_path_buf()),
        protection,
        turned: turned.files,
        protected: verified.protected.into_iter().map(named).collect(),
        set_aside: verified.damaged.into_iter().map(|(path, _)| named(path)).collect(),
        told: told.map(|guest| named(guest.root.path().to_path_buf())).collect(),
        recovered: recovered.total(),
        failed: failed.into_iter().map(Problem::from).chain(guests.left).chain(no_guest).collect(),
    };
    shared::complain(&report.failed, common);
    if !report.set_aside.is_empty() {
        log::error!(
            "damaged objects are in quarantine; run `cow-unify verify GUEST...` to repair the guests"
        );
    }
    let whole = report.failed.is_empty() && report.set_aside.is_empty() && report.protected.is_empty();
    Ok(shared::print(common, &report, text, if whole { Exit::Done } else { Exit::Partial }))
}

/// How the pool is protected now.
fn from(pool: &Pool) -> anyhow::Result<PoolProtection> {
    let remedy = match pool.settings.protection.unwrap_or(PoolProtection::Immutable) {
        from @ (PoolProtection::Guard | PoolProtection::Immutable) => return Ok(from),
        PoolProtection::None if pool.settings.share == Sharing::Reflink => "its files need no protection",
        PoolProtection::None => "run `cow-unify GUEST...` with --protection guard or immutable",
        PoolProtection::Iunlink => "the flag of Linux-VServer cannot be exchanged for another protection",
    };
    Err(Misuse(format!("{}: {remedy}", Shown(pool.path()))).into())
}

/// Tells a guest how its shared files are protected now, and whether it knows it then. All else that it was told of the pool
/// stays: `cow-unify GUEST...` says it. A guest that was told of no pool, or of another, waits for that.
fn tell(pool: &Pool, protection: PoolProtection, guest: &GuestTree) -> bool {
    let told = Handle::of(pool.root()).and_then(|handle| {
        let Some(notice) = PoolNotice::of(&guest.root).filter(|notice| notice.pool == handle) else {
            return Ok(false);
        };
        let guard = protection == PoolProtection::Guard;
        PoolNotice { immutable: !guard, guard, ..notice }.leave(&guest.root).map(|()| true)
    });
    told.unwrap_or_else(|e| {
        log::warn!("{}: the guest does not know it yet: {}", Shown(guest.root.path()), Reason(&e));
        false
    })
}

/// Turns the pool. If something fails, all objects are protected, and the pool's settings say which protection is enough.
fn turn(
    pool: &mut Pool,
    to: PoolProtection,
    lock_timeout: Duration,
    threads: usize,
) -> Result<Turned, Error> {
    if to == PoolProtection::Guard {
        // First: what is immutable is as good in such a pool, and what is only marked is so in no other.
        pool.set_protection(to)?;
        let turn = Turn { pool, lock_timeout, threads };
        let mut given = turn.give(to)?;
        // What could not be marked stays immutable.
        let mut left = turn.leave_to_guard()?;
        left.failed.append(&mut given.failed);
        return Ok(left);
    }
    let taken = Turn { pool, lock_timeout, threads }.take_from_guard()?;
    if taken.failed.is_empty() {
        pool.set_protection(to)?;
    }
    Ok(taken)
}

/// The protection that is meant, which was tried out.
fn choose(pool: &Pool, to: ProtectTo) -> Result<PoolProtection, Error> {
    if to == ProtectTo::Immutable {
        return Ok(PoolProtection::Immutable);
    }
    match guard::load(pool) {
        Ok(()) => Ok(PoolProtection::Guard),
        Err(e) if to == ProtectTo::Auto => {
            log::warn!("{}: {e}: objects are made immutable", Shown(pool.path()));
            Ok(PoolProtection::Immutable)
        }
        Err(source) => Err(Error::NoGuard { path: pool.path().to_path_buf(), source }),
    }
}

fn text(out: &mut dyn Write, report: &Report) -> io::Result<()> {
    let Report { protection, turned, protected, set_aside, told, failed, .. } = report;
    write!(out, "protection: {}; {} turned to it", protection.name(), count(*turned, "object"))?;
    for (number, what) in [
        (told.len(), word(told.len(), "guest knows it", "guests know it")),
        (protected.len(), word(protected.len(), "had lost its protection", "had lost their protection")),
        (set_aside.len(), "damaged"),
        (failed.len(), "failed"),
    ] {
        if number > 0 {
            write!(out, ", {number} {what}")?;
        }
    }
    writeln!(out)
}

//! `cow-unify protect`: changes how the pool's objects are protected.
//!
//! All have the new protection, on the disk, before the pool says so, and the old one comes off last: killed anywhere,
//! all are protected, and the same command ends it.

use std::io::{self, Write};

use serde::Serialize;

use super::arguments::{Common, ProtectTo};
use super::{place, shared};
use crate::cli::{Named, Problem};
use crate::exit::Exit;
use crate::report::Shown;
use crate::unify::Error;
use crate::unify::pool::directory::Pool;
use crate::unify::pool::guard;
use crate::unify::pool::protect::{Turn, Turned};
use crate::unify::pool::protection::PoolProtection;

/// What happened, for machines.
#[derive(Debug, Serialize)]
struct Report {
    pool: Named,
    /// How the pool is protected now.
    protection: PoolProtection,
    /// Files that have this protection, and had it not.
    protected: u64,
    /// Files that the earlier protection was taken off.
    opened: u64,
    failed: Vec<Problem>,
}

pub fn run(to: ProtectTo, common: &Common) -> anyhow::Result<Exit> {
    let policy = shared::policy()?;
    let mut pool = place::existing(common, &[])?;
    let _lock = shared::lock(&pool, &policy)?;
    let from = pool.settings.protection.unwrap_or(PoolProtection::Immutable);
    if !matches!(from, PoolProtection::Guard | PoolProtection::Immutable) {
        anyhow::bail!(
            "{}: protected by `{}`, which cannot be changed to another protection",
            Shown(pool.path()),
            from.name()
        );
    }
    let to = choose(&pool, to)?;
    pool.may_change(true)?;
    let (lock_timeout, threads) = (policy.lock_timeout, shared::threads(common));
    let given = Turn { pool: &pool, lock_timeout, threads }.give(to)?;
    let mut taken = Turned::default();
    if given.failed.is_empty() {
        pool.set_protection(to)?;
        let old = if to == PoolProtection::Guard { PoolProtection::Immutable } else { PoolProtection::Guard };
        taken = Turn { pool: &pool, lock_timeout, threads }.take_off(old)?;
    }
    let report = Report {
        pool: Named { path: pool.path().to_path_buf() },
        protection: if given.failed.is_empty() { to } else { from },
        protected: given.files,
        opened: taken.files,
        failed: given.failed.into_iter().chain(taken.failed).map(Problem::from).collect(),
    };
    shared::complain(&report.failed, common);
    let exit = if report.failed.is_empty() { Exit::Done } else { Exit::Partial };
    Ok(shared::print(common, &report, text, exit))
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
    let Report { protected, opened, failed, .. } = report;
    let old = if report.protection == PoolProtection::Guard { "immutable flag" } else { "mark" };
    write!(
        out,
        "protection: {}; {protected} objects got it, {opened} lost the {old}",
        report.protection.name()
    )?;
    if !failed.is_empty() {
        write!(out, ", {} failed", failed.len())?;
    }
    writeln!(out)
}

//! Which pool a command works on.

use std::path::{Path, PathBuf};

use super::arguments::Common;
use crate::cli::outcome::Misuse;
use crate::report::Shown;
use crate::unify::pass::pools;
use crate::unify::pool::directory::Pool;
use crate::unify::scan::guest::GuestTree;
use crate::unify::{At, Error};

/// Where the pool is: as named, or the one of these guests, or else to be made beside the first of them. Canonical.
pub fn of(common: &Common, guests: &[GuestTree]) -> anyhow::Result<PathBuf> {
    match (&common.pool, guests.first()) {
        (Some(path), _) => named(path),
        (None, Some(first)) => Ok(of_guests(guests)?.unwrap_or_else(|| pools::beside(first))),
        (None, None) => Err(Misuse("no pool given: name it with --pool DIR".into()).into()),
    }
}

/// Opens a pool that must be there.
pub fn existing(common: &Common, guests: &[GuestTree]) -> anyhow::Result<Pool> {
    let path = of(common, guests)?;
    Pool::open(&path)?.ok_or_else(|| {
        anyhow::anyhow!(
            "{}: there is no pool here; create one with `cow-unify GUEST...`, or name another with --pool DIR",
            Shown(&path)
        )
    })
}

/// What is to be made is made where this says, not where a link leads by then.
fn named(path: &Path) -> anyhow::Result<PathBuf> {
    let path = std::path::absolute(path)?;
    if let Ok(real) = std::fs::canonicalize(&path) {
        return Ok(real);
    }
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(Misuse(format!("--pool {}: not the path of a directory", Shown(&path))).into());
    };
    let real = std::fs::canonicalize(parent).at(parent)?.join(name);
    if real.symlink_metadata().is_ok() {
        anyhow::bail!(
            "--pool {}: a symbolic link to a directory that does not exist; name the directory \
            itself",
            Shown(&path)
        );
    }
    Ok(real)
}

/// The pool that most of these guests belong to, of those beside them and those on the host's list.
fn of_guests(guests: &[GuestTree]) -> Result<Option<PathBuf>, Error> {
    let mut found: Vec<(usize, bool, PathBuf)> = Vec::new();
    let mut add = |pool: Pool, is_beside: bool| {
        let members = pools::members(&pool, guests);
        let path = pool.path().to_path_buf();
        if (is_beside || members > 0) && !found.iter().any(|(_, _, other)| *other == path) {
            found.push((members, is_beside, path));
        }
    };
    for guest in guests {
        if let Some(pool) = Pool::open(&pools::beside(guest))? {
            add(pool, true);
        }
    }
    for pool in pools::listed().iter().filter_map(|path| Pool::open(path).ok().flatten()) {
        add(pool, false);
    }
    // The order of the guests says nothing.
    found.sort_by(|a, b| (b.0, b.1).cmp(&(a.0, a.1)).then_with(|| a.2.cmp(&b.2)));
    let mut paths = found.into_iter().map(|(_, _, path)| path);
    let chosen = paths.next();
    for other in paths {
        log::warn!(
            "{}: these guests also share files with this pool; those files stay as they are",
            Shown(&other)
        );
    }
    Ok(chosen)
}

//! The end of a transaction: what has not changed goes back to the inode it came from, what is new is handed over.

mod together;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use self::together::{Unit, units};
use super::{Error, Guest};
use crate::ledger::{Entry, Ledger, Stage};
use crate::package::Packages;
use crate::parallel;
use crate::policy::Policy;
use crate::report::{Reason, Shown};
use crate::state::hard_links;
use crate::state::store::Store;
use crate::sys::file::filesystem;
use crate::sys::file::inode::{Inode, InodeId, Kind};
use crate::sys::file::layer;
use crate::sys::path::resolve::is_absent;
use crate::sys::process::programs::Programs;
use crate::sys::process::signal;
use crate::sys::share::gate;
use crate::sys::share::lease::Lease;
use crate::sys::share::swap::{self, Name, Shared};
use crate::unify::pass::in_guest;
use crate::unify::pool::identity::{self, Mtime};

/// What settling came to.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Settled {
    /// Names that share the original inode again.
    pub restored: u64,
    /// Names with new content that are the pool's now: it was within reach.
    pub unified: u64,
    /// Names that wait until their package is configured, or a writer is gone.
    pub postponed: u64,
    /// Names with new content that wait for the host.
    pub new: u64,
    /// Names that stay private for good, each with its reason: they are somebody else's to change.
    pub let_go: Vec<String>,
    /// Names that could not be settled, each with its reason.
    pub failed: Vec<String>,
}

/// What becomes of one detached name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// The original takes its name back.
    Restore {
        /// The private file as it was judged.
        now: Inode,
        /// It is the copy that we made.
        ours: bool,
    },
    /// It stays private, and the stash lets go of the original.
    Drop { changed: bool },
    /// The same, for what somebody keeps from changing.
    LetGo { why: &'static str },
    /// Too early.
    Postpone,
}

/// Settles every detached name. The caller holds the store's lock, and nobody takes part in the transaction any more.
pub fn settle(
    guest: Guest<'_>,
    store: &Store,
    ledger: &mut Ledger,
    packages: &Packages,
) -> Result<Settled, Error> {
    let settling = Settling::new(guest, store, packages);
    let mut settled = Settled::default();
    let entries: Vec<Entry> = ledger.entries()?.into_iter().filter(|e| e.state == Stage::Detached).collect();
    let again = detached_again(&entries);
    let judge = |entry: &Entry| {
        if again.contains(&entry.id) { Ok(Fate::Drop { changed: false }) } else { settling.judge(entry) }
    };
    let mut fates = parallel::map(parallel::processors(), &entries, judge);
    settling.keep_together(&entries, &mut fates);
    let mut work = Vec::new();
    let (mut changed, mut later) = (BTreeSet::new(), BTreeSet::new());
    for (entry, fate) in entries.iter().zip(fates) {
        match fate {
            Ok(Fate::Postpone) => drop(later.insert(entry.intent.place.path())),
            Ok(fate) => work.push((entry, fate)),
            Err(e) => settled.failed.push(format!("{}: {}", Shown(&entry.intent.place.path()), Reason(e))),
        }
    }
    let states: Vec<_> = work
        .iter()
        .map(|(entry, fate)| {
            (entry.id, if matches!(fate, Fate::Restore { .. }) { Stage::Restoring } else { Stage::Dropping })
        })
        .collect();
    let units = units(&work);
    // First: of a name that was about to be shared again, recovery takes for true what is written down.
    settling.note_links(&entries, &units);
    ledger.set_state(&states)?;

    let blocked = signal::block();
    let ended = parallel::map(parallel::processors(), &units, |unit| settling.carry_out(unit));
    let (mut over, mut back) = (Vec::new(), Vec::new());
    for (unit, ended) in units.iter().zip(ended) {
        let paths = unit.entries.iter().map(|entry| entry.intent.place.path());
        match ended {
            Ok(true) => {
                over.extend(unit.entries.iter().map(|entry| entry.id));
                match unit.fate {
                    Fate::LetGo { why } => settled.let_go.extend(paths.map(|path| let_go(&path, why))),
                    Fate::Restore { .. } => settled.restored += unit.entries.len() as u64,
                    Fate::Drop { changed: true } => changed.extend(paths),
                    _ => {}
                }
            }
            Ok(false) => {
                back.extend(unit.entries.iter().map(|entry| (entry.id, entry.copy)));
                later.extend(paths);
            }
            Err(swap::Error::Unchanged(e)) if will_not_change(&e) && settling.forget(unit) => {
                let why = Reason(e).to_string();
                over.extend(unit.entries.iter().map(|entry| entry.id));
                settled.let_go.extend(paths.map(|path| let_go(&path, &why)));
            }
            Err(e) => {
                let reason = Reason(&e).to_string();
                settled.failed.extend(paths.map(|path| format!("{}: {reason}", Shown(&path))));
                // Of the others recovery takes care.
                if matches!(e, swap::Error::Unchanged(_)) && matches!(unit.fate, Fate::Restore { .. }) {
                    back.extend(unit.entries.iter().map(|entry| (entry.id, entry.copy)));
                }
            }
        }
    }
    if !work.is_empty() {
        filesystem::sync(store.stash()).map_err(Error::stash)?;
        ledger.detached(&back, &over)?;
        gate::wait_for_late_openers();
    }
    drop(blocked);
    let new = changed.union(&packages.unpacked).filter(|path| !later.contains(*path));
    (settled.unified, settled.new) = settling.hand_over(new)?;
    settled.postponed = later.len() as u64;
    hard_links::prune(guest.root, store);
    Ok(settled)
}

/// Entries of names that were detached before: a killed package manager had linked its own new file to another name.
/// The host has unified none of them since, so what such a name was detached from first is what was shared.
fn detached_again(entries: &[Entry]) -> HashSet<i64> {
    let mut known = HashSet::new();
    let again = entries.iter().filter(|entry| !known.insert(&entry.intent.place));
    again.map(|entry| entry.id).collect()
}

/// Hands the host what was just unpacked, where nothing had to be detached for it.
pub fn hand_over(guest: Guest<'_>, store: &Store, packages: &Packages) -> Result<Settled, Error> {
    let settling = Settling::new(guest, store, packages);
    let (unified, new) = settling.hand_over(packages.unpacked.iter())?;
    Ok(Settled { unified, new, ..Settled::default() })
}

struct Settling<'a> {
    guest: Guest<'a>,
    store: &'a Store,
    packages: &'a Packages,
    /// Programs that run on when the package manager has ended: what they were started from keeps its inode.
    programs: Programs,
}

impl<'a> Settling<'a> {
    fn new(guest: Guest<'a>, store: &'a Store, packages: &'a Packages) -> Settling<'a> {
        Settling { guest, store, packages, programs: Programs::outliving_the_caller() }
    }

    /// Whether a program that runs on was loaded from this file. Looks at programs only if it could be.
    fn is_in_use(&self, name: &OsStr, inode: &Inode) -> bool {
        let is_code = inode.mode & 0o111 != 0 || name.as_bytes().windows(3).any(|part| part == b".so");
        is_code && !self.programs.loaded_from(inode.id).is_empty()
    }

    fn judge(&self, entry: &Entry) -> io::Result<Fate> {
        let path = entry.intent.place.path();
        if self.packages.unfinished.contains(&path) {
            return Ok(Fate::Postpone);
        }
        let stashed = entry.stashed();
        let stashed = Name { dir: self.store.stash(), name: &stashed };
        let Some(original) = stashed.inode()?.filter(|inode| inode.id.ino == entry.intent.original.ino)
        else {
            return Ok(Fate::Drop { changed: true });
        };
        let dir = match self.guest.root.open_dir(&entry.intent.place.dir) {
            Ok(dir) => dir,
            Err(e) if is_absent(&e) => return Ok(Fate::Drop { changed: false }),
            Err(e) => return Err(e),
        };
        let name = Name { dir: dir.as_fd(), name: &entry.intent.place.name };
        let is_other =
            |inode: &Inode| inode.kind == Kind::Regular && inode.id != original.id && !inode.is_mounted_on();
        let Some(now) = name.inode()?.filter(is_other) else {
            return Ok(Fate::Drop { changed: false });
        };
        if self.stays_private(&path) {
            return Ok(Fate::Drop { changed: false });
        }
        let above = Inode::of(&dir)?;
        // A mount lies between the name and the stash.
        if !self.store.reaches(&above) {
            return Ok(Fate::Drop { changed: true });
        }
        if let Some(why) = kept_from_changing(&now, &above) {
            return Ok(Fate::LetGo { why });
        }
        let copy = entry.copy.filter(|copy| copy.ino == now.id.ino);
        let untouched = copy.is_some_and(|copy| copy.ctime == Some(now.ctime));
        let same = identity::same_metadata(&now, &original, Mtime::Match)
            && (untouched || identity::same(&name.open()?, &stashed.open()?, Mtime::Match)?);
        let ours = copy.is_some_and(|copy| untouched || copy.ctime.is_none());
        let restore = same && !self.is_in_use(name.name, &now);
        Ok(if restore { Fate::Restore { now, ours } } else { Fate::Drop { changed: true } })
    }

    /// Whether a name is none that packages own for good.
    fn stays_private(&self, path: &Path) -> bool {
        self.guest.policy.never_unify.matches(path) || self.packages.configuration.contains(path)
    }

    /// Carries a fate out. `false` where it has to wait: somebody is writing.
    fn carry_out(&self, unit: &Unit<'_>) -> Result<bool, swap::Error> {
        if let Fate::Restore { now, .. } = unit.fate {
            return self.restore(&unit.entries, &now);
        }
        self.drop_originals(unit)?;
        Ok(true)
    }

    fn drop_originals(&self, unit: &Unit<'_>) -> Result<(), swap::Error> {
        for entry in &unit.entries {
            let name = entry.stashed();
            let stashed = Name { dir: self.store.stash(), name: &name };
            swap::unlink_shared(stashed, self.guest.policy.lock_timeout)?;
        }
        Ok(())
    }

    /// Lets go of originals that cannot have their names back. `false` if that cannot be done.
    fn forget(&self, unit: &Unit<'_>) -> bool {
        let dropped = self.drop_originals(unit);
        dropped.inspect_err(|e| log::debug!("the stash: {}", Reason(e))).is_ok()
    }

    /// Gives the original the names back that one private file has.
    fn restore(&self, entries: &[&Entry], judged: &Inode) -> Result<bool, swap::Error> {
        let temporary: Vec<[OsString; 2]> =
            entries.iter().map(|entry| [entry.stashed(), entry.temporary()]).collect();
        let dirs = entries.iter().map(|entry| self.guest.root.open_dir(&entry.intent.place.dir));
        let dirs = dirs.collect::<io::Result<Vec<OwnedFd>>>()?;
        let stash = self.store.stash();
        let all = entries.iter().zip(temporary.iter().zip(&dirs));
        let names: Vec<Names<'_>> = all
            .map(|(entry, ([stashed, kept], dir))| Names {
                name: Name { dir: dir.as_fd(), name: &entry.intent.place.name },
                stashed: Name { dir: stash, name: stashed },
                kept: Name { dir: stash, name: kept },
            })
            .collect();
        let Some(Names { name, stashed, .. }) = names.first() else { return Ok(true) };
        let private = name.open()?;
        let lease = match Lease::take(private.as_fd()) {
            Ok(Some(lease)) => Some(lease),
            Ok(None) => return Ok(false),
            // No leases here: the second look must do.
            Err(_) => None,
        };
        let unchanged = || -> io::Result<bool> {
            let leased = lease.as_ref().map_or(Ok(true), Lease::unbroken)?;
            let now = Inode::of(&private)?;
            // One more name that it has got would be cut off from these.
            Ok(leased && now.same_content_as(judged) && now.nlink == judged.nlink)
        };
        if !unchanged()? || name.inode()?.is_none_or(|inode| inode.id != judged.id) {
            return Ok(false);
        }
        let shared = Shared::lock_at(stashed.dir, stashed.name, self.guest.policy.lock_timeout)?;
        let original = shared.inode()?.id;
        match shared.change_names(|| displace_all(&names, judged.id, original)) {
            // Another file has a name by now.
            Err(swap::Error::Unchanged(e)) if e.raw_os_error() == Some(libc::ESTALE) => return Ok(false),
            changed => changed?,
        };
        if !unchanged()? {
            // A writer came in between: it has the private copy open, so that must have the names.
            shared.change_names(|| names.iter().try_for_each(|names| names.give_back(original)))?;
            return Ok(false);
        }
        names.iter().try_for_each(|names| names.kept.unlink()).map_err(io::Error::from)?;
        Ok(true)
    }

    /// Unifies what it can of these paths with the pool, and adds to the spool what the host may unify; returns how many
    /// of each.
    fn hand_over<'p>(&self, paths: impl Iterator<Item = &'p PathBuf>) -> Result<(u64, u64), Error> {
        let Guest { root, policy } = self.guest;
        // What is in layers is out of the host's reach.
        if layer::is_layered(root).unwrap_or(false) {
            return Ok((0, 0));
        }
        let (mut new, in_use) = self.eligible(paths);
        // The host looks at all that is left.
        let unified = in_guest::unify(root, self.store.top(), policy, &new).unwrap_or_else(|e| {
            log::debug!("{e}");
            BTreeSet::new()
        });
        new.retain(|path| !unified.contains(path));
        new.extend(in_use);
        self.store.spool(&new).map_err(Error::spool)?;
        Ok((unified.len() as u64, new.len() as u64))
    }

    /// Those of the paths that may be unified: private files all names of which are known. And of these, apart, those that
    /// programs were loaded from.
    fn eligible<'p>(
        &self,
        paths: impl Iterator<Item = &'p PathBuf>,
    ) -> (BTreeSet<PathBuf>, BTreeSet<PathBuf>) {
        let mut files: HashMap<InodeId, (u32, bool, Vec<PathBuf>)> = HashMap::new();
        let mut last: Option<(PathBuf, io::Result<OwnedFd>)> = None;
        for path in paths.filter(|path| !self.stays_private(path)) {
            let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else { continue };
            if last.as_ref().is_none_or(|(open, _)| open != dir) {
                last = Some((dir.to_path_buf(), self.guest.root.open_dir(dir)));
            }
            let Some((_, Ok(fd))) = &last else { continue };
            let Ok(Some(inode)) = (Name { dir: fd.as_fd(), name }).inode() else { continue };
            let fits = inode.kind == Kind::Regular && inode.size > 0 && !inode.immutable;
            if fits && !inode.is_mounted_on() {
                let (_, in_use, names) = files.entry(inode.id).or_insert((inode.nlink, false, Vec::new()));
                *in_use |= self.is_in_use(name, &inode);
                names.push(path.clone());
            }
        }
        let (mut eligible, mut in_use) = (BTreeSet::new(), BTreeSet::new());
        for (nlink, is_in_use, names) in files.into_values() {
            if nlink as usize == names.len() {
                if is_in_use { &mut in_use } else { &mut eligible }.extend(names);
            }
        }
        (eligible, in_use)
    }
}

/// What keeps a name from another file, if that is the administrator's doing, or another program's.
fn kept_from_changing(file: &Inode, dir: &Inode) -> Option<&'static str> {
    match (file, dir) {
        (Inode { immutable: true, .. }, _) => Some("it is immutable now"),
        (Inode { append_only: true, .. }, _) => Some("it is append-only now"),
        (_, Inode { immutable: true, .. }) => Some("its directory is immutable now"),
        (_, Inode { append_only: true, .. }) => Some("its directory is append-only now"),
        _ => None,
    }
}

/// Whether it is of no use to try again.
fn will_not_change(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EPERM | libc::EACCES | libc::EXDEV | libc::EBUSY))
}

fn let_go(path: &Path, why: &str) -> String {
    format!("{}: {why}; it stays as it is", Shown(path))
}

/// A name that the original is to take back, with those that the two files have in the stash meanwhile.
struct Names<'a> {
    name: Name<'a>,
    stashed: Name<'a>,
    /// The private copy's, until it is certain that no writer has it.
    kept: Name<'a>,
}

impl Names<'_> {
    fn give_back(&self, original: InodeId) -> rustix::io::Result<()> {
        match self.kept.displace(self.name, original, Some(self.stashed)) {
            // It can have no more names: then the stash goes without.
            Err(Errno::MLINK) => self.kept.displace(self.name, original, None),
            given_back => given_back,
        }
    }
}

/// Gives all the names of the file `private` to the original, or none.
fn displace_all(names: &[Names<'_>], private: InodeId, original: InodeId) -> rustix::io::Result<()> {
    for (at, Names { name, stashed, kept }) in names.iter().enumerate() {
        if let Err(e) = stashed.displace(*name, private, Some(*kept)) {
            names[..at].iter().try_for_each(|names| names.give_back(original))?;
            return Err(e);
        }
    }
    Ok(())
}

/// Lets go of every original in the stash: all names stay private, and wait for the host.
pub fn retire(store: &Store, ledger: &mut Ledger, policy: &Policy) -> Result<Settled, Error> {
    let entries: Vec<Entry> = ledger.entries()?.into_iter().filter(|e| e.state == Stage::Detached).collect();
    ledger.set_state(&entries.iter().map(|entry| (entry.id, Stage::Dropping)).collect::<Vec<_>>())?;
    let mut settled = Settled::default();
    let mut over = Vec::new();
    let mut changed = BTreeSet::new();
    let blocked = signal::block();
    for entry in &entries {
        let name = entry.stashed();
        match swap::unlink_shared(Name { dir: store.stash(), name: &name }, policy.lock_timeout) {
            Ok(_) => {
                over.push(entry.id);
                changed.insert(entry.intent.place.path());
            }
            Err(e) => settled.failed.push(format!("{}: {}", Shown(&entry.intent.place.path()), Reason(e))),
        }
    }
    filesystem::sync(store.stash()).map_err(Error::stash)?;
    gate::wait_for_late_openers();
    drop(blocked);
    ledger.forget(&over)?;
    settled.new = changed.len() as u64;
    store.spool(&changed).map_err(Error::spool)?;
    Ok(settled)
}

//! What a run of dpkg may touch, of the files that exist now.
//!
//! Old files are those the installed versions list; new ones come from the control members of the archives, since
//! a payload takes long to decompress. What maintainer scripts write elsewhere cannot be known from here.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType};

use super::Error;
use super::changes::Change;
use super::database::Database;
use super::diversions::Diversion;
use super::status::{Package, PackageState, Want};
use crate::package::dpkg::deb::{self, Control, PayloadKind};
use crate::package::{PackageId, PackageSpec, sort_paths};
use crate::parallel;
use crate::sys::path::root::{Root, relative};

/// dpkg's own temporary names beside a file it unpacks. They exist beforehand if a run was interrupted.
const PAYLOAD_SUFFIXES: [&str; 2] = [".dpkg-tmp", ".dpkg-new"];

/// What may lie beside a configuration file: dpkg's versions of it, the backups dpkg purges with it
/// (`REMOVECONFFEXTS`), where dpkg-maintscript-helper(1) puts it, and ucf(1)'s versions.
const CONFFILE_SUFFIXES: [&str; 13] = [
    ".dpkg-tmp",
    ".dpkg-new",
    ".dpkg-old",
    ".dpkg-dist",
    ".dpkg-bak",
    ".dpkg-backup",
    ".dpkg-remove",
    ".ucf-old",
    ".ucf-new",
    ".ucf-dist",
    ".bak",
    "~",
    "%",
];

/// The packages that merge `/bin` and its like into `/usr`, moving the files of all packages.
const USRMERGE: [&str; 2] = ["usrmerge", "usr-is-merged"];

/// The directories they merge.
const MERGED: [&str; 7] = ["/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libo32", "/libx32"];

/// What a run of dpkg may touch. All paths are absolute in the guest, sorted, and may not exist.
#[derive(Debug, Default)]
pub struct Plan {
    /// Names that may be replaced, removed or changed; of directories, the name alone.
    pub paths: Vec<PathBuf>,
    /// Directories in which everything may be touched.
    pub trees: Vec<PathBuf>,
    /// Those of `paths` that may become files. If one is a directory now, dpkg removes all that is in it.
    pub non_directories: Vec<PathBuf>,
    /// Those of `paths` whose owner and mode scripts may set in place, whatever package they belong to: those with a
    /// statoverride.
    pub in_place: Vec<PathBuf>,
    /// Files of packages that are configured without being unpacked in this run: their own scripts may change them.
    pub configured: Vec<PathBuf>,
    /// The packages in the run, installed or to be.
    pub packages: BTreeSet<PackageId>,
    /// What could not be found out.
    pub warnings: Vec<String>,
}

/// A version that is about to be unpacked.
#[derive(Debug)]
pub struct New {
    control: Control,
    /// What is not a directory.
    files: Vec<PathBuf>,
    /// Directories, as far as the payload was read: dpkg moves a file away that has the name of one.
    directories: Vec<PathBuf>,
}

impl Plan {
    /// Finds out what `changes` may touch.
    ///
    /// An archive that cannot be read is a warning: dpkg will refuse it.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn new(database: &Database<'_>, changes: &[Change]) -> Result<Plan, Error> {
        if changes.is_empty() {
            return Ok(Plan::default());
        }
        let archives: Vec<&Path> = changes
            .iter()
            .filter_map(|change| match change {
                Change::Unpack(path) => Some(path.as_path()),
                Change::Configure(_) | Change::Remove(_) => None,
            })
            .collect();
        let (mut news, mut warnings) = (Vec::with_capacity(archives.len()), Vec::new());
        for result in read_archives(&archives, false) {
            match result {
                Ok(new) => news.push(new),
                Err(e) => warnings.push(e.to_string()),
            }
        }
        Ok(Plan { warnings, ..Plan::with(database, changes, news)? })
    }

    /// Finds out what unpacking and configuring `news` may touch.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn of(database: &Database<'_>, news: Vec<New>) -> Result<Plan, Error> {
        Plan::with(database, &[], news)
    }

    /// What `changes` and the unpacking of `news` may touch.
    fn with(database: &Database<'_>, changes: &[Change], news: Vec<New>) -> Result<Plan, Error> {
        let mut plan = Plan::default();
        let old = involved(database, changes, &news);
        plan.packages.extend(old.keys().map(|&id| id.clone()));
        plan.packages.extend(news.iter().map(|new| new.control.id.clone()));

        let mut payload = Vec::new();
        let mut conffiles = Vec::new();
        let mut non_directories = Vec::new();
        let configured = configured_alone(database, changes, &news);
        for package in old.into_values() {
            let listed = database.list(package)?;
            if configured.contains(&package.id) {
                plan.configured.extend(listed.iter().cloned());
            }
            payload.extend(listed);
            conffiles.extend(package.conffiles());
        }
        // A package that disappears, or whose files are replaced, loses what the new version has: no need to look for it.
        for new in news {
            non_directories.extend(new.control.conffiles.iter().cloned());
            non_directories.extend(new.files.iter().cloned());
            payload.extend(new.files);
            payload.extend(new.directories);
            conffiles.extend(new.control.conffiles);
        }

        let diversions = database.diversions()?;
        for paths in [&mut payload, &mut conffiles, &mut non_directories] {
            sort_paths(paths);
            let diverted = diverted(paths, &plan.packages, &diversions);
            paths.extend(diverted);
        }
        let targets: Vec<PathBuf> =
            conffiles.iter().flat_map(|path| symlink_targets(database.root(), path)).collect();
        conffiles.extend(targets);

        plan.add_trees(database.root(), &payload);
        plan.paths = siblings(payload, conffiles);
        plan.in_place = database.statoverrides()?;
        plan.paths.extend(plan.in_place.iter().cloned());
        plan.paths.extend(database.info_files(&plan.packages)?);
        plan.non_directories = non_directories;
        sort_paths(&mut plan.paths);
        sort_paths(&mut plan.non_directories);
        Ok(plan)
    }

    fn add_trees(&mut self, root: &Root, payload: &[PathBuf]) {
        if self.packages.iter().any(|id| USRMERGE.contains(&id.name.as_str())) {
            // If they are symlinks all is merged already.
            let unmerged = MERGED.map(Path::new).into_iter().filter(|path| is_directory(root, path));
            self.trees.extend(unmerged.map(Path::to_path_buf));
        }
        // py3compile(1) and py3clean(1) write and remove bytecode, which no package lists.
        let modules = payload.iter().filter(|path| {
            let bytes = path.as_os_str().as_bytes();
            bytes.starts_with(b"/usr/") && bytes.ends_with(b".py")
        });
        self.trees.extend(modules.filter_map(|path| Some(path.parent()?.join("__pycache__"))));
        sort_paths(&mut self.trees);
    }
}

/// The new versions that `archives` hold, symlinks and directories included, which no list of checksums has.
///
/// # Errors
/// If one of them cannot be read.
pub(crate) fn news(archives: &[PathBuf]) -> Result<Vec<New>, deb::Error> {
    read_archives(archives, true).into_iter().collect()
}

/// The new versions, read in parallel.
fn read_archives(archives: &[impl AsRef<Path> + Sync], whole: bool) -> Vec<Result<New, deb::Error>> {
    parallel::map(parallel::processors(), archives, |archive| read_archive(archive.as_ref(), whole))
}

/// A new version's files; from the payload only if it is wanted `whole`, or the control member has no list.
fn read_archive(path: &Path, whole: bool) -> Result<New, deb::Error> {
    let mut control = Control::open(path)?;
    let listed = match control.files.take() {
        Some(files) if !whole => return Ok(New { control, files, directories: Vec::new() }),
        listed => listed.unwrap_or_default(),
    };
    let (mut files, directories) = names_of(deb::payload(path)?);
    files.extend(listed);
    Ok(New { control, files, directories })
}

/// All names that are not directories, with what hard links are made to, whose mode and owner dpkg changes in place; and
/// the directories.
fn names_of(payload: Vec<deb::PayloadEntry>) -> (Vec<PathBuf>, Vec<PathBuf>) {
    let (mut names, mut directories) = (Vec::with_capacity(payload.len()), Vec::new());
    for deb::PayloadEntry { path, kind } in payload {
        match kind {
            PayloadKind::Directory => {
                directories.push(path);
                continue;
            }
            PayloadKind::HardLink(target) => names.push(target),
            PayloadKind::File | PayloadKind::Other => {}
        }
        names.push(path);
    }
    (names, directories)
}

/// The installed packages in the run: named, replaced by a new version, or removed for one.
///
/// Configuring and removing touch the same files: scripts change their own package's, and where it is purged the
/// configuration files go.
fn involved<'a>(
    database: &'a Database<'_>,
    changes: &[Change],
    news: &[New],
) -> BTreeMap<&'a PackageId, &'a Package> {
    let mut packages: Vec<&Package> = Vec::new();
    for change in changes {
        match change {
            Change::Configure(spec) | Change::Remove(spec) => packages.extend(named(database, spec)),
            Change::Unpack(_) => {}
        }
    }
    for New { control, .. } in news {
        packages.extend(database.find(&control.id.name, None).filter(|old| is_replaced(old, control)));
    }
    if !news.is_empty() {
        packages.extend(removed_for(database, news));
    }
    packages.into_iter().map(|package| (&package.id, package)).collect()
}

/// The packages that are configured and have no new version unpacked.
fn configured_alone<'a>(
    database: &'a Database<'_>,
    changes: &[Change],
    news: &[New],
) -> BTreeSet<&'a PackageId> {
    let is_unpacked = |id: &PackageId| {
        news.iter().any(|new| new.control.id.name == id.name && new.control.id.arch == id.arch)
    };
    changes
        .iter()
        .filter_map(|change| match change {
            Change::Configure(spec) => Some(named(database, spec)),
            Change::Unpack(_) | Change::Remove(_) => None,
        })
        .flatten()
        .map(|package| &package.id)
        .filter(|id| !is_unpacked(id))
        .collect()
}

/// The packages that a name stands for: all of that name, if none with its architecture is installed.
fn named<'a>(database: &'a Database<'_>, spec: &PackageSpec) -> Vec<&'a Package> {
    let exact: Vec<&Package> = database.find(&spec.name, spec.arch.as_deref()).collect();
    if exact.is_empty() { database.find(&spec.name, None).collect() } else { exact }
}

/// Whether `new`, of the same name, takes the place of `old`, or is installed beside it.
fn is_replaced(old: &Package, new: &Control) -> bool {
    use crate::package::MultiArch::Same;
    old.id.arch == new.id.arch || old.multi_arch != Same || new.multi_arch != Same
}

/// Places of new versions, by names in their fields.
type ByName<'n> = HashMap<&'n str, BTreeSet<usize>>;

/// The installed packages dpkg removes by itself, to make room for a new one they conflict with.
///
/// As dpkg's `check_conflict`: either may name the other, or what it provides; the old one goes if the new one
/// `Replaces` it or it is not wanted, or if neither is dispensable. Versions are ignored.
fn removed_for<'a>(database: &'a Database<'_>, news: &[New]) -> Vec<&'a Package> {
    // Looked up by name: a guest may have thousands of packages with thousands of names in these fields.
    let (mut conflicting, mut providing) = (ByName::new(), ByName::new());
    for (at, New { control, .. }) in news.iter().enumerate() {
        for name in &control.conflicts {
            conflicting.entry(name).or_default().insert(at);
        }
        for name in std::iter::once(&control.id.name).chain(&control.provides) {
            providing.entry(name).or_default().insert(at);
        }
    }
    let is_removed = |old: &Package| {
        let names: HashSet<_> = std::iter::once(old.id.name.as_str().into()).chain(old.provides()).collect();
        let against_it = names.iter().filter_map(|name| conflicting.get(name.as_ref()));
        let conflicts: HashSet<_> = old.conflicts().collect();
        let against_new = conflicts.iter().filter_map(|name| providing.get(name.as_ref()));
        let met: BTreeSet<usize> = against_it.chain(against_new).flatten().copied().collect();
        let unwanted = !matches!(old.want, Want::Install | Want::Hold);
        met.into_iter().map(|at| &news[at].control).any(|new| {
            old.id.name != new.id.name
                && (unwanted || new.replaces.contains(&old.id.name) || (new.essential && old.is_essential()))
        })
    };
    database
        .packages()
        .iter()
        .filter(|old| old.state > PackageState::ConfigFiles && is_removed(old))
        .collect()
}

/// The other names of `paths`, which are sorted, and all names the packages of the run divert: they may move
/// them back.
fn diverted(paths: &[PathBuf], run: &BTreeSet<PackageId>, diversions: &[Diversion]) -> Vec<PathBuf> {
    let has =
        |path: &PathBuf| paths.binary_search_by(|other| other.as_os_str().cmp(path.as_os_str())).is_ok();
    let by_run = |name: &String| run.iter().any(|id| id.name == *name);
    diversions
        .iter()
        .filter(|each| has(&each.from) || has(&each.to) || each.by.as_ref().is_some_and(by_run))
        .flat_map(|each| [each.from.clone(), each.to.clone()])
        .collect()
}

/// The paths themselves, and the names dpkg and its like make from them.
fn siblings(payload: Vec<PathBuf>, conffiles: Vec<PathBuf>) -> Vec<PathBuf> {
    let mut paths = Vec::with_capacity(payload.len() * (1 + PAYLOAD_SUFFIXES.len()));
    for path in &payload {
        paths.extend(PAYLOAD_SUFFIXES.iter().map(|suffix| with_suffix(path, suffix)));
    }
    for path in &conffiles {
        paths.extend(CONFFILE_SUFFIXES.iter().map(|suffix| with_suffix(path, suffix)));
        if let Some(name) = path.file_name() {
            let autosave = [OsStr::new("#"), name, OsStr::new("#")].into_iter().collect::<OsString>();
            paths.push(path.with_file_name(autosave));
        }
    }
    paths.extend(payload);
    paths.extend(conffiles);
    paths
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_os_string();
    name.push(suffix);
    name.into()
}

/// Where a configuration file that is a symlink leads: dpkg replaces the file at its end (`conffderef`).
fn symlink_targets(root: &Root, path: &Path) -> Vec<PathBuf> {
    let target = |path: &Path| {
        let parent = path.parent()?;
        let target =
            rustix::fs::readlinkat(root.open_dir(parent).ok()?, path.file_name()?, Vec::new()).ok()?;
        Some(parent.join(OsStr::from_bytes(target.to_bytes())))
    };
    // As many as the kernel follows, path_resolution(7).
    std::iter::successors(target(path), |path| target(path)).take(40).collect()
}

/// Whether a name in the root directory is a directory, and no symlink to one.
fn is_directory(root: &Root, path: &Path) -> bool {
    let stat = rustix::fs::statat(root, relative(path), AtFlags::SYMLINK_NOFOLLOW);
    stat.is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode).is_dir())
}

#[cfg(test)]
mod tests;

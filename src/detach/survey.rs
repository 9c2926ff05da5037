//! Which of the files that are about to be touched are unified.

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use serde::Serialize;

use super::guarded;
use super::layers::Layers;
use super::request::Request;
use crate::inspect::{Surroundings, Verdict, VisibleFence, inspect};
use crate::package::Managers;
use crate::package::owners::Owners;
use crate::parallel;
use crate::policy::pattern::PatternSet;
use crate::policy::{LastLink, Policy};
use crate::report::{Reason, Shown, json_path};
use crate::state::hard_links::HardLinks;
use crate::sys::file::filesystem;
use crate::sys::file::inode::{Inode, InodeId, Kind};
use crate::sys::path::resolve::{Place, Resolver, is_absent};
use crate::sys::path::root::Root;
use crate::sys::path::tree::{self, Descend};
use crate::sys::process::mounts::MountPoints;

/// A file that was looked at.
#[derive(Clone, Debug)]
pub struct Found {
    /// Its name.
    pub place: Place,
    /// Its inode at that moment.
    pub inode: Inode,
    /// What protects it.
    pub fence: VisibleFence,
}

/// How many files, and how many bytes they hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Tally {
    /// Names.
    pub files: u64,
    /// Bytes; those of an inode with several names count once.
    pub bytes: u64,
}

/// A file that is neither private nor to be detached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Left {
    /// Its path.
    #[serde(flatten, serialize_with = "json_path")]
    pub path: PathBuf,
    /// What it is.
    #[serde(flatten)]
    pub verdict: Verdict,
    /// It was asked for by its own path, not found below another.
    #[serde(skip)]
    pub named: bool,
}

/// A path that could not be looked at.
#[derive(Debug, thiserror::Error)]
#[error("{}: {}", Shown(path), Reason(source))]
pub struct Unseen {
    /// The path.
    pub path: PathBuf,
    /// Why.
    pub source: io::Error,
}

impl Unseen {
    /// Whether not the path is the reason, but that we have run out of descriptors or memory.
    pub fn is_exhaustion(&self) -> bool {
        matches!(self.source.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM))
    }
}

/// What a search came to.
#[derive(Debug, Default)]
pub struct Survey {
    /// Files that were looked at.
    pub looked_at: u64,
    /// Of these, the regular files with one link and nothing about them.
    pub single: Tally,
    /// The unified ones, but for those that are `guarded`.
    pub unified: Vec<Found>,
    /// Those that stay shared: they are to lose their names only, and the host's guard keeps them from anything else.
    pub guarded: Tally,
    /// A marked file that can be written to, although the host says that its guard protects it: the guard is not loaded.
    pub unguarded: Option<PathBuf>,
    /// How many of these nobody asked for: hard links of such as were.
    pub hard_links: u64,
    /// Hard links of one another within this guest.
    pub linked: Vec<Found>,
    /// Those a person may wonder about, with what they are.
    pub left: Vec<Left>,
    /// What could not be looked at.
    pub unseen: Vec<Unseen>,
}

/// Looks at what a request names, and judges what was found.
pub fn survey(root: &Root, policy: &Policy, request: &Request) -> Survey {
    let Request { given, touched, patterns, other_names, by_name } = request;
    let mut surveyor = Surveyor::new(root, policy);
    if !given.is_empty() {
        surveyor.given(given);
        surveyor.siblings();
    }
    // A directory that a file takes the place of is removed, with all that is in it.
    for directory in surveyor.paths(&touched.non_directories) {
        surveyor.tree(&directory);
    }
    let known: HashSet<&PathBuf> = touched.non_directories.iter().collect();
    surveyor.paths(touched.paths.iter().filter(|path| !known.contains(path)));
    surveyor.behind_symlinks(&touched.followed);
    touched.trees.iter().for_each(|tree| surveyor.tree(tree));
    surveyor.patterns(patterns);
    if *other_names {
        surveyor.siblings();
    }
    surveyor.finish(by_name.then_some(&touched.in_place))
}

/// Collects the files of paths, trees and patterns.
#[derive(Debug)]
struct Surveyor<'a> {
    root: &'a Root,
    policy: &'a Policy,
    resolver: Resolver<'a>,
    /// The mount of the guest's root.
    home: Option<u64>,
    /// What packages own, once that was asked; none if it cannot be known.
    owners: OnceCell<Option<Owners>>,
    walked: HashSet<PathBuf>,
    looked_at: u64,
    single: Tally,
    /// Regular files with several links or an inode flag: all that can be anything but private.
    candidates: BTreeMap<Place, Inode>,
    /// Those that nobody asked for: hard links of others.
    hard_links: HashSet<Place>,
    /// Those in the places where scripts write.
    scripts: HashSet<Place>,
    /// How many names more these inodes have in the guest, by mount.
    elsewhere: HashMap<(InodeId, u64), u32>,
    /// Those that were asked for by their own paths.
    named: HashSet<Place>,
    left: Vec<Left>,
    unseen: Vec<Unseen>,
}

impl<'a> Surveyor<'a> {
    /// A search that has found nothing yet.
    fn new(root: &'a Root, policy: &'a Policy) -> Surveyor<'a> {
        Surveyor {
            root,
            policy,
            resolver: Resolver::new(root),
            home: Inode::of(root).ok().map(|inode| inode.mount),
            owners: OnceCell::new(),
            walked: HashSet::new(),
            looked_at: 0,
            single: Tally::default(),
            candidates: BTreeMap::new(),
            hard_links: HashSet::new(),
            scripts: HashSet::new(),
            elsewhere: HashMap::new(),
            named: HashSet::new(),
            left: Vec::new(),
            unseen: Vec::new(),
        }
    }

    /// Looks at the files that these paths lead to, and at all below those that lead to directories.
    fn given(&mut self, paths: &[PathBuf]) {
        let (mut files, mut trees) = (BTreeSet::new(), BTreeSet::new());
        for path in paths {
            match self.leads_to(path) {
                Ok((path, Kind::Directory)) => drop(trees.insert(path)),
                Ok((path, _)) => drop(files.insert(path)),
                Err(source) => self.unseen.push(Unseen { path: path.clone(), source }),
            }
        }
        self.paths(&files);
        let mut above: Option<&PathBuf> = None;
        for tree in &trees {
            // Sorted: whatever lies below the last one walked comes right after it.
            if above.is_none_or(|above| !tree.starts_with(above)) {
                self.tree(tree);
                above = Some(tree);
            }
        }
    }

    /// The canonical path of what `path` leads to, and what that is.
    fn leads_to(&mut self, path: &Path) -> io::Result<(PathBuf, Kind)> {
        match self.resolver.followed(path)? {
            Some(place) => {
                let dir = self.root.open_dir(&place.dir)?;
                Ok((place.path(), Inode::at(dir, &place.name)?.kind))
            }
            // `/` and what ends in `..` have no last component.
            None => match self.resolver.directory(path)? {
                Some(dir) => Ok((dir, Kind::Directory)),
                None => Err(io::Error::from_raw_os_error(libc::ENOENT)),
            },
        }
    }

    /// Looks at these paths; those that do not exist are passed over.
    ///
    /// The directory part of a path is resolved inside the guest, its last component never. Returns the paths that
    /// are directories.
    fn paths<'p>(&mut self, paths: impl IntoIterator<Item = &'p PathBuf>) -> Vec<PathBuf> {
        self.look_at(paths, Asked::Name)
    }

    fn look_at<'p>(&mut self, paths: impl IntoIterator<Item = &'p PathBuf>, asked: Asked) -> Vec<PathBuf> {
        let mut by_dir: BTreeMap<PathBuf, BTreeSet<OsString>> = BTreeMap::new();
        for path in paths {
            match self.resolver.place(path) {
                Ok(Some(place)) => drop(by_dir.entry(place.dir).or_default().insert(place.name)),
                Ok(None) => {}
                Err(source) => self.unseen.push(Unseen { path: path.clone(), source }),
            }
        }
        let dirs: Vec<_> = by_dir.into_iter().collect();
        let looked =
            parallel::map(parallel::processors(), &dirs, |(dir, names)| look_into(self.root, dir, names));
        let mut directories = Vec::new();
        for ((dir, _), result) in dirs.into_iter().zip(looked) {
            match result {
                Ok(seen) => {
                    for (name, inode) in seen {
                        let place = Place { dir: dir.clone(), name };
                        if inode.kind == Kind::Directory {
                            directories.push(place.path());
                        } else {
                            self.take(place, inode, asked);
                        }
                    }
                }
                Err(e) if is_absent(&e) => {}
                Err(source) => self.unseen.push(Unseen { path: dir, source }),
            }
        }
        directories
    }

    /// Looks at what these paths lead to, of those among them that were found to be symlinks.
    fn behind_symlinks<'p>(&mut self, paths: impl IntoIterator<Item = &'p PathBuf>) {
        let is_symlink = |left: &&Left| matches!(left.verdict, Verdict::NotRegular { kind: Kind::Symlink });
        let symlinks: HashSet<PathBuf> =
            self.left.iter().filter(is_symlink).map(|left| left.path.clone()).collect();
        let mut targets = BTreeSet::new();
        for path in paths {
            let place = self.resolver.place(path);
            if place.is_ok_and(|place| place.is_some_and(|place| symlinks.contains(&place.path()))) {
                match self.resolver.followed(path) {
                    Ok(target) => targets.extend(target.map(|target| target.path())),
                    Err(source) => self.unseen.push(Unseen { path: path.clone(), source }),
                }
            }
        }
        self.paths(&targets);
    }

    /// Looks at everything below the directory `top`, on its filesystem. Symlinks in `top` are followed inside the
    /// guest, none below it.
    fn tree(&mut self, top: &Path) {
        match self.resolver.directory(top) {
            Ok(Some(dir)) => self.below(&dir),
            Ok(None) => {}
            Err(source) => self.unseen.push(Unseen { path: top.to_path_buf(), source }),
        }
    }

    /// The same for a directory whose path is canonical.
    fn below(&mut self, dir: &Path) {
        self.walk(dir, None);
    }

    /// Looks at everything that matches one of the patterns.
    fn patterns(&mut self, patterns: &PatternSet) {
        let tops: BTreeSet<PathBuf> =
            patterns.iter().map(|pattern| pattern.fixed_prefix().to_path_buf()).collect();
        for top in &tops {
            if tops.iter().any(|other| other != top && top.starts_with(other)) {
                continue;
            }
            match self.resolver.directory(top) {
                Ok(Some(dir)) if dir == *top => self.walk(&dir, Some(patterns)),
                // Behind a symlink the patterns do not match the canonical paths.
                Ok(Some(dir)) => self.walk(&dir, Some(&patterns.moved(top, &dir))),
                Ok(None) => drop(self.look_at([top], Asked::Pattern)),
                Err(source) => self.unseen.push(Unseen { path: top.clone(), source }),
            }
        }
    }

    fn walk(&mut self, top: &Path, patterns: Option<&PatternSet>) {
        if patterns.is_none() && !self.walked.insert(top.to_path_buf()) {
            return;
        }
        let mut found = Vec::new();
        let mut unseen = Vec::new();
        let mut visit = |entry: &tree::TreeEntry<'_>| {
            if entry.kind == Kind::Directory {
                let wanted = patterns.is_none_or(|patterns| patterns.may_match_below(&entry.path()));
                return if wanted { Descend::Into } else { Descend::Past };
            }
            if patterns.is_none_or(|patterns| patterns.matches(&entry.path())) {
                match entry.inode() {
                    Ok(inode) => {
                        let place =
                            Place { dir: entry.dir_path.to_path_buf(), name: entry.name.to_os_string() };
                        found.push((place, inode));
                    }
                    Err(e) if is_absent(&e) => {}
                    Err(source) => unseen.push(Unseen { path: entry.path(), source }),
                }
            }
            Descend::Past
        };
        let skipped = self.visit(top, &mut visit);
        let asked = if patterns.is_none() { Asked::Tree } else { Asked::Pattern };
        for (place, inode) in found {
            self.take(place, inode, asked);
        }
        self.unseen.extend(unseen);
        for (path, problem) in skipped {
            match problem {
                None => self.left.push(Left { path, verdict: Verdict::OtherFilesystem, named: false }),
                Some(source) => self.unseen.push(Unseen { path, source }),
            }
        }
    }

    /// Visits all below `top`, and other mounts there that hold packages' files; returns what was not entered.
    fn visit(
        &self,
        top: &Path,
        visit: &mut dyn FnMut(&tree::TreeEntry<'_>) -> Descend,
    ) -> Vec<(PathBuf, Option<io::Error>)> {
        let (mut tops, mut left) = (vec![top.to_path_buf()], Vec::new());
        while let Some(top) = tops.pop() {
            tree::walk(self.root, &top, visit, &mut |path, problem| match problem {
                None if self.holds_packages(path) => tops.push(path.to_path_buf()),
                problem => left.push((path.to_path_buf(), problem)),
            });
        }
        left
    }

    /// Whether a directory that is another mount is one of those that packages are installed in, such as `/usr`. Any
    /// other may lead to another guest, or to the pool.
    fn holds_packages(&self, dir: &Path) -> bool {
        if self.policy.never_unify.matches(dir) {
            return false;
        }
        self.owners().is_some_and(|owners| owners.own_below(dir))
    }

    fn owners(&self) -> Option<&Owners> {
        let load = || Owners::load(&Managers::new(self.root)).inspect_err(|e| log::debug!("{e}")).ok();
        self.owners.get_or_init(load).as_ref()
    }

    fn take(&mut self, place: Place, inode: Inode, asked: Asked) {
        self.looked_at += 1;
        let named = asked == Asked::Name;
        let left = |verdict| Left { path: place.path(), verdict, named };
        if inode.is_mounted_on() {
            self.left.push(left(Verdict::MountPoint));
        } else if inode.kind == Kind::Regular && (inode.nlink > 1 || inode.immutable || inode.append_only) {
            let elsewhere = self.home.is_some_and(|home| inode.mount != home);
            if asked == Asked::Pattern && elsewhere && !inode.immutable && !inode.append_only {
                return self.left.push(left(Verdict::OtherMount));
            }
            match asked {
                Asked::Name => drop(self.named.insert(place.clone())),
                Asked::Pattern => drop(self.scripts.insert(place.clone())),
                Asked::Tree => {}
            }
            self.candidates.insert(place, inode);
        } else if inode.kind == Kind::Regular {
            self.single.files += 1;
            self.single.bytes += inode.size;
        } else if named {
            self.left.push(left(Verdict::NotRegular { kind: inode.kind }));
        }
    }

    /// Finds the other names, anywhere in the guest, of the inodes found so far.
    ///
    /// Reads directories only. Whoever writes in place to one name of a file expects to see it under the others, so
    /// what is made private by hand stays one inode under all its names. Equal files that only unification has given
    /// one inode are counted, to know who else has it, and stay as they are; if nobody knows which are which, all
    /// are taken for names of one file.
    fn siblings(&mut self) {
        let mut known: HashMap<InodeId, u32> = HashMap::new();
        for inode in self.candidates.values() {
            *known.entry(inode.id).or_default() += 1;
        }
        let wanted: HashSet<u64> = self
            .candidates
            .values()
            .filter(|inode| inode.nlink > known[&inode.id])
            .map(|inode| inode.id.ino)
            .collect();
        if wanted.is_empty() {
            return;
        }
        let mut found = Vec::new();
        let mut visit = |entry: &tree::TreeEntry<'_>| {
            if entry.kind == Kind::Directory {
                return Descend::Into;
            }
            if entry.kind == Kind::Regular && wanted.contains(&entry.ino) {
                let place = Place { dir: entry.dir_path.to_path_buf(), name: entry.name.to_os_string() };
                found.extend(entry.inode().ok().map(|inode| (place, inode)));
            }
            Descend::Past
        };
        self.visit(Path::new("/"), &mut visit);
        let links = HardLinks::read(self.root).inspect_err(|e| {
            log::debug!(
                "the list of hard links cannot be \
            updated: {}",
                Reason(e)
            )
        });
        let links = links.unwrap_or_default();
        // If nothing is known, the inode alone tells.
        let file = |path: &Path, inode: &Inode| (inode.id, links.file(path).map(Path::to_path_buf));
        let asked: HashSet<_> =
            self.candidates.iter().map(|(place, inode)| file(&place.path(), inode)).collect();
        let ours = Path::new(crate::state::store::STATE_DIR);
        for (place, inode) in found {
            if !known.contains_key(&inode.id) || place.dir.starts_with(ours) || inode.is_mounted_on() {
                continue;
            }
            if !asked.contains(&file(&place.path(), &inode)) {
                *self.elsewhere.entry((inode.id, inode.mount)).or_default() += 1;
            } else if !self.candidates.contains_key(&place) {
                self.hard_links.insert(place.clone());
                self.candidates.insert(place, inode);
            }
        }
    }

    /// Whether a package manager or a script changes this file itself, not only its names.
    fn is_changed_in_place(&self, place: &Place, inode: &Inode, in_place: &HashSet<Place>) -> bool {
        let path = place.path();
        let is_left_to_its_package = || {
            let known = |owners: &Owners| owners.of(&path).next().is_some() && !owners.is_conffile(&path);
            self.owners().is_some_and(known)
        };
        is_changed_in_place(inode.mode, in_place.contains(place), || {
            self.scripts.contains(place) && !is_left_to_its_package()
        })
    }

    /// Those of the candidates that the host's guard protects; and one that it should protect, and does not.
    fn guarded(&self, layers: &mut Layers) -> (HashSet<Place>, Option<PathBuf>) {
        if self.candidates.is_empty() || !guarded::is_announced(self.root) {
            return (HashSet::new(), None);
        }
        let on_disk = |(place, inode): &(&Place, &Inode)| !layers.hold(self.root, &place.dir, inode);
        let guarded::Guarded { files, unguarded } =
            guarded::look(self.root, self.candidates.iter().filter(on_disk));
        (files.into_iter().cloned().collect(), unguarded)
    }

    /// Judges what was found. With `in_place`, the other files lose only their names.
    fn finish(mut self, in_place: Option<&Vec<PathBuf>>) -> Survey {
        let mut layers = Layers::default();
        let (guarded, unguarded) = self.guarded(&mut layers);
        // Most often there is nothing to ask this for.
        let in_place = in_place.filter(|_| !guarded.is_empty()).map(|paths| {
            paths.iter().filter_map(|path| self.resolver.place(path).ok().flatten()).collect::<HashSet<_>>()
        });
        // By mount: a directory that is mounted in two places shows the same names twice.
        let mut names = std::mem::take(&mut self.elsewhere);
        for inode in self.candidates.values() {
            *names.entry((inode.id, inode.mount)).or_default() += 1;
        }
        let mut survey = Survey {
            looked_at: self.looked_at,
            single: self.single,
            unified: Vec::new(),
            guarded: Tally::default(),
            unguarded,
            hard_links: 0,
            linked: Vec::new(),
            left: std::mem::take(&mut self.left),
            unseen: std::mem::take(&mut self.unseen),
        };
        let mut read_only: HashMap<u64, bool> = HashMap::new();
        for (place, inode) in std::mem::take(&mut self.candidates) {
            let path = place.path();
            let surroundings = Surroundings {
                layered: layers.hold(self.root, &place.dir, &inode),
                guarded: guarded.contains(&place),
            };
            let names_here = names[&(inode.id, inode.mount)];
            let verdict = inspect(&inode, names_here, self.policy.protection, surroundings);
            let fence = match verdict {
                Verdict::Unified { fence } => fence,
                _ => VisibleFence::of(&inode),
            };
            let named = self.named.contains(&place);
            let last_link =
                verdict == Verdict::AdministratorsOwn && self.policy.last_link == LastLink::Detach && named;
            if !(verdict.is_unified() || last_link) {
                match verdict {
                    Verdict::Private | Verdict::PrivateLinks | Verdict::Layered => {
                        survey.linked.push(Found { place, inode, fence })
                    }
                    _ => survey.left.push(Left { path, verdict, named }),
                }
            } else if self.policy.never_touch.matches(&path) {
                survey.left.push(Left { path, verdict: Verdict::NeverTouch, named });
            } else if self.home.is_some_and(|home| inode.mount != home)
                && *read_only.entry(inode.mount).or_insert_with(|| is_read_only(self.root, &place.dir))
            {
                survey.left.push(Left { path, verdict: Verdict::ReadOnlyMount, named });
            } else if fence == VisibleFence::Guard
                && in_place
                    .as_ref()
                    .is_some_and(|in_place| !self.is_changed_in_place(&place, &inode, in_place))
            {
                survey.guarded.files += 1;
                survey.guarded.bytes += inode.size;
            } else {
                survey.unified.push(Found { place, inode, fence });
            }
        }
        if !self.root.is_own() {
            leave_mount_points(self.root, &mut survey, |place| self.named.contains(place));
        }
        survey.hard_links =
            survey.unified.iter().filter(|found| self.hard_links.contains(&found.place)).count() as u64;
        survey
    }
}

/// How a file came to be looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    Name,
    Tree,
    Pattern,
}

/// What processes have mounted on names; nothing, with a warning, if that cannot be known.
pub(crate) fn mounts_of_processes() -> MountPoints {
    MountPoints::look().unwrap_or_else(|e| {
        log::warn!(
            "the mounts of other processes cannot be read: {}; a mount on a file that is replaced will \
            be lost",
            Reason(e)
        );
        MountPoints::default()
    })
}

/// Leaves what other processes have something mounted on: from outside, nobody there knows that the name is to change. Whoever
/// is inside replaces a file as its package manager would.
fn leave_mount_points(root: &Root, survey: &mut Survey, named: impl Fn(&Place) -> bool) {
    if survey.unified.is_empty() {
        return;
    }
    let mounted = mounts_of_processes();
    survey.unified.retain(|Found { place, .. }| {
        let stays = mounted.are_at(root, place);
        if stays {
            let verdict = Verdict::MountedElsewhere;
            survey.left.push(Left { path: place.path(), verdict, named: named(place) });
        }
        !stays
    });
}

/// Whether a file is changed in place that is `known` to be, or that scripts of other packages write to.
///
/// dpkg takes the set-id bits and the sticky bit away before it removes a file (`secure_unlink_statted`). What a package
/// owns and is no configuration file, only that package's scripts change, once it was unpacked and is private.
fn is_changed_in_place(mode: u32, known: bool, is_written_by_scripts: impl FnOnce() -> bool) -> bool {
    const SET_ID_AND_STICKY: u32 = 0o7000;
    known || mode & SET_ID_AND_STICKY != 0 || is_written_by_scripts()
}

fn is_read_only(root: &Root, dir: &Path) -> bool {
    // If it cannot be known, what comes next says why.
    root.open_dir(dir).and_then(filesystem::is_read_only).unwrap_or(false)
}

fn look_into(root: &Root, dir: &Path, names: &BTreeSet<OsString>) -> io::Result<Vec<(OsString, Inode)>> {
    let fd = root.open_at(dir, OFlags::PATH | OFlags::DIRECTORY)?;
    let mut seen = Vec::new();
    for name in names {
        match Inode::at(&fd, name) {
            Ok(inode) => seen.push((name.clone(), inode)),
            Err(e) if is_absent(&e) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(seen)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_only_loses_its_name_is_not_changed_in_place() {
        assert!(!is_changed_in_place(0o755, false, || false));
        assert!(is_changed_in_place(0o4755, false, || false));
        assert!(is_changed_in_place(0o2755, false, || false));
        assert!(is_changed_in_place(0o1644, false, || false));
        assert!(is_changed_in_place(0o644, true, || false));
        assert!(is_changed_in_place(0o644, false, || true));
    }
}

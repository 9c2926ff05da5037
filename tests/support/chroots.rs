//! A chroot of a Debian release three times: two that share every file, and one that shares nothing and has no hooks.
//! Whatever a package manager does in the first of them must come to what it comes to in the last.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use cow_hooks::sys::file::inode::{InodeId, Kind};

use crate::rpm::plugin;

use super::pair::{Pair, Scope, support};
use super::{assert_same, built, entries, litter, run, same_inode, text};

/// The releases, from the oldest.
const RELEASES: [&str; 4] = ["bullseye", "bookworm", "trixie", "sid"];
/// The packages of `tests/support/rpms`, as paths in a chroot.
pub const RPMS: &str = "/root/rpms";
/// The one that shares nothing.
pub const PRIVATE: &str = "private";

/// What there is to see of a tree: a line for each path.
pub type Picture = BTreeMap<PathBuf, String>;

pub struct Chroots {
    pub pair: Pair,
    neighbour: Picture,
    /// The files of the second one and the pool.
    shareable: BTreeSet<InodeId>,
    /// What the first one has and the others have not.
    ours: BTreeSet<PathBuf>,
}

impl Chroots {
    /// The chroots of a release with version 1 of our own packages; the first one with all hooks.
    pub fn of(release: &'static str) -> Chroots {
        static IMAGES: [OnceLock<File>; 4] = [const { OnceLock::new() }; 4];
        let image = &IMAGES[RELEASES.iter().position(|name| *name == release).unwrap()];
        let pair = Pair::copy_of("rpm-chroots", image, |pair| {
            let private = pair.path(PRIVATE);
            run(support("rpm-chroots").args(["restore", release]).arg(&private));
            run(support("rpms").arg(private.join(&RPMS[1..])));
            run(&mut pair.command_in(PRIVATE, &format!("touch /root/ok && rpm -i {RPMS}/*-1.rpm")));
            for guest in ["g1", "g2"] {
                run(Command::new("cp").arg("-a").arg(&private).arg(pair.path(guest)));
            }
            pair.unify_in(Scope::Wide);
            install_hooks(pair, "g1", release);
            // What unifying has freed is not copied.
            run(Command::new("fstrim").arg(pair.filesystem.path()));
        });
        let neighbour = picture(&pair.path("g2"));
        let known = |path: &PathBuf| neighbour.contains_key(path);
        let ours = picture(&pair.path("g1")).into_keys().filter(|path| !known(path)).collect();
        Chroots { shareable: shareable(&pair), pair, neighbour, ours }
    }

    /// Puts a file of ours into the first one.
    pub fn put(&mut self, path: &str, content: impl AsRef<[u8]>) {
        put(&self.pair.path("g1"), path, content);
        self.ours.insert(PathBuf::from(path));
    }

    /// Lets the two share what has come since they were made.
    pub fn unify(&mut self) {
        self.pair.unify_in(Scope::Wide);
        self.neighbour = picture(&self.pair.path("g2"));
        self.shareable = shareable(&self.pair);
    }

    /// Whether the first two share this file.
    pub fn shared(&self, path: &str) -> bool {
        let [g1, g2] = ["g1", "g2"].map(|guest| self.pair.path(guest).join(path));
        same_inode(&g1, &g2)
    }

    /// Runs a line of shell in the first one, and in the one with private files; asserts that both come to the same,
    /// well, and that nobody else notices.
    #[track_caller]
    pub fn succeed(&self, line: &str) -> String {
        let output = self.pair.succeed(line);
        let alone = self.pair.run_in(PRIVATE, line);
        assert_eq!(alone.status.code(), Some(0), "{line}: {}", text(&alone));
        assert!(!output.contains("not permitted"), "{output}");
        self.assert_clean(line);
        assert_same(&self.outcome(PRIVATE), &self.outcome("g1"), line);
        for question in ["rpm -qa | sort", "rpm -Va"] {
            let [alone, here] = [PRIVATE, "g1"].map(|guest| self.pair.run_in(guest, question).stdout);
            assert_eq!(String::from_utf8_lossy(&alone), String::from_utf8_lossy(&here), "{line}: {question}");
        }
        output
    }

    /// Asserts that a line of shell fails in the first one, and that it changes nothing.
    #[track_caller]
    pub fn refuse(&self, line: &str) -> String {
        let before = self.outcome("g1");
        let output = self.pair.exits(1, line);
        assert_same(&before, &self.outcome("g1"), line);
        self.assert_clean(line);
        output
    }

    /// Asserts that nobody else has noticed what was done in the first one, and that nothing is left of it.
    #[track_caller]
    pub fn assert_clean(&self, line: &str) {
        assert_same(&self.neighbour, &picture(&self.pair.path("g2")), line);
        self.pair.assert_settled(line);
        let g1 = self.pair.path("g1");
        assert_eq!(litter(&g1), Vec::<PathBuf>::new(), "{line}");
        for (path, inode) in entries(&g1) {
            let protected = inode.kind == Kind::Regular && inode.immutable;
            assert!(
                !protected || self.shareable.contains(&inode.id),
                "{line}: {}: only protected",
                path.display()
            );
        }
    }

    /// What one of them looks like but for times, protection, what is ours, and what changes with every run.
    fn outcome(&self, guest: &str) -> Picture {
        let mut picture = picture(&self.pair.path(guest));
        picture.retain(|path, line| {
            let fields: Vec<&str> = line.split('\t').collect();
            *line = [&fields[..5], &fields[7..]].concat().join(" ");
            let changes = ["/var", "/run", "/usr/lib/sysimage"].iter().any(|dir| path.starts_with(dir));
            !changes && !self.ours.contains(path)
        });
        picture
    }
}

fn shareable(pair: &Pair) -> BTreeSet<InodeId> {
    let found = ["g2", "pool"].map(|name| entries(&pair.path(name)));
    found.into_iter().flat_map(BTreeMap::into_values).map(|inode| inode.id).collect()
}

fn picture(top: &Path) -> Picture {
    let lines = text(&run(support("snapshot").arg(top)));
    lines
        .lines()
        .map(|line| line.split_once('\t').unwrap())
        .map(|(path, rest)| (path.into(), rest.to_owned()))
        .collect()
}

fn put(root: &Path, path: &str, content: impl AsRef<[u8]>) {
    let path = root.join(path.trim_start_matches('/'));
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, content).unwrap();
}

/// Where rpm of a chroot looks for plugins.
pub fn plugin_dir(pair: &Pair, guest: &str) -> String {
    text(&run(&mut pair.command_in(guest, "rpm -E %__plugindir"))).trim().to_owned()
}

/// Puts everything of ours for guests into a chroot.
pub fn install_hooks(pair: &Pair, guest: &str, release: &str) {
    let root = pair.path(guest);
    let plugins = plugin_dir(pair, guest);
    let programs = stripped();
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    run(Command::new(top.join("packaging/install"))
        .env("PROGRAMS", programs)
        .env("PLUGINDIR", &plugins)
        .arg(&root)
        .args(["cow-hooks", "rpm-plugin-cowhooks", "dnf-plugin-cow-hooks"]));
    if release == "bullseye" {
        // The one that was built with this test needs a newer C library.
        let built = String::from_utf8(run(&mut support("old-plugin")).stdout).unwrap();
        put(&root, &format!("{plugins}/cowhooks.so"), fs::read(built.trim()).unwrap());
    }
}

/// A directory with our program and the plugin as they were built with this test, but small.
fn stripped() -> &'static Path {
    static STRIPPED: OnceLock<tempfile::TempDir> = OnceLock::new();
    let dir = STRIPPED.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        for from in [built("cow-hooks"), plugin()] {
            let to = dir.path().join(from.file_name().unwrap());
            run(Command::new("strip").arg("--strip-unneeded").arg("-o").arg(to).arg(&from));
        }
        dir
    });
    dir.path()
}

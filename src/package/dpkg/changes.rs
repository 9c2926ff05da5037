//! The steps of a run, from apt's stream or from dpkg's command line.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::command_line::{DpkgAction, Invocation};
use super::database::Database;
use super::status::{Package, PackageState, Want};
use crate::package::PackageSpec;
use crate::package::dpkg::apt;
use crate::report::{Reason, Shown};

/// One step of a run of dpkg's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// The archive is unpacked.
    Unpack(PathBuf),
    /// The package is configured, or processes its triggers.
    Configure(PackageSpec),
    /// The package is removed or purged.
    Remove(PackageSpec),
}

impl Change {
    /// What apt is about to do. It names archives as it sees them itself, dpkg as seen from `chroot`, if they are there.
    pub fn of_stream(stream: &apt::Stream, chroot: Option<&Path>) -> Vec<Change> {
        let seen = |archive: &Path| {
            let inside = chroot.and_then(|chroot| archive.strip_prefix(chroot).ok());
            inside.map_or_else(|| archive.to_path_buf(), |inside| Path::new("/").join(inside))
        };
        let change = |action: &apt::AptAction| {
            let spec = |version: &Option<apt::Version>| {
                let arch = version.as_ref().and_then(|version| version.arch.clone());
                Some(PackageSpec { name: action.name.clone()?, arch })
            };
            match &action.kind {
                apt::AptActionKind::Unpack(archive) => Some(Change::Unpack(seen(archive))),
                apt::AptActionKind::Configure => spec(&action.new).map(Change::Configure),
                apt::AptActionKind::Remove => spec(&action.old).map(Change::Remove),
            }
        };
        stream.actions.iter().filter_map(change).collect()
    }

    /// What a dpkg is about to do whose working directory is `base`, and what could not be found out.
    pub fn of_invocation(
        invocation: &Invocation,
        database: &Database<'_>,
        base: &Path,
    ) -> (Vec<Change>, Vec<String>) {
        let mut warnings = Vec::new();
        let changes = match &invocation.action {
            DpkgAction::Install(archives) | DpkgAction::Unpack(archives) => {
                let archives = archives.iter().map(|archive| base.join(archive));
                if invocation.recursive {
                    let mut search = Search::default();
                    archives.for_each(|path| search.visit(path));
                    warnings = search.warnings;
                    search.archives.into_iter().map(Change::Unpack).collect()
                } else {
                    archives.map(Change::Unpack).collect()
                }
            }
            DpkgAction::Configure(names) => {
                select(invocation, names, database, awaits_configuration, Change::Configure)
            }
            DpkgAction::TriggersOnly(names) => {
                select(invocation, names, database, Package::has_pending_triggers, Change::Configure)
            }
            DpkgAction::Remove(names) | DpkgAction::Purge(names) => {
                select(invocation, names, database, awaits_removal, Change::Remove)
            }
            DpkgAction::Other => Vec::new(),
        };
        (changes, warnings)
    }
}

/// The named packages; with `--pending`, all for which `awaits` is true.
fn select(
    invocation: &Invocation,
    names: &[PackageSpec],
    database: &Database<'_>,
    awaits: impl Fn(&Package) -> bool,
    change: impl Fn(PackageSpec) -> Change,
) -> Vec<Change> {
    let pending = database.packages().iter().filter(|package| invocation.pending && awaits(package));
    let pending =
        pending.map(|Package { id, .. }| PackageSpec { name: id.name.clone(), arch: Some(id.arch.clone()) });
    names.iter().cloned().chain(pending).map(change).collect()
}

/// As dpkg's `enqueue_pending`, but whatever is wanted of the package.
fn awaits_configuration(package: &Package) -> bool {
    matches!(package.state, PackageState::Unpacked | PackageState::HalfConfigured)
        || package.has_pending_triggers()
}

fn awaits_removal(package: &Package) -> bool {
    match package.want {
        Want::Purge => true,
        Want::Deinstall => package.state != PackageState::ConfigFiles,
        _ => false,
    }
}

/// A search for archives as `dpkg --recursive` makes it: regular files named `*.deb`, beyond symlinks, too.
#[derive(Default)]
struct Search {
    archives: Vec<PathBuf>,
    warnings: Vec<String>,
    /// Directories by device and inode, since symlinks may lead in circles.
    seen: HashSet<(u64, u64)>,
}

impl Search {
    fn visit(&mut self, path: PathBuf) {
        if let Err(error) = self.try_visit(&path) {
            self.warnings.push(format!("cannot search {} for packages: {}", Shown(&path), Reason(error)));
        }
    }

    fn try_visit(&mut self, path: &Path) -> io::Result<()> {
        let metadata = std::fs::metadata(path)?;
        if metadata.is_dir() {
            if self.seen.insert((metadata.dev(), metadata.ino())) {
                for entry in std::fs::read_dir(path)? {
                    self.visit(entry?.path());
                }
            }
        } else if metadata.is_file() && has_suffix(path, b".deb") {
            self.archives.push(path.to_path_buf());
        }
        Ok(())
    }
}

fn has_suffix(path: &Path, suffix: &[u8]) -> bool {
    path.file_name().map(OsStr::as_bytes).is_some_and(|name| name.ends_with(suffix))
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::*;
    use crate::package::testing::Guest;

    fn changes(guest: &Guest, line: &str) -> (Vec<Change>, Vec<String>) {
        let invocation = Invocation::parse(&line.split(' ').map(OsString::from).collect::<Vec<_>>());
        let root = guest.root();
        let (mut changes, warnings) =
            Change::of_invocation(&invocation, &guest.database(&root), &guest.path("/srv"));
        changes.sort_by_key(|change| format!("{change:?}"));
        (changes, warnings)
    }

    fn spec(name: &str, arch: &str) -> PackageSpec {
        PackageSpec { name: name.into(), arch: Some(arch.into()) }
    }

    #[test]
    fn a_stream_gives_the_architecture_of_the_version_it_is_about() {
        let text = b"VERSION 3\n\na 1 all none < 2 amd64 none /a.deb\na 1 all none < 2 amd64 none **CONFIGURE**\nb 1 i386 same > - - none **REMOVE**\n";
        assert_eq!(
            Change::of_stream(&apt::Stream::read(&text[..]).unwrap(), None),
            [
                Change::Unpack("/a.deb".into()),
                Change::Configure(spec("a", "amd64")),
                Change::Remove(spec("b", "i386"))
            ]
        );
    }

    #[test]
    fn archives_of_a_stream_are_named_as_dpkg_sees_them() {
        let text =
            b"VERSION 3\n\na - - none < 2 amd64 none /g/x/a.deb\nb - - none < 2 amd64 none /gg/b.deb\n";
        let changes = Change::of_stream(&apt::Stream::read(&text[..]).unwrap(), Some(Path::new("/g")));
        assert_eq!(changes, ["/x/a.deb", "/gg/b.deb"].map(|path| Change::Unpack(path.into())));
    }

    #[test]
    fn archives_are_relative_to_the_working_directory() {
        let guest = Guest::new();
        let (changes, _) = changes(&guest, "dpkg -i a.deb /b.deb");
        assert_eq!(changes, [Change::Unpack("/b.deb".into()), Change::Unpack(guest.path("/srv/a.deb"))]);
    }

    #[test]
    fn recursive_finds_archives_beyond_symlinks_and_not_for_ever() {
        let guest = Guest::new();
        guest.write("/srv/dir/a.deb", b"");
        guest.write("/srv/dir/readme", b"");
        guest.write("/elsewhere/deep/b.deb", b"");
        let link = |target: &str, name: &str| {
            std::os::unix::fs::symlink(guest.path(target), guest.path(name)).unwrap()
        };
        link("/elsewhere", "/srv/dir/more");
        link("/srv", "/srv/dir/loop");
        link("/elsewhere/deep/b.deb", "/srv/dir/1.deb");
        std::fs::create_dir(guest.path("/srv/dir/dir.deb")).unwrap();
        let (changes, warnings) = changes(&guest, "dpkg --unpack -R dir missing");
        let mut names: Vec<_> = changes
            .iter()
            .map(|change| match change {
                Change::Unpack(path) => path.file_name().unwrap().to_str().unwrap(),
                other => panic!("{other:?}"),
            })
            .collect();
        names.sort();
        assert_eq!(names, ["1.deb", "a.deb", "b.deb"]);
        assert!(warnings.len() == 1 && warnings[0].contains("/srv/missing"), "{warnings:?}");
    }

    #[test]
    fn pending_is_what_the_status_says() {
        let guest = Guest::new();
        let mut status = String::new();
        for (name, state) in [
            ("a", "install ok unpacked"),
            ("b", "install ok installed"),
            ("c", "hold ok half-configured"),
            ("d", "install ok triggers-pending"),
            ("e", "deinstall ok installed"),
            ("f", "deinstall ok config-files"),
            ("g", "purge ok config-files"),
        ] {
            status += &format!("Package: {name}\nStatus: {state}\nArchitecture: all\n\n");
        }
        guest.write("/var/lib/dpkg/status", status.as_bytes());
        let all = |names: &[&str], change: fn(PackageSpec) -> Change| {
            names.iter().map(|name| change(spec(name, "all"))).collect::<Vec<_>>()
        };
        assert_eq!(changes(&guest, "dpkg --configure -a").0, all(&["a", "c", "d"], Change::Configure));
        assert_eq!(changes(&guest, "dpkg --triggers-only -a").0, all(&["d"], Change::Configure));
        assert_eq!(changes(&guest, "dpkg --purge --pending").0, all(&["e", "g"], Change::Remove));
        assert_eq!(changes(&guest, "dpkg --remove b:all").0, all(&["b"], Change::Remove));
        assert!(changes(&guest, "dpkg -l").0.is_empty());
    }
}

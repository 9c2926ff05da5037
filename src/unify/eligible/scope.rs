//! Which files of a guest may be unified, by their paths alone.
//!
//! In this order: what the user's rules say holds. What the policy never unifies, configuration files, files that
//! packages list and do not bring, and files of packages that are not fully configured are not. Of the rest, the scope
//! decides.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::line::Choice;
use super::rules::{self, Rules};
use crate::package::Managers;
use crate::package::installed::{self, Database, Listing, Part};
use crate::package::path_set::{Directory, Gathered, PathSet};
use crate::package::steady::Witness;
use crate::policy::PatternSet;
use crate::policy::pattern::NamePattern;
use crate::report::Shown;
use crate::sys::path::resolve::Resolver;
use crate::sys::path::root::Root;

/// Which files of a guest are looked at.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, clap::ValueEnum)]
pub enum Scope {
    /// The files that the guest's packages list
    #[default]
    Owned,
    /// All files of the guest's own file system
    All,
}

/// Why it is not known which files may be unified.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The scope asks for what packages own, and the guest has no package manager that is known.
    #[error(
        "{} has no database of dpkg, rpm or pacman, so the files of its packages are not known; to unify all \
         equal files, use `--scope all`",
        Shown(guest)
    )]
    NoDatabase {
        /// The guest's root, as it was given.
        guest: PathBuf,
    },
    /// The database cannot be read.
    #[error("{}: {error}", Shown(guest))]
    Database {
        /// The guest's root, as it was given.
        guest: PathBuf,
        /// What, and why not.
        error: installed::Error,
    },
}

/// The files of one guest that may be unified.
///
/// Paths are canonical: absolute, and their directories no symlinks.
#[derive(Debug)]
pub struct Eligible {
    rules: Rules,
    never: PatternSet,
    /// Configuration files, ghosts, and files of packages whose installation has not come to its end.
    refused: PathSet,
    /// What packages own; `None` if that does not matter.
    owned: Option<PathSet>,
}

/// What may be unified of one directory; see [`Eligible::directory`].
#[derive(Debug)]
pub struct EligibleNames<'e> {
    rules: rules::DirectoryRules<'e>,
    /// `None` if nothing in the directory is ever unified.
    never: Option<Vec<&'e NamePattern>>,
    refused: Directory<'e>,
    scope: Scope,
    owned: Option<Directory<'e>>,
}

impl Eligible {
    /// Reads what the packages of the guest at `root` own; runs nothing of the guest's.
    ///
    /// `never` is the policy's `never_unify`.
    ///
    /// # Errors
    /// If the database cannot be read, or there is none and `scope` needs one.
    pub fn load(root: &Root, scope: Scope, rules: &Rules, never: &PatternSet) -> Result<Eligible, Error> {
        let guest = || root.path().to_path_buf();
        let mut eligible = Eligible {
            rules: rules.clone(),
            never: never.clone(),
            refused: PathSet::default(),
            owned: (scope == Scope::Owned).then(PathSet::default),
        };
        let mut listing = Listing::new(root);
        let mut resolver = Resolver::new(root);
        let (mut refused, mut owned) = (Gathered::default(), Gathered::default());
        let found = Managers::new(root).each(&mut |entry| {
            listing.package()?;
            listing.files(entry, Part::Configuration, |path| {
                // Whoever edits a configuration file that is a symlink follows it, as dpkg does.
                if let Ok(Some(target)) = resolver.followed(&path) {
                    refused.insert(&target.path())?;
                }
                refused.insert(&path)
            })?;
            // Not so with these: mostly links to what packages own, as of update-alternatives(1).
            listing.files(entry, Part::Ghosts, |path| refused.insert(&path))?;
            match (entry.is_finished(), scope) {
                (true, Scope::All) => Ok(()),
                (true, Scope::Owned) => listing.files(entry, Part::All, |path| owned.insert(&path)),
                (false, _) => listing.files(entry, Part::All, |path| refused.insert(&path)),
            }
        });
        let failed = |error| Error::Database { guest: guest(), error };
        match (scope, found) {
            (Scope::Owned, Ok(false)) => return Err(Error::NoDatabase { guest: guest() }),
            (Scope::Owned, found) => drop(found.map_err(failed)?),
            (Scope::All, found) => {
                installed::Error::unless_unsupported(found, log::Level::Debug).map_err(failed)?;
            }
        }
        eligible.refused = refused.into();
        eligible.owned = eligible.owned.map(|_| owned.into());
        Ok(eligible)
    }

    /// What may be unified of the directory `dir`; `None` if it need not be entered, nor anything below it.
    pub fn directory(&self, dir: &Path) -> Option<EligibleNames<'_>> {
        let rules = self.rules.within(dir);
        let never = self.never.within(dir);
        let is_owned = |owned: &PathSet| owned.is_in_or_below(dir);
        let may_hold = never.is_some() && !rules.is_excluded() && self.owned.as_ref().is_none_or(is_owned);
        if !may_hold && !self.rules.may_include_below(dir) {
            return None;
        }
        Some(EligibleNames {
            rules,
            never,
            refused: self.refused.within(dir),
            scope: if self.owned.is_some() { Scope::Owned } else { Scope::All },
            owned: self.owned.as_ref().map(|owned| owned.within(dir)),
        })
    }
}

impl EligibleNames<'_> {
    /// Whether the regular file `name` of the directory may be unified.
    pub fn file(&self, name: &OsStr) -> bool {
        match self.rules.choose(name) {
            Some(choice) => choice == Choice::Include,
            None => self.may_be_touched(name) && self.is_in_scope(name),
        }
    }

    fn may_be_touched(&self, name: &OsStr) -> bool {
        let is_never =
            |never: &Vec<&NamePattern>| never.iter().any(|pattern| pattern.matches(name.as_bytes()));
        !self.never.as_ref().is_none_or(is_never) && !self.refused.contains(name)
    }

    fn is_in_scope(&self, name: &OsStr) -> bool {
        self.scope == Scope::All || self.owned.is_some_and(|files| files.contains(name))
    }
}

/// A number for all that [`Eligible::load`] depends on, without reading a list: while it stays the same, so do the
/// files that may be unified. Take it before loading.
///
/// The inodes and times of the databases' files tell. What does not is a directory, other than in `/` and `/usr`, that
/// becomes a symlink without a package manager's doing.
///
/// # Errors
/// If one of these files is there and cannot be looked at.
pub(crate) fn fingerprint(
    root: &Root,
    scope: Scope,
    rules: &Rules,
    never: &PatternSet,
) -> io::Result<[u8; 32]> {
    let mut hasher = blake3::Hasher::new();
    let mut text = |text: &[u8]| {
        hasher.update(&(text.len() as u64).to_le_bytes());
        hasher.update(text);
    };
    text(b"cow-unify, eligible files, 2");
    text(&[u8::from(scope == Scope::All)]);
    text(rules.to_string().as_bytes());
    for pattern in never {
        text(pattern.to_string().as_bytes());
        // Differs from the text if the pattern was moved.
        text(pattern.fixed_prefix().as_os_str().as_bytes());
    }
    let witnesses = Managers::new(root).witnesses();
    for path in witnesses.iter().map(PathBuf::as_path).chain(["/", "/usr"].map(Path::new)) {
        let Some(witness) = Witness::of(root, path)? else {
            text(&[]);
            continue;
        };
        let times = [witness.mtime, witness.ctime].map(|time| [time.secs, i64::from(time.nanos)]);
        let mut fields = [witness.id.ino, witness.size].map(u64::to_le_bytes).to_vec();
        fields.extend(times.concat().into_iter().map(i64::to_le_bytes));
        text(&fields.concat());
    }
    Ok(*hasher.finalize().as_bytes())
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::fs;
    use std::os::unix::fs::symlink;

    use proptest::prelude::*;

    use super::*;
    use crate::package::testing::Guest;
    use crate::policy::{Pattern, Policy};
    use crate::sys::budget;
    use crate::sys::file::times::TICK;

    fn load(guest: &Guest, scope: Scope, rules: &str) -> Eligible {
        let rules = Rules::read(rules.as_bytes()).unwrap();
        let never = Policy::builtin().unwrap().never_unify;
        Eligible::load(&guest.root(), scope, &rules, &never).unwrap_or_else(|e| panic!("{e}"))
    }

    fn is_eligible(eligible: &Eligible, path: &str) -> bool {
        let path = Path::new(path);
        let directory = eligible.directory(path.parent().unwrap());
        directory.is_some_and(|directory| directory.file(path.file_name().unwrap()))
    }

    /// As a walker sees it: a directory is entered only if those above it are.
    fn is_reached(eligible: &Eligible, path: &str) -> bool {
        let mut above = Path::new(path).ancestors().skip(1);
        is_eligible(eligible, path) && above.all(|dir| eligible.directory(dir).is_some())
    }

    fn merged_guest() -> Guest {
        let guest = Guest::new();
        fs::create_dir_all(guest.path("/usr/lib/x")).unwrap();
        symlink("usr/lib", guest.path("/lib")).unwrap();
        guest.install("x", "amd64", "", &["/lib", "/lib/x", "/lib/x/a.so", "/usr/share/x/data"]);
        guest
    }

    #[test]
    fn packages_own_what_they_list_by_its_canonical_name() {
        let eligible = load(&merged_guest(), Scope::Owned, "");
        for path in ["/usr/lib/x/a.so", "/usr/share/x/data"] {
            assert!(is_reached(&eligible, path), "{path}");
        }
        for path in ["/usr/lib/x/b.so", "/lib/x/a.so", "/usr/share/x/data/below", "/opt/data"] {
            assert!(!is_eligible(&eligible, path), "{path}");
        }
    }

    #[test]
    fn directories_without_a_file_in_scope_are_not_entered() {
        let eligible = load(&merged_guest(), Scope::Owned, "");
        for dir in ["/", "/usr", "/usr/lib", "/usr/share/x"] {
            assert!(eligible.directory(Path::new(dir)).is_some(), "{dir}");
        }
        for dir in ["/opt", "/usr/share/y", "/usr/share/x/data", "/usr/li", "/etc", "/var/lib"] {
            assert!(eligible.directory(Path::new(dir)).is_none(), "{dir}");
        }
        let eligible = load(&merged_guest(), Scope::All, "/opt/private");
        assert!(eligible.directory(Path::new("/opt")).is_some());
        for dir in ["/opt/private", "/opt/private/x", "/etc", "/proc/1"] {
            assert!(eligible.directory(Path::new(dir)).is_none(), "{dir}");
        }
    }

    #[test]
    fn the_scope_may_be_all_files() {
        let eligible = load(&merged_guest(), Scope::All, "");
        for path in ["/opt/data", "/usr/lib/x/b.so", "/usr/lib/x/a.so"] {
            assert!(is_reached(&eligible, path), "{path}");
        }
        for path in ["/etc/hosts", "/var/lib/x", "/opt/x.log", "/usr/lib/x/lock"] {
            assert!(!is_eligible(&eligible, path), "{path}");
        }
    }

    #[test]
    fn diverted_files_are_owned_where_they_are() {
        let guest = merged_guest();
        guest.install("y", "amd64", "", &["/usr/share/x/data"]);
        guest.write("/var/lib/dpkg/diversions", b"/lib/x/a.so\n/lib/x/a.so.real\ny\n");
        let eligible = load(&guest, Scope::Owned, "");
        assert!(is_eligible(&eligible, "/usr/lib/x/a.so.real"));
        assert!(!is_eligible(&eligible, "/usr/lib/x/a.so"));
    }

    #[test]
    fn configuration_files_are_not_eligible_wherever_they_are() {
        let guest = merged_guest();
        let fields =
            "Multi-Arch: same\nConffiles:\n /opt/a.conf 00\n /opt/gone.conf 00 obsolete\n /opt/link 00";
        let all = ["/opt/a.conf", "/opt/b.conf", "/opt/gone.conf", "/opt/link", "/opt/target", "/opt/free"];
        guest.install("c", "amd64", fields, &all);
        guest.write("/var/lib/dpkg/info/c:amd64.conffiles", b"/opt/b.conf\nremove-on-upgrade /opt/d.conf\n");
        guest.write("/opt/target", b"");
        symlink("/opt/target", guest.path("/opt/link")).unwrap();
        for scope in [Scope::Owned, Scope::All] {
            let eligible = load(&guest, scope, "!/opt/gone.conf");
            for path in ["/opt/a.conf", "/opt/b.conf", "/opt/d.conf", "/opt/link", "/opt/target"] {
                assert!(!is_eligible(&eligible, path), "{scope:?} {path}");
            }
            assert!(is_eligible(&eligible, "/opt/free"), "{scope:?}");
            assert!(is_eligible(&eligible, "/opt/gone.conf"), "the rule says so");
        }
    }

    fn rpm_guest() -> Guest {
        let guest = Guest::bare();
        let files = [
            (&b"/usr/bin/a"[..], 0, 0),
            (b"/usr/bin/other-color", 0, 4),
            (b"/opt/a.conf", 1, 0),
            (b"/usr/bin/ld", 1 << 6, 0),
            (b"/usr/bin/ld.bfd", 0, 0),
        ];
        guest.install_rpm("a", 1, &files);
        fs::create_dir_all(guest.path("/usr/bin")).unwrap();
        fs::create_dir_all(guest.path("/opt")).unwrap();
        symlink("ld.bfd", guest.path("/usr/bin/ld")).unwrap();
        symlink("/opt/target", guest.path("/opt/a.conf")).unwrap();
        std::thread::sleep(TICK);
        guest
    }

    #[test]
    fn packages_of_rpm_own_what_they_have_installed_but_no_configuration_nor_ghosts() {
        let guest = rpm_guest();
        for scope in [Scope::Owned, Scope::All] {
            let eligible = load(&guest, scope, "");
            for path in ["/usr/bin/a", "/usr/bin/ld.bfd"] {
                assert!(is_reached(&eligible, path), "{scope:?} {path}");
            }
            for path in ["/opt/a.conf", "/opt/target", "/usr/bin/ld"] {
                assert!(!is_eligible(&eligible, path), "{scope:?} {path}");
            }
            assert_eq!(is_eligible(&eligible, "/usr/bin/other-color"), scope == Scope::All);
        }
    }

    #[test]
    fn packages_of_pacman_own_what_they_list_but_no_configuration() {
        let guest = Guest::bare();
        guest.write("/var/lib/pacman/local/a-1/desc", b"%NAME%\na\n");
        let files = b"%FILES%\nusr/\nusr/bin/a\nopt/a.conf\n\n%BACKUP%\nopt/a.conf\t00\n";
        guest.write("/var/lib/pacman/local/a-1/files", files);
        let eligible = load(&guest, Scope::Owned, "");
        assert!(is_reached(&eligible, "/usr/bin/a"));
        assert!(!is_eligible(&eligible, "/opt/a.conf"));
    }

    #[test]
    fn a_database_of_a_kind_that_is_not_read_leaves_the_scope_of_all_files() {
        let guest = merged_guest();
        guest.write("/var/lib/rpm/Packages", b"");
        let root = guest.root();
        let load = |scope| Eligible::load(&root, scope, &Rules::default(), &PatternSet::default());
        let text = load(Scope::Owned).unwrap_err().to_string();
        assert!(text.starts_with(root.path().to_str().unwrap()) && text.contains("--scope all"), "{text}");
        assert!(is_eligible(&load(Scope::All).unwrap(), "/usr/bin/x"));
    }

    #[test]
    fn files_of_a_package_that_is_not_configured_are_not_eligible() {
        let guest = merged_guest();
        guest.install("z", "amd64", "", &["/usr/bin/z", "/usr/share/x/data"]);
        guest.write(
            "/var/lib/dpkg/updates/0001",
            b"Package: z\nArchitecture: amd64\nStatus: install ok unpacked\n",
        );
        for scope in [Scope::Owned, Scope::All] {
            let eligible = load(&guest, scope, "");
            assert!(!is_eligible(&eligible, "/usr/bin/z"), "{scope:?}");
            assert!(!is_eligible(&eligible, "/usr/share/x/data"), "{scope:?}: another package owns it too");
            assert!(is_eligible(&eligible, "/usr/lib/x/a.so"), "{scope:?}");
        }
    }

    #[test]
    fn the_users_rules_come_first() {
        let guest = merged_guest();
        let eligible = load(&guest, Scope::Owned, "!/etc/ssl/certs\n!/opt/*.so\n*.so\n");
        for path in ["/etc/ssl/certs/x", "/opt/x.so", "/usr/share/x/data"] {
            assert!(is_reached(&eligible, path), "{path}");
        }
        for path in ["/etc/ssl/x", "/opt/x", "/usr/lib/x/a.so"] {
            assert!(!is_eligible(&eligible, path), "{path}");
        }
    }

    #[test]
    fn without_a_database_only_the_scope_of_all_files_is_known() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path()).unwrap();
        let load = |scope| Eligible::load(&root, scope, &Rules::default(), &PatternSet::default());
        let error = load(Scope::Owned).unwrap_err();
        assert!(matches!(error, Error::NoDatabase { .. }));
        let text = error.to_string();
        assert!(text.contains(dir.path().to_str().unwrap()) && text.contains("--scope all"), "{text}");
        assert!(is_eligible(&load(Scope::All).unwrap(), "/usr/bin/x"));
        fs::write(dir.path().join("var"), b"").unwrap();
        assert!(matches!(load(Scope::Owned), Err(Error::NoDatabase { .. })));
    }

    #[test]
    fn a_database_that_cannot_be_read_is_named_with_its_guest() {
        let guest = merged_guest();
        let list = guest.path("/var/lib/dpkg/info/x.list");
        fs::remove_file(&list).unwrap();
        fs::create_dir(&list).unwrap();
        let root = guest.root();
        let load = |scope| Eligible::load(&root, scope, &Rules::default(), &PatternSet::default());
        let text = load(Scope::Owned).unwrap_err().to_string();
        assert!(text.starts_with(root.path().to_str().unwrap()), "{text}");
        assert!(text.contains("/var/lib/dpkg/info/x.list: not a regular file"), "{text}");
        fs::remove_dir(&list).unwrap();
        assert!(load(Scope::Owned).is_ok(), "a package without a list owns nothing");
    }

    #[test]
    fn lists_beyond_all_measure_are_refused() {
        let guest = merged_guest();
        let line = format!("/{}\n", "x".repeat(4000)).into_bytes();
        let list = line.repeat(budget::PACKAGE_LIST / line.len());
        for number in 0..=budget::PATH_BYTES / list.len() {
            let name = format!("x{number}");
            guest.install(&name, "amd64", "", &[]);
            guest.write(format!("/var/lib/dpkg/info/{name}.list"), &list);
        }
        let none = (Rules::default(), PatternSet::default());
        let result = Eligible::load(&guest.root(), Scope::Owned, &none.0, &none.1);
        let error = result.map(drop).unwrap_err();
        assert!(matches!(error, Error::Database { error: installed::Error::TooMuch(_), .. }), "{error:?}");
    }

    #[test]
    fn the_fingerprint_changes_with_all_that_counts() {
        let guest = merged_guest();
        let root = guest.root();
        let rules = |text: &str| Rules::read(text.as_bytes()).unwrap();
        let never = |text: &str| PatternSet::from_iter([Pattern::parse(text).unwrap()]);
        let take = || fingerprint(&root, Scope::Owned, &rules("/a"), &never("/a")).unwrap();
        let mut seen = vec![take()];
        assert_eq!(take(), seen[0]);
        seen.push(fingerprint(&root, Scope::All, &rules("/a"), &never("/a")).unwrap());
        seen.push(fingerprint(&root, Scope::Owned, &rules("!/a"), &never("/a")).unwrap());
        seen.push(fingerprint(&root, Scope::Owned, &rules(""), &never("/a")).unwrap());
        seen.push(fingerprint(&root, Scope::Owned, &rules("/a"), &never("/b")).unwrap());
        let moved = never("/a").moved(Path::new("/a"), Path::new("/c"));
        seen.push(fingerprint(&root, Scope::Owned, &rules("/a"), &moved).unwrap());
        for path in ["dpkg/diversions", "dpkg/info/y.list", "dpkg/updates/0001", "pacman/local/x/desc"] {
            guest.write(Path::new("/var/lib").join(path), b"x");
            seen.push(take());
        }
        for name in ["rpmdb.sqlite", "rpmdb.sqlite-wal", "Packages.db", "Packages"] {
            guest.write(Path::new("/usr/lib/sysimage/rpm").join(name), b"x");
            seen.push(take());
        }
        guest.write("/var/lib/rpm/rpmdb.sqlite-wal", b"");
        assert_eq!(take(), seen[seen.len() - 1], "a log without content");
        guest.install("y", "amd64", "", &["/usr/bin/y"]);
        seen.push(take());
        fs::remove_file(guest.path("/lib")).unwrap();
        seen.push(take());
        assert_eq!(seen.iter().collect::<HashSet<_>>().len(), seen.len());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn any_bytes_in_the_database_are_read_without_panic(
            list in prop::collection::vec(any::<u8>(), 0..99),
            lines in "([/a.]{0,9}\n){0,9}",
            fields in "(Conffiles:\n( /?[/a.]{0,6} 0\n)?)?",
        ) {
            let guest = merged_guest();
            guest.install("l", "all", fields.trim_end(), &[]);
            for (name, data) in [("x.list", &list[..]), ("l.list", lines.as_bytes()), ("x.conffiles", &list)] {
                guest.write(Path::new("/var/lib/dpkg/info").join(name), data);
            }
            guest.write("/var/lib/dpkg/diversions", lines.as_bytes());
            let eligible = load(&guest, Scope::Owned, "");
            for path in ["/x", "/a/a", "/usr/share/x/data"] {
                is_eligible(&eligible, path);
            }
        }
    }
}

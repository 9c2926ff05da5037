//! rpm's database: where it is, and the packages in it.

use std::borrow::Cow;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use super::header::Header;
use super::{malformed, ndb, sqlite};
use crate::package::installed::{Database, Error, InstalledPackage, Part, Tell, Visit, may_be_since};
use crate::package::steady;
use crate::sys::file::content::fill;
use crate::sys::file::inode::Inode;
use crate::sys::path::resolve::is_absent;
use crate::sys::path::root::Root;

/// Where databases are: mostly in the first; in the second with Fedora and SUSE, where a symlink leads there.
const DIRS: [&str; 2] = ["/var/lib/rpm", "/usr/lib/sysimage/rpm"];
/// The file of headers, by its kind; rpm removes the others if it converts one.
const KINDS: [(&str, Kind); 3] =
    [("rpmdb.sqlite", Kind::Sqlite), ("Packages.db", Kind::Ndb), ("Packages", Kind::Berkeley)];
/// What SQLite writes beside it.
const LOG: &str = "rpmdb.sqlite-wal";
const JOURNAL: &str = "rpmdb.sqlite-journal";

/// Packages that guests of every distribution have; by one name or the other.
const ESSENTIAL: [&str; 4] = ["bash", "coreutils", "coreutils-single", "glibc"];

#[derive(Debug, Clone, Copy)]
enum Kind {
    /// Since rpm 4.16; everywhere but with SUSE.
    Sqlite,
    /// SUSE's.
    Ndb,
    /// Until rpm 4.15.
    Berkeley,
}

/// The guest's rpm.
#[derive(Debug)]
pub struct Rpm<'r> {
    root: &'r Root,
    dirs: Vec<PathBuf>,
}

impl<'r> Rpm<'r> {
    /// The rpm whose database is in `dir`, a path of the guest; in one of the usual places if that is not given.
    pub fn new(root: &'r Root, dir: Option<PathBuf>) -> Rpm<'r> {
        Rpm { root, dirs: dir.map_or_else(|| DIRS.map(PathBuf::from).into(), |dir| vec![dir]) }
    }

    /// The file of headers in `dir`.
    fn find(&self, dir: &Path) -> Result<Option<(PathBuf, Kind, OwnedFd)>, Error> {
        for (name, kind) in KINDS {
            let path = dir.join(name);
            match self.root.open_file(&path) {
                Ok(file) => return Ok(Some((path, kind, file))),
                Err(error) if is_absent(&error) => {}
                Err(error) => return Err(unreadable(&path, error)),
            }
        }
        Ok(None)
    }

    /// The headers in `file`, which is in `dir`.
    fn blobs(&self, dir: &Path, kind: Kind, file: OwnedFd) -> io::Result<Blobs> {
        let beside = |name| match self.root.open_file(&dir.join(name)) {
            Err(error) if is_absent(&error) => Ok(None),
            opened => opened.map(Some),
        };
        match kind {
            Kind::Sqlite => {
                let log = beside(LOG)?;
                if beside(JOURNAL)?.is_some_and(|journal| is_hot(&journal)) {
                    return Err(malformed(
                        "a transaction of rpm was interrupted; run `rpm -q rpm` in the guest to roll it back",
                    ));
                }
                Ok(Box::new(sqlite::SqliteFile::open(file, log)?.blobs("Packages")?))
            }
            Kind::Ndb => Ok(Box::new(ndb::blobs(file)?)),
            Kind::Berkeley => Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "a Berkeley DB, which cannot be read here; convert it with `rpm --rebuilddb` in the guest, if \
                 its rpm has the sqlite backend (4.16 or later), or use `--scope all`",
            )),
        }
    }
}

/// The headers in a database.
type Blobs = Box<dyn Iterator<Item = io::Result<Vec<u8>>>>;

impl Database for Rpm<'_> {
    fn root(&self) -> &Root {
        self.root
    }

    fn each(&self, visit: &mut Visit<'_>) -> Result<bool, Error> {
        let mut seen = Vec::new();
        for dir in &self.dirs {
            let Some((path, kind, file)) = self.find(dir)? else { continue };
            let failed = |error| unreadable(&path, error);
            let id = Inode::of(&file).map_err(failed)?.id;
            if seen.contains(&id) {
                continue;
            }
            seen.push(id);
            steady::read(self.root, "rpm", &self.witnesses(), || {
                for blob in self.blobs(dir, kind, file).map_err(failed)? {
                    let blob = blob.map_err(failed)?;
                    let header = Header::parse(&blob).map_err(failed)?;
                    visit(&Installed { path: &path, name: header.name().map_err(failed)?, header })?;
                }
                Ok(())
            })?;
        }
        Ok(!seen.is_empty())
    }

    fn witnesses(&self) -> Vec<PathBuf> {
        let names = KINDS.iter().map(|(name, _)| *name).chain([LOG, JOURNAL]);
        names.flat_map(|name| self.dirs.iter().map(move |dir| dir.join(name))).collect()
    }
}

/// A package of rpm's.
struct Installed<'b> {
    /// The database, for messages.
    path: &'b Path,
    name: &'b [u8],
    header: Header<'b>,
}

impl InstalledPackage for Installed<'_> {
    fn name(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(self.name)
    }

    fn is_essential(&self) -> bool {
        ESSENTIAL.iter().any(|name| name.as_bytes() == self.name)
    }

    fn is_unpacked_since(&self, since: i64) -> Result<bool, Error> {
        let time = self.header.install_time().map_err(|error| unreadable(self.path, error))?;
        Ok(may_be_since(time, since))
    }

    fn files(&self, part: Part, tell: &mut Tell<'_>) -> Result<(), Error> {
        let files = self.header.files().map_err(|error| unreadable(self.path, error))?;
        let of_part = files.filter(|file| match part {
            Part::Configuration => file.is_configuration(),
            Part::Ghosts => file.is_ghost(),
            Part::All => file.is_installed(),
        });
        of_part.filter_map(|file| file.path()).try_for_each(tell)
    }
}

fn unreadable(path: &Path, source: io::Error) -> Error {
    Error::Unreadable { manager: "rpm", path: path.to_path_buf(), source }
}

/// Whether a rollback journal has to be played back before the database makes sense
/// (<https://www.sqlite.org/fileformat.html>, 3).
fn is_hot(journal: &OwnedFd) -> bool {
    let mut first = [0];
    fill(journal, &mut first, 0).is_ok_and(|read| read > 0) && first != [0]
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use proptest::prelude::*;

    use super::*;
    use crate::package::PackageManager;
    use crate::package::testing::{Guest, rpm_header};
    use crate::sys::file::times::TICK;

    const CONFIG: u32 = 1;
    const GHOST: u32 = 1 << 6;

    /// Who has installed some time ago.
    fn guest() -> Guest {
        let guest = Guest::bare();
        let files = [
            (&b"/bin/a"[..], 0, 0),
            (b"/etc/a.conf", CONFIG, 0),
            (b"/var/log/a", GHOST, 0),
            (b"/usr/lib/other-color", 0, 4),
        ];
        guest.install_rpm("a", 100, &files);
        guest.install_rpm("glibc", 200, &[(b"/usr/lib/libc.so", 0, 0)]);
        std::thread::sleep(TICK);
        guest
    }

    fn names(root: &Root, dir: Option<&str>) -> Result<Option<Vec<String>>, Error> {
        let mut names = Vec::new();
        let found = Rpm::new(root, dir.map(PathBuf::from)).each(&mut |entry| {
            names.push(entry.name().into_owned());
            Ok(())
        })?;
        Ok(found.then_some(names))
    }

    #[test]
    fn what_a_transaction_wants_to_know_is_in_the_headers() {
        let guest = guest();
        fs::create_dir_all(guest.path("/usr/bin")).unwrap();
        symlink("usr/bin", guest.path("/bin")).unwrap();
        let root = guest.root();
        let rpm = Rpm::new(&root, None);
        let packages = rpm.after_run(200_999_999_999).unwrap();
        assert!(packages.unfinished.is_empty());
        assert!(packages.unpacked.iter().eq([Path::new("/usr/lib/libc.so")]));
        let configuration: Vec<&PathBuf> = packages.configuration.iter().collect();
        assert_eq!(configuration.len(), 2, "{configuration:?}");
        let unpacked = rpm.after_run(0).unwrap().unpacked;
        assert!(unpacked.contains(Path::new("/usr/bin/a")), "{unpacked:?}");
        assert!(!unpacked.contains(Path::new("/usr/lib/other-color")), "{unpacked:?}");
        assert!(rpm.after_run(i64::MAX).unwrap().unpacked.is_empty());
        assert_eq!(rpm.essential().unwrap(), [Path::new("/usr/lib/libc.so")]);
    }

    #[test]
    fn a_database_that_two_names_lead_to_is_read_once() {
        let guest = guest();
        fs::create_dir_all(guest.path("/usr/lib/sysimage")).unwrap();
        fs::rename(guest.path("/var/lib/rpm"), guest.path("/usr/lib/sysimage/rpm")).unwrap();
        assert_eq!(names(&guest.root(), None).unwrap().unwrap(), ["a", "glibc"]);
        symlink("../../usr/lib/sysimage/rpm", guest.path("/var/lib/rpm")).unwrap();
        assert_eq!(names(&guest.root(), None).unwrap().unwrap(), ["a", "glibc"]);
    }

    #[test]
    fn a_guest_without_rpm_has_no_packages_of_its() {
        let guest = Guest::new();
        assert_eq!(names(&guest.root(), None).unwrap(), None);
        assert_eq!(names(&guest.root(), Some("/db")).unwrap(), None);
        fs::create_dir_all(guest.path("/var/lib/rpm")).unwrap();
        assert_eq!(names(&guest.root(), None).unwrap(), None);
    }

    #[test]
    fn a_database_that_is_not_read_is_named_with_the_remedy() {
        let guest = Guest::bare();
        guest.write("/var/lib/rpm/Packages", b"\0\0\0");
        let error = names(&guest.root(), None).unwrap_err();
        assert!(error.is_unsupported());
        let text = error.to_string();
        let start = "cannot read rpm's database, /var/lib/rpm/Packages: a Berkeley DB";
        assert!(text.starts_with(start) && text.contains("--scope all"), "{text}");
    }

    #[test]
    fn a_transaction_that_was_cut_off_is_not_read() {
        let guest = guest();
        guest.write("/var/lib/rpm/rpmdb.sqlite-journal", b"\xd9");
        std::thread::sleep(TICK);
        let text = names(&guest.root(), None).unwrap_err().to_string();
        assert!(text.contains("rpmdb.sqlite: a transaction of rpm was interrupted"), "{text}");
        guest.write("/var/lib/rpm/rpmdb.sqlite-journal", b"");
        std::thread::sleep(TICK);
        assert!(names(&guest.root(), None).is_ok());
    }

    #[test]
    fn a_package_manager_at_work_is_noticed() {
        let guest = guest();
        let root = guest.root();
        let rpm = Rpm::new(&root, None);
        let mut left = 1;
        let result = rpm.each(&mut |_| {
            if left > 0 {
                left -= 1;
                guest.install_rpm("b", 300, &[]);
            }
            Ok(())
        });
        let text = result.unwrap_err().to_string();
        assert!(text.starts_with("rpm's database changed while it was read"), "{text}");
        assert_eq!(names(&root, None).unwrap().unwrap(), ["a", "glibc", "b"]);
    }

    #[test]
    fn somebody_who_looks_into_the_database_is_no_package_manager_at_work() {
        let guest = guest();
        let root = guest.root();
        let looked = Rpm::new(&root, None).each(&mut |_| {
            guest.write("/var/lib/rpm/rpmdb.sqlite-wal", b"");
            Ok(())
        });
        assert!(looked.unwrap());
    }

    #[test]
    fn a_path_that_leads_out_of_the_guest_leads_nowhere() {
        let (guest, other) = (guest(), Guest::bare());
        symlink(guest.path("/var"), other.path("/var")).unwrap();
        assert_eq!(names(&other.root(), None).unwrap(), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn any_header_in_the_database_is_read_without_panic(
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..9),
        ) {
            let guest = Guest::bare();
            let mut header = rpm_header("a", 1, &[(b"/usr/bin/a", 0, 0), (b"/etc/a", CONFIG, 0)]);
            for (at, byte) in changes {
                let at = at.index(header.len());
                header[at] = byte;
            }
            guest.rpm_database().execute("INSERT INTO Packages (blob) VALUES (?1)", [header]).unwrap();
            let _ = Rpm::new(&guest.root(), None).after_run(0);
        }
    }
}

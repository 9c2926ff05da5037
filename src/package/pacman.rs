//! pacman's database of what is installed: a directory a package, with its description and its files
//! (libalpm, `lib/libalpm/be_local.c`).

use std::borrow::Cow;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

use super::absolute;
use super::installed::{Database, Error, InstalledPackage, Part, Tell, Visit, may_be_since};
use super::steady;
use crate::sys::budget;
use crate::sys::path::dirfd::names;
use crate::sys::path::resolve::is_absent;
use crate::sys::path::root::{Root, read_at};

/// Where the database is, unless pacman is told otherwise (pacman.conf(5), `DBPath`).
const DIR: &str = "/var/lib/pacman/local";

/// Packages that every guest has.
const ESSENTIAL: [&str; 4] = ["bash", "coreutils", "glibc", "pacman"];

/// The guest's pacman.
#[derive(Debug)]
pub struct Pacman<'r> {
    root: &'r Root,
    dir: PathBuf,
}

impl<'r> Pacman<'r> {
    /// The pacman whose packages are in `dir`, a path of the guest; in the usual place if that is not given.
    pub fn new(root: &'r Root, dir: Option<PathBuf>) -> Pacman<'r> {
        Pacman { root, dir: dir.unwrap_or_else(|| PathBuf::from(DIR)) }
    }

    /// Reads the package in the directory `name`; `None` where that is none.
    fn package(&self, dir: &OwnedFd, name: &OsStr) -> Result<Option<Installed>, Error> {
        let path = self.dir.join(name);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let package = match rustix::fs::openat(dir, name, flags, Mode::empty()).map_err(io::Error::from) {
            Ok(package) => package,
            Err(error) if is_absent(&error) => return Ok(None),
            Err(error) => return Err(unreadable(&path, error)),
        };
        let read = |file: &str| match read_at(&package, OsStr::new(file), budget::PACKAGE_LIST) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            read => read.map(Option::Some).map_err(|error| unreadable(&path.join(file), error)),
        };
        Ok(Some(Installed { dir: name.to_os_string(), desc: read("desc")?, files: read("files")? }))
    }
}

impl Database for Pacman<'_> {
    fn root(&self) -> &Root {
        self.root
    }

    fn each(&self, visit: &mut Visit<'_>) -> Result<bool, Error> {
        let failed = |error| unreadable(&self.dir, error);
        let dir = match self.root.open_dir(&self.dir) {
            Ok(dir) => dir,
            Err(error) if is_absent(&error) => return Ok(false),
            Err(error) => return Err(failed(error)),
        };
        steady::read(self.root, "pacman", &self.witnesses(), || {
            for name in names(&dir).map_err(failed)? {
                if let Some(package) = self.package(&dir, &name)? {
                    visit(&package)?;
                }
            }
            Ok(true)
        })
    }

    /// A package that is installed, even once more, has a new directory.
    fn witnesses(&self) -> Vec<PathBuf> {
        vec![self.dir.clone()]
    }
}

/// A package of pacman's.
pub(crate) struct Installed {
    /// Name and version.
    pub(crate) dir: OsString,
    /// Written when its files have been unpacked, as is the list of them.
    pub(crate) desc: Option<Vec<u8>>,
    pub(crate) files: Option<Vec<u8>>,
}

impl Installed {
    fn described(&self, field: &str) -> Option<&[u8]> {
        self.desc.as_deref().and_then(|desc| values(desc, field).next())
    }
}

impl InstalledPackage for Installed {
    fn name(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(self.described("NAME").unwrap_or(self.dir.as_bytes()))
    }

    fn is_finished(&self) -> bool {
        self.desc.is_some() && self.files.is_some()
    }

    fn is_essential(&self) -> bool {
        self.described("NAME").is_some_and(|name| ESSENTIAL.iter().any(|other| other.as_bytes() == name))
    }

    fn is_unpacked_since(&self, since: i64) -> Result<bool, Error> {
        let date =
            self.described("INSTALLDATE").and_then(|date| std::str::from_utf8(date).ok()?.parse().ok());
        Ok(may_be_since(date.unwrap_or(0), since))
    }

    fn files(&self, part: Part, tell: &mut Tell<'_>) -> Result<(), Error> {
        // A path, a tab, and the digest of what the package brought.
        let path = |line: &[u8]| absolute(line.split(|&byte| byte == b'\t').next()?);
        let files = self.files.as_deref().unwrap_or_default();
        match part {
            Part::Configuration => values(files, "BACKUP").filter_map(path).try_for_each(tell),
            Part::Ghosts => Ok(()),
            Part::All => values(files, "FILES").filter_map(absolute).try_for_each(tell),
        }
    }
}

fn unreadable(path: &Path, source: io::Error) -> Error {
    Error::Unreadable { manager: "pacman", path: path.to_path_buf(), source }
}

/// The lines below `%field%`, up to an empty one.
fn values<'t>(text: &'t [u8], field: &str) -> impl Iterator<Item = &'t [u8]> + use<'t> {
    let title = [b"%", field.as_bytes(), b"%"].concat();
    let mut lines = text.split(|&byte| byte == b'\n');
    // A line of a field is no title, whatever it looks like.
    while let Some(line) = lines.next() {
        if line == title {
            break;
        }
        if !line.is_empty() {
            lines.by_ref().take_while(|line| !line.is_empty()).for_each(drop);
        }
    }
    lines.take_while(|line| !line.is_empty())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use proptest::prelude::*;

    use super::*;
    use crate::package::PackageManager;
    use crate::package::testing::Guest;
    use crate::sys::file::times::TICK;

    const DESC: &[u8] = b"%NAME%\nbash\n\n%VERSION%\n5.2-1\n\n%INSTALLDATE%\n1700000000\n\n%SIZE%\n1\n";
    const FILES: &[u8] =
        b"%FILES%\nusr/\nusr/bin/\nusr/bin/a b\n%BACKUP%\netc/bash.rc\n\n%BACKUP%\netc/bash.rc\t00ff\n\n";

    fn guest(desc: &[u8], files: &[u8]) -> Guest {
        let guest = Guest::bare();
        guest.write("/var/lib/pacman/local/ALPM_DB_VERSION", b"9\n");
        guest.write("/var/lib/pacman/local/bash-5.2-1/desc", desc);
        guest.write("/var/lib/pacman/local/bash-5.2-1/files", files);
        guest
    }

    fn all(guest: &Guest, part: Part) -> Vec<PathBuf> {
        let mut paths = Vec::new();
        let root = guest.root();
        let read = Pacman::new(&root, None).each(&mut |entry| {
            assert_eq!(entry.name(), "bash");
            entry.files(part, &mut |path| {
                paths.push(path);
                Ok(())
            })
        });
        assert!(read.unwrap());
        paths
    }

    #[test]
    fn packages_list_files_and_configuration_files() {
        let guest = guest(DESC, FILES);
        let files = ["/usr", "/usr/bin", "/usr/bin/a b", "/%BACKUP%", "/etc/bash.rc"];
        assert_eq!(all(&guest, Part::All), files.map(Path::new));
        assert_eq!(all(&guest, Part::Configuration), [Path::new("/etc/bash.rc")]);
        assert_eq!(all(&guest, Part::Ghosts), [""; 0].map(Path::new));
    }

    #[test]
    fn the_date_of_installation_counts_to_the_second() {
        let guest = guest(DESC, FILES);
        let root = guest.root();
        let pacman = Pacman::new(&root, None);
        let unpacked = |since| pacman.after_run(since).unwrap().unpacked.len();
        assert_eq!(unpacked(1_700_000_000_999_999_999), 5);
        assert_eq!(unpacked(1_700_000_001_000_000_000), 0);
        assert_eq!(pacman.essential().unwrap().len(), 5);
    }

    #[test]
    fn a_package_that_is_not_described_is_not_finished() {
        let guest = guest(DESC, FILES);
        let finished = || {
            let mut finished = None;
            let root = guest.root();
            let visit = &mut |entry: &dyn InstalledPackage| {
                finished = Some((entry.name().into_owned(), entry.is_finished()));
                Ok(())
            };
            Pacman::new(&root, None).each(visit).unwrap();
            finished.unwrap()
        };
        assert_eq!(finished(), ("bash".into(), true));
        fs::remove_file(guest.path("/var/lib/pacman/local/bash-5.2-1/desc")).unwrap();
        assert_eq!(finished(), ("bash-5.2-1".into(), false));
    }

    #[test]
    fn a_guest_without_pacman_has_no_packages_of_its() {
        let root = Guest::new();
        assert!(!Pacman::new(&root.root(), None).each(&mut |_| Ok(())).unwrap());
    }

    #[test]
    fn a_package_manager_at_work_is_noticed() {
        let guest = guest(DESC, FILES);
        std::thread::sleep(TICK);
        let root = guest.root();
        let result = Pacman::new(&root, None).each(&mut |_| {
            guest.write("/var/lib/pacman/local/new-1-1/desc", DESC);
            Ok(())
        });
        assert!(matches!(result, Err(Error::Busy { manager: "pacman" })));
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_panic(text in "[%BACKUPFILES\ta/\n]{0,60}") {
            for field in ["FILES", "BACKUP"] {
                let values: Vec<&[u8]> = values(text.as_bytes(), field).collect();
                prop_assert!(values.iter().all(|value| !value.is_empty()));
            }
        }
    }
}

//! dpkg's database (dpkg(1), FILES), read beneath a guest's root without running anything of the guest's.
//!
//! `status` is read at once; a package's own files only when they are asked for. A file that is missing is
//! empty: dpkg installs into a root that has no database yet.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use rustix::fs::AtFlags;

use super::diversions::{self, Diversion};
use super::status::{self, Package};
use super::{Error, statoverride};
use crate::package::dpkg::lists;
use crate::package::{MultiArch, PackageId};
use crate::sys::budget::{self, Exceeded};
use crate::sys::path::dirfd::names_where;
use crate::sys::path::root::{Root, read_at};

/// Where dpkg's database is, unless it is told otherwise.
const ADMINDIR: &str = "/var/lib/dpkg";

/// The directory of a database.
#[derive(Debug)]
pub struct Admindir {
    /// The root that its path is resolved in, if that is not the guest's.
    seen_from: Option<Root>,
    /// Its path there.
    path: PathBuf,
    /// Its path in the guest; none if it lies outside.
    inside: Option<PathBuf>,
}

impl Admindir {
    /// The directory `path` of the guest itself.
    pub fn of_guest(path: &Path) -> Admindir {
        Admindir { seen_from: None, path: path.to_path_buf(), inside: Some(path.to_path_buf()) }
    }

    /// The directory of a guest whose dpkg was told of no other.
    pub fn usual() -> &'static Admindir {
        static USUAL: LazyLock<Admindir> = LazyLock::new(|| Admindir::of_guest(Path::new(ADMINDIR)));
        &USUAL
    }

    /// The directory that this process knows as `path`, an absolute one: in the guest at `root` or outside.
    ///
    /// # Errors
    /// If the guest's root cannot be found.
    pub fn of_process(root: &Root, path: &Path) -> io::Result<Admindir> {
        let guest = std::fs::canonicalize(root.path())?;
        let inside = std::fs::canonicalize(path).ok().and_then(|path| beneath(&path, &guest));
        Ok(Admindir { seen_from: Some(Root::open(Path::new("/"))?), path: path.to_path_buf(), inside })
    }

    /// Its path, in the guest if it lies there.
    pub fn path(&self) -> &Path {
        self.inside.as_ref().unwrap_or(&self.path)
    }

    /// Where the directory is, and the root to look there; none if it is a directory of the guest.
    pub fn outside(&self) -> Option<(&Root, &Path)> {
        let root = self.seen_from.as_ref().filter(|_| self.inside.is_none())?;
        Some((root, &self.path))
    }

    /// Whether this is the same directory as that of the process's own root, of a dpkg that was told of none.
    pub fn is_usual(&self) -> bool {
        let usual = std::fs::canonicalize(ADMINDIR);
        let usual = usual.as_deref().unwrap_or(Path::new(ADMINDIR));
        self.inside.as_ref().is_some_and(|inside| inside == usual || inside == Path::new(ADMINDIR))
    }
}

/// `path` as one that begins at `top`, if it is `top` or lies beneath.
fn beneath(path: &Path, top: &Path) -> Option<PathBuf> {
    path.strip_prefix(top).ok().map(|inside| Path::new("/").join(inside))
}

/// A guest's dpkg database.
#[derive(Debug)]
pub struct Database<'r> {
    root: &'r Root,
    /// The root that `admindir` is resolved in.
    seen_from: Root,
    admindir: PathBuf,
    /// The same directory as a path of the guest.
    inside: Option<PathBuf>,
    has_status: bool,
    info: Option<OwnedFd>,
    packages: Vec<Package>,
}

impl<'r> Database<'r> {
    /// Reads the packages of the database in `admindir`, that of the guest at `root`.
    ///
    /// # Errors
    /// If something is there that cannot be read.
    pub fn open(root: &'r Root, admindir: &Admindir) -> Result<Database<'r>, Error> {
        let Admindir { seen_from, path: dir, inside } = admindir;
        let at = |name: &str| dir.join(name);
        let seen_from = seen_from.as_ref().unwrap_or(root).try_clone();
        let seen_from = seen_from.map_err(|source| Error { path: dir.clone(), source })?;
        let status = optional(seen_from.read(&at("status"), budget::STATUS), &at("status"))?;
        let left = budget::STATUS - status.as_ref().map_or(0, Vec::len);
        let journal = read_journal(&seen_from, &at("updates"), left)?;
        let info = optional(seen_from.open_dir(&at("info")), &at("info"))?;
        let packages = status::packages(status.iter().chain(&journal).map(Vec::as_slice));
        let packages = packages.map_err(|source| Error { path: at("status"), source: source.into() })?;
        let (has_status, admindir, inside) = (status.is_some(), dir.clone(), inside.clone());
        Ok(Database { root, seen_from, admindir, inside, has_status, info, packages })
    }

    /// Whether dpkg has ever written one.
    pub fn exists(&self) -> bool {
        self.has_status
    }

    /// The root that its packages are installed in.
    pub fn root(&self) -> &'r Root {
        self.root
    }

    /// All packages that are installed or have left configuration files, sorted.
    pub fn packages(&self) -> &[Package] {
        &self.packages
    }

    /// The installed packages of that name, of one architecture or of all.
    pub fn find<'a, 'n>(
        &'a self,
        name: &'n str,
        arch: Option<&'n str>,
    ) -> impl Iterator<Item = &'a Package> + use<'a, 'n, 'r> {
        let start = self.packages.partition_point(|package| package.id.name.as_str() < name);
        self.packages[start..]
            .iter()
            .take_while(move |package| package.id.name == name)
            .filter(move |package| arch.is_none_or(|arch| package.id.arch == arch))
    }

    /// Whether a package is installed and configured, with nothing left to be done.
    pub fn is_configured(&self, name: &str, arch: &str) -> bool {
        self.find(name, Some(arch)).any(Package::is_configured)
    }

    /// The paths a package installed, directories included.
    pub fn list(&self, package: &Package) -> Result<Vec<PathBuf>, Error> {
        let data = self.control_file(package, "list")?.unwrap_or_default();
        lists::list(&data).map_err(|source| Error { path: self.admindir.join("info"), source: source.into() })
    }

    /// One of a package's control files in `info`, such as `md5sums`; `None` if it has none.
    pub(crate) fn control_file(&self, package: &Package, kind: &str) -> Result<Option<Vec<u8>>, Error> {
        self.in_info(package, kind, |info, name| read_at(info, name, budget::PACKAGE_LIST))
    }

    /// Whether a package's list of files was written at or after `since`, in nanoseconds of the system clock.
    ///
    /// dpkg writes the list anew whenever it unpacks a package, and renames it into place.
    pub(crate) fn is_changed_since(&self, package: &Package, since: i64) -> Result<bool, Error> {
        let stat = self.in_info(package, "list", |info, name| {
            Ok(rustix::fs::statat(info, name, AtFlags::SYMLINK_NOFOLLOW)?)
        })?;
        let nanoseconds = |stat: rustix::fs::Stat| {
            i128::from(stat.st_ctime) * 1_000_000_000 + i128::from(stat.st_ctime_nsec)
        };
        Ok(stat.is_some_and(|stat| nanoseconds(stat) >= i128::from(since)))
    }

    /// All diversions.
    pub fn diversions(&self) -> Result<Vec<Diversion>, Error> {
        Ok(diversions::parse(&self.read("diversions")?).collect())
    }

    /// The paths whose owner or mode is overridden.
    pub(crate) fn statoverrides(&self) -> Result<Vec<PathBuf>, Error> {
        Ok(statoverride::parse(&self.read("statoverride")?))
    }

    /// The files the database keeps of `packages`, as paths of the guest; none if they lie outside.
    pub(crate) fn info_files(&self, packages: &BTreeSet<PackageId>) -> Result<Vec<PathBuf>, Error> {
        let (Some(info), Some(inside)) = (&self.info, &self.inside) else { return Ok(Vec::new()) };
        let path = inside.join("info");
        let is_of = |name: &OsStr| {
            let name = name.as_bytes();
            let stem = &name[..name.iter().rposition(|&byte| byte == b'.')?];
            let colon = stem.iter().position(|&byte| byte == b':');
            let (package, arch) = stem.split_at(colon.unwrap_or(stem.len()));
            let package = std::str::from_utf8(package).ok()?;
            let first = PackageId { name: package.to_owned(), arch: String::new() };
            let mut known = packages.range(first..).take_while(|id| id.name == package);
            Some(known.any(|id| arch.is_empty() || arch[1..] == *id.arch.as_bytes()))
        };
        let names = names_where(info, usize::MAX, |name| is_of(name) == Some(true));
        let names = names.map_err(|source| Error { path: path.clone(), source })?;
        Ok(names.iter().map(|name| path.join(name)).collect())
    }

    /// Does `action` with a package's file in `info`, whose name has the architecture if there may be several.
    fn in_info<T>(
        &self,
        package: &Package,
        kind: &str,
        action: impl Fn(&OwnedFd, &OsStr) -> io::Result<T>,
    ) -> Result<Option<T>, Error> {
        let Some(info) = &self.info else { return Ok(None) };
        let PackageId { name, arch } = &package.id;
        // A database that was never converted to the qualified names has the plain one for these, too.
        let qualified = (package.multi_arch == MultiArch::Same).then(|| format!("{name}:{arch}.{kind}"));
        for name in qualified.into_iter().chain([format!("{name}.{kind}")]) {
            if name.contains('/') {
                continue;
            }
            let path = || self.admindir.join("info").join(&name);
            if let Some(found) = optional_with(action(info, OsStr::new(&name)), path)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    fn read(&self, name: &str) -> Result<Vec<u8>, Error> {
        let path = self.admindir.join(name);
        Ok(optional(self.seen_from.read(&path, budget::OVERRIDES), &path)?.unwrap_or_default())
    }
}

/// The status updates dpkg has written since it last wrote `status`, oldest first: files whose names are digits, in all of
/// `left` bytes at most.
fn read_journal(root: &Root, path: &Path, mut left: usize) -> Result<Vec<Vec<u8>>, Error> {
    let Some(dir) = optional(root.open_dir(path), path)? else { return Ok(Vec::new()) };
    let failed = |source| Error { path: path.to_path_buf(), source };
    let is_update = |name: &OsStr| name.as_bytes().iter().all(u8::is_ascii_digit);
    let mut names = names_where(&dir, budget::UPDATES + 1, is_update).map_err(failed)?;
    Exceeded::check_count(names.len(), budget::UPDATES, "updates").map_err(|e| failed(e.into()))?;
    names.sort();
    let mut updates = Vec::new();
    for name in names {
        // dpkg may merge its journal while it is read.
        let update = optional_with(read_at(&dir, &name, left), || path.join(&name))?;
        left -= update.as_ref().map_or(0, Vec::len);
        updates.extend(update);
    }
    Ok(updates)
}

fn optional<T>(result: io::Result<T>, path: &Path) -> Result<Option<T>, Error> {
    optional_with(result, || path.to_path_buf())
}

/// `None` for what does not exist.
fn optional_with<T>(result: io::Result<T>, path: impl Fn() -> PathBuf) -> Result<Option<T>, Error> {
    match result {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error { path: path(), source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::package::testing::{Guest, now};

    fn ids<'a>(packages: impl IntoIterator<Item = &'a Package>) -> Vec<String> {
        packages.into_iter().map(|package| package.id.to_string()).collect()
    }

    fn guest() -> Guest {
        let guest = Guest::new();
        guest.install("libc6", "amd64", "Multi-Arch: same", &["/usr", "/usr/lib/x/libc.so"]);
        guest.install("libc6", "i386", "Multi-Arch: same", &["/usr/lib/y/libc.so"]);
        guest.install("libc6-dev", "amd64", "", &["/usr/include/a b.h"]);
        guest
    }

    #[test]
    fn no_status_is_an_empty_database() {
        let guest = Guest::new();
        for path in ["/nowhere", "/var/lib"] {
            let (root, admindir) = (guest.root(), Admindir::of_guest(Path::new(path)));
            let database = Database::open(&root, &admindir).unwrap();
            assert!(database.packages().is_empty() && !database.exists(), "{path}");
        }
    }

    #[test]
    fn what_is_there_and_cannot_be_read_is_an_error_that_names_it() {
        let guest = Guest::new();
        std::fs::create_dir_all(guest.path("/db/status")).unwrap();
        guest.write("/file", b"");
        for (path, named) in [("/db", "/db/status"), ("/file", "/file/status")] {
            let (root, admindir) = (guest.root(), Admindir::of_guest(Path::new(path)));
            let error = Database::open(&root, &admindir).unwrap_err();
            assert!(error.to_string().contains(named), "{error}");
        }
    }

    #[test]
    fn a_directory_of_the_process_is_found_in_the_guest_or_outside() {
        let guest = guest();
        std::os::unix::fs::symlink("var/lib/dpkg", guest.path("/db")).unwrap();
        let root = guest.root();
        for path in ["/var/lib/dpkg", "/db", "/var/../var/lib/./dpkg"] {
            let admindir = Admindir::of_process(&root, &guest.path(path)).unwrap();
            assert!(admindir.outside().is_none() && admindir.is_usual(), "{path}");
            let database = Database::open(&root, &admindir).unwrap();
            let id = PackageId { name: "libc6-dev".into(), arch: "amd64".into() };
            let list = database.info_files(&BTreeSet::from([id])).unwrap();
            assert_eq!(list, [Path::new("/var/lib/dpkg/info/libc6-dev.list")], "{path}");
        }
        let other = Guest::new();
        other.install("a", "all", "", &["/usr/bin/a"]);
        let outside = Admindir::of_process(&root, &other.path("/var/lib/dpkg")).unwrap();
        assert!(outside.outside().is_some() && !outside.is_usual());
        let database = Database::open(&root, &outside).unwrap();
        assert_eq!(ids(database.packages()), ["a:all"]);
        let known: BTreeSet<_> = database.packages().iter().map(|package| package.id.clone()).collect();
        assert!(database.info_files(&known).unwrap().is_empty());
    }

    #[test]
    fn a_status_alone_is_a_database() {
        let guest = Guest::new();
        guest.write("/db/status", b"Package: a\nArchitecture: all\nStatus: install ok installed\n");
        let (root, admindir) = (guest.root(), Admindir::of_guest(Path::new("/db")));
        let database = Database::open(&root, &admindir).unwrap();
        let a = &database.packages()[0];
        assert!(database.list(a).unwrap().is_empty());
        assert!(database.diversions().unwrap().is_empty());
        assert!(!database.is_changed_since(a, 0).unwrap());
        assert!(database.info_files(&BTreeSet::from([a.id.clone()])).unwrap().is_empty());
    }

    #[test]
    fn packages_are_found_by_name_and_architecture() {
        let guest = guest();
        let root = guest.root();
        let database = guest.database(&root);
        assert_eq!(ids(database.find("libc6", None)), ["libc6:amd64", "libc6:i386"]);
        assert_eq!(ids(database.find("libc6", Some("i386"))), ["libc6:i386"]);
        assert_eq!(database.find("libc", None).count(), 0);
        assert!(database.is_configured("libc6-dev", "amd64"));
        assert!(!database.is_configured("libc6-dev", "i386"));
    }

    #[test]
    fn lists_of_coinstalled_packages_are_kept_apart() {
        let guest = guest();
        let root = guest.root();
        let database = guest.database(&root);
        let lists: Vec<_> =
            database.packages().iter().map(|package| database.list(package).unwrap()).collect();
        assert_eq!(lists[0], ["/usr", "/usr/lib/x/libc.so"].map(Path::new));
        assert_eq!(lists[1], [Path::new("/usr/lib/y/libc.so")]);
        assert_eq!(lists[2], [Path::new("/usr/include/a b.h")]);
    }

    #[test]
    fn the_journal_counts_before_it_is_merged() {
        let guest = guest();
        guest.write(
            "/var/lib/dpkg/updates/0001",
            b"Package: libc6-dev\nArchitecture: amd64\nStatus: install ok unpacked\n",
        );
        guest.write(
            "/var/lib/dpkg/updates/tmp.i",
            b"Package: libc6\nArchitecture: i386\nStatus: install ok unpacked\n",
        );
        let root = guest.root();
        let database = guest.database(&root);
        assert!(!database.is_configured("libc6-dev", "amd64"));
        assert!(database.is_configured("libc6", "i386"));
    }

    #[test]
    fn a_list_that_was_written_later_is_a_change() {
        let guest = guest();
        let root = guest.root();
        let database = guest.database(&root);
        let changed = |since| {
            let is_changed = |package: &&Package| database.is_changed_since(package, since).unwrap();
            ids(database.packages().iter().filter(is_changed))
        };
        assert_eq!(changed(0).len(), 3);
        let later = now();
        assert_eq!(changed(later), [""; 0]);
        std::thread::sleep(std::time::Duration::from_millis(20));
        guest.write("/var/lib/dpkg/info/libc6:i386.list", b"/.\n");
        assert_eq!(changed(later), ["libc6:i386"]);
    }

    #[test]
    fn info_files_are_those_of_the_package_and_its_architecture() {
        let guest = guest();
        guest.write("/var/lib/dpkg/info/libc6:i386.postinst", b"");
        guest.write("/var/lib/dpkg/info/format", b"1\n");
        let root = guest.root();
        let database = guest.database(&root);
        let id = |name: &str, arch: &str| PackageId { name: name.into(), arch: arch.into() };
        let mut files =
            database.info_files(&BTreeSet::from([id("libc6", "i386"), id("new", "all")])).unwrap();
        files.sort();
        let info = Path::new("/var/lib/dpkg/info");
        assert_eq!(files, [info.join("libc6:i386.list"), info.join("libc6:i386.postinst")]);
        assert_eq!(
            database.info_files(&BTreeSet::from([id("libc6-dev", "amd64")])).unwrap(),
            [info.join("libc6-dev.list")]
        );
    }

    #[test]
    fn a_database_beyond_a_symlink_stays_in_the_guest() {
        let guest = guest();
        std::os::unix::fs::symlink("/var/lib/dpkg", guest.path("/db")).unwrap();
        let root = guest.root();
        let count = |path: &str| {
            let admindir = Admindir::of_guest(Path::new(path));
            Database::open(&root, &admindir).unwrap().packages().len()
        };
        assert_eq!(count("/db"), 3);
        std::os::unix::fs::symlink("/var/../../../../var/lib/dpkg", guest.path("/up")).unwrap();
        assert_eq!(count("/up"), 3);
        std::os::unix::fs::symlink("/etc/../../../../etc", guest.path("/etc-link")).unwrap();
        assert_eq!(count("/etc-link"), 0);
    }
}

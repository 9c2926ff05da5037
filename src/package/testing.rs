//! Guests and archives for tests, in temporary directories.

#![allow(clippy::disallowed_methods, reason = "these are the tests' own files")]

use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use tempfile::TempDir;

use super::dpkg::{Admindir, Database};
use crate::sys::path::root::Root;

/// A guest, with the databases of the package managers that have packages in it.
pub struct Guest {
    dir: TempDir,
}

impl Guest {
    /// With an empty dpkg database.
    pub fn new() -> Guest {
        let guest = Guest::bare();
        guest.write("/var/lib/dpkg/status", b"");
        guest
    }

    /// Without any database.
    pub fn bare() -> Guest {
        Guest { dir: tempfile::tempdir().unwrap() }
    }

    pub fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        self.dir.path().join(path.as_ref().strip_prefix("/").unwrap())
    }

    pub fn root(&self) -> Root {
        Root::open(self.dir.path()).unwrap()
    }

    pub fn database<'r>(&self, root: &'r Root) -> Database<'r> {
        Database::open(root, Admindir::usual()).unwrap()
    }

    pub fn write(&self, path: impl AsRef<Path>, data: &[u8]) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, data).unwrap();
    }

    /// rpm's database, made where it is missing.
    pub(crate) fn rpm_database(&self) -> rusqlite::Connection {
        let path = self.path("/var/lib/rpm/rpmdb.sqlite");
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let db = rusqlite::Connection::open(path).unwrap();
        let sql = "PRAGMA journal_mode = WAL; CREATE TABLE IF NOT EXISTS 'Packages' \
                   (hnum INTEGER PRIMARY KEY AUTOINCREMENT, blob BLOB NOT NULL)";
        db.execute_batch(sql).unwrap();
        db
    }

    /// Adds a package to rpm's database: its files, with their flags and states.
    pub fn install_rpm(&self, name: &str, time: u32, files: &[RpmFile<'_>]) {
        let header = rpm_header(name, time, files);
        self.rpm_database().execute("INSERT INTO Packages (blob) VALUES (?1)", [header]).unwrap();
    }

    /// Adds a package to dpkg's database.
    pub fn install(&self, name: &str, arch: &str, fields: &str, list: &[&str]) {
        let status = self.path("/var/lib/dpkg/status");
        let mut status = fs::OpenOptions::new().append(true).open(status).unwrap();
        let separator = if fields.is_empty() { "" } else { "\n" };
        let state = "Status: install ok installed";
        writeln!(status, "Package: {name}\n{state}\nArchitecture: {arch}\nVersion: 1\n{fields}{separator}")
            .unwrap();
        let qualifier = if fields.contains("Multi-Arch: same") { format!(":{arch}") } else { String::new() };
        let list = format!("/.\n{}\n", list.join("\n"));
        self.write(format!("/var/lib/dpkg/info/{name}{qualifier}.list"), list.as_bytes());
    }
}

/// A file in a header of rpm's: its path, flags and state.
pub type RpmFile<'p> = (&'p [u8], u32, u8);

/// A header as rpm's database has it.
pub(crate) fn rpm_header(name: &str, time: u32, files: &[RpmFile<'_>]) -> Vec<u8> {
    let slash = |path: &[u8]| path.iter().rposition(|&byte| byte == b'/').unwrap() + 1;
    let mut dirs: Vec<&[u8]> = files.iter().map(|(path, ..)| &path[..slash(path)]).collect();
    dirs.sort();
    dirs.dedup();
    let dir_of = |path: &[u8]| dirs.iter().position(|dir| *dir == &path[..slash(path)]).unwrap() as u32;
    let words = |words: &mut dyn Iterator<Item = u32>| words.flat_map(u32::to_be_bytes).collect::<Vec<u8>>();
    let texts =
        |texts: &mut dyn Iterator<Item = &[u8]>| texts.flat_map(|text| [text, b"\0"].concat()).collect();
    let count = files.len();
    let mut values = vec![
        (1000, 6, 1, texts(&mut [name.as_bytes()].into_iter())),
        (1008, 4, 1, words(&mut [time].into_iter())),
    ];
    if count > 0 {
        values.extend([
            (1037, 4, count, words(&mut files.iter().map(|(_, flags, _)| *flags))),
            (1116, 4, count, words(&mut files.iter().map(|(path, ..)| dir_of(path)))),
            (1029, 1, count, files.iter().map(|(.., state)| *state).collect()),
            (1117, 8, count, texts(&mut files.iter().map(|(path, ..)| &path[slash(path)..]))),
            (1118, 8, dirs.len(), texts(&mut dirs.iter().copied())),
        ]);
    }
    let (mut index, mut data) = (Vec::new(), Vec::new());
    for (tag, kind, count, value) in &values {
        index.extend([*tag, *kind, data.len() as u32, *count as u32].into_iter().flat_map(u32::to_be_bytes));
        data.extend(value);
    }
    [words(&mut [values.len() as u32, data.len() as u32].into_iter()), index, data].concat()
}

/// A package's file, without a payload and unsigned.
pub(crate) fn rpm_file(name: &str, files: &[RpmFile<'_>]) -> Vec<u8> {
    let lead = [&[0xed, 0xab, 0xee, 0xdb, 3, 0][..], &[0; 90]].concat();
    let magic = [0x8e, 0xad, 0xe8, 1, 0, 0, 0, 0];
    [lead, magic.into(), vec![0; 8], magic.into(), rpm_header(name, 1, files)].concat()
}

/// A source tree for `dpkg-deb --build`.
pub struct Source {
    dir: TempDir,
}

impl Source {
    /// A package with this control file; each further field on a line of its own.
    pub fn new(name: &str, arch: &str, fields: &str) -> Source {
        let source = Source { dir: tempfile::tempdir().unwrap() };
        let fields = if fields.is_empty() { String::new() } else { format!("{fields}\n") };
        let control = format!(
            "Package: {name}\nVersion: 2\nArchitecture: {arch}\nMaintainer: A <a@example.org>\n{fields}Description: test\n"
        );
        source.write("DEBIAN/control", control.as_bytes());
        fs::set_permissions(source.dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        source
    }

    pub fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        self.dir.path().join(path)
    }

    pub fn write(&self, path: impl AsRef<Path>, data: &[u8]) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, data).unwrap();
    }

    /// Lists the payload in `md5sums`, as md5sum(1) does.
    pub(crate) fn with_md5sums(self) -> Source {
        let script = "find -type f ! -path './DEBIAN/*' -printf '%P\\0' | xargs -r0 md5sum >DEBIAN/md5sums";
        let status = Command::new("sh").args(["-c", script]).current_dir(self.dir.path()).status().unwrap();
        assert!(status.success());
        self
    }

    /// Builds the archive.
    pub fn build(&self, archive: &Path, options: &[&str]) {
        let output = Command::new("dpkg-deb")
            .args(options)
            .args([
                OsStr::new("--root-owner-group"),
                "--build".as_ref(),
                self.dir.path().as_ref(),
                archive.as_ref(),
            ])
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

/// One of the tests' scripts.
pub fn support(script: &str) -> Command {
    Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support").join(script))
}

/// The package files that real guests of the tests are made of, if there are guests on this machine: those of a script, and
/// with this suffix.
pub fn cached(script: &str, suffix: &str) -> Vec<PathBuf> {
    let output = support(script).arg("cache").output().unwrap();
    let cache = PathBuf::from(String::from_utf8(output.stdout).unwrap().trim());
    let dirs = ["archives", "srv/newer", "srv/base"].map(|dir| cache.join(dir));
    let entries = dirs.iter().flat_map(fs::read_dir).flatten().map(|entry| entry.unwrap().path());
    let mut found: Vec<_> = entries.filter(|path| path.extension() == Some(OsStr::new(suffix))).collect();
    found.sort();
    found
}

/// The time, as files' time stamps have it.
pub fn now() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    i64::try_from(now.as_nanos()).unwrap()
}

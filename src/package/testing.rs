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

use super::dpkg::Database;
use super::dpkg::database::ADMINDIR;
use crate::sys::root::Root;

/// A guest with an empty dpkg database.
pub struct Guest {
    dir: TempDir,
}

impl Guest {
    pub fn new() -> Guest {
        let guest = Guest { dir: tempfile::tempdir().unwrap() };
        guest.write("/var/lib/dpkg/status", b"");
        guest
    }

    pub fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        self.dir.path().join(path.as_ref().strip_prefix("/").unwrap())
    }

    pub fn root(&self) -> Root {
        Root::open(self.dir.path()).unwrap()
    }

    pub fn database<'r>(&self, root: &'r Root) -> Database<'r> {
        Database::open(root, Path::new(ADMINDIR)).unwrap()
    }

    pub fn write(&self, path: impl AsRef<Path>, data: &[u8]) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, data).unwrap();
    }

    /// Adds a package to the database.
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
    pub fn with_md5sums(self) -> Source {
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

/// The time, as files' time stamps have it.
pub fn now() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    i64::try_from(now.as_nanos()).unwrap()
}

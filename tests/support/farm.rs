//! Small guests and their pool, as a host has them.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use cow_hooks::sys::file::inode::{Kind, Time};
use serde_json::Value;

use super::{Filesystem, ended, entries, files, set_mtime, text};

/// Guests on a filesystem of their own, with the pool beside them.
pub struct Farm {
    pub filesystem: Filesystem,
}

impl Farm {
    pub fn new(kind: &str) -> Farm {
        Farm::of_size(kind, 512)
    }

    pub fn of_size(kind: &str, megabytes: u64) -> Farm {
        let farm = Farm { filesystem: Filesystem::new(kind, megabytes) };
        for guest in ["g1", "g2"] {
            fs::create_dir_all(farm.path(guest).join("usr/bin")).unwrap();
        }
        farm
    }

    pub fn path(&self, path: &str) -> PathBuf {
        self.filesystem.path().join(path)
    }

    /// Writes a file with a time of modification that all have.
    pub fn write(&self, path: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        set_mtime(&path, Time { secs: 1_600_000_000, nanos: 123_456_789 });
        path
    }

    /// Writes equal files in both guests.
    pub fn both(&self, path: &str, content: impl AsRef<[u8]>) -> (PathBuf, PathBuf) {
        (self.write(&format!("g1/{path}"), &content), self.write(&format!("g2/{path}"), &content))
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        // What has only just changed is left for the next run.
        std::thread::sleep(std::time::Duration::from_millis(30));
        let mut command = Command::new(env!("CARGO_BIN_EXE_cow-unify"));
        command.current_dir(self.filesystem.path()).args(arguments);
        command
    }

    /// Unifies all files of both guests.
    pub fn unify(&self, more: &[&str]) -> Value {
        let arguments = [&["--scope", "all", "--json", "g1", "g2"], more].concat();
        let output = self.command(&arguments).output().unwrap();
        let json =
            serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {}", text(&output)));
        assert!(output.status.success(), "{}", text(&output));
        json
    }

    /// The code that a run ends with, and what it says.
    pub fn ran(&self, arguments: &[&str]) -> (i32, String) {
        let output = self.command(arguments).output().unwrap();
        (output.status.code().unwrap(), text(&output))
    }

    /// What a run says that must end with this code.
    #[track_caller]
    pub fn exits(&self, code: i32, arguments: &[&str]) -> String {
        ended(&self.command(arguments).output().unwrap(), code, &format!("{arguments:?}"))
    }

    /// The result of a run on the pool beside the guests that must end with this code.
    #[track_caller]
    pub fn json(&self, code: i32, arguments: &[&str]) -> Value {
        let output =
            self.command(&[arguments, &["--json", "--pool", ".cow-pool"]].concat()).output().unwrap();
        ended(&output, code, &format!("{arguments:?}"));
        serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {}", text(&output)))
    }

    /// The files that the pool has in one of its directories, by their first names.
    pub fn stored(&self, place: &str) -> Vec<PathBuf> {
        let top = self.path(".cow-pool").join(place);
        let is_object = |path: &Path| path.extension() != Some(OsStr::new("second"));
        let regular =
            entries(&top).into_iter().filter(|(path, inode)| inode.kind == Kind::Regular && is_object(path));
        regular.map(|(path, _)| top.join(path)).collect()
    }

    pub fn objects(&self) -> Vec<PathBuf> {
        files(&self.path(".cow-pool/objects")).into_keys().collect()
    }

    /// Nothing of a run is left in the pool.
    pub fn assert_tidy(&self) {
        assert_eq!(fs::read_dir(self.path(".cow-pool/runs")).unwrap().count(), 0);
    }
}

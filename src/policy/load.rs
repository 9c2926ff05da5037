//! The policy, and the files it is read from.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use super::file::{self, Invalid};
use super::pattern::PatternSet;
use super::value::{LastLink, Mode, Protection, SuperviseMode};
use crate::report::{Reason, Shown};
use crate::sys::budget::{self, Exceeded};
use crate::sys::path::dirfd;
use crate::sys::path::root::Root;

/// The defaults, which are also the reference that is installed as an example.
pub const DEFAULT: &str = include_str!("default.toml");

/// The configuration files in the order they are read, followed by those of [`CONFIG_DIR`].
const CONFIG_FILES: [&str; 2] = ["/usr/lib/cow-hooks/cow-hooks.toml", "/etc/cow-hooks/cow-hooks.toml"];

/// The directory whose `*.toml` files are read last, in the order of their names.
const CONFIG_DIR: &str = "/etc/cow-hooks/conf.d";

/// What the administrator wants.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    /// What is done with a transaction that would touch a unified file.
    pub mode: Mode,
    /// How unified files are recognised.
    pub protection: Protection,
    /// Places that maintainer scripts write to, prepared before every transaction.
    pub prepare: PatternSet,
    /// Files that are never detached, not even by `cow-prepare`.
    pub never_touch: PatternSet,
    /// Files that are never unified, neither when a transaction settles nor by the host.
    pub never_unify: PatternSet,
    /// Bytes that must be left free after the copies are made.
    #[serde(deserialize_with = "file::bytes")]
    pub reserve: u64,
    /// How long to wait for the lock on one shared file; on the host, for the lock on the pool.
    #[serde(deserialize_with = "file::seconds")]
    pub lock_timeout: Duration,
    /// What is done with an immutable file that has one link and belongs to a planned package.
    pub last_link: LastLink,
    /// Whether package managers run with copy on write, instead of with files that were made private before.
    pub supervise: SuperviseMode,
}

/// Why there is no policy.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or the directory could not be read.
    #[error("{}: {}", Shown(path), Reason(source))]
    Read {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// A file was read and says something that is not allowed.
    #[error("{}{invalid}", Shown(path))]
    Invalid {
        /// The file.
        path: PathBuf,
        /// The line, the key and the reason.
        invalid: Invalid,
    },
}

impl Policy {
    /// The defaults.
    pub fn builtin() -> Result<Policy, Error> {
        file::parse(DEFAULT.as_bytes())
            .map_err(|invalid| Error::Invalid { path: PathBuf::from("built-in defaults"), invalid })
    }

    /// The defaults, and over them what the guest's files say. Files that do not exist say nothing.
    ///
    /// # Errors
    /// A file cannot be read or understood. No other file is used then: half of a policy may mean the opposite.
    pub fn load(root: &Root) -> Result<Policy, Error> {
        let mut policy = Policy::builtin()?;
        let fixed = CONFIG_FILES.map(PathBuf::from);
        for path in fixed.into_iter().chain(config_dir(root)?) {
            let text = match root.read(&path, budget::CONFIGURATION) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                other => other.map_err(|source| Error::Read { path: on_host(root, &path), source })?,
            };
            let layer = file::parse(&text)
                .map_err(|invalid| Error::Invalid { path: on_host(root, &path), invalid })?;
            policy.apply(layer);
        }
        if !root.is_own() {
            policy.lock_timeout = policy.lock_timeout.min(budget::PATIENCE);
        }
        Ok(policy)
    }

    /// Changes what these words say: `KEY=VALUE`, the value as in a configuration file; quotes may be left out.
    ///
    /// # Errors
    /// If a word makes no sense; nothing is changed then.
    pub fn adjust(&mut self, options: &str) -> Result<(), Invalid> {
        let mut adjusted = self.clone();
        for word in options.split_ascii_whitespace() {
            let no_pair = || Invalid { line: None, key: None, reason: format!("`{word}` is not KEY=VALUE") };
            let (key, value) = word.split_once('=').ok_or_else(no_pair)?;
            let is_bare = value.starts_with(|c: char| c.is_ascii_alphabetic());
            let text = if is_bare { format!("{key} = '{value}'") } else { format!("{key} = {value}") };
            adjusted.apply(file::parse(text.as_bytes())?);
        }
        *self = adjusted;
        Ok(())
    }

    pub(crate) fn apply(&mut self, layer: file::Layer) {
        fn set<T>(value: &mut T, change: Option<T>) {
            if let Some(change) = change {
                *value = change;
            }
        }
        set(&mut self.mode, layer.mode);
        set(&mut self.protection, layer.protection);
        layer.prepare.apply(&mut self.prepare);
        layer.never_touch.apply(&mut self.never_touch);
        layer.never_unify.apply(&mut self.never_unify);
        set(&mut self.reserve, layer.reserve);
        set(&mut self.lock_timeout, layer.lock_timeout);
        set(&mut self.last_link, layer.last_link);
        set(&mut self.supervise, layer.supervise);
    }
}

/// The files of [`CONFIG_DIR`] that count, in order.
fn config_dir(root: &Root) -> Result<Vec<PathBuf>, Error> {
    let dir = Path::new(CONFIG_DIR);
    let mut names = match list(root, dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Vec::new(),
        other => other.map_err(|source| Error::Read { path: on_host(root, dir), source })?,
    };
    names.sort();
    Ok(names.iter().map(|name| dir.join(name)).collect())
}

fn list(root: &Root, dir: &Path) -> io::Result<Vec<OsString>> {
    // An editor's or a package manager's half-written file begins with a dot or ends otherwise.
    let names = dirfd::names_where(root.open_dir(dir)?, budget::CONFIGURATION_FILES + 1, |name| {
        name.as_bytes().ends_with(b".toml") && !name.as_bytes().starts_with(b".")
    })?;
    Exceeded::check_count(names.len(), budget::CONFIGURATION_FILES, "files of configuration")?;
    Ok(names)
}

/// The guest's `path` as the caller would find it.
fn on_host(root: &Root, path: &Path) -> PathBuf {
    root.path().join(path.strip_prefix("/").unwrap_or(path))
}

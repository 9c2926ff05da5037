//! What an administrator writes, and a guest may replace.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use super::sound::{halves, is_message};
use crate::policy::pattern::{DirectoryMatch, Pattern};
use crate::policy::{Policy, file, size as size_of};
use crate::unify::eligible::line::{Choice, Error};
use crate::unify::eligible::rules::Rules;

const DAY: Duration = Duration::from_secs(86_400);

fn builtin() -> Policy {
    static BUILTIN: OnceLock<Policy> = OnceLock::new();
    BUILTIN.get_or_init(|| Policy::builtin().unwrap()).clone()
}

pub fn policy_file(data: &[u8]) {
    match file::parse::<file::Layer>(data) {
        Ok(layer) => {
            let mut policy = builtin();
            policy.apply(layer);
            is_policy(&policy);
        }
        Err(e) => is_message(e),
    }
}

pub fn policy_options(data: &[u8]) {
    let Ok(options) = std::str::from_utf8(data) else { return };
    let mut policy = builtin();
    match policy.adjust(options) {
        Ok(()) => is_policy(&policy),
        Err(e) => {
            is_message(e);
            assert_eq!(policy, builtin());
        }
    }
}

fn is_policy(policy: &Policy) {
    assert!(policy.lock_timeout <= DAY);
    for list in [&policy.prepare, &policy.never_touch, &policy.never_unify] {
        list.matches(Path::new("/usr/bin/x"));
    }
}

/// A path that this process could be given, from the bytes of one.
fn path(bytes: &[u8]) -> PathBuf {
    let names = bytes.split(|&byte| byte == b'/' || byte == 0);
    let names = names.filter(|name| !matches!(*name, b"" | b"." | b".."));
    Path::new("/").join(names.map(OsStr::from_bytes).collect::<PathBuf>())
}

/// A line feed stands between the pattern and a path.
pub fn pattern(data: &[u8]) {
    let (text, names) = halves(data, b'\n');
    let Ok(text) = std::str::from_utf8(text) else { return };
    let pattern = match Pattern::parse(text) {
        Ok(pattern) => pattern,
        Err(e) => return is_message(e),
    };
    assert_eq!(pattern.to_string(), text);
    let path = path(names);
    let matches = pattern.matches(&path);
    if matches {
        assert!(path.starts_with(pattern.fixed_prefix()));
        assert!(path.ancestors().skip(1).all(|above| pattern.may_match_below(above)));
        assert!(pattern.matches(&path.join("below")));
    }
    if let (Some(dir), Some(name)) = (path.parent(), path.file_name()) {
        let within = match pattern.within(dir) {
            DirectoryMatch::All => true,
            DirectoryMatch::Names(names) => names.matches(name.as_bytes()),
            DirectoryMatch::None => false,
        };
        assert_eq!(within, matches);
    }
}

pub fn size(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(bytes) = size_of(text) {
        assert_eq!(size_of(&format!("{bytes} B")), Ok(bytes));
    }
}

/// A NUL byte stands between the list and a path.
pub fn exclude_list(data: &[u8]) {
    list(data, Rules::read);
}

/// A NUL byte stands between the list and a path.
pub fn vserver_list(data: &[u8]) {
    list(data, Rules::read_vserver);
}

fn list(data: &[u8], read: fn(&[u8]) -> Result<Rules, Error>) {
    let (text, names) = halves(data, 0);
    let rules = match read(text) {
        Ok(rules) => rules,
        Err(e) => return is_message(e),
    };
    assert!(rules.to_string().lines().all(|line| !line.chars().any(char::is_control)));
    let path = path(names);
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else { return };
    let chosen = rules.choose(&path);
    assert_eq!(rules.within(dir).choose(name), chosen, "{path:?}");
    if chosen == Some(Choice::Include) {
        assert!(rules.may_include_below(dir), "{path:?}");
    }
}

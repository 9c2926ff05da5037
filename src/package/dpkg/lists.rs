//! Lists of paths, one a line, as they lie in a package's control member and in dpkg's `info` directory.
//!
//! Names are bytes. Blank lines and lines that make no sense are passed over.

use std::path::PathBuf;

use crate::package::absolute;
use crate::sys::budget::{self, Exceeded};

/// The paths of a `.list` file: all a package installed, directories included.
///
/// # Errors
/// If there are more than [`budget::PACKAGE_FILES`].
pub fn list(data: &[u8]) -> Result<Vec<PathBuf>, Exceeded> {
    kept(paths(data))
}

/// Paths of one package that are kept.
pub(crate) fn kept(paths: impl Iterator<Item = PathBuf>) -> Result<Vec<PathBuf>, Exceeded> {
    let kept: Vec<PathBuf> = paths.take(budget::PACKAGE_FILES + 1).collect();
    Exceeded::check_count(kept.len(), budget::PACKAGE_FILES, "files of one package")?;
    Ok(kept)
}

/// As [`list`], one path at a time.
pub fn paths(data: &[u8]) -> impl Iterator<Item = PathBuf> {
    lines(data).filter_map(absolute)
}

/// The paths of a `conffiles` member, whatever flags stand before them (`remove-on-upgrade`, deb-conffiles(5)).
pub fn conffiles(data: &[u8]) -> impl Iterator<Item = PathBuf> + use<'_> {
    let path = |line: &[u8]| {
        let line = line.trim_ascii();
        absolute(&line[line.iter().position(|&byte| byte == b'/')?..])
    };
    lines(data).filter_map(path)
}

/// The paths of a `Conffiles` field of the status file: ` path hash [obsolete] [remove-on-upgrade]`.
///
/// The path may hold spaces, so the words are taken off the end.
pub(crate) fn status_conffiles(value: &[u8]) -> impl Iterator<Item = PathBuf> + use<'_> {
    let path = |line: &[u8]| {
        let mut rest = line.trim_ascii();
        for flag in [&b" remove-on-upgrade"[..], b" obsolete"] {
            rest = rest.strip_suffix(flag).unwrap_or(rest);
        }
        let hash = rest.iter().rposition(|&byte| byte == b' ')?;
        absolute(&rest[..hash])
    };
    lines(value).filter_map(path)
}

/// The paths of an `md5sums` member: `hash  path`, the path relative to the root (deb-md5sums(5)).
pub(crate) fn md5sums(data: &[u8]) -> impl Iterator<Item = PathBuf> + use<'_> {
    let path = |line: &[u8]| {
        // A backslash before the hash says that the name is escaped, see md5sum(1).
        let (line, escaped) = line.strip_prefix(b"\\").map_or((line, false), |rest| (rest, true));
        let space = line.iter().position(|&byte| byte == b' ')?;
        // Two spaces, or a space and the asterisk of md5sum's binary mode.
        let name = line.get(space + 2..)?;
        if escaped { absolute(&unescape(name)) } else { absolute(name) }
    };
    lines(data).filter_map(path)
}

fn unescape(name: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(name.len());
    let mut bytes = name.iter();
    while let Some(&byte) = bytes.next() {
        plain.push(match byte {
            b'\\' => match bytes.next() {
                Some(b'n') => b'\n',
                Some(b'r') => b'\r',
                Some(&other) => other,
                None => b'\\',
            },
            other => other,
        });
    }
    plain
}

fn lines(data: &[u8]) -> impl Iterator<Item = &[u8]> {
    data.split(|&byte| byte == b'\n').filter(|line| !line.is_empty())
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_root_is_left_out_of_a_list() {
        assert_eq!(
            list(b"/.\n/usr\n/usr/bin/a b\n").unwrap(),
            [Path::new("/usr"), Path::new("/usr/bin/a b")]
        );
    }

    #[test]
    fn conffiles_may_have_flags() {
        let paths = conffiles(b"/etc/a\nremove-on-upgrade /etc/b c\n/etc/d \n\n");
        assert_eq!(
            paths.collect::<Vec<_>>(),
            [Path::new("/etc/a"), Path::new("/etc/b c"), Path::new("/etc/d")]
        );
    }

    #[test]
    fn status_conffiles_may_have_spaces_and_flags() {
        let value =
            b"/etc/a 00\n /etc/b c 11 obsolete\n /etc/d 22 obsolete remove-on-upgrade\n /etc/e newconffile";
        let paths = status_conffiles(value);
        assert_eq!(paths.collect::<Vec<_>>(), ["/etc/a", "/etc/b c", "/etc/d", "/etc/e"].map(Path::new));
    }

    #[test]
    fn md5sums_know_binary_mode_and_escapes() {
        let paths = md5sums(b"00  usr/a\n11 *usr/b\n\\22  usr/c\\nd\\\\e\n33  usr/x\\x2dy\nnonsense\n");
        assert_eq!(
            paths.collect::<Vec<_>>(),
            ["/usr/a", "/usr/b", "/usr/c\nd\\e", "/usr/x\\x2dy"].map(Path::new)
        );
    }

    /// As md5sum(1) writes it.
    fn md5sum_line(name: &[u8]) -> Vec<u8> {
        let special = name.iter().any(|byte| matches!(byte, b'\n' | b'\r' | b'\\'));
        let mut line = if special { b"\\".to_vec() } else { Vec::new() };
        line.extend(b"d41d8cd98f00b204e9800998ecf8427e  ");
        for &byte in name {
            match byte {
                b'\n' => line.extend(b"\\n"),
                b'\r' => line.extend(b"\\r"),
                b'\\' => line.extend(b"\\\\"),
                other => line.push(other),
            }
        }
        line.push(b'\n');
        line
    }

    #[test]
    fn a_list_without_end_is_not_kept() {
        assert!(list(&b"a\n".repeat(budget::PACKAGE_FILES)).is_ok());
        assert!(list(&b"a\n".repeat(budget::PACKAGE_FILES + 1)).is_err());
    }

    proptest! {
        #[test]
        fn md5sums_of_any_name_round_trip(
            names in prop::collection::vec(prop::collection::vec(prop_oneof![Just(b'\n'), Just(b'\\'), 1u8..=255], 1..20), 0..9)
        ) {
            let path = |name: &Vec<u8>| [b"usr/", &name[..], b"x"].concat();
            let text: Vec<u8> = names.iter().flat_map(|name| md5sum_line(&path(name))).collect();
            let expected: Vec<PathBuf> =
                names.iter().map(|name| Path::new("/").join(OsStr::from_bytes(&path(name)))).collect();
            prop_assert_eq!(md5sums(&text).collect::<Vec<_>>(), expected);
        }

        #[test]
        fn any_bytes_are_read_without_panic(data in prop::collection::vec(any::<u8>(), 0..200)) {
            list(&data).unwrap();
            conffiles(&data).for_each(drop);
            status_conffiles(&data).for_each(drop);
            md5sums(&data).for_each(drop);
        }

        #[test]
        fn any_lines_are_read_without_panic(text in "[/a \\\\\n*]{0,60}") {
            list(text.as_bytes()).unwrap();
            conffiles(text.as_bytes()).for_each(drop);
            status_conffiles(text.as_bytes()).for_each(drop);
            md5sums(text.as_bytes()).for_each(drop);
        }
    }
}

//! The stream apt hands to a `DPkg::Pre-Install-Pkgs` hook (apt.conf(5)): what it is about to do.
//!
//! Version 1 is the .deb paths alone, one a line. Versions 2 and 3 begin with `VERSION n`, then have apt's whole
//! configuration, `%`-encoded, an empty line, and one line per action. Version 3 adds the architectures.

use std::ffi::{OsStr, OsString};
use std::io::{self, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use crate::package::MultiArch;
use crate::report::Reason;

/// More than any run has: apt writes about 200 bytes per package.
const MAX_SIZE: u64 = 64 << 20;

/// Why a stream could not be understood.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The stream could not be read.
    #[error("cannot read apt's list of packages: {}", Reason(.0))]
    Read(#[from] io::Error),
    /// The stream does not end.
    #[error("apt's list of packages is longer than {MAX_SIZE} bytes")]
    TooLong,
    /// The stream ends within a line, or within the configuration.
    #[error("apt's list of packages is truncated")]
    Truncated,
    /// A protocol this program does not speak.
    #[error("apt's list of packages has the unknown version {0:?}")]
    Version(String),
    /// A line that is not what the protocol says.
    #[error("apt's list of packages, line {line}: {reason}: {text:?}")]
    Line {
        /// Counted from 1.
        line: usize,
        /// What is wrong with it.
        reason: &'static str,
        /// The line.
        text: String,
    },
}

/// What apt is about to do.
#[derive(Debug)]
pub struct Stream {
    /// The protocol's version: 1, 2 or 3.
    pub version: u32,
    /// The actions, in apt's order. A package that is unpacked has a second one, to be configured.
    pub actions: Vec<AptAction>,
    config: Vec<(String, OsString)>,
}

/// One step of the run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AptAction {
    /// The package, never qualified by an architecture; unknown in version 1.
    pub name: Option<String>,
    /// The installed version.
    pub old: Option<Version>,
    /// The version to be installed.
    pub new: Option<Version>,
    /// What happens to it.
    pub kind: AptActionKind,
}

/// A version of a package.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    /// The version number.
    pub version: String,
    /// The architecture; unknown in version 2.
    pub arch: Option<String>,
    /// Unknown in version 2.
    pub(crate) multi_arch: Option<MultiArch>,
}

/// What happens to a package.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AptActionKind {
    /// This archive is unpacked.
    Unpack(PathBuf),
    /// The package is configured.
    Configure,
    /// The package is removed or purged; apt does not say which.
    Remove,
}

impl Stream {
    /// Reads a stream to its end.
    ///
    /// # Errors
    /// If the stream is not what apt writes; bytes that are not UTF-8 are no error.
    pub fn read(reader: impl Read) -> Result<Stream, Error> {
        let mut data = Vec::new();
        reader.take(MAX_SIZE + 1).read_to_end(&mut data)?;
        if data.len() as u64 > MAX_SIZE {
            return Err(Error::TooLong);
        }
        Stream::parse(&data)
    }

    fn parse(data: &[u8]) -> Result<Stream, Error> {
        let Some((b'\n', text)) = data.split_last() else {
            return if data.is_empty() { Ok(Stream::empty()) } else { Err(Error::Truncated) };
        };
        let mut lines = text.split(|&byte| byte == b'\n').enumerate().map(|(at, line)| (at + 1, line));
        let version = match data.strip_prefix(b"VERSION ") {
            Some(_) => parse_version(lines.next().map_or(b"", |(_, line)| line))?,
            None => 1,
        };
        let mut stream = Stream { version, ..Stream::empty() };
        if version > 1 {
            loop {
                match lines.next() {
                    Some((_, b"")) => break,
                    Some((at, line)) => stream.config.push(parse_setting(at, line)?),
                    None => return Err(Error::Truncated),
                }
            }
        }
        for (at, line) in lines {
            stream.actions.push(if version == 1 {
                AptAction { name: None, old: None, new: None, kind: parse_kind(at, line, false)? }
            } else {
                parse_action(at, line, version)?
            });
        }
        Ok(stream)
    }

    fn empty() -> Stream {
        Stream { version: 1, actions: Vec::new(), config: Vec::new() }
    }

    /// The values apt's configuration has for `key`, in order; none in version 1.
    ///
    /// A key that ends in `::` stands for a list, named members included: `DPkg::Options::`.
    /// Keys are the same in upper and lower case.
    pub fn config<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a OsStr> {
        let is_member = move |setting: &str| match (setting.split_at_checked(key.len()), key.ends_with("::"))
        {
            (Some((list, member)), true) => list.eq_ignore_ascii_case(key) && !member.contains("::"),
            _ => setting.eq_ignore_ascii_case(key),
        };
        self.config.iter().filter(move |(name, _)| is_member(name)).map(|(_, value)| value.as_os_str())
    }
}

fn bad(line: usize, reason: &'static str, text: &[u8]) -> Error {
    Error::Line { line, reason, text: start(text) }
}

/// As much of a line as is shown.
fn start(line: &[u8]) -> String {
    String::from_utf8_lossy(&line[..line.len().min(200)]).into_owned()
}

fn parse_version(line: &[u8]) -> Result<u32, Error> {
    match line.strip_prefix(b"VERSION ") {
        Some(b"2") => Ok(2),
        Some(b"3") => Ok(3),
        other => Err(Error::Version(start(other.unwrap_or(line)))),
    }
}

fn parse_setting(at: usize, line: &[u8]) -> Result<(String, OsString), Error> {
    let equals = line.iter().position(|&byte| byte == b'=');
    let equals = equals.ok_or_else(|| bad(at, "not a setting", line))?;
    let key = String::from_utf8_lossy(&decode(&line[..equals])).into_owned();
    Ok((key, OsString::from_vec(decode(&line[equals + 1..]))))
}

/// Undoes apt's `QuoteString`: `%` and two hexadecimal digits are a byte.
fn decode(text: &[u8]) -> Vec<u8> {
    let digit = |at: usize| text.get(at).and_then(|&byte| char::from(byte).to_digit(16));
    let mut plain = Vec::with_capacity(text.len());
    let mut at = 0;
    while at < text.len() {
        match (text[at], digit(at + 1), digit(at + 2)) {
            (b'%', Some(high), Some(low)) => {
                // Two hexadecimal digits are less than 256.
                plain.push((high * 16 + low) as u8);
                at += 3;
            }
            (byte, ..) => {
                plain.push(byte);
                at += 1;
            }
        }
    }
    plain
}

/// `name old [arch multi-arch] direction new [arch multi-arch] action`; the action may hold spaces.
fn parse_action(at: usize, line: &[u8], version: u32) -> Result<AptAction, Error> {
    let columns = if version == 2 { 5 } else { 9 };
    let words: Vec<&[u8]> = line.splitn(columns, |&byte| byte == b' ').collect();
    let (name, old, new, kind) = match words[..] {
        [name, old, _, new, kind] => (name, [old, b"", b""], [new, b"", b""], kind),
        [name, old, old_arch, old_multi, _, new, new_arch, new_multi, kind] => {
            (name, [old, old_arch, old_multi], [new, new_arch, new_multi], kind)
        }
        _ => return Err(bad(at, "too few columns", line)),
    };
    if name.is_empty() {
        return Err(bad(at, "no package name", line));
    }
    let side = |columns| parse_side(columns, version).ok_or_else(|| bad(at, "unknown Multi-Arch", line));
    Ok(AptAction {
        name: Some(String::from_utf8_lossy(name).into_owned()),
        old: side(old)?,
        new: side(new)?,
        kind: parse_kind(at, kind, true)?,
    })
}

/// A version's columns; `None` if they cannot be understood, `Some(None)` if there is no such version.
fn parse_side([number, arch, multi_arch]: [&[u8]; 3], version: u32) -> Option<Option<Version>> {
    let text = |word: &[u8]| String::from_utf8_lossy(word).into_owned();
    if number == b"-" {
        return Some(None);
    }
    let (arch, multi_arch) =
        if version == 2 { (None, None) } else { (Some(text(arch)), Some(MultiArch::parse(multi_arch)?)) };
    Some(Some(Version { version: text(number), arch, multi_arch }))
}

fn parse_kind(at: usize, word: &[u8], named: bool) -> Result<AptActionKind, Error> {
    match word {
        [b'/', ..] => Ok(AptActionKind::Unpack(PathBuf::from(OsStr::from_bytes(word)))),
        b"**CONFIGURE**" if named => Ok(AptActionKind::Configure),
        b"**REMOVE**" if named => Ok(AptActionKind::Remove),
        b"**ERROR**" => Err(bad(at, "apt has no archive for this package", word)),
        _ => Err(bad(at, "not an action", word)),
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;

    use proptest::prelude::*;

    use super::*;

    fn read(text: &[u8]) -> Result<Stream, Error> {
        Stream::read(text)
    }

    #[test]
    fn version_1_has_archives_alone() {
        let stream = read(b"/var/cache/a_1%3a2_all.deb\n/tmp/my dir/\xff.deb\n").unwrap();
        assert_eq!(stream.version, 1);
        assert_eq!(stream.actions[0].name, None);
        assert_eq!(stream.actions[0].kind, AptActionKind::Unpack("/var/cache/a_1%3a2_all.deb".into()));
        assert_eq!(
            stream.actions[1].kind,
            AptActionKind::Unpack(OsStr::from_bytes(b"/tmp/my dir/\xff.deb").into())
        );
    }

    #[test]
    fn an_empty_stream_has_no_actions() {
        assert!(read(b"").unwrap().actions.is_empty());
    }

    #[test]
    fn version_2_has_no_architectures() {
        let stream = read(b"VERSION 2\nA=b\n\nhello - < 2.10 /a b.deb\nhello 1 = 1 **CONFIGURE**\n").unwrap();
        let [unpack, configure] = &stream.actions[..] else { panic!("{stream:?}") };
        assert_eq!(unpack.old, None);
        assert_eq!(unpack.new, Some(Version { version: "2.10".into(), arch: None, multi_arch: None }));
        assert_eq!(unpack.kind, AptActionKind::Unpack("/a b.deb".into()));
        assert_eq!(configure.kind, AptActionKind::Configure);
    }

    #[test]
    fn version_3_has_architectures() {
        let stream = read(
            b"VERSION 3\n\nlibc6 2.36 amd64 same < 2.41 amd64 same /c.deb\nhello 2.10 i386 none > - - none **REMOVE**\n",
        )
        .unwrap();
        let [upgrade, removal] = &stream.actions[..] else { panic!("{stream:?}") };
        let new = upgrade.new.as_ref().unwrap();
        assert_eq!((new.arch.as_deref(), new.multi_arch), (Some("amd64"), Some(MultiArch::Same)));
        assert_eq!(removal.new, None);
        assert_eq!(removal.old.as_ref().unwrap().arch.as_deref(), Some("i386"));
        assert_eq!(removal.kind, AptActionKind::Remove);
    }

    #[test]
    fn the_configuration_is_decoded_and_its_keys_ignore_case() {
        let text = b"VERSION 3\nDPkg::Options::=--root=/a%20b%0a\nDPkg::Options::=-R\ndpkg::options::x=--force-all\nDPkg::Options::y::z=no\nDir=/%\n\n";
        let stream = read(text).unwrap();
        let options: Vec<_> = stream.config("DPkg::Options::").collect();
        assert_eq!(options, ["--root=/a b\n", "-R", "--force-all"]);
        assert_eq!(stream.config("dir").collect::<Vec<_>>(), ["/%"]);
        assert_eq!(stream.config("Di").count(), 0);
    }

    #[test]
    fn garbage_is_refused_with_its_line() {
        assert!(matches!(read(b"VERSION 4\n\n"), Err(Error::Version(version)) if version == "4"));
        let long = format!("VERSION {}\n\n", "4".repeat(1 << 20));
        assert!(read(long.as_bytes()).unwrap_err().to_string().len() < 300);
        assert!(matches!(read(b"VERSION 3\nA=b\n"), Err(Error::Truncated)));
        assert!(matches!(read(b"VERSION 3\n\nhello - - none <"), Err(Error::Truncated)));
        assert!(matches!(read(b"VERSION 3\nA\n\n"), Err(Error::Line { line: 2, .. })));
        assert!(matches!(read(b"VERSION 3\n\nhello - <\n"), Err(Error::Line { line: 3, .. })));
        assert!(matches!(read(b"VERSION 2\n\nhello - < 1 **ERROR**\n"), Err(Error::Line { line: 3, .. })));
        assert!(matches!(read(b"hello\n"), Err(Error::Line { line: 1, .. })));
        assert!(matches!(read(b"**REMOVE**\n"), Err(Error::Line { line: 1, .. })));
    }

    #[test]
    fn an_endless_stream_is_refused() {
        assert!(matches!(Stream::read(io::repeat(b'\n')), Err(Error::TooLong)));
    }

    fn version_3(config: &[(String, Vec<u8>)], actions: &[AptAction]) -> Vec<u8> {
        let mut text = String::from("VERSION 3\n");
        for (key, value) in config {
            let quoted: String = value.iter().map(|byte| format!("%{byte:02x}")).collect();
            writeln!(text, "{key}={quoted}").unwrap();
        }
        let side = |version: &Option<Version>| match version {
            Some(Version { version, arch: Some(arch), multi_arch: Some(multi_arch) }) => {
                let word = match multi_arch {
                    MultiArch::No => "none",
                    MultiArch::Same => "same",
                    MultiArch::Foreign => "foreign",
                    MultiArch::Allowed => "allowed",
                };
                format!("{version} {arch} {word}")
            }
            _ => "- - none".into(),
        };
        let mut bytes = (text + "\n").into_bytes();
        for action in actions {
            let name = action.name.as_deref().unwrap();
            bytes.extend(format!("{name} {} < {} ", side(&action.old), side(&action.new)).bytes());
            bytes.extend(match &action.kind {
                AptActionKind::Unpack(path) => path.as_os_str().as_bytes(),
                AptActionKind::Configure => b"**CONFIGURE**",
                AptActionKind::Remove => b"**REMOVE**",
            });
            bytes.push(b'\n');
        }
        bytes
    }

    prop_compose! {
        fn any_version()(
            version in "[0-9][0-9a-z.+~:-]{0,8}", arch in "[a-z0-9-]{1,8}",
            multi_arch in prop::sample::select(vec![MultiArch::No, MultiArch::Same, MultiArch::Foreign, MultiArch::Allowed]),
        ) -> Version {
            Version { version, arch: Some(arch), multi_arch: Some(multi_arch) }
        }
    }

    prop_compose! {
        fn any_action()(
            name in "[a-z0-9][a-z0-9+.-]{1,12}", old in prop::option::of(any_version()), new in prop::option::of(any_version()),
            kind in prop_oneof![
                Just(AptActionKind::Configure), Just(AptActionKind::Remove),
                prop::collection::vec((1u8..=255).prop_filter("newline", |&byte| byte != b'\n'), 0..30)
                    .prop_map(|name| AptActionKind::Unpack(OsString::from_vec([b"/", &name[..]].concat()).into())),
            ],
        ) -> AptAction {
            AptAction { name: Some(name), old, new, kind }
        }
    }

    proptest! {
        #[test]
        fn streams_round_trip(
            config in prop::collection::vec(("[A-Za-z:-]{1,20}", prop::collection::vec(any::<u8>(), 0..20)), 0..9),
            actions in prop::collection::vec(any_action(), 0..9),
        ) {
            let stream = read(&version_3(&config, &actions)).unwrap();
            prop_assert_eq!(stream.version, 3);
            prop_assert_eq!(stream.actions, actions);
            let read: Vec<(String, Vec<u8>)> =
                stream.config.into_iter().map(|(key, value)| (key, value.into_vec())).collect();
            prop_assert_eq!(read, config);
        }

        #[test]
        fn any_bytes_are_read_without_panic(
            start in prop::sample::select(vec!["", "VERSION 2\n", "VERSION 3\n\n"]),
            data in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            let _ = read(&[start.as_bytes(), &data].concat());
        }
    }
}

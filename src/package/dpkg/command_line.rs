//! dpkg's command line: what a dpkg was told to do (dpkg(1); the rules of its option parser are in its
//! `lib/dpkg/options.c`).
//!
//! Options end at the first other argument, so `dpkg -i a.deb -R` has two archives. Only if an option is
//! unknown, and with it whether the next word is its value, are options looked for to the end.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use crate::package::PackageSpec;

/// Options that take a value, joined to them by `=` or as the next word.
const WITH_VALUE: [&str; 14] = [
    "abort-after",
    "admindir",
    "debug",
    "ignore-depends",
    "instdir",
    "log",
    "path-exclude",
    "path-include",
    "post-invoke",
    "pre-invoke",
    "root",
    "status-fd",
    "status-logger",
    "verify-format",
];

/// Options whose value is joined to them by `-`, or is the next word.
const WITH_DASHED_VALUE: [&str; 3] = ["force", "no-force", "refuse"];

/// Options without a value that tell us nothing.
const PLAIN: [&str; 10] = [
    "auto-deconfigure",
    "no-also-select",
    "no-debsig",
    "no-pager",
    "no-triggers",
    "refuse-downgrade",
    "robot",
    "selected-only",
    "skip-same-version",
    "triggers",
];

/// What a dpkg was told to do.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Invocation {
    /// The action, and what it is done to.
    pub action: DpkgAction,
    /// The archives are directories that are to be searched (`--recursive`).
    pub recursive: bool,
    /// All packages that wait for the action are meant (`--pending`).
    pub pending: bool,
    /// Nothing is to be done (`--no-act`); old versions of dpkg run their hooks all the same.
    pub no_act: bool,
    /// The root packages are installed in (`--instdir`, `--root`).
    pub instdir: Option<PathBuf>,
    /// The directory of the database (`--admindir`, `--root`).
    pub admindir: Option<PathBuf>,
}

/// An action of dpkg's that changes installed packages.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum DpkgAction {
    /// Archives are unpacked and configured.
    Install(Vec<PathBuf>),
    /// Archives are unpacked.
    Unpack(Vec<PathBuf>),
    /// Packages are configured.
    Configure(Vec<PackageSpec>),
    /// Packages' triggers are processed.
    TriggersOnly(Vec<PackageSpec>),
    /// Packages are removed.
    Remove(Vec<PackageSpec>),
    /// Packages are removed, and their configuration files.
    Purge(Vec<PackageSpec>),
    /// Something that touches no package.
    #[default]
    Other,
}

#[derive(Clone, Copy)]
enum Verb {
    Install,
    Unpack,
    Configure,
    TriggersOnly,
    Remove,
    Purge,
}

/// What is known of the command line so far.
#[derive(Default)]
struct Parser {
    found: Invocation,
    verb: Option<Verb>,
    arguments: Vec<OsString>,
    /// An option was not understood.
    unsure: bool,
}

impl Invocation {
    /// Reads a command line, the program's name first.
    pub fn parse(arguments: &[OsString]) -> Invocation {
        let mut parser = Parser::default();
        let mut words = arguments.iter().skip(1);
        while let Some(word) = words.next() {
            let bytes = word.as_bytes();
            if bytes == b"--" {
                break;
            } else if let Some(option) = bytes.strip_prefix(b"--") {
                parser.long(option, &mut words);
            } else if let Some(letters) = bytes.strip_prefix(b"-").filter(|letters| !letters.is_empty()) {
                parser.short(letters, &mut words);
            } else {
                parser.arguments.push(word.clone());
                if parser.verb.is_some() && !parser.unsure {
                    break;
                }
            }
        }
        parser.arguments.extend(words.cloned());
        parser.finish()
    }
}

impl Parser {
    fn long<'a>(&mut self, option: &[u8], words: &mut impl Iterator<Item = &'a OsString>) {
        if let Some(name) = WITH_VALUE.into_iter().find(|name| joined(option, name, b'=').is_some()) {
            match joined(option, name, b'=') {
                Some(Some(value)) => self.value(name, value),
                _ => self.value(name, words.next().map_or(b"", |word| word.as_bytes())),
            }
        } else if let Some(value) = WITH_DASHED_VALUE.into_iter().find_map(|name| joined(option, name, b'-'))
        {
            if value.is_none() {
                words.next();
            }
        } else {
            let plain = |known: &&str| known.as_bytes() == option;
            match option {
                b"install" => self.verb = Some(Verb::Install),
                b"unpack" => self.verb = Some(Verb::Unpack),
                b"configure" => self.verb = Some(Verb::Configure),
                b"triggers-only" => self.verb = Some(Verb::TriggersOnly),
                b"remove" => self.verb = Some(Verb::Remove),
                b"purge" => self.verb = Some(Verb::Purge),
                b"recursive" => self.found.recursive = true,
                b"pending" => self.found.pending = true,
                b"no-act" | b"dry-run" | b"simulate" => self.found.no_act = true,
                _ => self.unsure |= !PLAIN.iter().any(plain),
            }
        }
    }

    fn short<'a>(&mut self, letters: &[u8], words: &mut impl Iterator<Item = &'a OsString>) {
        for (at, letter) in letters.iter().enumerate() {
            match letter {
                b'i' => self.verb = Some(Verb::Install),
                b'r' => self.verb = Some(Verb::Remove),
                b'P' => self.verb = Some(Verb::Purge),
                b'R' => self.found.recursive = true,
                b'a' => self.found.pending = true,
                b'B' | b'E' | b'G' | b'N' | b'O' => {}
                b'D' => {
                    // Its value is the rest of the word, or the next one.
                    if at + 1 == letters.len() {
                        words.next();
                    }
                    return;
                }
                _ => self.unsure = true,
            }
        }
    }

    fn value(&mut self, option: &str, value: &[u8]) {
        let path = PathBuf::from(OsStr::from_bytes(value));
        match option {
            "root" => {
                self.found.admindir = Some(path.join("var/lib/dpkg"));
                self.found.instdir = Some(path);
            }
            "instdir" => self.found.instdir = Some(path),
            "admindir" => self.found.admindir = Some(path),
            _ => {}
        }
    }

    fn finish(self) -> Invocation {
        let archives = || self.arguments.iter().map(PathBuf::from).collect();
        let packages = || self.arguments.iter().map(|name| PackageSpec::parse(name)).collect();
        let action = match self.verb {
            Some(Verb::Install) => DpkgAction::Install(archives()),
            Some(Verb::Unpack) => DpkgAction::Unpack(archives()),
            Some(Verb::Configure) => DpkgAction::Configure(packages()),
            Some(Verb::TriggersOnly) => DpkgAction::TriggersOnly(packages()),
            Some(Verb::Remove) => DpkgAction::Remove(packages()),
            Some(Verb::Purge) => DpkgAction::Purge(packages()),
            None => DpkgAction::Other,
        };
        Invocation { action, ..self.found }
    }
}

/// Whether `option` is `name`, and the value joined to it, if any.
fn joined<'a>(option: &'a [u8], name: &str, separator: u8) -> Option<Option<&'a [u8]>> {
    match option.strip_prefix(name.as_bytes())? {
        [] => Some(None),
        [first, value @ ..] if *first == separator => Some(Some(value)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(line: &str) -> Invocation {
        Invocation::parse(&line.split(' ').map(OsString::from).collect::<Vec<_>>())
    }

    fn archives(names: &[&str]) -> Vec<PathBuf> {
        names.iter().map(PathBuf::from).collect()
    }

    #[test]
    fn actions_have_short_and_long_names() {
        for line in ["dpkg -i a.deb b.deb", "dpkg --install a.deb b.deb", "dpkg -iBEGO a.deb b.deb"] {
            assert_eq!(parse(line).action, DpkgAction::Install(archives(&["a.deb", "b.deb"])), "{line}");
        }
        assert_eq!(parse("dpkg --unpack a.deb").action, DpkgAction::Unpack(archives(&["a.deb"])));
        let names = vec![
            PackageSpec { name: "a".into(), arch: Some("i386".into()) },
            PackageSpec { name: "b".into(), arch: None },
        ];
        for line in ["dpkg -r a:i386 b", "dpkg --remove a:i386 b"] {
            assert_eq!(parse(line).action, DpkgAction::Remove(names.clone()), "{line}");
        }
        for line in ["dpkg -P a:i386 b", "dpkg --purge a:i386 b"] {
            assert_eq!(parse(line).action, DpkgAction::Purge(names.clone()), "{line}");
        }
        assert_eq!(parse("dpkg --configure a:i386 b").action, DpkgAction::Configure(names.clone()));
        assert_eq!(parse("dpkg --triggers-only a:i386 b").action, DpkgAction::TriggersOnly(names));
        for line in ["dpkg -l a", "dpkg --clear-avail", "dpkg", "dpkg -A a.deb"] {
            assert_eq!(parse(line).action, DpkgAction::Other, "{line}");
        }
    }

    #[test]
    fn flags_are_found_around_the_action() {
        let found = parse("dpkg -R --no-act -i dir");
        assert!(found.recursive && found.no_act && !found.pending);
        assert_eq!(found.action, DpkgAction::Install(archives(&["dir"])));
        assert!(parse("dpkg --configure -a").pending);
        assert!(parse("dpkg --pending --purge").pending);
        assert!(parse("dpkg -iR dir").recursive);
        assert!(parse("dpkg --unpack --recursive /tmp/x").recursive);
    }

    #[test]
    fn values_are_joined_or_the_next_word() {
        for line in [
            "dpkg --root=/g -i a.deb",
            "dpkg -i --root /g a.deb",
            "dpkg --admindir=/x --instdir /y --root=/g -i a.deb",
        ] {
            let found = parse(line);
            assert_eq!(found.instdir, Some("/g".into()), "{line}");
            assert_eq!(found.admindir, Some("/g/var/lib/dpkg".into()), "{line}");
            assert_eq!(found.action, DpkgAction::Install(archives(&["a.deb"])), "{line}");
        }
        let found = parse("dpkg --root=/g --admindir /a --instdir=/i --unpack a.deb");
        assert_eq!((found.instdir, found.admindir), (Some("/i".into()), Some("/a".into())));
    }

    #[test]
    fn values_of_other_options_are_no_archives() {
        for line in [
            "dpkg -D 77 -i a.deb",
            "dpkg -D77 -i a.deb",
            "dpkg -iD 77 a.deb",
            "dpkg --debug=77 -i a.deb",
            "dpkg --force-all --force depends --no-force-x --refuse-y -i a.deb",
            "dpkg --status-fd 17 --log /dev/null --abort-after=1 -i a.deb",
            "dpkg --ignore-depends x --path-exclude=/usr/* -i --path-include /usr/y a.deb",
            "dpkg --pre-invoke -i --post-invoke=x --status-logger x -i -- a.deb",
            "dpkg --no-triggers --no-debsig -i a.deb",
        ] {
            assert_eq!(parse(line).action, DpkgAction::Install(archives(&["a.deb"])), "{line}");
        }
    }

    #[test]
    fn options_end_at_the_first_argument() {
        let found = parse("dpkg -i a.deb --root=/g");
        assert_eq!(found.action, DpkgAction::Install(archives(&["a.deb", "--root=/g"])));
        assert_eq!(found.instdir, None);
        assert_eq!(parse("dpkg -i -- -R.deb").action, DpkgAction::Install(archives(&["-R.deb"])));
        assert_eq!(parse("dpkg -i -").action, DpkgAction::Install(archives(&["-"])));
    }

    #[test]
    fn an_unknown_option_loses_nothing() {
        for line in ["dpkg --novel -i a.deb", "dpkg --novel=x -i a.deb", "dpkg -Zi a.deb"] {
            assert_eq!(parse(line).action, DpkgAction::Install(archives(&["a.deb"])), "{line}");
        }
        for line in ["dpkg --novel x -i a.deb", "dpkg -i --novel x a.deb"] {
            assert_eq!(parse(line).action, DpkgAction::Install(archives(&["x", "a.deb"])), "{line}");
        }
        assert_eq!(parse("dpkg -i --novel x --root=/g a.deb").instdir, Some("/g".into()));
    }

    proptest! {
        #[test]
        fn any_words_are_read_without_panic(
            line in prop::collection::vec("(-{0,2}(root|force|install|[irPRaD?=-]{0,3})(=|-)?[a-z\u{80}]{0,3})", 0..6)
        ) {
            Invocation::parse(&line.into_iter().map(OsString::from).collect::<Vec<_>>());
        }
    }
}

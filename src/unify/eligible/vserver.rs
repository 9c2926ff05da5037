//! Linux-VServer's exclude lists, as `vunify` and `vhashify` read them.
//!
//! One pattern of fnmatch(3) a line: `+` before it includes, `-`, `~` or nothing excludes, `#` begins a comment. A
//! pattern matches a whole path; `*` and `?` match a `/` too, a backslash escapes. The first pattern that matches
//! decides. What is in an excluded directory is excluded, whatever other lines say; an included directory is only
//! entered, and what is in it is judged by itself.

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::line::{Choice, Error, LineProblem, Unusable, lines};
use crate::policy::pattern::{Token, tokens_after, tokens_match};
use crate::report::Shown;

/// One list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct List(Vec<Line>);

/// One line of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    choice: Choice,
    pattern: Vec<u8>,
    tokens: Vec<Token>,
}

/// What a list says about the names in one directory.
#[derive(Debug, Clone)]
pub enum DirectoryLines<'l> {
    /// The directory or one above it is excluded.
    Excluded,
    /// The lines that match a path that begins like this.
    Lines(Vec<u8>, Vec<&'l Line>),
}

impl List {
    /// Reads a list. A line that holds a mark and no pattern says nothing.
    pub fn read(text: &[u8]) -> Result<List, Error> {
        let mut list = Vec::new();
        for (line, text) in lines(text) {
            let (choice, pattern) = match text {
                [b'+', pattern @ ..] => (Choice::Include, pattern),
                [b'-' | b'~', pattern @ ..] => (Choice::Exclude, pattern),
                pattern => (Choice::Exclude, pattern),
            };
            if pattern.is_empty() {
                continue;
            }
            let error = |why| Error { line, text: text.to_vec(), why: LineProblem::Vserver(why) };
            let tokens = parse(pattern).map_err(error)?;
            list.push(Line { choice, pattern: pattern.to_vec(), tokens });
        }
        Ok(List(list))
    }

    /// What the list says about `path`; see the module.
    pub(crate) fn choose(&self, path: &Path) -> Option<Choice> {
        match self.within(path.parent()?) {
            DirectoryLines::Excluded => Some(Choice::Exclude),
            DirectoryLines::Lines(..) => first(&self.0, path.as_os_str().as_bytes()),
        }
    }

    /// What the list says about the names in the directory `dir`.
    pub fn within(&self, dir: &Path) -> DirectoryLines<'_> {
        // vunify never asks for the root itself.
        let mut asked = dir.ancestors().filter(|dir| dir.parent().is_some());
        if asked.any(|dir| first(&self.0, dir.as_os_str().as_bytes()) == Some(Choice::Exclude)) {
            return DirectoryLines::Excluded;
        }
        let mut prefix = dir.as_os_str().as_bytes().to_vec();
        if dir.parent().is_some() {
            prefix.push(b'/');
        }
        let lines = self.0.iter().filter(|line| tokens_after(&line.tokens, &prefix).is_some()).collect();
        DirectoryLines::Lines(prefix, lines)
    }

    /// Whether a `+` may match something below `dir`.
    pub(crate) fn may_include_below(&self, dir: &Path) -> bool {
        match self.within(dir) {
            DirectoryLines::Excluded => false,
            DirectoryLines::Lines(_, lines) => lines.iter().any(|line| line.choice == Choice::Include),
        }
    }
}

impl DirectoryLines<'_> {
    /// What the list says about `name` in the directory.
    pub(crate) fn choose(&self, name: &OsStr) -> Option<Choice> {
        match self {
            DirectoryLines::Excluded => Some(Choice::Exclude),
            DirectoryLines::Lines(_, lines) if lines.is_empty() => None,
            DirectoryLines::Lines(prefix, lines) => {
                first(lines.iter().copied(), &[prefix, name.as_bytes()].concat())
            }
        }
    }
}

fn first<'l>(lines: impl IntoIterator<Item = &'l Line>, path: &[u8]) -> Option<Choice> {
    lines.into_iter().find(|line| tokens_match(&line.tokens, path)).map(|line| line.choice)
}

/// The list as it can be read again, but for what is not printable.
impl fmt::Display for List {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|line| {
            let mark = if line.choice == Choice::Include { '+' } else { '-' };
            writeln!(f, "  {mark}{}", Shown(Path::new(OsStr::from_bytes(&line.pattern))))
        })
    }
}

fn parse(pattern: &[u8]) -> Result<Vec<Token>, Unusable> {
    let mut tokens = Vec::new();
    let mut rest = pattern;
    while let [byte, tail @ ..] = rest {
        let (token, tail) = match (byte, tail) {
            (b'*', _) => (Token::Star, tail),
            (b'?', _) => (Token::AnyByte, tail),
            (b'\\', []) => return Err(Unusable::Backslash),
            (b'\\', [escaped, tail @ ..]) => (Token::Byte(*escaped), tail),
            // Without a `]`, a `[` is one.
            (b'[', _) => parse_set(tail)?.unwrap_or((Token::Byte(b'['), tail)),
            _ => (Token::Byte(*byte), tail),
        };
        tokens.push(token);
        rest = tail;
    }
    let is_slash = |token: Option<&Token>| token == Some(&Token::Byte(b'/'));
    let is_other = |token: Option<&Token>| matches!(token, Some(Token::Byte(byte)) if *byte != b'/');
    if is_other(tokens.first()) || is_slash(tokens.last()) { Err(Unusable::NoPath) } else { Ok(tokens) }
}

/// Parses what follows a `[`; also returns what follows the closing `]`. `None` if there is none.
fn parse_set(text: &[u8]) -> Result<Option<(Token, &[u8])>, Unusable> {
    let (negated, mut rest) = match text {
        [b'!' | b'^', rest @ ..] => (true, rest),
        _ => (false, text),
    };
    let mut ranges = Vec::new();
    // The first character may be a `]`.
    let mut is_first = true;
    loop {
        let (first, tail) = match rest {
            [b']', tail @ ..] if !is_first => return Ok(Some((Token::Set { negated, ranges }, tail))),
            [b'[', b':' | b'=' | b'.', ..] => {
                let Some((class, tail)) = parse_class(rest) else { return Ok(None) };
                ranges.extend_from_slice(class_ranges(class).ok_or(Unusable::Class)?);
                (rest, is_first) = (tail, false);
                continue;
            }
            _ => match set_byte(rest) {
                Some(found) => found,
                None => return Ok(None),
            },
        };
        is_first = false;
        rest = tail;
        let mut last = first;
        if let [b'-', tail @ ..] = tail
            && tail.first() != Some(&b']')
        {
            match set_byte(tail) {
                Some(found) => (last, rest) = found,
                None => return Ok(None),
            }
        }
        ranges.push((first, last));
    }
}

/// One character of a set, escaped or not.
fn set_byte(text: &[u8]) -> Option<(u8, &[u8])> {
    match text {
        [b'\\', byte, rest @ ..] => Some((*byte, rest)),
        [b'\\'] | [] => None,
        [byte, rest @ ..] => Some((*byte, rest)),
    }
}

/// `[:class:]`, brackets included, and what follows it.
fn parse_class(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let kind = text.get(1)?;
    let end = text.iter().skip(2).zip(text.iter().skip(3)).position(|pair| pair == (kind, &b']'))? + 4;
    text.split_at_checked(end)
}

/// The classes of fnmatch(3) in the C locale, which is the one vunify runs in.
fn class_ranges(class: &[u8]) -> Option<&'static [(u8, u8)]> {
    Some(match class {
        b"[:alnum:]" => &[(b'0', b'9'), (b'A', b'Z'), (b'a', b'z')],
        b"[:alpha:]" => &[(b'A', b'Z'), (b'a', b'z')],
        b"[:blank:]" => &[(b'\t', b'\t'), (b' ', b' ')],
        b"[:cntrl:]" => &[(0, 31), (127, 127)],
        b"[:digit:]" => &[(b'0', b'9')],
        b"[:graph:]" => &[(b'!', b'~')],
        b"[:lower:]" => &[(b'a', b'z')],
        b"[:print:]" => &[(b' ', b'~')],
        b"[:punct:]" => &[(b'!', b'/'), (b':', b'@'), (b'[', b'`'), (b'{', b'~')],
        b"[:space:]" => &[(b'\t', b'\r'), (b' ', b' ')],
        b"[:upper:]" => &[(b'A', b'Z')],
        b"[:xdigit:]" => &[(b'0', b'9'), (b'A', b'F'), (b'a', b'f')],
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::sys::path::fnmatch::fnmatch;

    fn list(text: &str) -> List {
        List::read(text.as_bytes()).unwrap_or_else(|e| panic!("{e}"))
    }

    fn choose(text: &str, path: &str) -> Option<Choice> {
        list(text).choose(Path::new(path))
    }

    const USUAL: &str = "# as a host has it\n/.rpmdb\n~/etc/shadow\n+/etc/termcap\n+/etc/gconf\n/etc/gconf/*\n\
                         /etc/*\n/home\n+/root/.ssh\n~/root/.ssh/id*\n-/root/*\n~/tmp/*\n/tmp\n/var\n/*/ls-R\n";

    #[test]
    fn the_first_line_that_matches_decides() {
        for (path, choice) in [
            ("/etc/termcap", Some(Choice::Include)),
            ("/etc/shadow", Some(Choice::Exclude)),
            ("/etc/ssh/sshd_config", Some(Choice::Exclude)),
            ("/etc", None),
            ("/.rpmdb", Some(Choice::Exclude)),
            ("/root/.ssh", Some(Choice::Include)),
            ("/root/.ssh/id_rsa", Some(Choice::Exclude)),
            ("/root/.ssh/known_hosts", Some(Choice::Exclude)),
            ("/pub/old/ls-R", Some(Choice::Exclude)),
            ("/ls-R", None),
            ("/usr/bin/bash", None),
        ] {
            assert_eq!(choose(USUAL, path), choice, "{path}");
        }
    }

    #[test]
    fn an_excluded_directory_is_not_entered() {
        assert_eq!(choose("+/home/shared\n/home\n", "/home/shared"), Some(Choice::Exclude));
        assert_eq!(choose(USUAL, "/var/lib/x"), Some(Choice::Exclude));
        let list = list(USUAL);
        assert!(!list.may_include_below(Path::new("/var")));
        assert!(!list.may_include_below(Path::new("/usr")));
        assert!(list.may_include_below(Path::new("/etc")));
        assert!(list.may_include_below(Path::new("/")));
    }

    #[test]
    fn an_included_directory_says_nothing_of_what_is_in_it() {
        assert_eq!(choose("+/srv/a\n", "/srv/a"), Some(Choice::Include));
        assert_eq!(choose("+/srv/a\n", "/srv/a/x"), None);
    }

    #[test]
    fn lines_without_a_pattern_say_nothing() {
        assert_eq!(list("\n#/etc\n~\n+\n-\n  \r\n"), List(Vec::new()));
        assert_eq!(choose("~\n/tmp  ", "/tmp"), Some(Choice::Exclude), "the last line has no newline");
    }

    #[test]
    fn a_line_that_would_match_nothing_is_refused_with_its_number() {
        for (text, why) in [
            ("\netc/passwd", Unusable::NoPath),
            ("#\n/dev/", Unusable::NoPath),
            ("/x\n/", Unusable::NoPath),
            ("/x\n/a\\", Unusable::Backslash),
            ("/x\n/[[:letters:]]", Unusable::Class),
            ("/x\n/[[=a=]]", Unusable::Class),
        ] {
            let error = List::read(text.as_bytes()).unwrap_err();
            assert_eq!((error.line, error.why), (2, LineProblem::Vserver(why)), "{text}");
        }
    }

    #[test]
    fn names_that_are_not_utf8_are_matched_by_byte() {
        let list = List::read(b"/caf\xe9\n").unwrap();
        assert_eq!(list.choose(Path::new(OsStr::from_bytes(b"/caf\xe9"))), Some(Choice::Exclude));
        assert_eq!(list.to_string(), "  -/caf\\xe9\n");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4096))]

        #[test]
        fn patterns_mean_what_they_mean_to_the_c_library(
            parts in prop::collection::vec(
                prop_oneof![
                    3 => "[ab/*?!^-]",
                    1 => "\\\\[ab*?\\[\\]\\\\]",
                    1 => "\\[[!^]?\\]?[ab*?/]{1,2}(-[abc])?\\]",
                    1 => "\\[[!^]?(a-[bc]|\\[:alpha:\\]|\\\\\\]|[?/-]){1,3}\\]",
                    1 => "[\\[\\]]",
                ], 0..7,
            ),
            path in "/[ab/\\]\\[*?-]{0,7}",
        ) {
            let pattern = format!("/{}", parts.concat());
            // A range that ends where a class begins: what that is, POSIX leaves open.
            prop_assume!(!pattern.contains("-["));
            match parse(pattern.as_bytes()) {
                Ok(tokens) => prop_assert_eq!(
                    tokens_match(&tokens, path.as_bytes()), fnmatch(pattern.as_bytes(), path.as_bytes()),
                    "{} on {}", pattern, path
                ),
                Err(Unusable::NoPath) => prop_assert!(pattern.ends_with('/')),
                Err(why) => prop_assert!(!fnmatch(pattern.as_bytes(), path.as_bytes()), "{}: {}", pattern, why),
            }
        }

        #[test]
        fn a_directory_at_a_time_gives_what_each_path_gives(
            text in "([+~-]?/[ab*?]{0,2}(/[ab*]{1,2}){0,2}\n){0,5}",
            path in "(/[ab]{1,2}){1,4}",
        ) {
            let Ok(list) = List::read(text.as_bytes()) else { return Ok(()) };
            let path = Path::new(&path);
            let (dir, name) = (path.parent().unwrap(), path.file_name().unwrap());
            let choice = list.choose(path);
            prop_assert_eq!(list.within(dir).choose(name), choice);
            if choice == Some(Choice::Include) {
                for dir in path.ancestors().skip(1) {
                    prop_assert!(list.may_include_below(dir), "{:?}", dir);
                }
            }
        }

        #[test]
        fn any_bytes_are_read_without_panic(text in prop::collection::vec(any::<u8>(), 0..99)) {
            if let Ok(list) = List::read(&text) {
                list.choose(Path::new("/a/b"));
            }
        }

        #[test]
        fn any_set_is_read_without_panic(text in "/[\\[\\]:=.a!\\\\-]{0,12}") {
            let _ = List::read(text.as_bytes());
        }
    }
}

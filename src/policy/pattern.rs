//! Path patterns: the language of the policy's lists, on raw bytes.
//!
//! - A pattern that begins with `/` is a path from the guest's root. One without a slash matches a
//!   name at any depth: `*.dpkg-new` is `/**/*.dpkg-new`.
//! - DirectoryMatch one component, `*` is any run of bytes, `?` any one byte, `[a-z]` one of a set and
//!   `[!a-z]` one outside it. None of them ever matches a `/`. A leading dot is nothing special.
//! - `**`, as a component of its own, is any number of components, none included.
//! - A pattern that names a directory covers everything below it.
//!
//! There is no escape character: `[*]` is a literal star. What other languages give a meaning and this
//! one does not (`{a,b}`, `!exception`, `a/b` without a leading slash) is an error, never a pattern that
//! silently matches nothing.

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Why a text is no pattern.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// Nothing to match.
    #[error("a pattern may not be empty")]
    Empty,
    /// `a/b`: anchored or not?
    #[error("a pattern with a slash begins with one: write `/a/b`, or `/**/a/b` for any depth")]
    NotAbsolute,
    /// `.` or `..` as a component: no path that is matched has any.
    #[error("`.` and `..` are not allowed as components")]
    Dots,
    /// `a**`.
    #[error("`**` must be a whole component")]
    PartialAnyDepth,
    /// `[abc`.
    #[error("`[` has no closing `]`; a literal one is written `[[]`")]
    UnclosedSet,
    /// `[z-a]`.
    #[error("a range in `[...]` runs backwards")]
    BackwardRange,
    /// `[é]`: matching is by byte.
    #[error("`[...]` may hold ASCII characters only")]
    WideSet,
    /// `{a,b}`.
    #[error("there is no `{{a,b}}`: write one pattern for each; a literal brace is written `[{{]`")]
    Braces,
    /// `!a`.
    #[error("there are no exceptions with `!`; begin with `?` to match a name that starts with one")]
    Exception,
    /// A NUL byte, which no path holds.
    #[error("a NUL byte is in no path")]
    Nul,
}

/// One pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern {
    text: String,
    /// Always ends in `AnyDepth`: a directory covers what is below it.
    components: Vec<Component>,
    fixed_prefix: PathBuf,
}

/// What a pattern says about one component of a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Component {
    /// `**`: any number of components, none included.
    AnyDepth,
    /// Exactly one component.
    Name(NamePattern),
}

/// What a pattern says about one name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamePattern(Form);

/// What a pattern says about the names in one directory; see [`Pattern::within`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DirectoryMatch<'p> {
    /// It matches the directory, and with it all of them.
    All,
    /// It matches those that this matches.
    Names(&'p NamePattern),
    /// It matches none of them; perhaps one further below.
    None,
}

/// The two commonest forms apart from the general one: `settle` asks for tens of thousands of paths.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Form {
    Literal(Vec<u8>),
    /// `*`, and then no other one.
    Suffix(Vec<Token>),
    Wild(Vec<Token>),
}

/// An element of a wildcard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Token {
    /// This byte.
    Byte(u8),
    /// Any one byte.
    AnyByte,
    /// One byte of these ranges, or one that is in none of them.
    Set { negated: bool, ranges: Vec<(u8, u8)> },
    /// Any run of bytes.
    Star,
}

impl Pattern {
    /// Parses `text`.
    pub fn parse(text: &str) -> Result<Pattern, PatternError> {
        if text.is_empty() {
            return Err(PatternError::Empty);
        }
        if text.starts_with('!') {
            return Err(PatternError::Exception);
        }
        if text.contains('\0') {
            return Err(PatternError::Nul);
        }
        let mut components = Vec::new();
        if !text.starts_with('/') {
            if text.trim_end_matches('/').contains('/') {
                return Err(PatternError::NotAbsolute);
            }
            components.push(Component::AnyDepth);
        }
        for part in names(text.as_bytes()) {
            components.push(Component::parse(part)?);
        }
        components.push(Component::AnyDepth);
        components.dedup_by(|a, b| *a == Component::AnyDepth && *b == Component::AnyDepth);

        let mut fixed_prefix = PathBuf::from("/");
        fixed_prefix.extend(components.iter().map_while(Component::literal));
        Ok(Pattern { text: text.to_owned(), components, fixed_prefix })
    }

    /// Whether the pattern names `path` or a directory above it.
    ///
    /// `path` is a guest's absolute path, its directories without symlinks.
    pub fn matches(&self, path: &Path) -> bool {
        self.matches_names(&split(path))
    }

    /// Whether anything below the directory `dir` can match.
    pub fn may_match_below(&self, dir: &Path) -> bool {
        self.may_match_below_names(&split(dir))
    }

    /// What the pattern says about the names in the directory `dir`.
    ///
    /// For many files of one directory this is much faster than [`Pattern::matches`] for each.
    pub fn within(&self, dir: &Path) -> DirectoryMatch<'_> {
        self.within_names(&split(dir))
    }

    fn within_names(&self, dir: &[&[u8]]) -> DirectoryMatch<'_> {
        match self.rest_after(dir) {
            None => return DirectoryMatch::None,
            Some(rest) if rest.iter().all(Component::is_any_depth) => return DirectoryMatch::All,
            Some(_) => {}
        }
        // Where the directory is not covered, the name has to be what the last component but `**` matches.
        match self.components.as_slice() {
            [above @ .., Component::Name(name), Component::AnyDepth] if matches_all(above, dir) => {
                DirectoryMatch::Names(name)
            }
            _ => DirectoryMatch::None,
        }
    }

    /// The pattern's components. The last one is always [`Component::AnyDepth`], since a directory covers
    /// what is below it.
    pub fn components(&self) -> &[Component] {
        &self.components
    }

    /// The leading components without a wildcard, as a path: every match is this path or is below it.
    pub fn fixed_prefix(&self) -> &Path {
        &self.fixed_prefix
    }

    /// The pattern with its leading directory `from` replaced by `to`; itself where it does not begin with `from`.
    fn moved(&self, from: &Path, to: &Path) -> Pattern {
        let Ok(rest) = self.fixed_prefix.strip_prefix(from) else { return self.clone() };
        let literal = |name: &[u8]| Component::Name(NamePattern(Form::Literal(name.to_vec())));
        let mut components: Vec<Component> = split(to).into_iter().map(literal).collect();
        components.extend_from_slice(&self.components[split(from).len()..]);
        Pattern { text: self.text.clone(), components, fixed_prefix: to.join(rest) }
    }

    fn matches_names(&self, names: &[&[u8]]) -> bool {
        matches_all(&self.components, names)
    }

    /// Some names can always be appended to satisfy what is left of the pattern.
    fn may_match_below_names(&self, names: &[&[u8]]) -> bool {
        self.rest_after(names).is_some()
    }

    fn rest_after(&self, names: &[&[u8]]) -> Option<&[Component]> {
        components_after(&self.components, names)
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Component {
    fn parse(part: &[u8]) -> Result<Component, PatternError> {
        match part {
            b"**" => Ok(Component::AnyDepth),
            b"." | b".." => Err(PatternError::Dots),
            _ => Ok(Component::Name(NamePattern::parse(part)?)),
        }
    }

    /// Whether this is `**`.
    pub fn is_any_depth(&self) -> bool {
        *self == Component::AnyDepth
    }

    /// The one name this component matches, if it has no wildcard.
    pub fn literal(&self) -> Option<&OsStr> {
        match self {
            Component::Name(NamePattern(Form::Literal(name))) => Some(OsStr::from_bytes(name)),
            _ => None,
        }
    }
}

impl NamePattern {
    fn parse(part: &[u8]) -> Result<NamePattern, PatternError> {
        if part.windows(2).any(|pair| pair == b"**") {
            return Err(PatternError::PartialAnyDepth);
        }
        let mut tokens = Vec::new();
        let mut rest = part;
        while let Some((&byte, tail)) = rest.split_first() {
            rest = tail;
            tokens.push(match byte {
                b'*' => Token::Star,
                b'?' => Token::AnyByte,
                b'{' => return Err(PatternError::Braces),
                b'[' => {
                    let (set, tail) = Token::parse_set(rest)?;
                    rest = tail;
                    set
                }
                _ => Token::Byte(byte),
            });
        }
        if let Some(literal) = tokens.iter().map(Token::literal).collect() {
            return Ok(NamePattern(Form::Literal(literal)));
        }
        Ok(NamePattern(match tokens.split_first() {
            Some((Token::Star, tail)) if !tail.contains(&Token::Star) => Form::Suffix(tail.to_vec()),
            _ => Form::Wild(tokens),
        }))
    }

    /// Whether `name`, one component of a path, matches.
    pub fn matches(&self, name: &[u8]) -> bool {
        match &self.0 {
            Form::Literal(literal) => name == literal,
            Form::Suffix(suffix) => name.len().checked_sub(suffix.len()).is_some_and(|start| {
                suffix.iter().zip(&name[start..]).all(|(token, byte)| token.matches(*byte))
            }),
            Form::Wild(tokens) => tokens_match(tokens, name),
        }
    }
}

impl Token {
    /// Parses what follows a `[`; also returns what follows the closing `]`.
    fn parse_set(text: &[u8]) -> Result<(Token, &[u8]), PatternError> {
        let (negated, body) = match text.strip_prefix(b"!") {
            Some(body) => (true, body),
            None => (false, text),
        };
        // The first character of a set may be a `]`.
        let end = body.iter().skip(1).position(|&b| b == b']').ok_or(PatternError::UnclosedSet)? + 1;
        let (mut set, rest) = (&body[..end], &body[end + 1..]);
        if !set.is_ascii() {
            return Err(PatternError::WideSet);
        }
        let mut ranges = Vec::new();
        while let [first, tail @ ..] = set {
            let (last, tail) = match tail {
                [b'-', last, tail @ ..] => (last, tail),
                _ => (first, tail),
            };
            if last < first {
                return Err(PatternError::BackwardRange);
            }
            ranges.push((*first, *last));
            set = tail;
        }
        Ok((Token::Set { negated, ranges }, rest))
    }

    fn literal(&self) -> Option<u8> {
        match self {
            Token::Byte(byte) => Some(*byte),
            _ => None,
        }
    }

    fn matches(&self, byte: u8) -> bool {
        match self {
            Token::Byte(wanted) => *wanted == byte,
            Token::AnyByte | Token::Star => true,
            Token::Set { negated, ranges } => {
                ranges.iter().any(|(first, last)| (*first..=*last).contains(&byte)) != *negated
            }
        }
    }
}

/// Whether the components match exactly these names.
fn matches_all(components: &[Component], names: &[&[u8]]) -> bool {
    components_after(components, names).is_some_and(|rest| rest.iter().all(Component::is_any_depth))
}

fn components_after<'p>(components: &'p [Component], names: &[&[u8]]) -> Option<&'p [Component]> {
    rest_after(components, names, Component::is_any_depth, |component, name| match component {
        Component::AnyDepth => true,
        Component::Name(pattern) => pattern.matches(name),
    })
}

/// What is left of `tokens` when all of `subject` is used up; `None` where it does not fit.
pub(crate) fn tokens_after<'t>(tokens: &'t [Token], subject: &[u8]) -> Option<&'t [Token]> {
    rest_after(tokens, subject, |token| *token == Token::Star, |token, byte| token.matches(*byte))
}

/// Whether `tokens` match exactly `subject`.
pub(crate) fn tokens_match(tokens: &[Token], subject: &[u8]) -> bool {
    tokens_after(tokens, subject).is_some_and(|rest| rest.iter().all(|token| *token == Token::Star))
}

/// What is left of `pattern` when all of `subject` is used up; `None` where it does not fit.
///
/// A star takes as little as it can. Where that fails the *last* star takes one element more: if an earlier
/// one took more instead, everything since would only have less to match with. Hence no recursion,
/// and at worst the product of both lengths.
fn rest_after<'p, P, S>(
    pattern: &'p [P],
    subject: &[S],
    is_star: impl Fn(&P) -> bool,
    matches: impl Fn(&P, &S) -> bool,
) -> Option<&'p [P]> {
    let (mut p, mut s) = (0, 0);
    // Where to go on when the last star takes one more.
    let mut retry = None;
    while let Some(element) = subject.get(s) {
        match pattern.get(p) {
            Some(part) if is_star(part) => {
                p += 1;
                retry = Some((p, s));
            }
            Some(part) if matches(part, element) => {
                p += 1;
                s += 1;
            }
            _ => {
                let (after_star, taken) = retry?;
                p = after_star;
                s = taken + 1;
                retry = Some((p, s));
            }
        }
    }
    pattern.get(p..)
}

fn split(path: &Path) -> Vec<&[u8]> {
    names(path.as_os_str().as_bytes()).collect()
}

fn names(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.split(|&b| b == b'/').filter(|name| !name.is_empty())
}

/// A list of patterns.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PatternSet {
    patterns: Vec<Pattern>,
}

impl PatternSet {
    /// Whether one of the patterns matches `path`; see [`Pattern::matches`].
    pub fn matches(&self, path: &Path) -> bool {
        let names = split(path);
        self.patterns.iter().any(|pattern| pattern.matches_names(&names))
    }

    /// Whether anything below the directory `dir` can match one of the patterns.
    pub fn may_match_below(&self, dir: &Path) -> bool {
        let names = split(dir);
        self.patterns.iter().any(|pattern| pattern.may_match_below_names(&names))
    }

    /// What the patterns say about the names in the directory `dir`: `None` where one of them covers it, else those
    /// of which any that matches a name matches the file.
    pub fn within(&self, dir: &Path) -> Option<Vec<&NamePattern>> {
        let dir = split(dir);
        let mut names = Vec::with_capacity(self.patterns.len());
        for pattern in &self.patterns {
            match pattern.within_names(&dir) {
                DirectoryMatch::All => return None,
                DirectoryMatch::Names(name) => names.push(name),
                DirectoryMatch::None => {}
            }
        }
        Some(names)
    }

    /// The patterns with their leading directory `from` replaced by `to`, where they begin with it: what they mean
    /// when `from` is a symlink.
    pub fn moved(&self, from: &Path, to: &Path) -> PatternSet {
        self.iter().map(|pattern| pattern.moved(from, to)).collect()
    }

    /// The patterns, in the order they were written.
    pub fn iter(&self) -> std::slice::Iter<'_, Pattern> {
        self.patterns.iter()
    }

    /// Whether there is no pattern, so that nothing matches.
    pub fn is_empty(&self) -> bool {
        self.patterns.is_empty()
    }
}

impl FromIterator<Pattern> for PatternSet {
    fn from_iter<I: IntoIterator<Item = Pattern>>(patterns: I) -> PatternSet {
        PatternSet { patterns: patterns.into_iter().collect() }
    }
}

impl Extend<Pattern> for PatternSet {
    fn extend<I: IntoIterator<Item = Pattern>>(&mut self, patterns: I) {
        self.patterns.extend(patterns);
    }
}

impl IntoIterator for PatternSet {
    type Item = Pattern;
    type IntoIter = std::vec::IntoIter<Pattern>;

    fn into_iter(self) -> Self::IntoIter {
        self.patterns.into_iter()
    }
}

impl<'a> IntoIterator for &'a PatternSet {
    type Item = &'a Pattern;
    type IntoIter = std::slice::Iter<'a, Pattern>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pattern(text: &str) -> Pattern {
        Pattern::parse(text).unwrap_or_else(|e| panic!("{text}: {e}"))
    }

    fn matches(text: &str, path: &str) -> bool {
        pattern(text).matches(Path::new(path))
    }

    #[test]
    fn a_literal_pattern_names_a_path_and_covers_what_is_below() {
        assert!(matches("/etc", "/etc"));
        assert!(matches("/etc", "/etc/ssh/sshd_config"));
        assert!(matches("/etc/", "/etc/passwd"));
        assert!(!matches("/etc", "/etcetera"));
        assert!(!matches("/etc/ssh", "/etc"));
        assert!(!matches("/etc", "/usr/etc"));
        assert!(matches("/", "/anything/at/all"));
    }

    #[test]
    fn a_pattern_without_a_slash_matches_a_name_at_any_depth() {
        assert!(matches("*.dpkg-new", "/x.dpkg-new"));
        assert!(matches("*.dpkg-new", "/usr/bin/x.dpkg-new"));
        assert!(matches("__pycache__", "/usr/lib/python3/__pycache__/a.pyc"));
        assert!(!matches("*.dpkg-new", "/usr/bin/x.dpkg-newer"));
    }

    #[test]
    fn wildcards_stay_within_one_component() {
        assert!(matches("/lib/modules/*/modules.*", "/lib/modules/6.1.0/modules.dep"));
        assert!(!matches("/lib/modules/*/modules.*", "/lib/modules/a/b/modules.dep"));
        assert!(matches("/a/?", "/a/b"));
        assert!(!matches("/a/?", "/a/bc"));
        assert!(!matches("/a?b", "/a/b"));
        assert!(matches("/a/*", "/a/.hidden"));
        assert!(matches("/a*b*c", "/axbxbxc"));
    }

    #[test]
    fn a_double_star_is_any_number_of_components() {
        assert!(matches("/usr/**/x", "/usr/x"));
        assert!(matches("/usr/**/x", "/usr/a/b/x"));
        assert!(matches("/usr/**/x/**/y", "/usr/a/x/b/x/c/y/z"));
        assert!(!matches("/usr/**/x", "/opt/usr/x"));
        assert!(matches("/usr/**", "/usr"));
    }

    #[test]
    fn sets_hold_ranges_and_may_be_negated() {
        assert!(matches("/a[0-9]", "/a7"));
        assert!(!matches("/a[0-9]", "/ax"));
        assert!(matches("/a[!0-9]", "/ax"));
        assert!(matches("/[]x]", "/]"));
        assert!(matches("/[!]x]", "/a"));
        assert!(matches("/[a-]", "/-"));
        assert!(matches("/[*]", "/*"));
        assert!(!matches("/[*]", "/x"));
    }

    #[test]
    fn names_that_are_not_utf8_are_matched_by_byte() {
        let odd = Path::new(OsStr::from_bytes(b"/etc/caf\xe9.conf"));
        assert!(pattern("/etc").matches(odd));
        assert!(pattern("/etc/caf?.conf").matches(odd));
        assert!(pattern("*.conf").matches(odd));
        assert!(!pattern("/etc/café.conf").matches(odd));
    }

    #[test]
    fn what_would_silently_match_nothing_is_an_error() {
        for (text, error) in [
            ("", PatternError::Empty),
            ("a/b", PatternError::NotAbsolute),
            ("/a/../b", PatternError::Dots),
            ("./a", PatternError::NotAbsolute),
            ("/a**", PatternError::PartialAnyDepth),
            ("/a[bc", PatternError::UnclosedSet),
            ("/a[]", PatternError::UnclosedSet),
            ("/a[/]b", PatternError::UnclosedSet),
            ("/a[z-a]", PatternError::BackwardRange),
            ("/a[é]", PatternError::WideSet),
            ("*.dpkg-{new,old}", PatternError::Braces),
            ("!/etc", PatternError::Exception),
            ("/a\0b", PatternError::Nul),
        ] {
            assert_eq!(Pattern::parse(text), Err(error), "{text:?}");
        }
    }

    #[test]
    fn the_fixed_prefix_ends_before_the_first_wildcard() {
        let prefix = |text| pattern(text).fixed_prefix().to_path_buf();
        assert_eq!(prefix("/usr/share/info/dir*"), Path::new("/usr/share/info"));
        assert_eq!(prefix("/etc/machine-id"), Path::new("/etc/machine-id"));
        assert_eq!(prefix("/usr/**/x"), Path::new("/usr"));
        assert_eq!(prefix("*.lock"), Path::new("/"));
    }

    #[test]
    fn a_walker_is_told_where_to_turn_back() {
        let may = |text: &str, dir: &str| pattern(text).may_match_below(Path::new(dir));
        for dir in ["/", "/lib", "/lib/modules", "/lib/modules/6.1", "/lib/modules/6.1/modules.d"] {
            assert!(may("/lib/modules/*/modules.*", dir), "{dir}");
        }
        for dir in ["/usr", "/lib/firmware", "/lib/modules/6.1/kernel"] {
            assert!(!may("/lib/modules/*/modules.*", dir), "{dir}");
        }
        assert!(may("*.lock", "/any/where"));
        assert!(may("/etc", "/etc/ssh"));
        assert!(may("/usr/**/x", "/usr/a/b"));
        assert!(!may("/usr/**/x", "/opt"));
    }

    #[test]
    fn a_set_matches_where_one_of_its_patterns_does() {
        let set: PatternSet = ["/etc", "*.lock"].into_iter().map(pattern).collect();
        assert!(set.matches(Path::new("/etc/hosts")));
        assert!(set.matches(Path::new("/var/x.lock")));
        assert!(!set.matches(Path::new("/usr/bin/x")));
        assert!(!PatternSet::default().matches(Path::new("/etc")));
    }

    /// The language as its description reads, by trying everything.
    mod naive {
        fn name(pattern: &[u8], subject: &[u8]) -> bool {
            match pattern {
                [] => subject.is_empty(),
                [b'*', rest @ ..] => (0..=subject.len()).any(|n| name(rest, &subject[n..])),
                [b'?', rest @ ..] => !subject.is_empty() && name(rest, &subject[1..]),
                [b'[', b'!', byte, b']', rest @ ..] => {
                    !subject.is_empty() && subject[0] != *byte && name(rest, &subject[1..])
                }
                [b'[', first, b'-', last, b']', rest @ ..] => {
                    !subject.is_empty() && (first..=last).contains(&&subject[0]) && name(rest, &subject[1..])
                }
                [byte, rest @ ..] => subject.first() == Some(byte) && name(rest, &subject[1..]),
            }
        }

        pub fn path(pattern: &[&[u8]], subject: &[&[u8]]) -> bool {
            match pattern {
                [] => true,
                [b"**", rest @ ..] => (0..=subject.len()).any(|n| path(rest, &subject[n..])),
                [first, rest @ ..] => {
                    !subject.is_empty() && name(first, subject[0]) && path(rest, &subject[1..])
                }
            }
        }
    }

    fn component() -> impl Strategy<Value = String> {
        prop_oneof![
            Just("**".to_owned()),
            "[ab]{1,2}",
            "([ab]|[ab][*]|[?]|\\[!a\\]|\\[a-b\\]){1,3}",
            "[*][ab]{0,2}([*][ab]?)?".prop_filter("`**` is a component of its own", |s| !s.contains("**")),
        ]
    }

    fn name() -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec(prop::sample::select(&b"ab\xff"[..]), 1..4)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4096))]

        #[test]
        fn matching_agrees_with_the_naive_reference(
            anchored: bool,
            parts in prop::collection::vec(component(), 1..5),
            path in prop::collection::vec(name(), 0..6),
        ) {
            let (text, prefix) = if anchored {
                (format!("/{}", parts.join("/")), &[][..])
            } else {
                (parts[0].clone(), &[&b"**"[..]][..])
            };
            let taken = if anchored { &parts[..] } else { &parts[..1] };
            let reference: Vec<&[u8]> =
                prefix.iter().copied().chain(taken.iter().map(|p| p.as_bytes())).collect();
            let names: Vec<&[u8]> = path.iter().map(Vec::as_slice).collect();
            let whole = [b"/", &names.join(&b'/')[..]].concat();
            let whole = Path::new(OsStr::from_bytes(&whole));
            let parsed = pattern(&text);
            prop_assert_eq!(parsed.matches(whole), naive::path(&reference, &names), "{} on {:?}", text, whole);

            if parsed.matches(whole) {
                prop_assert!(whole.starts_with(parsed.fixed_prefix()));
                for above in whole.ancestors().skip(1) {
                    prop_assert!(parsed.may_match_below(above), "{} below {:?}", text, above);
                }
            }
            if let Some((name, dir)) = names.split_last() {
                let within = match parsed.within_names(dir) {
                    DirectoryMatch::All => true,
                    DirectoryMatch::Names(pattern) => pattern.matches(name),
                    DirectoryMatch::None => false,
                };
                prop_assert_eq!(within, parsed.matches(whole), "{} on {:?}", text, whole);
            }
            // What may match below does: some continuation over the alphabet is a match.
            if parsed.may_match_below(whole) {
                let rest: Vec<Component> = parsed.rest_after(&names).into_iter().flatten().cloned().collect();
                let continued = rest.iter().filter_map(|component| match component {
                    Component::AnyDepth => None,
                    Component::Name(name) => [&b"a"[..], b"b", b"aa", b"ab", b"ba", b"bb"].into_iter()
                        .find(|candidate| name.matches(candidate)).map(OsStr::from_bytes),
                });
                let names_left = rest.iter().filter(|c| !c.is_any_depth()).count();
                let below: PathBuf = whole.components().map(|c| c.as_os_str()).chain(continued.clone())
                    .chain([OsStr::new("z")]).collect();
                if continued.count() == names_left {
                    prop_assert!(parsed.matches(&below), "{} on {:?}", text, below);
                }
            } else {
                prop_assert!(!parsed.matches(&whole.join("a")));
            }
        }

        #[test]
        fn no_text_makes_the_parser_or_the_matcher_panic(text in ".{0,20}", path in ".{0,40}") {
            if let Ok(pattern) = Pattern::parse(&text) {
                pattern.matches(Path::new(&path));
                prop_assert_eq!(pattern.to_string(), text);
            }
        }
    }
}

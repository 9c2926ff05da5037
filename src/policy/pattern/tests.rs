//! The language, against examples and against a naive matcher.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use proptest::prelude::*;

use super::component::Component;
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
            [first, rest @ ..] => !subject.is_empty() && name(first, subject[0]) && path(rest, &subject[1..]),
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

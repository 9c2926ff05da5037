//! The user's own rules: which files to unify and which not, whatever else is known of them.
//!
//! Rules are tried in the order they were given, and the first that matches decides. A [`Pattern`] that names a
//! directory covers everything below it, so an exception comes before what it is an exception from.

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::line::{Choice, Error, LineProblem, lines};
use super::vserver;
use crate::policy::Pattern;
use crate::policy::pattern::{self, NamePattern, PatternError};
use crate::report::Shown;

/// Rules in the order they are tried. Displayed, they are one a line: equal text, equal rules.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rules(Vec<Rule>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Rule {
    Pattern(Choice, Pattern),
    /// A whole list: whether it enters a directory depends on all of its lines.
    Vserver(vserver::List),
}

impl Rules {
    /// Adds a rule: what `pattern` matches is not unified.
    pub fn push_exclude(&mut self, pattern: &str) -> Result<(), PatternError> {
        self.push(Choice::Exclude, pattern)
    }

    /// Adds a rule: what `pattern` matches is unified, even if nothing else would have it so.
    pub fn push_include(&mut self, pattern: &str) -> Result<(), PatternError> {
        self.push(Choice::Include, pattern)
    }

    fn push(&mut self, choice: Choice, pattern: &str) -> Result<(), PatternError> {
        self.0.push(Rule::Pattern(choice, Pattern::parse(pattern)?));
        Ok(())
    }

    /// Adds `rules`; those there are already are tried first.
    pub fn append(&mut self, rules: Rules) {
        self.0.extend(rules.0);
    }

    /// Reads a file of patterns to exclude, one a line; `!` before one includes.
    ///
    /// Blank lines and those that begin with `#` say nothing; white space around a pattern does not belong to it. A
    /// name that begins with one of these characters is matched with `?`, or with `[#]`.
    ///
    /// # Errors
    /// At the first line that is no rule.
    pub fn read(text: &[u8]) -> Result<Rules, Error> {
        let mut rules = Rules::default();
        for (line, text) in lines(text) {
            let error = |why| Error { line, text: text.to_vec(), why };
            let rule = std::str::from_utf8(text).map_err(|_| error(LineProblem::NotUtf8))?;
            match rule.strip_prefix('!') {
                Some(pattern) => rules.push_include(pattern.trim_ascii_start()),
                None => rules.push_exclude(rule),
            }
            .map_err(|why| error(LineProblem::Pattern(why)))?;
        }
        Ok(rules)
    }

    /// Reads an exclude list of Linux-VServer's vunify and vhashify.
    ///
    /// Its patterns are those of fnmatch(3): `+` before one includes, `-`, `~` or nothing excludes. As there, the
    /// first line that matches decides, and nothing in an excluded directory is unified.
    ///
    /// # Errors
    /// At the first line that could match no path.
    pub fn read_vserver(text: &[u8]) -> Result<Rules, Error> {
        Ok(Rules(vec![Rule::Vserver(vserver::List::read(text)?)]))
    }

    /// What the rules say of `path`, a guest's canonical absolute path of a file or a directory.
    pub(crate) fn choose(&self, path: &Path) -> Option<Choice> {
        self.0.iter().find_map(|rule| match rule {
            Rule::Pattern(choice, pattern) => pattern.matches(path).then_some(*choice),
            Rule::Vserver(list) => list.choose(path),
        })
    }

    /// What the rules say of the names in the directory `dir`, a canonical absolute path.
    ///
    /// For many files of one directory this is much faster than [`Rules::choose`] for each.
    pub fn within(&self, dir: &Path) -> DirectoryRules<'_> {
        let mut within = DirectoryRules { tests: Vec::new(), others: None };
        for rule in &self.0 {
            match rule {
                Rule::Pattern(choice, pattern) => match pattern.within(dir) {
                    pattern::DirectoryMatch::All => within.others = Some(*choice),
                    pattern::DirectoryMatch::Names(name) => within.tests.push(Test::Name(*choice, name)),
                    pattern::DirectoryMatch::None => {}
                },
                Rule::Vserver(list) => match list.within(dir) {
                    vserver::DirectoryLines::Excluded => within.others = Some(Choice::Exclude),
                    lines => within.tests.push(Test::Vserver(lines)),
                },
            }
            if within.others.is_some() {
                break;
            }
        }
        within
    }

    /// Whether something below the directory `dir` may be included. If that is not so, what is excluded, or not
    /// to be unified for another reason, need not be entered.
    pub(crate) fn may_include_below(&self, dir: &Path) -> bool {
        for rule in &self.0 {
            let (may_include, is_excluded) = match rule {
                Rule::Pattern(Choice::Include, pattern) => (pattern.may_match_below(dir), false),
                Rule::Pattern(Choice::Exclude, pattern) => (false, pattern.matches(dir)),
                Rule::Vserver(list) => (
                    list.may_include_below(dir),
                    matches!(list.within(dir), vserver::DirectoryLines::Excluded),
                ),
            };
            if may_include || is_excluded {
                return may_include;
            }
        }
        false
    }
}

impl fmt::Display for Rules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|rule| match rule {
            Rule::Pattern(choice, pattern) => {
                let verb = if *choice == Choice::Include { "include" } else { "exclude" };
                writeln!(f, "{verb} {}", Shown(Path::new(&pattern.to_string())))
            }
            Rule::Vserver(list) => write!(f, "vserver list\n{list}"),
        })
    }
}

/// What rules say of the names in one directory; see [`Rules::within`].
#[derive(Debug, Clone)]
pub struct DirectoryRules<'r> {
    tests: Vec<Test<'r>>,
    /// What holds for names that pass all tests.
    others: Option<Choice>,
}

#[derive(Debug, Clone)]
enum Test<'r> {
    Name(Choice, &'r NamePattern),
    Vserver(vserver::DirectoryLines<'r>),
}

impl DirectoryRules<'_> {
    /// What the rules say of `name` in the directory.
    pub(crate) fn choose(&self, name: &OsStr) -> Option<Choice> {
        let decided = self.tests.iter().find_map(|test| match test {
            Test::Name(choice, pattern) => pattern.matches(name.as_bytes()).then_some(*choice),
            Test::Vserver(within) => within.choose(name),
        });
        decided.or(self.others)
    }

    /// Whether a rule excludes the whole directory, but for what [`Rules::may_include_below`] it.
    pub(crate) fn is_excluded(&self) -> bool {
        self.others == Some(Choice::Exclude)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rules(text: &str) -> Rules {
        Rules::read(text.as_bytes()).unwrap_or_else(|e| panic!("{e}"))
    }

    fn choose(text: &str, path: &str) -> Option<Choice> {
        rules(text).choose(Path::new(path))
    }

    #[test]
    fn the_first_rule_that_matches_decides() {
        let text = "!/etc/ssl\n/etc\n*.pyc\n!/usr/a.pyc";
        assert_eq!(choose(text, "/etc/ssl/certs/x.pem"), Some(Choice::Include));
        assert_eq!(choose(text, "/etc/hosts"), Some(Choice::Exclude));
        assert_eq!(choose(text, "/usr/a.pyc"), Some(Choice::Exclude));
        assert_eq!(choose(text, "/usr/bin/bash"), None);
    }

    #[test]
    fn rules_of_several_sources_keep_their_order() {
        let mut all = Rules::default();
        all.push_include("/opt/a").unwrap();
        all.append(rules("/opt"));
        all.append(Rules::read_vserver(b"+/opt/b\n/srv/*\n").unwrap());
        all.push_exclude("x y").unwrap();
        assert_eq!(all.choose(Path::new("/opt/a/x")), Some(Choice::Include));
        assert_eq!(all.choose(Path::new("/opt/b")), Some(Choice::Exclude));
        assert_eq!(all.choose(Path::new("/srv/b/c")), Some(Choice::Exclude));
        assert_eq!(
            all.to_string(),
            "include /opt/a\nexclude /opt\nvserver list\n  +/opt/b\n  -/srv/*\nexclude x y\n"
        );
    }

    #[test]
    fn a_file_may_hold_comments_and_end_without_a_newline() {
        let text = "# mine\n\n  /opt \r\n! /srv/#1\n[#]x#";
        assert_eq!(rules(text).to_string(), "exclude /opt\ninclude /srv/#1\nexclude [#]x#\n");
        assert_eq!(rules("# nothing\n"), Rules::default());
    }

    #[test]
    fn a_line_that_is_no_rule_is_named() {
        for (text, message) in [
            (&b"/a\n\n/b[\n"[..], "line 3, `/b[`: `[` has no closing `]`; write `[[]` for a literal `[`"),
            (b"!", "line 1, `!`: a pattern may not be empty"),
            (b"!\n!!a", "line 1, `!`: a pattern may not be empty"),
            (b"/caf\xe9\x1b", "line 1, `/caf\\xe9\\x1b`: not UTF-8; `?` matches any one byte"),
        ] {
            assert_eq!(Rules::read(text).unwrap_err().to_string(), message);
        }
        assert_eq!(
            Rules::read_vserver(b"\n~proc").unwrap_err().to_string(),
            "line 2, `~proc`: it matches no path: a path begins with `/` and does not end with `/`"
        );
        assert_eq!(Rules::default().push_exclude("!a"), Err(PatternError::Exception));
    }

    #[test]
    fn a_walker_is_told_where_an_exception_may_be() {
        let rules = rules("!/etc/ssl/certs\n/etc\n!/etc/late\n!/opt/*/lib\n");
        let may = |dir: &str| rules.may_include_below(Path::new(dir));
        for dir in ["/", "/etc", "/etc/ssl", "/etc/ssl/certs/java", "/opt", "/opt/x/lib/y"] {
            assert!(may(dir), "{dir}");
        }
        for dir in ["/etc/ssh", "/etc/late", "/usr", "/opt/x/share"] {
            assert!(!may(dir), "{dir}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2048))]

        #[test]
        fn a_directory_at_a_time_gives_what_each_path_gives(
            first in "(!?(/[ab*]?/?[ab]{1,2}(/[*]{2})?|[*]?[ab])\n){0,4}",
            lines in "([+~-]?/[ab*?]{0,2}(/[ab*]{1,2}){0,2}\n){0,3}",
            second in "(!?(/[ab]{1,2}(/[ab*]){0,2}|[ab][*]?)\n){0,3}",
            path in "(/[ab]{1,2}){1,4}",
        ) {
            let (Ok(mut rules), Ok(lines)) = (Rules::read(first.as_bytes()), Rules::read_vserver(lines.as_bytes()))
            else { return Ok(()) };
            rules.append(lines);
            rules.append(Rules::read(second.as_bytes()).unwrap());
            let path = Path::new(&path);
            let choice = rules.choose(path);
            prop_assert_eq!(rules.within(path.parent().unwrap()).choose(path.file_name().unwrap()), choice);
            for dir in path.ancestors().skip(1) {
                if choice == Some(Choice::Include) {
                    prop_assert!(rules.may_include_below(dir), "{:?}", dir);
                }
                if rules.within(dir).is_excluded() && !rules.may_include_below(dir) {
                    prop_assert_eq!(choice, Some(Choice::Exclude), "{:?}", dir);
                }
            }
        }

        #[test]
        fn any_bytes_are_read_without_panic(text in prop::collection::vec(any::<u8>(), 0..99)) {
            if let Ok(rules) = Rules::read(&text) {
                rules.choose(Path::new("/a/b"));
            }
        }
    }
}

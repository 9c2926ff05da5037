//! One configuration file: its keys, and messages for what it should not say.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use serde::Deserialize;
use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{DeserializeOwned, Deserializer, MapAccess, SeqAccess, Unexpected, Visitor};
use toml::de::DeTable;

use super::pattern::{Pattern, PatternSet};
use super::value::{LastLink, Mode, Protection, SuperviseMode};
use crate::report::Shown;

/// What one file says; all of it is optional.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Layer {
    pub mode: Option<Mode>,
    pub protection: Option<Protection>,
    pub prepare: ListChange,
    pub never_touch: ListChange,
    pub never_unify: ListChange,
    #[serde(deserialize_with = "bytes")]
    pub reserve: Option<u64>,
    #[serde(deserialize_with = "seconds")]
    pub lock_timeout: Option<Duration>,
    pub last_link: Option<LastLink>,
    pub supervise: Option<SuperviseMode>,
}

/// What one file says about a list.
#[derive(Debug)]
pub(crate) enum ListChange {
    /// `key = [...]`
    Add(PatternSet),
    /// `key.replace = [...]`
    Replace(PatternSet),
}

impl Default for ListChange {
    fn default() -> ListChange {
        ListChange::Add(PatternSet::default())
    }
}

impl ListChange {
    pub(super) fn apply(self, list: &mut PatternSet) {
        match self {
            ListChange::Add(patterns) => list.extend(patterns),
            ListChange::Replace(patterns) => *list = patterns,
        }
    }
}

/// What is wrong with a file. It is displayed as what follows the file's name: `, line 3, key ...`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invalid {
    /// The line, counted from 1.
    pub line: Option<usize>,
    /// The key whose value is wrong.
    pub key: Option<String>,
    /// What is wrong, and what is allowed.
    pub reason: String,
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(line) = self.line {
            write!(f, ", line {line}")?;
        }
        if let Some(key) = &self.key {
            write!(f, ", key `{}`", Shown(Path::new(key)))?;
        }
        // It quotes the file, which may hold anything.
        write!(f, ": {}", Shown(Path::new(&self.reason)))
    }
}

/// Parses the whole of a file.
pub(crate) fn parse<T: DeserializeOwned>(content: &[u8]) -> Result<T, Invalid> {
    let text = std::str::from_utf8(content).map_err(|e| Invalid {
        line: Some(line(&content[..e.valid_up_to()])),
        key: None,
        reason: "not UTF-8".to_owned(),
    })?;
    toml::from_str(text).map_err(|e| invalid(text, &e))
}

fn invalid(text: &str, error: &toml::de::Error) -> Invalid {
    let span = error.span();
    // Serde speaks of Rust's variants and fields, the reader's words are values and keys.
    let reason = error
        .message()
        .replacen("unknown variant", "unknown value", 1)
        .replacen("unknown field", "unknown key", 1)
        .replacen("wanted string or table", "expected a string", 1);
    let line_at = |at: usize| line(text.as_bytes().get(..at).unwrap_or_default());
    let key = span.as_ref().and_then(|span| {
        // An error does not carry its key: it is the last one at the top that begins before the place.
        let (table, errors) = DeTable::parse_recoverable(text);
        let before = table.get_ref().keys().filter(|key| key.span().start <= span.start);
        let key = before.max_by_key(|key| key.span().start)?;
        // The reason names an unknown key already; and after broken text, the last whole key may have
        // nothing to do with it.
        let named = key.span() == *span && error.message().starts_with("unknown field");
        let holds = errors.is_empty() || line_at(key.span().start) == line_at(span.start);
        (holds && !named).then(|| key.get_ref().to_string())
    });
    Invalid { line: span.map(|span| line_at(span.start)), key, reason }
}

/// The line on which what follows `before` stands.
fn line(before: &[u8]) -> usize {
    before.iter().filter(|&&b| b == b'\n').count() + 1
}

impl<'de> Deserialize<'de> for Pattern {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Pattern, D::Error> {
        struct PatternVisitor;

        impl Visitor<'_> for PatternVisitor {
            type Value = Pattern;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a pattern")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Pattern, E> {
                Pattern::parse(text).map_err(|e| E::custom(format_args!("pattern `{text}`: {e}")))
            }
        }

        deserializer.deserialize_str(PatternVisitor)
    }
}

impl<'de> Deserialize<'de> for PatternSet {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<PatternSet, D::Error> {
        Ok(Vec::<Pattern>::deserialize(deserializer)?.into_iter().collect())
    }
}

impl<'de> Deserialize<'de> for ListChange {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<ListChange, D::Error> {
        struct ListVisitor;

        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Table {
            replace: PatternSet,
        }

        impl<'de> Visitor<'de> for ListVisitor {
            type Value = ListChange;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of patterns, or `replace` with one")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<ListChange, A::Error> {
                PatternSet::deserialize(SeqAccessDeserializer::new(list)).map(ListChange::Add)
            }

            fn visit_map<A: MapAccess<'de>>(self, table: A) -> Result<ListChange, A::Error> {
                let Table { replace } = Table::deserialize(MapAccessDeserializer::new(table))?;
                Ok(ListChange::Replace(replace))
            }
        }

        deserializer.deserialize_any(ListVisitor)
    }
}

/// Reads a size; for a `u64` and for an optional one.
pub(super) fn bytes<'de, D: Deserializer<'de>, T: From<u64>>(deserializer: D) -> Result<T, D::Error> {
    struct SizeVisitor;

    impl Visitor<'_> for SizeVisitor {
        type Value = u64;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a size, such as \"16 MiB\"")
        }

        fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<u64, E> {
            size(text).map_err(E::custom)
        }
    }

    deserializer.deserialize_str(SizeVisitor).map(T::from)
}

/// Reads a size as people write it, such as `16 MiB` or `4k`. All units are powers of 1024; a number without one is no
/// size, because nobody could tell which was meant.
pub fn size(text: &str) -> Result<u64, String> {
    parse_size(text).ok_or_else(|| {
        format!(
            "`{text}` is not a size, expected a whole number and one of `B`, `KiB`, `MiB`, `GiB`, `TiB`, or \
             `K`, `M`, `G`, `T` for short"
        )
    })
}

fn parse_size(text: &str) -> Option<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let shift = match unit.trim_start() {
        "B" => 0,
        "KiB" | "K" | "k" => 10,
        "MiB" | "M" | "m" => 20,
        "GiB" | "G" | "g" => 30,
        "TiB" | "T" | "t" => 40,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(1 << shift)
}

/// The longest time that can be configured, in seconds: a day.
const MAX_SECONDS: u64 = 86_400;

/// Reads a number of seconds; for a `Duration` and for an optional one.
pub(super) fn seconds<'de, D: Deserializer<'de>, T: From<Duration>>(deserializer: D) -> Result<T, D::Error> {
    struct SecondsVisitor;

    impl Visitor<'_> for SecondsVisitor {
        type Value = Duration;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "a number of seconds from 0 to {MAX_SECONDS}")
        }

        fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<Duration, E> {
            let seconds = u64::try_from(number).ok().filter(|&seconds| seconds <= MAX_SECONDS);
            seconds
                .map(Duration::from_secs)
                .ok_or_else(|| E::invalid_value(Unexpected::Signed(number), &self))
        }
    }

    deserializer.deserialize_i64(SecondsVisitor).map(T::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_a_whole_number_and_a_binary_unit_or_its_letter() {
        assert_eq!(parse_size("16 MiB"), Some(16 << 20));
        assert_eq!(parse_size("16MiB"), Some(16 << 20));
        assert_eq!(parse_size("0 B"), Some(0));
        for (text, bytes) in [
            ("4k", 4 << 10),
            ("4K", 4 << 10),
            ("4 K", 4 << 10),
            ("1M", 1 << 20),
            ("1m", 1 << 20),
            ("2G", 2 << 30),
        ] {
            assert_eq!(parse_size(text), Some(bytes), "{text}");
        }
        assert_eq!(parse_size("1 T"), parse_size("1TiB"));
        for text in [
            "",
            "16",
            "MiB",
            "1.5 GiB",
            "-1 B",
            "16 MB",
            "16 mib",
            "16 kB",
            "k",
            "4kk",
            "99999999 TiB",
            "1 B ",
        ] {
            assert_eq!(parse_size(text), None, "{text:?}");
        }
    }
}

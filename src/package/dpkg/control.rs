//! Stanzas of fields, the format of dpkg's status file and of a package's control file (deb822(5)).
//!
//! Nothing is copied and nothing is parsed before it is asked for: a status file holds megabytes, of which a
//! transaction needs a few fields of a few packages.

use std::borrow::Cow;

/// One stanza: `Field: value` lines, continued by lines that begin with a space or a tab.
#[derive(Debug, Clone, Copy)]
pub struct Stanza<'a>(&'a [u8]);

/// The stanzas of `data`, which empty lines separate.
pub(crate) fn stanzas(data: &[u8]) -> impl Iterator<Item = Stanza<'_>> {
    let mut rest = data;
    std::iter::from_fn(move || {
        let start = rest.iter().position(|&byte| byte != b'\n')?;
        let tail = &rest[start..];
        let end = tail.windows(2).position(|pair| pair == b"\n\n").unwrap_or(tail.len());
        let (stanza, tail) = tail.split_at(end);
        rest = tail;
        Some(Stanza(stanza))
    })
}

impl<'a> Stanza<'a> {
    /// The stanza held by `bytes`, which has no empty line.
    pub fn new(bytes: &'a [u8]) -> Stanza<'a> {
        Stanza(bytes)
    }

    /// The stanza's text.
    pub fn as_bytes(self) -> &'a [u8] {
        self.0
    }

    /// The fields in order: name, and value with its continuation lines, white space around it removed.
    pub fn fields(self) -> impl Iterator<Item = (&'a [u8], &'a [u8])> {
        let mut rest = self.0;
        std::iter::from_fn(move || {
            while !rest.is_empty() {
                let (field, tail) = rest.split_at(field_end(rest));
                rest = tail;
                let colon = field.iter().position(|&byte| byte == b':' || byte == b'\n');
                if let Some(colon) = colon.filter(|&at| field[at] == b':') {
                    return Some((field[..colon].trim_ascii(), field[colon + 1..].trim_ascii()));
                }
            }
            None
        })
    }

    /// The value of the field `name`; names are the same in upper and lower case.
    pub fn field(self, name: &str) -> Option<&'a [u8]> {
        self.fields().find(|(field, _)| field.eq_ignore_ascii_case(name.as_bytes())).map(|(_, value)| value)
    }
}

/// Where the first field of `text` ends: past the newline that no white space follows.
fn field_end(text: &[u8]) -> usize {
    let continues = |at: usize| matches!(text.get(at), Some(b' ' | b'\t'));
    let mut at = 0;
    while let Some(newline) = text[at..].iter().position(|&byte| byte == b'\n') {
        at += newline + 1;
        if !continues(at) {
            return at;
        }
    }
    text.len()
}

/// The package names in a relationship field (`a (>= 1), b:any | c`); versions and architectures are left out.
pub(crate) fn relationship_names(value: &[u8]) -> impl Iterator<Item = Cow<'_, str>> {
    value.split(|byte| matches!(byte, b',' | b'|')).filter_map(|relation| {
        let relation = relation.trim_ascii();
        let is_end = |byte: &u8| byte.is_ascii_whitespace() || matches!(byte, b'(' | b'[' | b'<' | b':');
        let name = &relation[..relation.iter().position(is_end).unwrap_or(relation.len())];
        (!name.is_empty()).then(|| String::from_utf8_lossy(name))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn fields_are_found_whatever_their_case_and_with_their_continuation_lines() {
        let stanza = Stanza::new(b"Package: a\nCONFFILES:\n /etc/a 1\n /etc/b 2\nVersion:1");
        assert_eq!(stanza.field("package"), Some(&b"a"[..]));
        assert_eq!(stanza.field("Conffiles"), Some(&b"/etc/a 1\n /etc/b 2"[..]));
        assert_eq!(stanza.field("Version"), Some(&b"1"[..]));
        assert_eq!(stanza.field("Etc"), None);
    }

    #[test]
    fn a_line_without_a_colon_hides_no_other_field() {
        let stanza = Stanza::new(b"#padded\nPackage: a\n#padded\nVersion: 1\n");
        assert_eq!(stanza.fields().count(), 2);
    }

    #[test]
    fn relationships_are_reduced_to_names() {
        let value = b"a (>= 1:2), b:any | c [amd64], d<!nocheck>,\n e ,";
        assert_eq!(relationship_names(value).collect::<Vec<_>>(), ["a", "b", "c", "d", "e"]);
    }

    proptest! {
        #[test]
        fn stanzas_round_trip(written in prop::collection::vec(
            prop::collection::vec(("[A-Z][a-z-]{0,9}", "[!-~]{1,9}(\n [!-~]{1,9}){0,3}"), 1..5), 0..5,
        )) {
            let text: Vec<String> = written.iter()
                .map(|fields| fields.iter().map(|(name, value)| format!("{name}: {value}\n")).collect())
                .collect();
            let text = text.join("\n");
            let read: Vec<Vec<(String, String)>> = stanzas(text.as_bytes())
                .map(|stanza| stanza.fields().map(|(name, value)| {
                    (String::from_utf8_lossy(name).into_owned(), String::from_utf8_lossy(value).into_owned())
                }).collect())
                .collect();
            prop_assert_eq!(read, written);
        }

        #[test]
        fn any_bytes_are_read_without_panic(data in prop::collection::vec(any::<u8>(), 0..300)) {
            for stanza in stanzas(&data) {
                for (_, value) in stanza.fields() {
                    relationship_names(value).for_each(drop);
                }
            }
        }

        #[test]
        fn any_lines_are_read_without_panic(text in "[a: \n\t,|(]{0,80}") {
            for stanza in stanzas(text.as_bytes()) {
                stanza.field("a");
                relationship_names(stanza.as_bytes()).for_each(drop);
            }
        }
    }
}

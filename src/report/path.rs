//! Paths for people and for programs. A name may hold any byte; neither may be misled by it.

use std::borrow::Cow;
use std::fmt::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use serde::{Serialize, Serializer};

/// A path as it is safe to print: on one line, nothing in it can move the cursor or reorder the text.
///
/// Newline, tab and carriage return are `\n`, `\t`, `\r`; a backslash is `\\`; every byte of other
/// control characters, of marks that change the direction of text and of invalid UTF-8 is `\xNN`.
/// That is what bash and zsh read back between `$'` and `'`.
#[derive(Debug, Clone, Copy)]
pub struct Shown<'a>(pub &'a Path);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for chunk in self.0.as_os_str().as_bytes().utf8_chunks() {
            for character in chunk.valid().chars() {
                if character == '\\' { f.write_str("\\\\")? } else { put(f, character)? }
            }
            escape(f, chunk.invalid())?;
        }
        Ok(())
    }
}

/// Writes text as [`Shown`] does, but for backslashes, which stay: some of them are escapes already.
pub(super) fn put_text(f: &mut fmt::Formatter<'_>, text: &str) -> fmt::Result {
    text.chars().try_for_each(|character| put(f, character))
}

fn put(f: &mut fmt::Formatter<'_>, character: char) -> fmt::Result {
    match character {
        '\n' => f.write_str("\\n"),
        '\t' => f.write_str("\\t"),
        '\r' => f.write_str("\\r"),
        _ if is_unsafe(character) => escape(f, character.encode_utf8(&mut [0; 4]).as_bytes()),
        _ => f.write_char(character),
    }
}

fn escape(f: &mut fmt::Formatter<'_>, bytes: &[u8]) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "\\x{byte:02x}"))
}

/// Control characters, line separators, and the marks that change the direction of text or have no width.
fn is_unsafe(character: char) -> bool {
    character.is_control()
        || matches!(character, '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// Serializes a path as the field `path`, and as `path_bytes` too if it is not UTF-8: then `path` is
/// only a likeness, and `path_bytes` the exact bytes as an array of numbers.
///
/// For a field with `#[serde(flatten, serialize_with = "json_path")]`.
pub fn json_path<P: AsRef<Path>, S: Serializer>(path: &P, serializer: S) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    struct Fields<'a> {
        path: Cow<'a, str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        path_bytes: Option<&'a [u8]>,
    }
    let bytes = path.as_ref().as_os_str().as_bytes();
    let path = String::from_utf8_lossy(bytes);
    let path_bytes = std::str::from_utf8(bytes).is_err().then_some(bytes);
    Fields { path, path_bytes }.serialize(serializer)
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::path::PathBuf;

    use super::*;

    fn shown(bytes: &[u8]) -> String {
        Shown(Path::new(OsStr::from_bytes(bytes))).to_string()
    }

    #[test]
    fn ordinary_names_are_shown_as_they_are() {
        assert_eq!(shown("/usr/share/doc/größe 漢字".as_bytes()), "/usr/share/doc/größe 漢字");
    }

    #[test]
    fn a_hostile_name_cannot_move_the_cursor() {
        assert_eq!(shown(b"/a\nb\tc\rd"), "/a\\nb\\tc\\rd");
        assert_eq!(shown(b"/\x1b[2J\x7f"), "/\\x1b[2J\\x7f");
        assert_eq!(shown("/\u{9b}2J".as_bytes()), "/\\xc2\\x9b2J");
        assert_eq!(shown("/\u{202e}txt".as_bytes()), "/\\xe2\\x80\\xaetxt");
        assert_eq!(shown(b"/caf\xe9"), "/caf\\xe9");
        assert_eq!(shown(b"/a\\xe9"), "/a\\\\xe9");
    }

    #[test]
    fn json_has_a_string_and_the_exact_bytes_only_where_needed() {
        #[derive(Serialize)]
        struct Row {
            #[serde(flatten, serialize_with = "json_path")]
            path: PathBuf,
            links: u32,
        }
        let json = |bytes: &[u8]| {
            let path = PathBuf::from(OsStr::from_bytes(bytes));
            serde_json::to_string(&Row { path, links: 2 }).unwrap()
        };
        assert_eq!(json(b"/etc/hosts\n"), r#"{"path":"/etc/hosts\n","links":2}"#);
        assert_eq!(json(b"/\xe9"), r#"{"path":"/�","path_bytes":[47,233],"links":2}"#);
    }
}

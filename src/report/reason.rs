//! What went wrong, for people.

use std::fmt;

use super::path::put_text;

/// An error without the number that the standard library puts after what the system says:
/// `Permission denied`, not `Permission denied (os error 13)`.
///
/// It is safe to print, as a path is with [`super::Shown`]: what a library says of a damaged file quotes the file.
#[derive(Debug, Clone, Copy)]
pub struct Reason<E>(pub E);

impl<E: fmt::Display> fmt::Display for Reason<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.0.to_string();
        put_text(f, without_number(&text).unwrap_or(&text))
    }
}

fn without_number(text: &str) -> Option<&str> {
    let (words, number) = text.strip_suffix(')')?.rsplit_once(" (os error ")?;
    number.bytes().all(|b| b.is_ascii_digit()).then_some(words)
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn a_reason_that_quotes_a_hostile_file_stays_on_its_line() {
        let quoted = io::Error::other("not a number: 0\n\u{1b}[2J\u{202e}, in /a\\nb");
        assert_eq!(Reason(quoted).to_string(), "not a number: 0\\n\\x1b[2J\\xe2\\x80\\xae, in /a\\nb");
    }

    #[test]
    fn only_the_number_at_the_end_is_left_out() {
        let denied = io::Error::from_raw_os_error(libc::EACCES);
        assert_eq!(Reason(&denied).to_string(), "Permission denied");
        assert_eq!(Reason(format_args!("/a: {denied}")).to_string(), "/a: Permission denied");
        for text in ["no number", "a (os error 1) b", "a (os error x)", ")"] {
            assert_eq!(Reason(text).to_string(), text);
        }
    }
}

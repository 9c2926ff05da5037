//! Wildcards within one name, and the matching that they share with whole paths.

use super::error::PatternError;

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

impl Token {
    /// Parses what follows a `[`; also returns what follows the closing `]`.
    pub(super) fn parse_set(text: &[u8]) -> Result<(Token, &[u8]), PatternError> {
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

    pub(super) fn literal(&self) -> Option<u8> {
        match self {
            Token::Byte(byte) => Some(*byte),
            _ => None,
        }
    }

    pub(super) fn matches(&self, byte: u8) -> bool {
        match self {
            Token::Byte(wanted) => *wanted == byte,
            Token::AnyByte | Token::Star => true,
            Token::Set { negated, ranges } => {
                ranges.iter().any(|(first, last)| (*first..=*last).contains(&byte)) != *negated
            }
        }
    }
}

/// What is left of `tokens` when all of `subject` is used up; `None` if it does not fit.
pub(crate) fn tokens_after<'t>(tokens: &'t [Token], subject: &[u8]) -> Option<&'t [Token]> {
    rest_after(tokens, subject, |token| *token == Token::Star, |token, byte| token.matches(*byte))
}

/// Whether `tokens` match exactly `subject`.
pub(crate) fn tokens_match(tokens: &[Token], subject: &[u8]) -> bool {
    tokens_after(tokens, subject).is_some_and(|rest| rest.iter().all(|token| *token == Token::Star))
}

/// What is left of `pattern` when all of `subject` is used up; `None` if it does not fit.
///
/// A star takes as little as it can. If that fails the *last* star takes one element more: if an earlier
/// one took more instead, everything since would only have less to match with. Hence no recursion,
/// and at worst the product of both lengths.
pub(super) fn rest_after<'p, P, S>(
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

//! Numbers of things, for people.

use std::fmt::Display;

/// A number with what it counts: `1 file`, `2 files`, `1 copy`, `2 copies`. `noun` is in the singular; words that come
/// before the noun stay as they are: `new file`.
pub fn count<N: Display + PartialEq + From<u8>>(number: N, noun: &str) -> String {
    if number == N::from(1) {
        return format!("1 {noun}");
    }
    if let Some(stem) = noun.strip_suffix('y').filter(|stem| !stem.ends_with(['a', 'e', 'o'])) {
        return format!("{number} {stem}ies");
    }
    let ending = if noun.ends_with('s') { "es" } else { "s" };
    format!("{number} {noun}{ending}")
}

/// The word that goes with a number, other than the noun: `is` or `are`, `waits` or `wait`.
pub fn word<'a, N: PartialEq + From<u8>>(number: N, one: &'a str, others: &'a str) -> &'a str {
    if number == N::from(1) { one } else { others }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_singular_and_all_other_numbers_are_plural() {
        for (number, noun, text) in [
            (0, "file", "0 files"),
            (1, "file", "1 file"),
            (2, "file", "2 files"),
            (1, "new file", "1 new file"),
            (11, "new file", "11 new files"),
            (1, "directory", "1 directory"),
            (2, "directory", "2 directories"),
            (5, "path", "5 paths"),
            (3, "day", "3 days"),
            (1, "process", "1 process"),
            (21, "process", "21 processes"),
        ] {
            assert_eq!(count(number, noun), text);
        }
        assert_eq!((word(1_u64, "is", "are"), word(0_u64, "is", "are")), ("is", "are"));
        assert_eq!(word(2_usize, "waits", "wait"), "wait");
    }
}

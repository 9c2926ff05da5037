//! Files of procfs whose lines are `Key:\tvalue`.

/// The keys and values of all lines that are text.
pub(super) fn lines(content: &[u8]) -> impl Iterator<Item = (&str, &str)> {
    let lines = content.split(|&byte| byte == b'\n').filter_map(|line| std::str::from_utf8(line).ok());
    lines.filter_map(|line| line.split_once(':')).map(|(key, value)| (key, value.trim()))
}

/// The value of the first line with this key.
pub(super) fn value<'t>(content: &'t [u8], key: &str) -> Option<&'t str> {
    lines(content).find_map(|(found, value)| (found == key).then_some(value))
}

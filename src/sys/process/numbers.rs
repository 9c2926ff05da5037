//! Which numbers a user namespace has for users or groups (`user_namespaces(7)`).

/// A file `uid_map` or `gid_map`, as a process of our own user namespace reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Numbers(Vec<Range>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Range {
    theirs: u32,
    ours: u32,
    count: u32,
}

impl Numbers {
    /// Reads the content of the file.
    pub(crate) fn parse(content: &[u8]) -> Numbers {
        let text = String::from_utf8_lossy(content);
        let range = |line: &str| {
            let mut words = line.split_ascii_whitespace().map(|word| word.parse().ok());
            let (theirs, ours, count) = (words.next()??, words.next()??, words.next()??);
            // Numbers that our own user namespace lacks.
            (ours != u32::MAX).then_some(Range { theirs, ours, count })
        };
        Numbers(text.lines().filter_map(range).collect())
    }

    /// Whether there is a number for this one of ours.
    pub fn have(&self, ours: u32) -> bool {
        self.0.iter().any(|range| ours.checked_sub(range.ours).is_some_and(|at| at < range.count))
    }

    /// Our number for this one of theirs.
    pub fn ours(&self, theirs: u32) -> Option<u32> {
        self.0.iter().find_map(|range| {
            let at = theirs.checked_sub(range.theirs).filter(|at| *at < range.count)?;
            range.ours.checked_add(at)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_the_ranges() {
        let numbers = Numbers::parse(b"         0       1000          1\n         1     100000      65536\n");
        assert!(numbers.have(1000) && numbers.have(165_535) && !numbers.have(0) && !numbers.have(165_536));
        assert_eq!(
            [0, 1, 65536, 65537].map(|id| numbers.ours(id)),
            [Some(1000), Some(100_000), Some(165_535), None]
        );
        let all = Numbers::parse(b"         0          0 4294967295\n");
        assert!(all.have(0) && all.have(u32::MAX - 1) && !all.have(u32::MAX));
        assert!(!Numbers::parse(b"0 4294967295 1\n").have(u32::MAX));
    }
}

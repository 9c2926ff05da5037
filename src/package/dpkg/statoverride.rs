//! Owners and modes the administrator, or a package, has set for listed files (dpkg-statoverride(1)).

use std::path::PathBuf;

use crate::package::absolute;

/// Reads the paths of `statoverride`: `user group mode path`, the path may hold spaces.
pub fn parse(data: &[u8]) -> Vec<PathBuf> {
    data.split(|&byte| byte == b'\n')
        .filter_map(|line| absolute(line.splitn(4, |&byte| byte == b' ').nth(3)?))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn paths_may_have_spaces() {
        let paths = parse(b"root crontab 2755 /usr/bin/crontab\n#0 #5 644 /srv/a b\nroot root 755\n");
        assert_eq!(paths, ["/usr/bin/crontab", "/srv/a b"].map(Path::new));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(data in prop::collection::vec(any::<u8>(), 0..100)) {
            parse(&data);
        }
    }
}

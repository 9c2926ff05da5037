//! dpkg's diversions (dpkg-divert(1)): a package's file that lies elsewhere than the package lists it.

use std::path::PathBuf;

use crate::package::absolute;

/// A diversion: what any package but `by` installs as `from` is found at `to`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diversion {
    /// The listed path.
    pub from: PathBuf,
    /// Where the file is.
    pub to: PathBuf,
    /// The package whose own `from` stays there; `None` for a local diversion.
    pub by: Option<String>,
}

/// Reads `diversions`: three lines an entry, `:` for no package. What is not a whole entry is left out.
pub fn parse(data: &[u8]) -> impl Iterator<Item = Diversion> + use<'_> {
    let mut lines = data.split(|&byte| byte == b'\n');
    let entries = std::iter::from_fn(move || Some([lines.next()?, lines.next()?, lines.next()?]));
    entries.filter_map(|lines| {
        let by = (lines[2] != b":").then(|| String::from_utf8_lossy(lines[2]).into_owned());
        Some(Diversion { from: absolute(lines[0])?, to: absolute(lines[1])?, by })
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt;
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_local_diversion_has_no_package() {
        let text = b"/bin/sh\n/bin/sh.distrib\ndash\n/usr/a b\n/usr/c\n:\n/cut/off\n";
        let diversions: Vec<Diversion> = parse(text).collect();
        let [dash, local] = &diversions[..] else { panic!("{diversions:?}") };
        assert_eq!((dash.from.as_path(), dash.by.as_deref()), (Path::new("/bin/sh"), Some("dash")));
        assert_eq!((local.to.as_path(), local.by.as_deref()), (Path::new("/usr/c"), None));
    }

    proptest! {
        #[test]
        fn diversions_round_trip(written in prop::collection::vec(
            ("/[^\n\0/.]{1,9}", "/[^\n\0/.]{1,9}/[^\n\0/.]{1,9}", prop::option::of("[a-z0-9+.-]{2,9}")), 0..9,
        )) {
            let diversions: Vec<Diversion> = written.into_iter()
                .map(|(from, to, by)| Diversion { from: from.into(), to: to.into(), by })
                .collect();
            let mut text = Vec::new();
            for Diversion { from, to, by } in &diversions {
                for line in [from.as_os_str().as_bytes(), to.as_os_str().as_bytes(), by.as_deref().unwrap_or(":").as_bytes()] {
                    text.extend(line);
                    text.push(b'\n');
                }
            }
            prop_assert_eq!(parse(&text).collect::<Vec<_>>(), diversions);
        }

        #[test]
        fn any_bytes_are_read_without_panic(data in prop::collection::vec(any::<u8>(), 0..100)) {
            parse(&data).for_each(drop);
        }
    }
}

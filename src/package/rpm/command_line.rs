//! The package files on rpm's command line.
//!
//! rpm has many options, some with values, and more by its aliases. Whatever they are: a word that names a file which
//! begins as an .rpm is one that may be about to be installed. A text file may list more of them (`rpm(8)`, manifests).

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::file::{MAGIC, PackageFile};
use crate::report::{Reason, Shown};

/// The largest list of packages that is read, in bytes.
const MOST_OF_LIST: u64 = 1 << 20;

/// What the files on a command line are.
#[derive(Debug, Default)]
pub struct PackageArguments {
    /// The packages.
    pub packages: Vec<PackageFile>,
    /// What could not be read, though it is called as a package.
    pub warnings: Vec<String>,
}

/// Opens a file as rpm sees it.
type Open<'o> = dyn Fn(&Path) -> io::Result<OwnedFd> + 'o;

impl PackageArguments {
    /// The packages that `words` name, the program's name left out.
    pub fn among(words: &[OsString], open: &Open<'_>) -> PackageArguments {
        let mut found = PackageArguments::default();
        for word in words.iter().filter(|word| !word.as_bytes().starts_with(b"-")) {
            for listed in found.add(word, open) {
                found.add(&listed, open);
            }
        }
        found
    }

    /// Reads what a word names; the words in it, if that is a list.
    fn add(&mut self, word: &OsStr, open: &Open<'_>) -> Vec<OsString> {
        match Content::of(word, open) {
            Ok(Content::Package(package)) => self.packages.push(package),
            Ok(Content::List(words)) => return words,
            Err(e) if word.as_bytes().ends_with(b".rpm") => {
                self.warnings.push(format!("{}: {}", Shown(Path::new(word)), Reason(e)));
            }
            Err(_) => {}
        }
        Vec::new()
    }
}

enum Content {
    Package(PackageFile),
    List(Vec<OsString>),
}

impl Content {
    fn of(word: &OsStr, open: &Open<'_>) -> io::Result<Content> {
        let mut file = BufReader::new(File::from(open(Path::new(word))?));
        let mut start = Vec::new();
        file.by_ref().take(MAGIC.len() as u64).read_to_end(&mut start)?;
        if start == MAGIC {
            return PackageFile::read(start.chain(file)).map(Content::Package);
        }
        let mut text = start;
        file.take(MOST_OF_LIST).read_to_end(&mut text)?;
        let is_text = |byte: &u8| *byte >= b' ' || byte.is_ascii_whitespace();
        if !text.iter().all(is_text) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it is not a package"));
        }
        let lines = text.split(|&byte| byte == b'\n').filter(|line| !line.starts_with(b"#"));
        let words =
            lines.flat_map(|line| line.split(u8::is_ascii_whitespace)).filter(|word| !word.is_empty());
        Ok(Content::List(words.map(|word| OsStr::from_bytes(word).to_os_string()).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::package::testing::rpm_file;

    fn words(words: &[&str]) -> Vec<OsString> {
        words.iter().map(OsString::from).collect()
    }

    #[test]
    fn a_package_is_found_among_options_and_in_a_list() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, content: &[u8]| std::fs::write(dir.path().join(name), content).unwrap();
        write("a", &rpm_file("a", &[]));
        write("b.rpm", &rpm_file("b", &[]));
        write("list", b"# b.rpm\n b.rpm \n");
        write("broken.rpm", &rpm_file("c", &[])[..150]);
        write("odd", &[0; 10]);
        let open = |path: &Path| Ok(File::open(dir.path().join(path))?.into());
        let line = words(&[
            "-Uvh",
            "--define",
            "_x 1",
            "a",
            "list",
            "broken.rpm",
            "gone.rpm",
            "gone",
            "odd",
            "--b.rpm",
        ]);
        let PackageArguments { packages, warnings } = PackageArguments::among(&line, &open);
        assert!(packages.iter().map(|package| package.name.as_str()).eq(["a", "b"]));
        assert!(warnings[0].starts_with("broken.rpm: it is truncated"), "{warnings:?}");
        assert!(warnings[1].starts_with("gone.rpm: No such file") && warnings.len() == 2, "{warnings:?}");
    }
}

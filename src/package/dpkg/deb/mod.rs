//! What a .deb holds (deb(5)): the control member, and, if that does not tell, the payload's names.

mod ar;
mod members;
pub(crate) mod payload;

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

use self::ar::invalid;
use super::control::{Stanza, relationship_names, stanzas};
use super::lists::{self, kept};
use crate::package::caught::caught;
use crate::package::{MultiArch, PackageId};
use crate::report::{Reason, Shown, size};
use crate::sys::budget;

pub use ar::MAGIC;
pub use payload::{PayloadEntry, PayloadKind, payload};

/// An archive that cannot be read. dpkg will refuse it too.
#[derive(Debug, thiserror::Error)]
#[error("{} is not a readable .deb: {}", Shown(path), Reason(source))]
pub struct Error {
    /// The archive.
    pub path: PathBuf,
    /// What is wrong.
    pub source: io::Error,
}

/// What a package's control member says of the package's files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Control {
    /// Name and architecture.
    pub id: PackageId,
    /// The version.
    pub version: String,
    /// Whether several architectures of it can be installed.
    pub(crate) multi_arch: MultiArch,
    /// Whether the system cannot do without it (`Essential` or `Protected`).
    pub essential: bool,
    /// Names in `Conflicts`, packages and virtual packages.
    pub(crate) conflicts: Vec<String>,
    /// Names in `Replaces`.
    pub replaces: Vec<String>,
    /// Names in `Provides`.
    pub(crate) provides: Vec<String>,
    /// The configuration files.
    pub conffiles: Vec<PathBuf>,
    /// The files of `md5sums`, hard links included, symlinks and directories not; `None` without that list.
    pub files: Option<Vec<PathBuf>>,
}

impl Control {
    /// Reads the control member of the archive `path`, and no more of it.
    pub fn open(path: &Path) -> Result<Control, Error> {
        let read = || Control::read(BufReader::new(File::open(path)?));
        caught(read).map_err(|source| Error { path: path.to_path_buf(), source })
    }

    /// Reads the control member of an archive, and no more of it.
    pub fn read(reader: impl Read) -> io::Result<Control> {
        let mut control = Vec::new();
        let mut conffiles = Vec::new();
        let mut md5sums = None;
        members::each(ar::member(reader, "control.tar")?, |entry| {
            let name = entry.path_bytes().into_owned();
            match name.strip_prefix(b"./").unwrap_or(&name) {
                b"control" => control = read_bounded(entry, budget::CONTROL)?,
                b"conffiles" => conffiles = read_bounded(entry, budget::PACKAGE_LIST)?,
                b"md5sums" => md5sums = Some(read_bounded(entry, budget::PACKAGE_LIST)?),
                _ => {}
            }
            Ok(())
        })?;
        let missing = |what: &str| invalid(format!("its control file has no {what}"));
        let stanza = stanzas(&control).next().unwrap_or(Stanza::new(b""));
        let text = |field: &str| stanza.field(field).map(|value| String::from_utf8_lossy(value).into_owned());
        let names = |field: &str| {
            stanza.field(field).into_iter().flat_map(relationship_names).map(Cow::into_owned).collect()
        };
        let is_set = |field: &str| stanza.field(field).is_some_and(|value| value == b"yes");
        Ok(Control {
            id: PackageId {
                name: text("Package").ok_or_else(|| missing("Package"))?,
                arch: text("Architecture").ok_or_else(|| missing("Architecture"))?,
            },
            version: text("Version").ok_or_else(|| missing("Version"))?,
            multi_arch: stanza.field("Multi-Arch").and_then(MultiArch::parse).unwrap_or_default(),
            essential: is_set("Essential") || is_set("Protected"),
            conflicts: names("Conflicts"),
            replaces: names("Replaces"),
            provides: names("Provides"),
            conffiles: kept(lists::conffiles(&conffiles))?,
            files: md5sums.map(|data| kept(lists::md5sums(&data))).transpose()?,
        })
    }
}

fn read_bounded(reader: impl Read, most: usize) -> io::Result<Vec<u8>> {
    let mut data = Vec::new();
    reader.take(most as u64 + 1).read_to_end(&mut data)?;
    if data.len() > most {
        return Err(invalid(format!("a file of its control member is longer than {}", size(most as u64))));
    }
    Ok(data)
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod witness;

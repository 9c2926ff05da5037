//! A package's file, `.rpm`: whose package it is, and which names an installation touches.
//!
//! Only what stands before the payload is read (<https://rpm-software-management.github.io/rpm/manual/format_v4.html>),
//! by the crate `rpm`. What that crate trusts is checked before: sizes, and that values lie where they can. Names of
//! files are bytes, which the crate has as text: those are read from the same header here.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

use rpm::PackageMetadata;

use super::header::Header;
use super::malformed;
use crate::package::caught::caught;
use crate::report::{Reason, Shown};
use crate::sys::budget;

/// The bytes a package's file begins with.
pub const MAGIC: [u8; 4] = [0xed, 0xab, 0xee, 0xdb];
/// Bytes of the lead, which nothing but the magic number is used of.
const LEAD: usize = 96;
/// The bytes a header begins with.
const HEADER_MAGIC: [u8; 4] = [0x8e, 0xad, 0xe8, 1];
/// Bytes before a header's index: the magic number, four that are not used, and two counts.
const INTRODUCTION: usize = 16;
/// As many entries as rpm allows in a header.
const MOST_ENTRIES: usize = 0xffff;
/// A list of whole paths, as it was before rpm 4.
const OLD_FILE_NAMES: u32 = 1027;

/// A file that cannot be read as a package. rpm will refuse it too.
#[derive(Debug, thiserror::Error)]
#[error("{} is not a readable .rpm: {}", Shown(path), Reason(source))]
pub struct Error {
    /// The file.
    pub path: PathBuf,
    /// What is wrong.
    pub source: io::Error,
}

/// What a package's file says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackageFile {
    /// The package's name.
    pub name: String,
    /// Names of packages that go when this one comes.
    pub(crate) obsoletes: Vec<String>,
    /// What is installed, directories included.
    pub files: Vec<PackagedFile>,
}

/// A file of a package.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackagedFile {
    /// Absolute in the guest.
    pub path: PathBuf,
    /// Whether it is the administrator's to change.
    pub(crate) is_configuration: bool,
}

impl PackageFile {
    /// Reads the file `path` up to its payload.
    pub fn open(path: &Path) -> Result<PackageFile, Error> {
        let read = || PackageFile::read(BufReader::new(File::open(path)?));
        read().map_err(|source| Error { path: path.to_path_buf(), source })
    }

    /// Reads a package's file up to its payload.
    ///
    /// # Errors
    /// `InvalidData` if it is none that rpm would install.
    pub fn read(mut reader: impl Read) -> io::Result<PackageFile> {
        let mut bytes = Vec::new();
        take(&mut reader, &mut bytes, LEAD)?;
        if !bytes.starts_with(&MAGIC) {
            return Err(malformed("it is not an rpm package file"));
        }
        let signature = header(&mut reader, &mut bytes)?;
        take(&mut reader, &mut bytes, signature.next_multiple_of(8) - signature)?;
        let size = header(&mut reader, &mut bytes)?;
        let blob = &bytes[bytes.len() - size + INTRODUCTION - 8..];
        let Identity { name, obsoletes } = caught(|| identity(&bytes))?;
        Ok(PackageFile { name, obsoletes, files: files(&Header::parse(blob)?)? })
    }
}

/// Reads a header; its size in bytes.
fn header(reader: &mut impl Read, bytes: &mut Vec<u8>) -> io::Result<usize> {
    let start = bytes.len();
    take(reader, bytes, INTRODUCTION)?;
    let counts = &bytes[start..];
    let number =
        |at: usize| counts[at..].first_chunk().map_or(0, |&bytes| u32::from_be_bytes(bytes)) as usize;
    let (entries, length) = (number(8), number(12));
    if !counts.starts_with(&HEADER_MAGIC) || entries > MOST_ENTRIES || length > budget::HEADER {
        return Err(malformed("a header is invalid"));
    }
    take(reader, bytes, entries * 16 + length)?;
    Header::parse(&bytes[start + INTRODUCTION - 8..])?.check()?;
    Ok(bytes.len() - start)
}

/// Reads so many bytes; memory is taken as they come.
fn take(reader: &mut impl Read, bytes: &mut Vec<u8>, count: usize) -> io::Result<()> {
    let read = reader.take(count as u64).read_to_end(bytes)?;
    if read < count { Err(malformed("it is truncated")) } else { Ok(()) }
}

struct Identity {
    name: String,
    obsoletes: Vec<String>,
}

/// What the crate reads of a package.
fn identity(bytes: &[u8]) -> io::Result<Identity> {
    let wrong = |error: rpm::Error| io::Error::new(io::ErrorKind::InvalidData, error);
    let package = PackageMetadata::parse(&mut &bytes[..]).map_err(wrong)?;
    if package.is_source_package() {
        return Err(malformed("it is a source package, which cannot be installed"));
    }
    if package.header.entry_is_present(OLD_FILE_NAMES) {
        return Err(malformed("its format is older than that of rpm 4"));
    }
    let obsoletes = package.get_obsoletes().map_err(wrong)?;
    Ok(Identity {
        name: package.get_name().map_err(wrong)?.to_owned(),
        obsoletes: obsoletes.into_iter().map(|obsolete| obsolete.name).collect(),
    })
}

fn files(header: &Header<'_>) -> io::Result<Vec<PackagedFile>> {
    let mut bytes_left = budget::PATH_BYTES;
    let mut files = Vec::new();
    // Something else makes a ghost, later on.
    for file in header.files()?.filter(|file| !file.is_ghost()) {
        let Some(path) = file.path() else { continue };
        let taken = size_of::<PackagedFile>() + path.as_os_str().len();
        let left = bytes_left.checked_sub(taken);
        bytes_left = left.ok_or_else(|| malformed("it lists too many files"))?;
        files.push(PackagedFile { path, is_configuration: file.is_configuration() });
    }
    Ok(files)
}

#[cfg(test)]
mod tests;

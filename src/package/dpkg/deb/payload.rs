//! The names in a .deb's payload, read as a stream: slow, since all of it has to be decompressed.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

use xz2::stream::Stream;

use super::{Error, ar, invalid};
use crate::package::absolute;

/// A name in the payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Absolute in the guest.
    pub path: PathBuf,
    /// What it is.
    pub kind: Kind,
}

/// What a name in the payload is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// Another name of this file, which an earlier entry has.
    HardLink(PathBuf),
    /// A directory.
    Directory,
    /// A symlink, device or FIFO.
    Other,
}

/// The names in the payload of the archive `path`, the root directory left out.
pub fn payload(path: &Path) -> Result<Vec<Entry>, Error> {
    let read = || entries(BufReader::new(File::open(path)?));
    read().map_err(|source| Error { path: path.to_path_buf(), source })
}

pub(super) fn entries(reader: impl Read) -> io::Result<Vec<Entry>> {
    let member = ar::member(reader, "data.tar")?;
    let mut archive = tar::Archive::new(decompress(&member.suffix, member.data)?);
    let mut entries = Vec::new();
    for entry in archive.entries()? {
        let entry = entry?;
        let kind = entry.header().entry_type();
        let kind = if kind.is_hard_link() {
            match entry.link_name_bytes().and_then(|target| absolute(&target)) {
                Some(target) => Kind::HardLink(target),
                None => continue,
            }
        } else if kind.is_dir() {
            Kind::Directory
        } else if kind.is_file() || kind.is_contiguous() || kind.is_gnu_sparse() {
            Kind::File
        } else {
            Kind::Other
        };
        if let Some(path) = absolute(&entry.path_bytes()) {
            entries.push(Entry { path, kind });
        }
    }
    Ok(entries)
}

/// All compressions dpkg unpacks (deb(5)).
fn decompress<'a>(suffix: &str, data: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    Ok(match suffix {
        "" => Box::new(data),
        ".gz" => Box::new(flate2::read::MultiGzDecoder::new(data)),
        ".xz" => Box::new(xz2::read::XzDecoder::new(data)),
        ".zst" => Box::new(zstd::Decoder::new(data)?),
        ".bz2" => Box::new(bzip2::read::MultiBzDecoder::new(data)),
        ".lzma" => {
            let decoder = Stream::new_lzma_decoder(u64::MAX).map_err(io::Error::other)?;
            Box::new(xz2::read::XzDecoder::new_stream(data, decoder))
        }
        other => return Err(invalid(format!("unknown compression {other:?}"))),
    })
}

//! The tar archive within a member of a .deb, read as a stream and with bounded memory: the file may come from anyone.

use std::cell::Cell;
use std::io::{self, Read};
use std::rc::Rc;

use xz2::stream::Stream;

use super::ar::{self, invalid};

/// As much memory as a decompressor may take, in bytes: four times what `xz -9` asks for.
const MOST_MEMORY: u64 = 256 << 20;
/// As many bytes as may stand between the data of two entries: a header, and names longer than it can hold.
const MOST_OF_NAMES: u64 = 1 << 20;

/// Shows every entry of the archive in `member`.
///
/// # Errors
/// If it is not what `dpkg-deb` makes, or `visit` fails.
pub fn each(
    member: ar::ArMember<impl Read>,
    mut visit: impl FnMut(&mut tar::Entry<'_, Box<dyn Read + '_>>) -> io::Result<()>,
) -> io::Result<()> {
    let left = Rc::new(Cell::new(MOST_OF_NAMES));
    let data = Bounded { data: decompress(&member.suffix, member.data)?, left: Rc::clone(&left) };
    let data: Box<dyn Read> = Box::new(data);
    let mut archive = tar::Archive::new(data);
    for entry in archive.entries()? {
        let mut entry = entry?;
        // dpkg does not take them either, and their size does not tell what is in the archive.
        if entry.header().entry_type().is_gnu_sparse() {
            return Err(invalid("it contains a sparse file".to_owned()));
        }
        // The next entry is looked for behind the data of this one.
        left.set(entry.size().saturating_add(MOST_OF_NAMES));
        visit(&mut entry)?;
    }
    Ok(())
}

/// Ends with an error when more is read than is left.
struct Bounded<R> {
    data: R,
    left: Rc<Cell<u64>>,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.data.read(buffer)?;
        let left = self.left.get().checked_sub(read as u64);
        self.left.set(left.ok_or_else(|| invalid("a file name is not terminated".to_owned()))?);
        Ok(read)
    }
}

/// All compressions dpkg unpacks (deb(5)).
fn decompress<'a>(suffix: &str, data: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let xz = |stream: Result<Stream, xz2::stream::Error>| stream.map_err(io::Error::other);
    Ok(match suffix {
        "" => Box::new(data),
        ".gz" => Box::new(flate2::read::MultiGzDecoder::new(data)),
        ".xz" => {
            Box::new(xz2::read::XzDecoder::new_stream(data, xz(Stream::new_stream_decoder(MOST_MEMORY, 0))?))
        }
        ".zst" => Box::new(zstd::Decoder::new(data)?),
        ".bz2" => Box::new(bzip2::read::MultiBzDecoder::new(data)),
        ".lzma" => {
            Box::new(xz2::read::XzDecoder::new_stream(data, xz(Stream::new_lzma_decoder(MOST_MEMORY))?))
        }
        other => return Err(invalid(format!("unknown compression {other:?}"))),
    })
}

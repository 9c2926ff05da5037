//! The outer format of a .deb, `ar` (deb(5)): a magic string, then members with headers of 60 bytes.
//!
//! Read here, not by the crate `ar`: that one panics on some damaged headers.

use std::io::{self, Read};

/// The bytes an `ar` archive begins with.
pub const MAGIC: &[u8] = b"!<arch>\n";

/// The length of a member's header.
const HEADER_SIZE: usize = 60;

/// A member of an archive, not yet read.
pub struct ArMember<R> {
    /// What follows the searched prefix in the member's name: the compression's suffix.
    pub suffix: String,
    /// The data.
    pub data: io::Take<R>,
}

/// The first member whose name begins with `prefix`; nothing after it is read.
///
/// Only what deb(5) allows before it is passed over: `debian-binary`, `_`-members, and the control member.
///
/// # Errors
/// `InvalidData` if this is no .deb, or has no such member at its place.
pub fn member<R: Read>(mut reader: R, prefix: &str) -> io::Result<ArMember<R>> {
    let mut magic = [0; MAGIC.len()];
    reader.read_exact(&mut magic)?;
    if magic != MAGIC {
        return Err(invalid("not an ar archive".to_owned()));
    }
    loop {
        let mut header = [0; HEADER_SIZE];
        reader.read_exact(&mut header)?;
        let (name, size) = parse(&header).ok_or_else(|| invalid("damaged member header".to_owned()))?;
        if let Some(suffix) = name.strip_prefix(prefix) {
            return Ok(ArMember { suffix: suffix.to_owned(), data: reader.take(size) });
        }
        if !(name == "debian-binary" || name.starts_with('_') || name.starts_with("control.tar")) {
            return Err(invalid(format!("{name:?} where {prefix} should be")));
        }
        // Data of odd length is followed by a byte of padding.
        let size = size + size % 2;
        if io::copy(&mut reader.by_ref().take(size), &mut io::sink())? < size {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

/// Data that is not as the format has it.
pub(super) fn invalid(reason: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}

/// The name and the size a header gives.
fn parse(header: &[u8; HEADER_SIZE]) -> Option<(&str, u64)> {
    if !header.ends_with(b"`\n") {
        return None;
    }
    let name = std::str::from_utf8(&header[..16]).ok()?.trim_end_matches(' ');
    let size = std::str::from_utf8(&header[48..58]).ok()?.trim_end_matches(' ');
    Some((name.strip_suffix('/').unwrap_or(name), size.parse().ok()?))
}

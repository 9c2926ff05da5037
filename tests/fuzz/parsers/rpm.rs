//! What rpm has written, or says.

use std::cell::Cell;
use std::ffi::OsString;
use std::io;

use super::sound::{file_of, is_listed, is_message};
use crate::package::rpm::command_line::PackageArguments;
use crate::package::rpm::file::PackageFile;
use crate::package::rpm::header::Header;
use crate::package::rpm::ndb as packages_db;
use crate::package::rpm::sqlite::SqliteFile;

/// The file that the one word of a command line names; a list that is in it names nothing that is there.
pub fn command_line(data: &[u8]) {
    let asked = Cell::new(0);
    let open = |_: &std::path::Path| {
        asked.set(asked.get() + 1);
        if asked.get() == 1 { Ok(file_of(data)) } else { Err(io::ErrorKind::NotFound.into()) }
    };
    let found = PackageArguments::among(&[OsString::from("a.rpm")], &open);
    assert!(found.packages.len() <= 1 && asked.get() <= data.len() + 1);
    found.warnings.iter().for_each(is_message);
}

pub fn file(data: &[u8]) {
    match PackageFile::read(data) {
        Ok(package) => package.files.iter().for_each(|file| is_listed(&file.path)),
        Err(e) => is_message(e),
    }
}

pub fn header(data: &[u8]) {
    if let Err(e) = header_of(data) {
        is_message(e);
    }
}

fn header_of(blob: &[u8]) -> io::Result<()> {
    let header = Header::parse(blob)?;
    // A file is checked more strictly than the database.
    let _ = header.check();
    header.name()?;
    header.install_time()?;
    let mut files = 0;
    for file in header.files()? {
        files += 1;
        if let Some(path) = file.path() {
            is_listed(&path);
        }
        file.is_configuration();
        assert!(!file.is_ghost() || file.path().is_none_or(|path| path.is_absolute()));
        file.is_installed();
    }
    assert!(files <= blob.len());
    Ok(())
}

pub fn ndb(data: &[u8]) {
    let read = packages_db::blobs(file_of(data)).and_then(|blobs| headers(blobs, data.len()));
    if let Err(e) = read {
        is_message(e);
    }
}

/// The first byte tells whether there is a log, and whether its checksums are to be mended; the next two, how many units
/// of 64 bytes the database has.
pub fn sqlite(data: &[u8]) {
    let Some((&[how, high, low], rest)) = data.split_first_chunk() else { return };
    let size = usize::from(u16::from_be_bytes([high, low])) * 64;
    let (database, log) = rest.split_at_checked(size).unwrap_or((rest, &[]));
    let mut log = log.to_vec();
    if how & 2 != 0 {
        seal(&mut log, database);
    }
    let log = (how & 1 != 0).then(|| file_of(&log));
    let read = SqliteFile::open(file_of(database), log)
        .and_then(|file| file.blobs("Packages"))
        .and_then(|blobs| headers(blobs, rest.len()));
    if let Err(e) = read {
        is_message(e);
    }
}

/// All headers of a database of so many bytes, none of which is read twice.
fn headers(blobs: impl Iterator<Item = io::Result<Vec<u8>>>, size: usize) -> io::Result<()> {
    let mut read = 0;
    for blob in blobs {
        let blob = blob?;
        read += blob.len();
        assert!(read <= size, "{read} bytes of {size}");
        header_of(&blob)?;
    }
    Ok(())
}

/// Gives a write-ahead log the header and the checksums that it would have; no fuzzer finds these.
fn seal(log: &mut [u8], database: &[u8]) {
    const HEADER: usize = 32;
    const FRAME: usize = 24;
    let page_size = match database.get(16..18) {
        Some(&[1, 0]) | None => return,
        Some(&[0, 1]) => 1 << 16,
        Some(size) => usize::from(size[0]) << 8 | usize::from(size[1]),
    };
    if log.len() < HEADER {
        return;
    }
    log[..4].copy_from_slice(&0x377f_0683_u32.to_be_bytes());
    log[4..8].copy_from_slice(&3_007_000_u32.to_be_bytes());
    log[8..12].copy_from_slice(&(page_size as u32).to_be_bytes());
    let mut sum = checksum((0, 0), &log[..24]);
    let write = |log: &mut [u8], (first, second): (u32, u32)| {
        log[..4].copy_from_slice(&first.to_be_bytes());
        log[4..8].copy_from_slice(&second.to_be_bytes());
    };
    write(&mut log[24..], sum);
    let (header, frames) = log.split_at_mut(HEADER);
    for frame in frames.chunks_exact_mut(FRAME + page_size) {
        frame[8..16].copy_from_slice(&header[16..24]);
        sum = checksum(checksum(sum, &frame[..8]), &frame[FRAME..]);
        write(&mut frame[16..], sum);
    }
}

fn checksum((mut first, mut second): (u32, u32), bytes: &[u8]) -> (u32, u32) {
    let word = |bytes: &[u8]| u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    for words in bytes.chunks_exact(8) {
        first = first.wrapping_add(word(words)).wrapping_add(second);
        second = second.wrapping_add(word(&words[4..])).wrapping_add(first);
    }
    (first, second)
}

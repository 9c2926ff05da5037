//! SQLite's file format, as far as it takes to read one table (<https://www.sqlite.org/fileformat.html>).
//!
//! A guest's database is never opened by SQLite on the host, which would run what its schema says and write beside it.
//! This reads, and believes nothing: lengths are bounded, and a page has one place in a database, and a row one in a page,
//! so none is read twice. It needs no lock, and so works while a package manager holds the database.

use std::collections::HashSet;
use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;

use super::wal::Log;
use super::{checked_size, malformed};
use crate::sys::budget::{self, Exceeded};
use crate::sys::file::content::fill;

/// Bytes of the database's header, which stand before that of the first page.
const HEADER: usize = 100;
/// The types of the two kinds of pages a table has.
const LEAF: u8 = 13;
const INTERIOR: u8 = 5;

/// An open database: its pages, those in the write-ahead log before those in the file.
#[derive(Debug)]
pub struct SqliteFile {
    file: OwnedFd,
    log: Option<Log>,
    page_size: usize,
    /// Bytes of a page that are not reserved.
    usable: usize,
    /// How many pages the file has.
    pages: u32,
    /// The pages that something refers to.
    seen: HashSet<u32>,
}

impl SqliteFile {
    /// Opens the database in `file`, with its write-ahead log if it has one.
    ///
    /// # Errors
    /// If it is no database. An empty file is one to SQLite, but to nobody else.
    pub fn open(file: OwnedFd, log: Option<OwnedFd>) -> io::Result<SqliteFile> {
        let size = checked_size(&file)?;
        let mut header = [0; HEADER];
        if fill(&file, &mut header, 0)? < HEADER || !header.starts_with(b"SQLite format 3\0") {
            return Err(malformed("not an SQLite database"));
        }
        let page_size = match u16::from_be_bytes([header[16], header[17]]) {
            1 => 1 << 16,
            size if size >= 512 && size.is_power_of_two() => usize::from(size),
            _ => return Err(malformed("invalid page size")),
        };
        let usable = page_size - usize::from(header[20]);
        if usable < 480 {
            return Err(malformed("the pages are too small"));
        }
        let log = log.map(|log| Log::read(log, page_size)).transpose()?;
        let pages = u32::try_from(size / page_size as u64).unwrap_or(u32::MAX);
        Ok(SqliteFile { file, log, page_size, usable, pages, seen: HashSet::new() })
    }

    /// The blobs in the second column of the table `name`, in the order of the rows.
    pub(crate) fn blobs(
        mut self,
        name: &str,
    ) -> io::Result<impl Iterator<Item = io::Result<Vec<u8>>> + use<>> {
        let root = self.root_of(name)?.ok_or_else(|| malformed(format!("there is no table {name}")))?;
        self.seen.clear();
        let mut rows = Rows::below(self.claim(root)?);
        Ok(std::iter::from_fn(move || {
            rows.next(&mut self).and_then(|row| row.map(blob).transpose()).transpose()
        }))
    }

    /// The number of the first page of the table `name`.
    fn root_of(&mut self, name: &str) -> io::Result<Option<u32>> {
        let mut schema = Rows::below(self.claim(1)?);
        while let Some(row) = schema.next(self)? {
            // type, name, tbl_name, rootpage, sql
            let is_table =
                |index, text: &str| Ok::<_, io::Error>(row[column(&row, index)?.1] == *text.as_bytes());
            if is_table(0, "table")? && is_table(1, name)? {
                return Ok(u32::try_from(integer(&row[column(&row, 3)?.1])).ok());
            }
        }
        Ok(None)
    }

    /// Takes a page that is referred to for itself: nothing else may refer to it.
    fn claim(&mut self, number: u32) -> io::Result<u32> {
        let in_log = self.log.as_ref().is_some_and(|log| log.page(number).is_some());
        if number == 0 || (number > self.pages && !in_log) {
            return Err(malformed(format!("there is no page {number}")));
        }
        Exceeded::check_count(self.seen.len(), budget::RPM_PAGES, "pages")?;
        if !self.seen.insert(number) {
            return Err(malformed(format!("page {number} is used twice")));
        }
        Ok(number)
    }

    /// Reads a page that was claimed.
    fn page(&self, number: u32, page: &mut Vec<u8>) -> io::Result<()> {
        let in_log = self.log.as_ref().and_then(|log| log.page(number));
        let (file, at) = in_log.unwrap_or((&self.file, u64::from(number - 1) * self.page_size as u64));
        page.resize(self.page_size, 0);
        if fill(file, page, at)? < page.len() {
            return Err(malformed(format!("the file ends before page {number}")));
        }
        Ok(())
    }
}

/// The rows of a table: a walk over the pages of its b-tree.
struct Rows {
    /// Pages to be looked at, the next one last.
    pages: Vec<u32>,
    leaf: Option<Leaf>,
}

/// A page of rows.
struct Leaf {
    page: Vec<u8>,
    /// Where the offsets of the cells begin that are left, and how many are.
    cells: usize,
    left: u16,
    /// Bytes of the page that no cell has taken yet.
    free: usize,
}

impl Rows {
    fn below(root: u32) -> Rows {
        Rows { pages: vec![root], leaf: None }
    }

    /// The record of the next row.
    fn next(&mut self, database: &mut SqliteFile) -> io::Result<Option<Vec<u8>>> {
        loop {
            if let Some(leaf) = self.leaf.as_mut().filter(|leaf| leaf.left > 0) {
                let cell = u16_at(&leaf.page, leaf.cells)?;
                (leaf.cells, leaf.left) = (leaf.cells + 2, leaf.left - 1);
                let (record, taken) = record(database, &leaf.page, usize::from(cell))?;
                leaf.free = leaf.free.checked_sub(taken).ok_or_else(|| malformed("rows overlap"))?;
                return Ok(Some(record));
            }
            let Some(number) = self.pages.pop() else { return Ok(None) };
            self.enter(database, number)?;
        }
    }

    fn enter(&mut self, database: &mut SqliteFile, number: u32) -> io::Result<()> {
        let mut page = Vec::new();
        database.page(number, &mut page)?;
        let start = if number == 1 { HEADER } else { 0 };
        let cells = u16_at(&page, start + 3)?;
        match page[start] {
            LEAF => self.leaf = Some(Leaf { page, cells: start + 8, left: cells, free: database.usable }),
            INTERIOR => {
                self.pages.push(database.claim(u32_at(&page, start + 8)?)?);
                for at in (0..usize::from(cells)).rev() {
                    let cell = u16_at(&page, start + 12 + 2 * at)?;
                    self.pages.push(database.claim(u32_at(&page, usize::from(cell))?)?);
                }
            }
            _ => return Err(malformed(format!("page {number} does not belong to a table"))),
        }
        Ok(())
    }
}

/// The record of the row whose cell begins at `start` of a leaf, and how many bytes of the leaf are the cell's.
fn record(database: &mut SqliteFile, leaf: &[u8], start: usize) -> io::Result<(Vec<u8>, usize)> {
    let usable = database.usable;
    let mut cell = leaf.get(start..usable).unwrap_or_default();
    let whole = cell.len();
    let length = varint(&mut cell)?;
    // The row's number.
    varint(&mut cell)?;
    let length = usize::try_from(length).ok().filter(|&length| length <= budget::HEADER);
    let length = length.ok_or_else(|| malformed("a row is too large"))?;
    let here = on_leaf(length, usable);
    let taken = whole - cell.len() + here;
    let cut_off = || malformed("a row is truncated");
    let mut record = Vec::with_capacity(length);
    record.extend_from_slice(cell.get(..here).ok_or_else(cut_off)?);
    let mut page = Vec::new();
    let mut next = if here < length { u32_at(cell, here)? } else { 0 };
    while record.len() < length {
        let number = database.claim(next)?;
        database.page(number, &mut page)?;
        next = u32_at(&page, 0)?;
        record.extend_from_slice(&page[4..usable.min(4 + length - record.len())]);
    }
    Ok((record, taken))
}

/// How many bytes of a record of this length are on the leaf itself (fileformat, 1.6).
fn on_leaf(length: usize, usable: usize) -> usize {
    let most = usable - 35;
    if length <= most {
        return length;
    }
    let least = (usable - 12) * 32 / 255 - 23;
    let fitting = least + (length - least) % (usable - 4);
    if fitting <= most { fitting } else { least }
}

/// A column of a record: its serial type, and where its bytes are (fileformat, 2.1).
fn column(record: &[u8], index: usize) -> io::Result<(u64, Range<usize>)> {
    let broken = || malformed("a row is invalid");
    let mut types = record;
    let header = usize::try_from(varint(&mut types)?).map_err(|_| broken())?;
    let of_header = record.len() - types.len();
    types = record.get(of_header..header).ok_or_else(broken)?;
    let mut start = header;
    for at in 0..=index {
        let serial = varint(&mut types)?;
        let length = match serial {
            0 | 8 | 9 => 0,
            1..=4 => serial,
            5 => 6,
            6 | 7 => 8,
            _ => serial.saturating_sub(12) / 2,
        };
        let end = usize::try_from(length).ok().and_then(|length| start.checked_add(length));
        let end = end.filter(|&end| end <= record.len()).ok_or_else(broken)?;
        if at == index {
            return Ok((serial, start..end));
        }
        start = end;
    }
    Err(broken())
}

/// The blob in the second column of a record.
fn blob(mut record: Vec<u8>) -> io::Result<Vec<u8>> {
    let (serial, place) = column(&record, 1)?;
    if serial < 12 || serial % 2 != 0 {
        return Err(malformed("a row has no blob"));
    }
    record.truncate(place.end);
    record.drain(..place.start);
    Ok(record)
}

/// A signed number of up to eight bytes.
fn integer(bytes: &[u8]) -> i64 {
    let negative = bytes.first().is_some_and(|&first| first >= 0x80);
    bytes.iter().fold(if negative { -1 } else { 0 }, |number, &byte| number << 8 | i64::from(byte))
}

/// Takes a number of one to nine bytes, seven bits in each but the ninth.
fn varint(bytes: &mut &[u8]) -> io::Result<u64> {
    let mut number = 0;
    for at in 1..=9 {
        let (&byte, rest) = bytes.split_first().ok_or_else(|| malformed("a number is truncated"))?;
        *bytes = rest;
        if at == 9 {
            return Ok(number << 8 | u64::from(byte));
        }
        number = number << 7 | u64::from(byte & 0x7f);
        if byte < 0x80 {
            break;
        }
    }
    Ok(number)
}

fn u16_at(page: &[u8], at: usize) -> io::Result<u16> {
    array(page, at).map(u16::from_be_bytes)
}

fn u32_at(page: &[u8], at: usize) -> io::Result<u32> {
    array(page, at).map(u32::from_be_bytes)
}

fn array<const N: usize>(page: &[u8], at: usize) -> io::Result<[u8; N]> {
    let bytes = page.get(at..).and_then(<[u8]>::first_chunk);
    bytes.copied().ok_or_else(|| malformed("a page is truncated"))
}

#[cfg(test)]
mod tests;

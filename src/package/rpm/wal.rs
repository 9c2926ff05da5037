//! SQLite's write-ahead log: pages of a database that are newer than those in its file
//! (<https://www.sqlite.org/fileformat.html>, 4).
//!
//! rpm leaves one behind when it is killed, and keeps one while it runs.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;

use super::{checked_size, malformed};
use crate::sys::budget::{self, Exceeded};
use crate::sys::file::content::fill;

/// What the log begins with; the last bit is set where its checksums are of big-endian words.
const MAGIC: u32 = 0x377f_0682;
/// The only version of the format there is.
const VERSION: u32 = 3_007_000;
const HEADER: usize = 32;
const FRAME_HEADER: usize = 24;

/// The pages of the transactions that were committed.
#[derive(Debug)]
pub struct Log {
    file: OwnedFd,
    /// Where in the file they are, by page number.
    pages: HashMap<u32, u64>,
}

impl Log {
    /// Reads a log, of pages of this size. As to SQLite, it ends at the first frame that is not sound.
    pub fn read(file: OwnedFd, page_size: usize) -> io::Result<Log> {
        checked_size(&file)?;
        let mut log = Log { file, pages: HashMap::new() };
        let mut header = [0; HEADER];
        if fill(&log.file, &mut header, 0)? < HEADER || word(&header, 0) & !1 != MAGIC {
            return Ok(log);
        }
        let mut sum = Checksum { big_endian: word(&header, 0) & 1 != 0, state: (0, 0) };
        sum.add(&header[..24]);
        if !sum.is(&header[24..]) {
            return Ok(log);
        }
        if word(&header, 4) != VERSION || word(&header, 8) as usize != page_size {
            return Err(malformed("the write-ahead log belongs to another database"));
        }
        let mut frame = vec![0; FRAME_HEADER + page_size];
        let mut at = HEADER as u64;
        let (mut uncommitted, mut frames) = (Vec::new(), 0);
        while fill(&log.file, &mut frame, at)? == frame.len() {
            let (start, page) = frame.split_at(FRAME_HEADER);
            sum.add(&start[..8]);
            sum.add(page);
            // The salts tell this log from what is left of an earlier one.
            if start[8..16] != header[16..24] || !sum.is(&start[16..]) {
                break;
            }
            uncommitted.push((word(start, 0), at + FRAME_HEADER as u64));
            frames += 1;
            Exceeded::check_count(frames, budget::RPM_PAGES, "pages in the log of the database")?;
            if word(start, 4) != 0 {
                log.pages.extend(uncommitted.drain(..));
            }
            at += frame.len() as u64;
        }
        Ok(log)
    }

    /// The file a page is in, and where, if it is in the log.
    pub fn page(&self, number: u32) -> Option<(&OwnedFd, u64)> {
        self.pages.get(&number).map(|&at| (&self.file, at))
    }
}

/// The running checksum of a log (fileformat, 4.2).
struct Checksum {
    big_endian: bool,
    state: (u32, u32),
}

impl Checksum {
    /// Adds bytes; all that is summed is a multiple of eight.
    fn add(&mut self, bytes: &[u8]) {
        let read = if self.big_endian { u32::from_be_bytes } else { u32::from_le_bytes };
        let (mut first, mut second) = self.state;
        for words in bytes.as_chunks::<8>().0 {
            let [a, b, c, d, e, f, g, h] = *words;
            first = first.wrapping_add(read([a, b, c, d])).wrapping_add(second);
            second = second.wrapping_add(read([e, f, g, h])).wrapping_add(first);
        }
        self.state = (first, second);
    }

    /// Whether it is what is written here.
    fn is(&self, written: &[u8]) -> bool {
        self.state == (word(written, 0), word(written, 4))
    }
}

/// The big-endian word at `at`, which is there.
fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

//! The content of open files: read whole, compared, its holes skipped.

use std::io;
use std::os::fd::AsFd;

use rustix::fs::SeekFrom;
use rustix::io::Errno;

/// Bytes of each file that are compared at a time.
const BYTES_PER_COMPARISON: u64 = 1 << 17;

/// Whether two open files that both had `size` bytes hold the same ones. Holes that both have cost nothing.
///
/// `false` if one of them is shorter by now. Whether one has grown is the caller's to see.
pub fn same_content(a: impl AsFd, b: impl AsFd, size: u64) -> io::Result<bool> {
    let room = size.min(BYTES_PER_COMPARISON) as usize;
    let mut buffers = (vec![0; room], vec![0; room]);
    let mut at = 0;
    while at < size {
        let want = (size - at).min(BYTES_PER_COMPARISON) as usize;
        let (first, second) = (&mut buffers.0[..want], &mut buffers.1[..want]);
        if fill(&a, first, at)? < want || fill(&b, second, at)? < want || first != second {
            return Ok(false);
        }
        at += want as u64;
        if at < size {
            // The last byte is read in any case: it shows that none is shorter.
            at = at.max(next_data(&a, at)?.min(next_data(&b, at)?).min(size - 1));
        }
    }
    Ok(true)
}

/// Where data begins, from `at` on; the largest number if all that follows is a hole.
pub fn next_data(file: impl AsFd, at: u64) -> io::Result<u64> {
    match rustix::fs::seek(file, SeekFrom::Data(at)) {
        Ok(start) => Ok(start),
        Err(Errno::NXIO) => Ok(u64::MAX),
        // A filesystem that does not tell.
        Err(Errno::INVAL | Errno::OPNOTSUPP | Errno::NOTTY) => Ok(at),
        Err(e) => Err(e.into()),
    }
}

/// Reads from `at` until the buffer is full or the file ends. Returns how many bytes were read.
pub fn fill(fd: impl AsFd, buf: &mut [u8], at: u64) -> io::Result<usize> {
    let mut done = 0;
    while done < buf.len() {
        match rustix::io::retry_on_intr(|| rustix::io::pread(&fd, &mut buf[done..], at + done as u64))? {
            0 => break,
            got => done += got,
        }
    }
    Ok(done)
}

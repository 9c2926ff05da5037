//! The content of open files: read whole, compared, its holes skipped.

use std::io;
use std::os::fd::AsFd;

use rustix::fs::SeekFrom;
use rustix::io::Errno;

/// Whether two open files hold the same bytes. Holes that both have cost nothing.
pub fn same_content(a: impl AsFd, b: impl AsFd) -> io::Result<bool> {
    let mut buffers = (vec![0; 1 << 17], vec![0; 1 << 17]);
    let mut at = 0;
    loop {
        let got = (fill(&a, &mut buffers.0, at)?, fill(&b, &mut buffers.1, at)?);
        if buffers.0[..got.0] != buffers.1[..got.1] {
            return Ok(false);
        }
        if got.0 == 0 {
            return Ok(true);
        }
        at += got.0 as u64;
        if got.0 == buffers.0.len() {
            // The end is read in any case: it shows the lengths.
            let ends = rustix::fs::fstat(&a)?.st_size.min(rustix::fs::fstat(&b)?.st_size) as u64;
            at = at.max(next_data(&a, at)?.min(next_data(&b, at)?).min(ends.saturating_sub(1)));
        }
    }
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

//! `flock(2)` with an end to its patience.

use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};

/// Takes an exclusive lock on the open file, waiting at most `patience`.
///
/// The lock goes with the last descriptor of the open file.
///
/// # Errors
/// `TimedOut` if somebody else keeps the lock; any guest's root may hold one on a shared inode.
pub fn exclusive(fd: impl AsFd, patience: Duration) -> io::Result<()> {
    let mut pause = Duration::from_micros(50);
    // Who asks rarely is starved by those who come and go.
    let longest = (patience / 128).min(Duration::from_millis(20));
    let deadline = Instant::now() + patience;
    loop {
        match flock(&fd, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(()),
            Err(rustix::io::Errno::WOULDBLOCK | rustix::io::Errno::INTR) if Instant::now() < deadline => {
                std::thread::sleep(pause);
                pause = (pause * 2).min(longest);
            }
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "another process holds a lock on it"));
            }
            Err(e) => return Err(e.into()),
        }
    }
}

/// Gives the lock back; the file stays open.
pub fn release(fd: impl AsFd) -> io::Result<()> {
    Ok(flock(fd, FlockOperation::Unlock)?)
}

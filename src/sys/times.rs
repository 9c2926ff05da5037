//! Times of modification that are to stay what they were.

use std::io;
use std::os::fd::AsFd;

use rustix::fs::{Timespec, Timestamps, UTIME_OMIT};

use super::inode::Time;

/// Sets the time of modification of an open file or directory.
pub fn set_modified(fd: impl AsFd, time: Time) -> io::Result<()> {
    let times = Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec { tv_sec: time.secs, tv_nsec: time.nanos.into() },
    };
    Ok(rustix::fs::futimens(fd, &times)?)
}

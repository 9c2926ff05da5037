//! Times of files: those that are to stay what they were, and those that tell of changes.

use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{Timespec, Timestamps, UTIME_OMIT};

use super::inode::Time;

/// More than a tick of the kernel's clock: a second change within one need not show in the time of change.
pub const TICK: Duration = Duration::from_millis(20);

/// Nanoseconds of the system clock.
pub fn now() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_nanos()).unwrap_or(i64::MAX)
}

/// Whether a change from now on will show in a time of change that is this one now, in nanoseconds.
pub fn is_settled(ctime: i64) -> bool {
    ctime < now().saturating_sub(TICK.as_nanos() as i64)
}

/// Sets the time of modification of an open file or directory.
pub fn set_modified(fd: impl AsFd, time: Time) -> io::Result<()> {
    let times = Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec { tv_sec: time.secs, tv_nsec: time.nanos.into() },
    };
    Ok(rustix::fs::futimens(fd, &times)?)
}

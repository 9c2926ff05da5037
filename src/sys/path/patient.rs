//! `openat2(2)` with an end to its patience.
//!
//! The kernel gives up a lookup of `..` that a rename anywhere on the machine has disturbed, and asks the caller to try
//! again (`EAGAIN`). A long path of `..` and a process that renames a file again and again disturb each try.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// How long a lookup is tried. An honest path takes microseconds.
const PATIENCE: Duration = Duration::from_millis(100);

/// How often it is tried at least, however long this process waits for a processor meanwhile.
const MIN_TRIES: u32 = 8;

/// Opens `path` from `dir`; tries again if renames disturb the lookup.
///
/// # Errors
/// As `openat2(2)`; `EAGAIN` if renames have disturbed it for 100 ms.
pub fn openat2(
    dir: impl AsFd,
    path: &OsStr,
    flags: OFlags,
    resolve: ResolveFlags,
) -> rustix::io::Result<OwnedFd> {
    let (mut tries, mut deadline) = (0, None);
    loop {
        let opened = rustix::fs::openat2(&dir, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve);
        if !matches!(opened, Err(Errno::AGAIN)) {
            return opened;
        }
        tries += 1;
        if Instant::now() >= *deadline.get_or_insert_with(|| Instant::now() + PATIENCE) && tries >= MIN_TRIES
        {
            return opened;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[test]
    fn a_lookup_that_is_disturbed_again_and_again_comes_to_an_end() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("a")).unwrap();
        // As long as a path can be made: 40 symbolic links of 4095 bytes.
        std::fs::create_dir(dir.path().join("39")).unwrap();
        for step in 0..39 {
            let target = format!("{}{}", "a/../".repeat(800), step + 1);
            std::os::unix::fs::symlink(target, dir.path().join(step.to_string())).unwrap();
        }
        let ladder = "0";
        let root = std::fs::File::open(dir.path()).unwrap();
        let (end, flags) = (AtomicBool::new(false), OFlags::PATH);
        let disturbed = std::thread::scope(|scope| {
            for name in ["x", "y"] {
                let (dir, end) = (dir.path(), &end);
                scope.spawn(move || {
                    let names = [dir.join(name), dir.join(format!("{name}2"))];
                    std::fs::write(&names[0], "").unwrap();
                    while !end.load(Ordering::Relaxed) {
                        std::fs::rename(&names[0], &names[1]).unwrap();
                        std::fs::rename(&names[1], &names[0]).unwrap();
                    }
                });
            }
            let once = || rustix::fs::openat2(&root, ladder, flags, Mode::empty(), ResolveFlags::IN_ROOT);
            let disturbed = (0..10_000).filter(|_| once().is_err_and(|e| e == Errno::AGAIN)).count();
            for _ in 0..20 {
                let begun = Instant::now();
                match openat2(&root, OsStr::new(ladder), flags, ResolveFlags::IN_ROOT) {
                    Err(Errno::AGAIN) => {}
                    opened => drop(opened.unwrap()),
                }
                assert!(begun.elapsed() < 20 * PATIENCE, "{:?}", begun.elapsed());
            }
            end.store(true, Ordering::Relaxed);
            disturbed
        });
        eprintln!("{disturbed} of 10000 lookups were disturbed");
        assert!(disturbed > 0);
        assert!(openat2(&root, OsStr::new(ladder), flags, ResolveFlags::IN_ROOT).is_ok());
    }
}

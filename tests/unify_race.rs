//! Guests write to their files while the host unifies them: no guest sees another one's bytes, and a write that was
//! acknowledged stays, but for those whose `open(2)` was under way while the name changed.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::support::farm::Farm;
use crate::support::{FILESYSTEMS, inode};

/// Files that each guest has in a round.
const FILES: usize = 50;

/// Rounds of [`FILES`] files each.
fn rounds() -> usize {
    std::env::var("COW_TESTS_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(20)
}

/// Of so many opened files, one is written to: most stay equal long enough to be linked.
const SELDOM: u64 = 4001;

/// A writer of a guest: opens its own files again and again, and seldom writes its mark.
fn write_until(
    stop: &AtomicBool,
    files: &[PathBuf],
    mark: u8,
    acknowledged: &[AtomicBool],
    opened: &AtomicU64,
) {
    let mut at = usize::from(mark);
    while !stop.load(Ordering::Relaxed) {
        at = (at * 31 + 7) % 65_537;
        let at = at % files.len();
        // Refused once the file is shared and immutable: the guest would need a private copy first.
        let Ok(file) = fs::OpenOptions::new().read(true).write(true).open(&files[at]) else { continue };
        let turn = opened.fetch_add(1, Ordering::Relaxed);
        if turn.is_multiple_of(SELDOM) && file.write_at(&[mark], 0).is_ok() {
            acknowledged[at].store(true, Ordering::SeqCst);
        }
    }
}

/// Stops the writers when it is dropped.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn raced(kind: &str) {
    let farm = Farm::new(kind);
    let (mut linked, mut lost, opened) = (0, 0, AtomicU64::new(0));
    for round in 0..rounds() {
        let mut pairs = Vec::new();
        for number in 0..FILES {
            let content = format!("-round {round} file {number}\n").repeat(40);
            pairs.push(farm.both(&format!("usr/lib/{}/file-{number}", round % 3), content));
        }
        let original: Vec<Vec<u8>> = pairs.iter().map(|(a, _)| fs::read(a).unwrap()).collect();
        let [first, second]: [Vec<PathBuf>; 2] = [
            pairs.iter().map(|pair| pair.0.clone()).collect(),
            pairs.iter().map(|pair| pair.1.clone()).collect(),
        ];
        let written: [Vec<AtomicBool>; 2] =
            std::array::from_fn(|_| (0..FILES).map(|_| AtomicBool::new(false)).collect());
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| write_until(&stop, &first, b'1', &written[0], &opened));
            scope.spawn(|| write_until(&stop, &second, b'2', &written[1], &opened));
            // The writers end, also if this fails.
            let _stop = Stop(&stop);
            for _ in 0..3 {
                farm.unify(&[]);
            }
        });
        for (guest, (files, mark)) in [(first, b'1'), (second, b'2')].into_iter().enumerate() {
            for (at, path) in files.iter().enumerate() {
                let when = format!("{kind}, round {round}: {}", path.display());
                let now = fs::read(path).unwrap();
                assert!(now[1..] == original[at][1..], "{when}: damaged");
                // Its own mark, or nobody's: with the other one's mark two files are equal only if both wrote it.
                assert!(now[0] == b'-' || now[0] == mark, "{when}: {:?} is another guest's", now[0] as char);
                let shared = inode(path).nlink > 1;
                linked += usize::from(shared);
                lost += usize::from(written[guest][at].load(Ordering::SeqCst) && now[0] != mark);
            }
        }
        for (a, b) in &pairs {
            for path in [a, b] {
                if inode(path).immutable {
                    crate::support::set_immutable(path, false);
                }
                fs::remove_file(path).unwrap();
            }
        }
        for object in farm.objects() {
            crate::support::set_immutable(&farm.path(".cow-pool/objects").join(object), true);
        }
    }
    let files = rounds() * FILES * 2;
    eprintln!(
        "{kind}: {files} files, {linked} linked, {opened:?} opened for writing, {lost} acknowledged writes lost"
    );
    assert!(linked > 0, "{kind}: nothing was linked, so nothing was shown");
    assert!(lost * 1000 <= files, "{kind}: {lost} of {files} files lost a write");
    farm.assert_tidy();
}

#[test]
#[ignore = "needs root"]
fn privileged_writers_race_with_unifying_on_ext4() {
    raced(FILESYSTEMS[0]);
}

#[test]
#[ignore = "needs root"]
fn privileged_writers_race_with_unifying_on_xfs() {
    raced(FILESYSTEMS[1]);
}

#[test]
#[ignore = "needs root"]
fn privileged_writers_race_with_unifying_on_btrfs() {
    raced(FILESYSTEMS[2]);
}

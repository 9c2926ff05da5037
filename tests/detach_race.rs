//! Detaching while somebody else changes the same names: what they made of a name stays.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::detach::assert_pool_whole;
use crate::support::{Guests, entries, feed, files, inode, removal, set_immutable, text};

/// What somebody else makes of a name in the very moment.
#[derive(Clone, Copy, Debug)]
enum Rival {
    Replaces,
    Removes,
    PutsALink,
    PutsAnImmutableFile,
}

/// Tries to change each of the names, which succeeds as soon as it is not protected, until told to stop.
fn compete(rival: Rival, guests: &Guests, count: usize, over: &AtomicBool) -> Vec<bool> {
    let dir = guests.first().join("usr/bin");
    let prepared = guests.first().join("prepared");
    let mut changed = vec![false; count];
    let mut last = false;
    loop {
        for (number, changed) in changed.iter_mut().enumerate().filter(|(_, changed)| !**changed) {
            let (from, to) = (prepared.join(number.to_string()), dir.join(format!("file-{}", number * 2)));
            *changed = match rival {
                Rival::Removes => fs::remove_file(&to),
                Rival::PutsAnImmutableFile => fs::rename(&from, &to).inspect(|()| {
                    // As long as it takes to start chattr.
                    std::thread::sleep(std::time::Duration::from_millis(1));
                    set_immutable(&to, true);
                }),
                Rival::Replaces | Rival::PutsALink => fs::rename(&from, &to),
            }
            .is_ok();
        }
        if last {
            return changed;
        }
        last = over.load(Ordering::Relaxed);
    }
}

/// How many names somebody else has changed, and how many of these changes were lost.
fn race(kind: &str, rival: Rival, protected: bool, hook: bool) -> (usize, usize) {
    const COUNT: usize = 60;
    let guests = Guests::new(kind, 2 * COUNT, protected);
    let own = guests.write("etc/own", "the administrator's");
    fs::set_permissions(&own, fs::Permissions::from_mode(0o640)).unwrap();
    set_immutable(&own, true);
    let own_before = inode(&own);
    for number in 0..COUNT {
        let path = guests.first().join("prepared").join(number.to_string());
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        match rival {
            Rival::PutsALink => symlink("../../etc/own", path).unwrap(),
            _ => fs::write(path, format!("rival's {number}")).unwrap(),
        }
    }
    guests.own("pkg", &(0..COUNT).map(|n| format!("/usr/bin/file-{}", 2 * n)).collect::<Vec<_>>());
    let before = files(&guests.pool());
    let over = AtomicBool::new(false);
    let (changed, output) = std::thread::scope(|scope| {
        let rivals = scope.spawn(|| compete(rival, &guests, COUNT, &over));
        let output = if hook {
            feed(guests.program("cow-dpkg").arg("apt-pre"), removal("pkg").as_bytes())
        } else {
            guests.prepare(&["/usr/bin"])
        };
        over.store(true, Ordering::Relaxed);
        (rivals.join().unwrap(), output)
    });
    let what = format!("{kind} {rival:?} protected={protected} hook={hook}: {}", text(&output));
    assert!(output.status.code().is_some_and(|code| code != 3), "{what}");
    let (mut count, mut lost) = (0, 0);
    for (number, changed) in changed.into_iter().enumerate() {
        let path = guests.first().join(format!("usr/bin/file-{}", number * 2));
        count += usize::from(changed);
        let theirs = match rival {
            Rival::Removes => fs::symlink_metadata(&path).is_err(),
            Rival::PutsALink => fs::read_link(&path).is_ok(),
            Rival::Replaces | Rival::PutsAnImmutableFile => {
                fs::read(&path).is_ok_and(|content| content == format!("rival's {number}").as_bytes())
            }
        };
        // The kernel has no rename that asks which file it replaces: theirs came between the look and the rename.
        if changed && !theirs {
            lost += 1;
            let name = Path::new(path.file_name().unwrap());
            let pool = guests.pool().join(format!("usr%bin%{}", name.display()));
            assert_eq!(fs::read(&path).unwrap(), fs::read(pool).unwrap(), "{what}: {}", path.display());
            continue;
        }
        assert_eq!(theirs, changed, "{what}: {}", path.display());
        if theirs && matches!(rival, Rival::PutsAnImmutableFile) {
            assert!(inode(&path).immutable, "{what}");
        }
    }
    assert_eq!(inode(&own), own_before, "{what}");
    assert_pool_whole(&guests, &before);
    let beside = entries(&guests.first()).into_keys().find(|path| path.to_string_lossy().contains(".cow-"));
    assert_eq!(beside, None, "{what}");
    (count, lost)
}

#[test]
#[ignore = "needs root"]
fn privileged_a_name_that_is_given_away_meanwhile_stays_given_away() {
    let (mut changed, mut lost) = (0, 0);
    for kind in ["ext4", "xfs"] {
        for rival in [Rival::Replaces, Rival::Removes, Rival::PutsALink, Rival::PutsAnImmutableFile] {
            for (protected, hook) in [(true, false), (true, true), (false, false), (false, true)] {
                let raced = race(kind, rival, protected, hook);
                println!("{kind} {rival:?} protected={protected} hook={hook}: {raced:?}");
                changed += raced.0;
                lost += raced.1;
            }
        }
    }
    println!("{lost} of {changed} lost");
    // As many as a process is interrupted between two system calls, with a rival that never rests.
    assert!(changed > 200 && lost * 5 <= changed, "{lost} of {changed} lost");
}

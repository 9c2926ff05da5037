//! cow-unify killed before any system call that changes something: no name is missing, and the next run ends what was
//! begun.

use std::cell::Cell;
use std::fs;
use std::path::PathBuf;

use cow_hooks::sys::file::inode::Kind;

use crate::support::farm::Farm;
use crate::support::strace::{beyond, killed_at_each, traced};
use crate::support::{FILESYSTEMS, entries, inode, same_inode, set_immutable, text};
use crate::unify::visible;

/// Pairs of equal files a run is about.
const PAIRS: usize = 24;

struct Round {
    pairs: Vec<(PathBuf, PathBuf)>,
    visible: [Vec<String>; 2],
}

/// New files in both guests: small ones, one with two names, one equal to what the pool has.
fn round(farm: &Farm, number: usize) -> Round {
    let mut pairs = vec![farm.both("usr/lib/again", "the same in each round")];
    for pair in 0..PAIRS {
        let content = format!("{number} {pair}\n").repeat(50);
        pairs.push(farm.both(&format!("usr/lib/dir{}/file-{pair}", pair % 5), content));
    }
    for guest in ["g1", "g2"] {
        let link = farm.path(&format!("{guest}/usr/lib/second-name"));
        let _ = fs::remove_file(&link);
        fs::hard_link(farm.path(&format!("{guest}/usr/lib/dir0/file-0")), &link).unwrap();
    }
    pairs.push((farm.path("g1/usr/lib/second-name"), farm.path("g2/usr/lib/second-name")));
    // What has only just changed is left for the next run.
    std::thread::sleep(std::time::Duration::from_millis(30));
    Round { pairs, visible: look(farm) }
}

fn look(farm: &Farm) -> [Vec<String>; 2] {
    ["g1", "g2"].map(|guest| visible(&farm.path(guest)))
}

/// Takes all names out of the guests, for the next round to write them anew.
fn clear(farm: &Farm) {
    protect_objects(farm, false);
    for guest in ["g1", "g2"] {
        fs::remove_dir_all(farm.path(&format!("{guest}/usr/lib"))).unwrap();
    }
    protect_objects(farm, true);
}

fn protect_objects(farm: &Farm, protected: bool) {
    for path in farm.objects() {
        set_immutable(&farm.path(".cow-pool/objects").join(path), protected);
    }
}

fn killed_everywhere(kind: &str) {
    let farm = Farm::new(kind);
    let command = farm.command(&["--scope", "all", "g1", "g2"]);
    let number = Cell::new(0);
    let new_round = || round(&farm, number.replace(number.get() + 1));
    let [first, later] = [(), ()].map(|()| {
        new_round();
        let (calls, _) = traced(&command, b"", None);
        clear(&farm);
        calls
    });
    let killed_at = |call: &str, nth: usize| {
        let when = format!("{kind}, killed at {call} {nth}");
        let round = new_round();
        let run = traced(&command, b"", Some((call, nth)));
        // Protection and directories' times are the next run's to restore.
        let names = |visible: &[Vec<String>; 2]| -> Vec<String> {
            visible.iter().flatten().filter(|line| line.contains(" Regular ")).cloned().collect()
        };
        assert!(names(&round.visible) == names(&look(&farm)), "{when}: something is lost");
        let output = farm.command(&["--scope", "all", "g1", "g2"]).output().unwrap();
        assert!(output.status.success(), "{when}: {}", text(&output));
        assert!(names(&round.visible) == names(&look(&farm)), "{when}: something is lost afterwards");
        for (a, b) in &round.pairs {
            assert!(same_inode(a, b), "{when}: {} is private", a.display());
            assert!(inode(a).immutable, "{when}: {} is not protected", a.display());
        }
        for object in farm.objects() {
            let object = farm.path(".cow-pool/objects").join(object);
            assert!(inode(&object).immutable, "{when}: {} is not protected", object.display());
        }
        farm.assert_tidy();
        clear(&farm);
        run
    };
    let mut killed = killed_at_each(&later, killed_at);
    killed += killed_at_each(&beyond(first, &later), |call, nth| {
        protect_objects(&farm, false);
        fs::remove_dir_all(farm.path(".cow-pool")).unwrap();
        killed_at(call, nth)
    });
    assert!(killed > 30, "only {killed} kills");
    eprintln!("{kind}: {killed} kills");
}

#[test]
#[ignore = "needs root"]
fn privileged_cow_unify_killed_at_any_call_loses_nothing_on_ext4() {
    killed_everywhere(FILESYSTEMS[0]);
}

#[test]
#[ignore = "needs root"]
fn privileged_cow_unify_killed_at_any_call_loses_nothing_on_xfs() {
    killed_everywhere(FILESYSTEMS[1]);
}

#[test]
#[ignore = "needs root"]
fn privileged_cow_unify_killed_at_any_call_loses_nothing_on_btrfs() {
    killed_everywhere(FILESYSTEMS[2]);
}

/// Guests' own files that a killed run has left in its directory.
fn kept(farm: &Farm) -> Vec<PathBuf> {
    let runs = farm.path(".cow-pool/runs");
    let files = entries(&runs).into_keys().map(|path| runs.join(path));
    files.filter(|path| path.extension().is_some_and(|extension| extension == "kept")).collect()
}

#[test]
#[ignore = "needs root"]
fn privileged_what_guests_do_to_the_leftovers_of_a_killed_run_stops_no_other_run() {
    let killed = (3..20).find_map(|nth| {
        let farm = Farm::new("ext4");
        let round = round(&farm, nth);
        let command = farm.command(&["--scope", "all", "--jobs", "1", "g1", "g2"]);
        traced(&command, b"", Some(("renameat", nth)));
        kept(&farm).iter().any(|path| inode(path).nlink == 1).then_some((farm, round))
    });
    let (farm, round) = killed.expect("no run was killed with a guest's file in its directory");
    // Whoever may read a file may hold this lock; root of the guest has the file open, and its capability.
    let locked: Vec<fs::File> = entries(&farm.path("g1"))
        .into_iter()
        .filter(|(_, inode)| inode.kind == Kind::Regular)
        .map(|(path, _)| fs::File::open(farm.path("g1").join(path)).unwrap())
        .collect();
    for file in &locked {
        rustix::fs::flock(file, rustix::fs::FlockOperation::LockShared).unwrap();
    }
    // One that has its name in the guest still would be the administrator's own from now on.
    let mut lost = kept(&farm);
    lost.retain(|path| inode(path).nlink == 1);
    lost.iter().for_each(|path| set_immutable(path, true));
    let output = farm.command(&["--scope", "all", "g1", "g2"]).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    for (a, b) in &round.pairs {
        assert!(same_inode(a, b) && inode(a).immutable, "{}: {}", a.display(), text(&output));
    }
    farm.assert_tidy();
}

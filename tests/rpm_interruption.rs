//! rpm killed at any moment of a transaction of 50 packages: the next run leaves all as if it had not been.

use std::fs;
use std::path::{Path, PathBuf};

use crate::rpm::pair;
use crate::support::pair::{Pair, Scope, support};
use crate::support::{entries, inode, privileged, run, same_inode};
use cow_hooks::sys::inode::Kind;

const MANY: &str = "/root/many";
/// Where the packages have their files.
const TREES: [&str; 1] = ["usr/lib/cow-many"];

fn rounds() -> u64 {
    std::env::var("COW_TESTS_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(10)
}

/// The files of the packages, as paths from a guest's root.
fn files(guest: &Path) -> Vec<PathBuf> {
    let below = |tree: &&str| -> Vec<PathBuf> {
        let found = entries(&guest.join(tree)).into_iter().filter(|(_, inode)| inode.kind == Kind::Regular);
        found.map(|(path, _)| Path::new(tree).join(path)).collect()
    };
    TREES.iter().flat_map(below).collect()
}

/// What a killed rpm leaves beside its files: not ours to remove.
fn remove_litter_of_rpm(guest: &Path) {
    for tree in ["usr/lib/cow-many", "etc/cow-many"] {
        for path in entries(&guest.join(tree)).into_keys() {
            let name = path.to_string_lossy().into_owned();
            if name.rsplit_once(';').is_some_and(|(_, id)| id.len() == 8) {
                fs::remove_file(guest.join(tree).join(path)).unwrap();
            }
        }
    }
}

#[test]
fn privileged_a_killed_rpm_is_ended_by_the_next_run() {
    if !privileged() {
        return;
    }
    let pair = pair(Scope::Owned);
    for guest in ["g1", "g2"] {
        run(support("rpms").arg(pair.path(guest).join(&MANY[1..])).arg("many"));
        run(&mut pair.command_in(guest, &format!("rpm -i {MANY}/*-1.rpm")));
    }
    run(pair.unify(&["--allow-setid"]).args([pair.path("g1"), pair.path("g2")]));
    let names = files(&pair.path("g2"));
    assert_eq!(names.len(), 50 * 7);
    let (again, newer) =
        (format!("rpm -U --force --oldpackage {MANY}/*-1.rpm"), format!("rpm -U {MANY}/*-2.rpm"));
    pair.watch(|| {
        let timed = format!("start=$(date +%s%N); {again} 2>&1; echo $(($(date +%s%N) - start))");
        let whole: f64 = pair.succeed(&timed).lines().last().unwrap().parse().unwrap();
        all_is_shared(&pair, &names, "at first");
        let mut killed = 0;
        for round in 0..rounds() {
            // Spread evenly, in no order.
            let part = (round * 7919 % 1000) as f64 / 1000.0;
            let delay = whole * part / 1e9;
            let line = if round % 2 == 0 { &again } else { &newer };
            // Names of rpm's temporary files hold the second its transaction began in.
            let output = pair.run(&format!(
                "{line} & pid=$!; sleep {delay:.4}; kill -9 $pid; wait $pid; code=$?; sleep 1; exit $code"
            ));
            killed += u64::from(output.status.code() == Some(128 + 9));
            let when = format!("round {round}, killed after {delay:.4} s");
            for name in &names {
                assert!(
                    fs::symlink_metadata(pair.path("g1").join(name)).is_ok(),
                    "{when}: {}",
                    name.display()
                );
            }
            pair.succeed(&again);
            if line == &newer {
                // Where the newer files were settled before the kill, what comes back is new to the pool.
                run(pair.unify(&["--allow-setid"]).args([pair.path("g1"), pair.path("g2")]));
            }
            all_is_shared(&pair, &names, &when);
            remove_litter_of_rpm(&pair.path("g1"));
        }
        println!("killed in {killed} of {} rounds", rounds());
        assert!(killed * 2 > rounds(), "too few were killed: {killed}");
    });
}

fn all_is_shared(pair: &Pair, names: &[PathBuf], when: &str) {
    for name in names {
        let (ours, theirs) = (pair.path("g1").join(name), pair.path("g2").join(name));
        assert!(same_inode(&ours, &theirs) && inode(&theirs).immutable, "{when}: {}", name.display());
    }
    assert_eq!(pair.pending(), (0, 0, 0), "{when}");
}

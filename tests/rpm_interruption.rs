//! rpm killed at any moment of a transaction of 50 packages: the next run leaves all as if it had not been.

use std::fs;
use std::path::{Path, PathBuf};

use crate::rpm::pair;
use crate::support::pair::{Pair, Scope, support};
use crate::support::{entries, inode, run, same_inode, text};
use cow_hooks::sys::file::inode::Kind;

const MANY: &str = "/root/many";
/// Where the packages have their files.
const TREES: [&str; 1] = ["usr/lib/cow-many"];
/// rpm may have ended before it is killed: so often it is tried with less and less time.
const TRIES: u32 = 10;

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

/// A line of rpm's, and the shortest time in which it has come to its end: seconds.
struct Line {
    text: String,
    whole: f64,
}

impl Line {
    /// Runs it, and kills it after so many seconds; tells how many it took where it had ended by itself.
    fn run(&self, pair: &Pair, delay: f64) -> Option<f64> {
        // Names of rpm's temporary files hold the second its transaction began in.
        let output = pair.run(&format!(
            "start=$(date +%s%N); {} & rpm=$!; {{ sleep {delay:.4}; kill -9 $rpm; }} & \
            wait $rpm; code=$?; echo $(($(date +%s%N) - start)); sleep 1; exit $code",
            self.text
        ));
        if output.status.code() == Some(128 + 9) {
            return None;
        }
        assert!(output.status.success(), "{}: {}", self.text, text(&output));
        let stdout = String::from_utf8(output.stdout).unwrap();
        Some(stdout.lines().last().unwrap().parse::<f64>().unwrap() / 1e9)
    }
}

#[test]
#[ignore = "needs root"]
fn privileged_a_killed_rpm_is_ended_by_the_next_run() {
    let pair = pair(Scope::Owned);
    for guest in ["g1", "g2"] {
        run(support("rpms").arg(pair.path(guest).join(&MANY[1..])).arg("many"));
        run(&mut pair.command_in(guest, &format!("rpm -i {MANY}/*-1.rpm")));
    }
    run(pair.unify(&["--allow-setid"]).args([pair.path("g1"), pair.path("g2")]));
    let names = files(&pair.path("g2"));
    assert_eq!(names.len(), 50 * 7);
    let again = format!("rpm -U --force --oldpackage {MANY}/*-1.rpm");
    let newer = format!("rpm -U {MANY}/*-2.rpm");
    // Back to where every line begins.
    let repair = |line: &Line, when: &str| {
        pair.succeed(&again);
        if line.text == newer {
            // Where the newer files were settled before the kill, what comes back is new to the pool.
            run(pair.unify(&["--allow-setid"]).args([pair.path("g1"), pair.path("g2")]));
        }
        all_is_shared(&pair, &names, when);
        remove_litter_of_rpm(&pair.path("g1"));
    };
    pair.watch(|| {
        // Nothing is in the page cache at first: no measure.
        pair.succeed(&again);
        let mut lines = [&again, &newer].map(|text| {
            let line = Line { text: text.clone(), whole: f64::INFINITY };
            let whole = line.run(&pair, f64::INFINITY).unwrap();
            repair(&line, "at first");
            Line { whole, ..line }
        });
        let mut tries = 0;
        for round in 0..rounds() {
            // Spread evenly, in no order.
            let part = (round * 7919 % 1000) as f64 / 1000.0;
            let line = &mut lines[(round % 2) as usize];
            let is_killed = (0..TRIES).any(|_| {
                tries += 1;
                let delay = line.whole * part;
                let ended = line.run(&pair, delay);
                let when = format!("round {round}, killed after {delay:.4} s");
                for name in &names {
                    assert!(
                        fs::symlink_metadata(pair.path("g1").join(name)).is_ok(),
                        "{when}: {}",
                        name.display()
                    );
                }
                repair(line, &when);
                line.whole = line.whole.min(ended.unwrap_or(f64::INFINITY));
                ended.is_none()
            });
            let Line { text, whole } = line;
            assert!(
                is_killed,
                "round {round}: {text} ended before all of {TRIES} kills, once in {whole:.4} s"
            );
        }
        println!("killed in {} rounds, by {tries} tries", rounds());
    });
}

fn all_is_shared(pair: &Pair, names: &[PathBuf], when: &str) {
    for name in names {
        let (ours, theirs) = (pair.path("g1").join(name), pair.path("g2").join(name));
        assert!(same_inode(&ours, &theirs) && inode(&theirs).immutable, "{when}: {}", name.display());
    }
    assert_eq!(pair.pending(), (0, 0, 0), "{when}");
}

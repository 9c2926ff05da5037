//! Random sequences of operations on shared files under cow-run give what they give on private files.
//!
//! `COW_TESTS_SEQUENCES` says how many; 100000 in a while. `COW_TESTS_SEED` is the first one's seed, `COW_TESTS_STEPS`
//! their length. `COW_TESTS_ON=ext4/static` tries one filesystem and build alone, `COW_TESTS_AS_NOBODY=1` makes all
//! calls those of a user, and `COW_TESTS_WITHOUT="places pairs"` leaves out these of what `cowops -x` can, instead of what
//! is known to differ.

use std::collections::BTreeMap;
use std::str::FromStr;

use crate::support::FILESYSTEMS;
use crate::support::cowops::{BUILDS, Field, Root, difference, left_out};

/// What is known to differ, as `run_operations` shows.
const LIMITS: &str = "places children";
/// Trees that one process works on.
const BATCH: u64 = 1000;
/// Sequences that are told when they differ.
const SHOWN: usize = 5;

fn from_environment<T: FromStr>(name: &str, otherwise: T) -> T {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(otherwise)
}

/// The filesystems and builds: all, or one as `ext4/static`.
fn combinations() -> Vec<(&'static str, &'static str)> {
    let all = FILESYSTEMS.into_iter().flat_map(|kind| BUILDS.iter().map(move |build| (kind, *build)));
    let wanted: String = from_environment("COW_TESTS_ON", String::new());
    all.filter(|(kind, build)| wanted.is_empty() || wanted == format!("{kind}/{build}")).collect()
}

/// What was told about each sequence, by its seed.
fn by_seed(told: &str) -> BTreeMap<u64, String> {
    let mut found = BTreeMap::new();
    let mut seed = 0;
    for line in told.lines() {
        if let Some(number) = line.strip_prefix("seed ") {
            seed = number.parse().unwrap();
        }
        let told: &mut String = found.entry(seed).or_default();
        told.push_str(line);
        told.push('\n');
    }
    found
}

/// What is wrong with these sequences, and how many differ.
fn batch(kind: &str, build: &str, first: u64, count: u64, steps: &str) -> (Vec<String>, usize) {
    let options = left_out(LIMITS);
    let mut options: Vec<&str> = options.iter().map(String::as_str).collect();
    if from_environment("COW_TESTS_AS_NOBODY", 0) != 0 {
        options.push("-n");
    }
    let field = Field::new(kind, build);
    let planted = field.plant("all", count as usize, &options);
    // All trees are equal files of one guest.
    field.note_pairs("all", count as usize);
    let (seed, number) = (first.to_string(), count.to_string());
    let arguments: Vec<&str> = options.iter().copied().chain(["random", &seed, steps, &number]).collect();
    let [expected, got] =
        [Root::Reference, Root::Guest].map(|root| field.output(root, "/trees/all", &arguments));
    assert!(
        expected.status.success(),
        "{kind} {build} {seed}: {}",
        String::from_utf8_lossy(&expected.stderr)
    );
    let mut wrong = Vec::new();
    if !got.status.success() || !got.stderr.is_empty() {
        wrong.push(format!("{}: {}", got.status, String::from_utf8_lossy(&got.stderr).trim_end()));
    }
    let [expected, got] = [expected, got].map(|output| by_seed(&String::from_utf8_lossy(&output.stdout)));
    let mut differ = 0;
    for (seed, expected) in &expected {
        let nothing = String::new();
        let got = got.get(seed).unwrap_or(&nothing);
        if expected != got {
            differ += 1;
            if differ <= SHOWN {
                wrong.push(format!(
                    "again: COW_TESTS_SEED={seed} COW_TESTS_SEQUENCES=1 COW_TESTS_ON={kind}/{build} \
                     cargo test --release -- --ignored privileged_random\n{}",
                    difference(expected, got)
                ));
            }
        }
    }
    wrong.extend(field.wrong(&planted, &options));
    wrong.extend(field.litter().into_iter().map(|path| format!("litter: {path:?}")));
    let about = |what| format!("{kind} {build}, seeds from {seed}: {what}");
    (wrong.into_iter().map(about).collect(), differ)
}

#[test]
#[ignore = "needs root"]
fn privileged_random_sequences_give_what_they_give_on_private_files() {
    let (mut next, sequences): (u64, u64) =
        (from_environment("COW_TESTS_SEED", 1), from_environment("COW_TESTS_SEQUENCES", 2000));
    let steps: String = from_environment("COW_TESTS_STEPS", "12".into());
    let combinations = combinations();
    let end = next + sequences;
    let share = sequences.div_ceil(combinations.len() as u64);
    let (mut wrong, mut differ) = (Vec::new(), 0);
    for (kind, build) in combinations {
        let mut left = share.min(end - next);
        while left > 0 {
            let count = left.min(BATCH);
            let found = batch(kind, build, next, count, &steps);
            wrong.extend(found.0);
            differ += found.1;
            next += count;
            left -= count;
        }
    }
    assert!(wrong.is_empty(), "{differ} of {sequences} sequences differ\n{}", wrong.join("\n"));
}

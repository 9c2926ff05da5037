//! What plain `cargo test` leaves out: the tests that need root, by name and attribute, and no other.

use std::fs;
use std::path::{Path, PathBuf};

const NEEDS_ROOT: &str = "#[ignore = \"needs root\"]";

#[test]
fn only_privileged_tests_are_ignored_and_all_of_them() {
    let (mut wrong, mut found) = (String::new(), 0);
    for path in sources() {
        let mut attributes = Vec::new();
        for line in fs::read_to_string(&path).unwrap().lines().map(str::trim) {
            if line.starts_with("#[") {
                attributes.push(line.to_owned());
            } else if let Some(name) = function(line) {
                let is_privileged = name.starts_with("privileged_");
                let ignored: Vec<_> = attributes.drain(..).filter(|line| line.contains("ignore")).collect();
                found += usize::from(is_privileged);
                if ignored != vec![NEEDS_ROOT; usize::from(is_privileged)] {
                    wrong += &format!("{}: {name} is ignored by {ignored:?}\n", path.display());
                }
            } else if !line.starts_with("//") {
                attributes.clear();
            }
        }
    }
    assert_eq!(wrong, "");
    assert!(found > 250, "only {found} privileged tests");
}

/// The name of the function that this line begins.
fn function(line: &str) -> Option<&str> {
    line.strip_prefix("pub ").unwrap_or(line).strip_prefix("fn ")?.split(['(', '<']).next()
}

/// All of our Rust sources.
fn sources() -> Vec<PathBuf> {
    let mut sources = Vec::new();
    let mut directories: Vec<_> =
        ["src", "hooks", "tests"].map(|room| Path::new(env!("CARGO_MANIFEST_DIR")).join(room)).into();
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                sources.push(path);
            }
        }
    }
    sources
}

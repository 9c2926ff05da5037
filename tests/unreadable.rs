//! What the disk does not give back is said with the file's name and the reason.

use std::fs;
use std::os::unix::fs::FileExt;
use std::process::Command;

use crate::support::{FILESYSTEMS, Filesystem, privileged, run, same_inode};
use crate::unify::Farm;

const MARK: &[u8] = b"none of the disk's other blocks begins like this one ";

fn content() -> Vec<u8> {
    MARK.repeat(600)
}

/// Where the content begins on the disk.
fn places(image: &fs::File) -> Vec<u64> {
    let mut places = Vec::new();
    let mut block = [0; 4096];
    for at in (0..image.metadata().unwrap().len()).step_by(block.len()) {
        if image.read_at(&mut block, at).unwrap() == block.len() && block.starts_with(MARK) {
            places.push(at);
        }
    }
    places
}

/// Changes the content on the disk, in the first so many places, so that its checksum is wrong.
fn spoil(farm: Farm, most: usize) -> Farm {
    run(Command::new("sync").arg("-f").arg(farm.filesystem.path()));
    let image = farm.filesystem.into_image();
    let places = places(&image);
    assert!(!places.is_empty());
    for at in places.iter().take(most) {
        image.write_all_at(b"something else", at + 100).unwrap();
    }
    Farm { filesystem: Filesystem::copy_of(&image) }
}

#[test]
fn privileged_a_file_that_cannot_be_read_is_named_with_the_reason() {
    if !privileged() {
        return;
    }
    assert_eq!(FILESYSTEMS[2], "btrfs");
    let farm = Farm::new("btrfs");
    farm.both("usr/bin/bad", content());
    farm.both("usr/bin/good", "good");
    let farm = spoil(farm, 1);
    for words in [&["--scope", "all", "g1", "g2"][..], &["--changed", "--scope", "all", "g1", "g2"]] {
        farm.write("g1/var/lib/cow-hooks/spool/changed", "/usr/bin/bad\0/usr/bin/good\0");
        let (code, said) = farm.refused(words);
        assert_eq!(code, 1, "{said}");
        let bad: Vec<&str> = said.lines().filter(|line| line.contains("usr/bin/bad")).collect();
        assert!(bad.len() == 1 && bad[0].contains("Input/output error"), "{said}");
        assert!(said.contains("1 failed") && said.contains("1 cannot be read"), "{said}");
        assert!(!said.contains("changed while"), "{said}");
        assert!(same_inode(&farm.path("g1/usr/bin/good"), &farm.path("g2/usr/bin/good")), "{said}");
    }
}

#[test]
fn privileged_an_object_that_cannot_be_read_is_named_and_no_guests_file() {
    if !privileged() {
        return;
    }
    let farm = Farm::new("btrfs");
    farm.both("usr/bin/bad", content());
    farm.unify(&[]);
    let farm = spoil(farm, usize::MAX);
    farm.write("g3/usr/bin/bad", content());
    let (code, said) = farm.refused(&["--scope", "all", "g3", "-v"]);
    assert_eq!(code, 1, "{said}");
    let failed: Vec<&str> = said.lines().filter(|line| line.contains("Input/output error")).collect();
    assert_eq!(failed.len(), 1, "{said}");
    assert!(failed[0].contains("/.cow-pool/objects/") && !failed[0].contains("g3"), "{said}");
    assert!(said.contains("g3/usr/bin/bad: left: the pool's file is damaged"), "{said}");
}

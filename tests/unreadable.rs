//! What the disk does not give back is said with the file's name and the reason; and what must not be read by others is
//! not copied to where they could.

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::process::Command;

use crate::support::farm::Farm;
use crate::support::{FILESYSTEMS, Filesystem, inode, run, same_inode, text};

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
#[ignore = "needs root"]
fn privileged_a_file_that_cannot_be_read_is_named_with_the_reason() {
    assert_eq!(FILESYSTEMS[2], "btrfs");
    let farm = Farm::new("btrfs");
    farm.both("usr/bin/bad", content());
    farm.both("usr/bin/good", "good");
    let farm = spoil(farm, 1);
    for words in [&["--scope", "all", "g1", "g2"][..], &["--changed", "--scope", "all", "g1", "g2"]] {
        farm.write("g1/var/lib/cow-hooks/spool/changed", "/usr/bin/bad\0/usr/bin/good\0");
        let said = farm.exits(1, words);
        let bad: Vec<&str> = said.lines().filter(|line| line.contains("usr/bin/bad")).collect();
        assert!(bad.len() == 1 && bad[0].contains("Input/output error"), "{said}");
        assert!(said.contains("1 failed") && said.contains("1 cannot be read"), "{said}");
        assert!(!said.contains("changed while"), "{said}");
        assert!(same_inode(&farm.path("g1/usr/bin/good"), &farm.path("g2/usr/bin/good")), "{said}");
    }
}

#[test]
#[ignore = "needs root"]
fn privileged_an_object_that_cannot_be_read_is_named_and_no_guests_file() {
    let farm = Farm::new("btrfs");
    farm.both("usr/bin/bad", content());
    farm.unify(&[]);
    let farm = spoil(farm, usize::MAX);
    farm.write("g3/usr/bin/bad", content());
    let said = farm.exits(1, &["--scope", "all", "g3", "-v"]);
    let failed: Vec<&str> = said.lines().filter(|line| line.contains("Input/output error")).collect();
    assert_eq!(failed.len(), 1, "{said}");
    assert!(failed[0].contains("/.cow-pool/objects/") && !failed[0].contains("g3"), "{said}");
    assert!(
        said.contains("g3/usr/bin/bad: left as it is: equal to an object of the pool that is damaged"),
        "{said}"
    );
}

/// Gives a key to a filesystem, and encrypts an empty directory with it.
const ENCRYPT: &str = r#"
import fcntl, os, struct, sys
fd = os.open(sys.argv[1], os.O_RDONLY)
key = bytearray(struct.pack("=II32sII32s", 2, 0, b"", 64, 0, b"") + bytes(range(64)))
fcntl.ioctl(fd, 0xC0506617, key)
fcntl.ioctl(fd, 0x800C6613, struct.pack("=BBBBB3s16s", 2, 1, 4, 3, 0, b"", bytes(key[8:24])))
"#;

#[test]
#[ignore = "needs root"]
fn privileged_no_copy_of_an_encrypted_file_is_made_in_a_pool_that_is_not() {
    let image = Filesystem::new("ext4", 64).into_image();
    let device = format!("/proc/{}/fd/{}", std::process::id(), image.as_raw_fd());
    run(Command::new("tune2fs").args(["-O", "encrypt"]).arg(device));
    let farm = Farm { filesystem: Filesystem::copy_of(&image) };
    for guest in ["e1", "e2"] {
        fs::create_dir(farm.path(guest)).unwrap();
        let output = Command::new("python3").args(["-c", ENCRYPT]).arg(farm.path(guest)).output().unwrap();
        assert!(output.status.success(), "does this kernel encrypt files? {}", text(&output));
        farm.write(&format!("{guest}/usr/bin/secret"), content());
        fs::hard_link(
            farm.path(&format!("{guest}/usr/bin/secret")),
            farm.path(&format!("{guest}/usr/bin/too")),
        )
        .unwrap();
    }
    let (a, b) = farm.both("usr/bin/tool", "equal");
    for words in
        [&["--scope", "all", "e1", "e2", "g1", "g2", "-v"][..], &["--scope", "all", "-n", "e1", "e2"]]
    {
        let said = farm.exits(0, words);
        assert!(said.contains("4 in a directory that is encrypted in another way than the pool"), "{said}");
    }
    assert!(same_inode(&a, &b) && inode(&farm.path("e1/usr/bin/secret")).nlink == 2);
    assert_eq!(farm.objects().len(), 1);
    // A pool of the same key will do.
    fs::create_dir(farm.path("pools")).unwrap();
    run(Command::new("python3").args(["-c", ENCRYPT]).arg(farm.path("pools")));
    let (code, said) = farm.ran(&["--scope", "all", "--pool", "pools/pool", "e1", "e2"]);
    assert!(code == 0 && said.contains(" 4 linked"), "{said}");
    assert!(same_inode(&farm.path("e1/usr/bin/secret"), &farm.path("e2/usr/bin/too")), "{said}");
    run(Command::new("sync").arg("-f").arg(farm.filesystem.path()));
    assert_eq!(places(&farm.filesystem.into_image()), Vec::<u64>::new(), "it is readable on the disk");
}

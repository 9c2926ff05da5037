//! Files that no package owns, and what the packages `cow-anywhere` make of them.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

const DIR: &str = "opt/anywhere";

/// Makes the files, alike in every guest.
pub fn make(guest: &Path) {
    let dir = guest.join(DIR);
    fs::create_dir_all(&dir).unwrap();
    for name in [
        "appended",
        "mode",
        "owner",
        "times",
        "truncated",
        "overwritten",
        "edited",
        "copied",
        "moved",
        "linked",
        "removed",
        "replaced",
    ] {
        let file = dir.join(name);
        fs::write(&file, format!("old {name}\n")).unwrap();
        fs::File::open(&file).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
    }
}

/// What is replaced by a file of the guest's own; to be called before the package is installed.
pub fn add_private(guest: &Path) {
    fs::write(guest.join(DIR).join("private"), "new\n").unwrap();
}

/// Asserts that the packages' scripts have changed what they should.
pub fn assert_changed(guest: &Path) {
    let dir = guest.join(DIR);
    let content = |name: &str| fs::read_to_string(dir.join(name)).unwrap();
    let metadata = |name: &str| fs::symlink_metadata(dir.join(name)).unwrap();
    assert_eq!(content("appended"), "old appended\nmore\n");
    assert_eq!(metadata("mode").permissions().mode() & 0o7777, 0o600);
    assert_eq!((metadata("owner").uid(), metadata("owner").gid()), (1, 1));
    assert_eq!(metadata("times").mtime(), 1);
    assert_eq!(content("truncated"), "");
    assert_eq!(content("overwritten"), "new overwritten\n");
    assert_eq!(content("edited"), "new edited\n");
    assert_eq!(content("copied"), "old appended\nmore\n");
    assert_eq!(content("moved-away"), "old moved\n");
    assert_eq!(metadata("link").ino(), metadata("linked").ino());
    assert_eq!(content("replaced"), "new\n");
    assert!(
        fs::symlink_metadata(dir.join("removed")).is_err()
            && fs::symlink_metadata(dir.join("moved")).is_err()
    );
}

//! A shared inode that has as many names as it can have: guests do not notice.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::support::bed::Bed;
use crate::support::tiny::{Package, Tiny};
use crate::support::{inode, same_inode, set_immutable, text};

/// As many names as ext4 allows.
const MOST: u64 = 65_000;

/// Gives a protected file all the names it can have, the new ones in the directory `dir`.
fn fill(file: &Path, dir: &Path) {
    set_immutable(file, false);
    fs::create_dir_all(dir).unwrap();
    let names = fs::symlink_metadata(file).unwrap().nlink();
    (names..MOST).for_each(|number| fs::hard_link(file, dir.join(number.to_string())).unwrap());
    set_immutable(file, true);
    assert_eq!(fs::symlink_metadata(file).unwrap().nlink(), MOST);
}

#[test]
#[ignore = "needs root"]
fn privileged_another_name_for_a_full_inode_is_one_of_a_private_file() {
    let bed = Bed::new(3);
    for number in 0..3 {
        let name = format!("f00{number}");
        fill(&bed.second(&name), &bed.filesystem.path().join(format!("many{number}")));
    }
    for (number, line) in
        ["ln f000 new", "cp -l f001 new1 && rm f001", "exec 7<f002; ln -L /proc/self/fd/7 new2"]
            .iter()
            .enumerate()
    {
        let output = bed.script(line);
        assert!(output.status.success(), "{line}: {}", text(&output));
        let object = inode(&bed.second(format!("f00{number}")));
        assert!(object.immutable && u64::from(object.nlink) == MOST - 1, "{line}: {object:?}");
    }
    assert!(same_inode(&bed.first("f000"), &bed.first("new")));
    assert_eq!(inode(&bed.first("new")).nlink, 2);
    assert_eq!(fs::read_to_string(bed.first("new1")).unwrap(), "content of 1\n");
    bed.assert_over();
    bed.assert_clean();
}

#[test]
#[ignore = "needs root"]
fn privileged_dpkg_replaces_a_file_that_can_have_no_more_names() {
    const NAME: &str = "opt/full/file";
    for way in ["supervise = 'always'\n", "supervise = 'never'\n"] {
        let tiny = Tiny::new();
        tiny.policy(way);
        let make = |version, content: &str| {
            let files: [(&[&str], &str); 1] = [(&[NAME], content)];
            tiny.deb(version, Package { name: "full", files: &files, postinst: None })
        };
        let [one, again, two] = [make(1, "x\n"), make(2, "x\n"), make(3, "y\n")];
        tiny.both(&format!("dpkg -i {one}"));
        tiny.unify(&[]);
        assert!(tiny.shared(NAME));
        fill(&tiny.path("g2").join(NAME), &tiny.path("many"));
        for (deb, content) in [(again, "x\n"), (two, "y\n")] {
            let output = tiny.succeed(&format!("dpkg -i {deb}"));
            assert_eq!(tiny.left(), (0, 0), "{output}");
            assert_eq!(tiny.read(&format!("g1/{NAME}")), content);
            assert_eq!(tiny.read(&format!("g2/{NAME}")), "x\n");
        }
        let object = inode(&tiny.path("g2").join(NAME));
        assert!(object.immutable && u64::from(object.nlink) == MOST - 1, "{object:?}");
        assert!(tiny.succeed("dpkg -P full && cow-prepare --recover").contains("nothing to recover"));
    }
}

//! The running system is unified only when it is asked for by name, and then can be undone. Here it is a small tree
//! that a program has as its root.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use crate::support::farm::Farm;
use crate::support::{
    assert_same, chroot, inode, install_libraries, picture, program, run, same_inode, text,
};

const UNIFY: &str = env!("CARGO_BIN_EXE_cow-unify");

/// A system with two equal files, which holds a guest that has them as well.
fn system(top: &str) -> Farm {
    let farm = Farm::new("ext4");
    for guest in ["", "srv/guest"] {
        for name in ["usr/bin/a", "usr/share/b"] {
            farm.write(&format!("{top}/{guest}/{name}"), format!("content of {name}"));
        }
    }
    let root = farm.path(top);
    for dir in ["proc", "var/lib", "sbin", "mnt"] {
        fs::create_dir_all(root.join(dir)).unwrap();
    }
    for program in [UNIFY, program("cow-prepare")] {
        fs::copy(program, root.join("sbin").join(Path::new(program).file_name().unwrap())).unwrap();
        install_libraries(&root, Path::new(program));
    }
    run(Command::new("mount").args(["-t", "proc", "proc"]).arg(root.join("proc")));
    std::thread::sleep(std::time::Duration::from_millis(30));
    farm
}

fn ran(root: &Path, code: i32, program: &str, words: &[&str]) -> String {
    // What has only just changed is left for the next run.
    std::thread::sleep(std::time::Duration::from_millis(30));
    let output = chroot(&[], root, &format!("sbin/{program}")).args(words).output().unwrap();
    assert_eq!(output.status.code(), Some(code), "{words:?}: {}", text(&output));
    text(&output)
}

#[test]
#[ignore = "needs root"]
fn privileged_the_running_system_is_refused_whatever_it_is_called() {
    let farm = system("system");
    let root = farm.path("system");
    // The whole filesystem is seen in the system, and the system in it, under another name.
    run(Command::new("mount").args(["--bind"]).arg(&root).arg(&root));
    run(Command::new("mount").args(["-t", "proc", "proc"]).arg(root.join("proc")));
    fs::create_dir(root.join("mnt/again")).unwrap();
    fs::create_dir(root.join("mnt/above")).unwrap();
    run(Command::new("mount").args(["--bind"]).arg(&root).arg(root.join("mnt/again")));
    run(Command::new("mount").args(["--bind"]).arg(farm.filesystem.path()).arg(root.join("mnt/above")));
    symlink("/", root.join("srv/host")).unwrap();
    let before = picture(&root.join("usr"));
    for guest in ["/", "/srv/..", "/srv/host", "/mnt/again", "/mnt/above", "/mnt/above/system", "/usr"] {
        for more in [&[][..], &["--changed"], &["-n"]] {
            let words = [&["--scope", "all", "/srv/guest", guest], more].concat();
            let said = ran(&root, 3, "cow-unify", &words);
            assert!(said.contains("contains the running system"), "{guest}: {said}");
            assert!(said.contains("--unify-running-system"), "{guest}: {said}");
        }
        assert!(!root.join(".cow-pool").exists() && !root.join("srv/.cow-pool").exists(), "{guest}");
    }
    assert_same(&before, &picture(&root.join("usr")), "refused");
    // A guest that only lies in it is one.
    ran(&root, 0, "cow-unify", &["--scope", "all", "/srv/guest"]);
    run(Command::new("umount").args(["--recursive", "--lazy"]).arg(&root));
}

#[test]
#[ignore = "needs root"]
fn privileged_a_running_system_that_was_asked_for_can_be_undone() {
    let farm = system(".");
    let root = farm.filesystem.path();
    let (a, b) = (root.join("usr/bin/a"), root.join("usr/share/b"));
    let others = ["usr/bin/a", "usr/share/b"].map(|name| root.join("srv/guest").join(name));
    let equal = farm.write("usr/share/c", "content of usr/bin/a");
    let before = picture(&root.join("usr"));
    ran(root, 0, "cow-unify", &["--scope", "all", "--unify-running-system", "/", "/srv/guest"]);
    assert!(same_inode(&a, &equal) && same_inode(&a, &others[0]) && inode(&a).immutable);
    // One file.
    let said = ran(root, 0, "cow-prepare", &["-v", "/usr/bin/a"]);
    assert!(!inode(&a).immutable && inode(&a).nlink == 1, "{said}");
    assert!(inode(&others[0]).nlink > 1 && inode(&others[0]).immutable);

    // All.
    let said = ran(root, 0, "cow-unify", &["detach", "/"]);
    for path in [&a, &b, &equal] {
        assert_eq!((inode(path).nlink, inode(path).immutable), (1, false), "{said}");
    }
    let content =
        |top: &Path| crate::support::files(top).into_values().map(|file| file.content).collect::<Vec<_>>();
    assert_eq!(before.len(), picture(&root.join("usr")).len());
    assert!(content(&root.join("usr")).contains(&b"content of usr/share/b".to_vec()));
    for other in &others {
        assert!(inode(other).nlink > 1 && inode(other).immutable, "{said}");
    }
    assert!(ran(root, 0, "cow-unify", &["detach", "/", "--pool", "/.cow-pool"]).contains(" 0 made private"));
    assert!(!root.join("var/lib/cow-hooks/pool.toml").exists());
    run(Command::new("umount").arg(root.join("proc")));
}

//! Inode flags and projects are part of what a file is; what stands in the way of many files is said once.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use cow_hooks::sys::file::inode::Time;
use cow_hooks::sys::file::traits::Traits;

use crate::support::farm::Farm;
use crate::support::{inode, run, same_inode, seen, set_mtime, text};

fn traits(path: &Path) -> Traits {
    Traits::of(fs::File::open(path).unwrap()).unwrap()
}

fn chattr(path: &Path, words: &[&str]) {
    run(Command::new("chattr").args(words).arg(path));
}

/// Makes a file that has a flag before it has content.
fn flagged(farm: &Farm, path: &str, flag: Option<&str>, content: &[u8]) -> PathBuf {
    let path = farm.write(path, "");
    flag.iter().for_each(|flag| chattr(&path, &[flag]));
    fs::write(&path, content).unwrap();
    set_mtime(&path, Time { secs: 1_600_000_000, nanos: 5 });
    path
}

#[test]
#[ignore = "needs root"]
fn privileged_files_of_equal_flags_become_one_with_them_and_others_stay_apart() {
    let kinds: [(&str, &[&str]); 3] = [
        ("ext4", &["+d", "+A", "+S", "+s", "+u", "+c"]),
        ("xfs", &["+d", "+A", "+S"]),
        ("btrfs", &["+d", "+A", "+S", "+C", "+c"]),
    ];
    for (kind, flags) in kinds {
        let farm = Farm::new(kind);
        let mut equal = Vec::new();
        let mut apart = Vec::new();
        for flag in flags {
            let make = |guest: &str, name: &str, flag| {
                flagged(
                    &farm,
                    &format!("{guest}/usr/{name}"),
                    flag,
                    format!("{name}\n").repeat(3000).as_bytes(),
                )
            };
            let (same, other) = (format!("same{flag}"), format!("other{flag}"));
            equal.push((*flag, ["g1", "g2"].map(|guest| make(guest, &same, Some(flag)))));
            apart.push((*flag, [make("g1", &other, Some(flag)), make("g2", &other, None)]));
        }
        let before: Vec<_> = equal.iter().map(|(_, [a, _])| traits(a)).collect();
        let report = farm.unify(&[]);
        assert_eq!(report["linked"], 2 * flags.len(), "{kind}: {report}");
        for ((flag, [a, b]), before) in equal.iter().zip(before) {
            assert!(same_inode(a, b), "{kind} {flag}");
            assert!(traits(a) == before && before.number() != 0, "{kind} {flag}: {:?} {before:?}", traits(a));
        }
        for (flag, [a, b]) in &apart {
            assert!(!same_inode(a, b) && traits(a) != traits(b), "{kind} {flag}");
        }
        let verify = farm.command(&["verify", "g1", "g2"]).output().unwrap();
        assert!(verify.status.success(), "{kind}: {}", text(&verify));
        // A private copy has them, too.
        let detach = farm.command(&["detach", "g1"]).output().unwrap();
        assert!(detach.status.success(), "{kind}: {}", text(&detach));
        for (flag, [a, b]) in &equal {
            assert!(!same_inode(a, b) && traits(a) == traits(b), "{kind} {flag}");
        }
    }
}

#[test]
#[ignore = "needs root"]
fn privileged_files_of_other_projects_are_neither_copied_nor_complained_of() {
    let farm = Farm::new("xfs");
    let (a, b) = farm.both("usr/bin/tool", "equal");
    for number in 0..30 {
        farm.write(&format!("g1/usr/other/{number}"), format!("other {number}"));
        farm.write(&format!("g1/opt/{number}"), format!("same {number}"));
    }
    // As a tool for quotas does it: directories that hand their project on, before there are files in them.
    for (dir, project) in [("g2/usr/other", "42"), ("g2/opt", "7"), ("g2/usr/mixed", "9")] {
        fs::create_dir_all(farm.path(dir)).unwrap();
        if project == "9" {
            farm.both("usr/mixed/before", "mixed");
        }
        chattr(&farm.path(dir), &["-p", project, "+P"]);
    }
    run(Command::new("chattr").args(["-R", "-p", "7"]).arg(farm.path("g1/opt")));
    let mut pairs = Vec::new();
    for number in 0..30 {
        farm.write(&format!("g2/usr/other/{number}"), format!("other {number}"));
        let same = farm.write(&format!("g2/opt/{number}"), format!("same {number}"));
        pairs.push((farm.path(&format!("g1/opt/{number}")), same));
    }
    let report = farm.unify(&[]);
    assert_eq!((&report["linked"], &report["objects"]), (&62.into(), &31.into()), "{report}");
    assert_eq!(report["left"]["project"], 1, "{report}");
    assert!(same_inode(&a, &b));
    for (a, b) in &pairs {
        assert!(same_inode(a, b) && traits(a).project == 7, "{}", a.display());
    }
    assert_eq!(traits(&farm.path("g2/usr/other/3")).project, 42);
    assert_eq!(farm.unify(&[])["linked"], 0);
    farm.assert_tidy();
    // A pool that hands on a project of its own.
    let farm = Farm::new("xfs");
    chattr(farm.filesystem.path(), &["-p", "5", "+P"]);
    farm.both("usr/bin/tool", "equal");
    let report = farm.unify(&[]);
    assert_eq!((&report["linked"], &report["objects"]), (&0.into(), &0.into()), "{report}");
    assert_eq!(report["left"]["project"], 2, "{report}");
}

#[test]
#[ignore = "needs root"]
fn privileged_files_without_copy_on_write_share_blocks_with_their_like() {
    let farm = Farm::new("btrfs");
    let content = vec![5; 300_000];
    let cow = ["g1", "g2"].map(|guest| flagged(&farm, &format!("{guest}/usr/cow"), None, &content));
    let nocow = ["g1", "g2"].map(|guest| flagged(&farm, &format!("{guest}/usr/nocow"), Some("+C"), &content));
    run(Command::new("sync").arg("-f").arg(farm.filesystem.path()));
    let report = farm.unify(&["--share", "reflink"]);
    assert_eq!((&report["linked"], &report["objects"]), (&4.into(), &2.into()), "{report}");
    for path in cow.iter().chain(&nocow) {
        assert!(
            text(&run(Command::new("filefrag").arg("-v").arg(path))).contains("shared"),
            "{}",
            path.display()
        );
    }
    assert_eq!(farm.unify(&[])["linked"], 0);
}

#[test]
#[ignore = "needs root"]
fn privileged_one_line_says_why_many_files_are_not_done() {
    let farm = Farm::new("ext4");
    let pairs: Vec<_> = (0..40).map(|n| farm.both(&format!("usr/lib/{n}"), format!("file {n}"))).collect();
    let failing = |more: &[&str]| {
        std::thread::sleep(std::time::Duration::from_millis(30));
        let mut strace = Command::new("strace");
        strace.args(["-f", "-qq", "-o", "/dev/null", "-e", "inject=copy_file_range:error=EIO"]);
        strace.arg(env!("CARGO_BIN_EXE_cow-unify")).args(["--scope", "all", "g1", "g2"]).args(more);
        let output = strace.current_dir(farm.filesystem.path()).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{}", text(&output));
        String::from_utf8(output.stderr).unwrap()
    };
    let said = failing(&[]);
    assert_eq!(said.lines().filter(|line| line.contains("error")).count(), 1, "{said}");
    assert!(said.contains("80 files, such as ") && said.contains("/g1/usr/lib/"), "{said}");
    assert!(said.contains(": Input/output error; use -v to see each file"), "{said}");
    let said = failing(&["-v"]);
    assert!(
        pairs.iter().all(|(a, b)| [a, b].iter().all(|path| said.contains(&format!("{}: ", path.display()))))
    );
    assert!(pairs.iter().all(|(a, _)| inode(a).nlink == 1 && !seen(a).immutable));
    farm.assert_tidy();
}

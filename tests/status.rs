//! `cow-status` as a person calls it.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::prepare::{code, err, out};
use crate::support::{Guests, set_immutable, text};

#[test]
#[ignore = "needs root"]
fn privileged_status_counts_what_there_is() {
    let guests = Guests::new("btrfs", 20, true);
    let first = guests.first();
    set_immutable(&guests.write("etc/own", "own"), true);
    guests.write("etc/linked", "12345");
    fs::hard_link(first.join("etc/linked"), first.join("etc/linked-too")).unwrap();
    fs::hard_link(first.join("etc/linked"), first.join("usr/linked-as-well")).unwrap();
    guests.own("pkg", &["/usr/bin/file-0".into(), "/bin/file-2".into(), "/etc/own".into()]);
    assert_eq!(code(&guests.prepare(&["/usr/bin/file-4"])), 0);
    let status = |arguments: &[&str]| {
        let output = guests.program("cow-status").args(arguments).output().unwrap();
        assert_eq!(code(&output), 0, "{}", text(&output));
        out(&output)
    };
    let json: Value = serde_json::from_str(&status(&["--json"])).unwrap();
    let (mut unified, mut private) = ((0, 0), (0, 0));
    let mut seen = std::collections::HashSet::new();
    for (path, inode) in crate::support::entries(&first) {
        let ours = path.starts_with("var/lib/cow-hooks");
        let own = path == Path::new("etc/own");
        if inode.kind != cow_hooks::sys::file::inode::Kind::Regular || own {
            continue;
        }
        let tally = if inode.immutable { &mut unified } else { &mut private };
        assert!(!(ours && inode.immutable));
        tally.0 += 1;
        tally.1 += if seen.insert(inode.id) { inode.size } else { 0 };
    }
    let tree = &json["trees"][0];
    assert_eq!(unified.0, 19);
    assert_eq!(
        (&tree["unified"]["files"], &tree["unified"]["bytes"]),
        (&unified.0.into(), &unified.1.into())
    );
    assert_eq!(
        (&tree["private"]["files"], &tree["private"]["bytes"]),
        (&private.0.into(), &private.1.into())
    );
    assert_eq!(tree["administrators_own"], 1);
    assert_eq!((&json["guest"]["waiting"], &json["guest"]["last"]["detached"]), (&1.into(), &1.into()));
    let shown = status(&[]);
    assert!(shown.contains("\n  unified        19 files, "), "{shown}");
    assert!(shown.contains("\n  transaction    cow-prepare (settled)\n"), "{shown}");
    assert!(status(&["/usr/bin/.."]).starts_with("/usr\n"));

    for (path, lines) in [
        (
            "/bin/file-0",
            &[
                "/usr/bin/file-0",
                "  verdict        unified (immutable)",
                "  protection     immutable",
                "  package        pkg",
                "  next           made private just before a package manager changes it (copy on write)",
            ][..],
        ),
        ("/usr/bin/file-2", &["  package        pkg"]),
        (
            "/usr/bin/file-4",
            &[
                "  verdict        private",
                "  protection     none",
                "  waiting        for the host to unify it",
                "  next           nothing",
            ],
        ),
        (
            "/usr/bin/file-6",
            &[
                "  package        none",
                "  next           nothing: no package owns it; run `cow-prepare /usr/bin/file-6` before you change it",
            ],
        ),
        (
            "/etc/own",
            &[
                "  verdict        immutable but not shared: protected by the administrator",
                "  next           left as it is: the package manager cannot replace it until you run `chattr -i` on it",
            ],
        ),
        ("/etc/linked", &["  verdict        private (hard links within this guest)"]),
        ("/bin", &["/bin", "  verdict        not a regular file (symbolic link)"]),
    ] {
        let shown = status(&[path]);
        for line in lines {
            assert!(shown.lines().any(|shown| shown == *line), "{path}: {line:?} is not in {shown}");
        }
    }
    let missing = guests.program("cow-status").arg("/etc/missing").output().unwrap();
    assert_eq!(
        (code(&missing), err(&missing).as_str()),
        (1, "cow-status: error: /etc/missing: No such file or directory\n")
    );
    // It changes nothing, and so works where nothing can be changed.
    guests.filesystem.remount("ro");
    let json: Value = serde_json::from_str(&status(&["--json"])).unwrap();
    assert_eq!((&json["guest"]["waiting"], &json["trees"][0]["unified"]["files"]), (&1.into(), &19.into()));
    guests.filesystem.remount("rw");
}

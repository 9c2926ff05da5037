//! `cow-status` as a person calls it.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::prepare::{code, err, out};
use crate::support::{Guests, assert_same, chroot, feed, picture, removal, run, set_immutable, text};

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

/// What `cow-status --check` says of the first guest: its exit code, its lines, and its findings by their subject.
fn checked(guests: &Guests, wrapper: &[&str]) -> (i32, String, Vec<(String, String, String)>) {
    let run = |options: &[&str]| {
        let mut command = chroot(wrapper, &guests.first(), "cow-status");
        command.args(options).output().unwrap()
    };
    let (said, json) = (run(&["--check"]), run(&["--check", "--json"]));
    assert_eq!((code(&said), err(&said).as_str()), (code(&json), ""), "{}", text(&said));
    let told: Value = serde_json::from_str(&out(&json)).unwrap();
    let word = |finding: &Value, key: &str| finding[key].as_str().unwrap_or_default().to_owned();
    let findings = told["findings"].as_array().unwrap().iter();
    let findings = findings
        .filter(|finding| finding["level"] != "ok")
        .inspect(|finding| assert!(out(&said).contains(finding["text"].as_str().unwrap()), "{finding}"))
        .inspect(|finding| {
            assert!(out(&said).contains(&format!("remedy: {}", finding["remedy"].as_str().unwrap())))
        })
        .map(|finding| (word(finding, "level"), word(finding, "subject"), word(finding, "text")))
        .collect();
    (code(&said), out(&said), findings)
}

fn hooked() -> Guests {
    let guests = Guests::new("ext4", 4, true);
    guests.own("pkg", &["/usr/bin/file-0".into(), "/usr/bin/file-2".into()]);
    for path in ["usr/libexec/cow-hooks/cow-dpkg", "etc/dpkg/dpkg.cfg.d/cow-hooks"] {
        guests.write(path, "");
    }
    guests
}

#[test]
#[ignore = "needs root"]
fn privileged_a_check_of_a_guest_that_is_ready_finds_nothing() {
    let guests = hooked();
    let before = picture(&guests.first());
    let (code, said, findings) = checked(&guests, &[]);
    assert_eq!((code, findings.len()), (0, 0), "{said}");
    assert!(said.contains(", in a chroot\n"), "{said}");
    assert!(said.contains("package managers run with copy on write\n"), "{said}");
    assert!(said.ends_with("\ncow-hooks is ready\n"), "{said}");
    assert_same(&before, &picture(&guests.first()), "it changes nothing");
}

#[test]
#[ignore = "needs root"]
fn privileged_a_check_says_refused_if_the_hook_refuses_and_nothing_worse_than_attention_else() {
    let guests = hooked();
    let refused = |wrapper: &[&str]| {
        let output =
            feed(chroot(wrapper, &guests.first(), "cow-dpkg").arg("apt-pre"), removal("pkg").as_bytes());
        (!output.status.success()).then(|| text(&output))
    };
    let without = ["capsh", "--drop=cap_linux_immutable", "--", "-c", "exec \"$@\"", "sh"];
    let (code, said, findings) = checked(&guests, &without);
    let (level, subject, reason) = &findings[0];
    assert_eq!((code, level.as_str(), subject.as_str()), (3, "refused", "runs"), "{said}");
    assert!(said.contains("\nREFUSED: package managers will fail, for one reason"), "{said}");
    let hook = refused(&without).unwrap();
    assert!(hook.contains(reason.split_once(": ").unwrap().1), "{reason} is not in {hook}");
    // The guest notes it, and says so until a run finds that it can.
    assert_eq!(checked(&guests, &[]).2[0].1, "last run");
    assert_eq!(refused(&[]), None);
    assert_eq!(checked(&guests, &[]).0, 0);

    guests.policy("mode = 'of'\n");
    let (code, said, findings) = checked(&guests, &[]);
    assert_eq!((code, findings[0].1.as_str()), (1, "policy"), "{said}");
    assert!(
        findings[0].2.contains("/etc/cow-hooks/cow-hooks.toml") && said.ends_with("1 thing to look at\n"),
        "{said}"
    );
    assert_eq!(refused(&[]), None);
    for (mode, code) in [("warn", 1), ("off", 1), ("enforce", 0)] {
        guests.policy(&format!("mode = '{mode}'\n"));
        assert_eq!(checked(&guests, &[]).0, code, "{mode}");
    }
}

#[test]
#[ignore = "needs root"]
fn privileged_a_check_finds_hooks_that_are_not_called_and_a_host_that_does_not_come() {
    let guests = hooked();
    guests.write("usr/bin/apt-get", "");
    let (status, said, findings) = checked(&guests, &[]);
    assert_eq!((status, findings[0].1.as_str()), (3, "hooks"), "{said}");
    assert!(findings[0].2.starts_with("apt: /etc/apt/apt.conf.d/00cow-hooks is missing"), "{said}");
    for (name, content) in [
        ("00cow-hooks", ""),
        ("30cow-hooks", ""),
        ("00aaa", "DPkg::Pre-Invoke {\"a\"};"),
        ("05etckeeper", "DPkg::Pre-Invoke {\"b\"};"),
        ("20listchanges", "DPkg::Pre-Install-Pkgs {\"c\"};"),
        ("70debconf", "# DPkg::Pre-Invoke\nDPkg::Options {\"d\"};"),
    ] {
        guests.write(&format!("etc/apt/apt.conf.d/{name}"), content);
    }
    let (status, said, _) = checked(&guests, &[]);
    assert_eq!(status, 0, "{said}");
    let others = "of other programs, called by apt: 05etckeeper, 20listchanges; before ours: 00aaa\n";
    assert!(said.contains("called by dpkg, apt\n") && said.contains(others), "{said}");

    assert_eq!(code(&guests.prepare(&["/usr/bin/file-2"])), 0);
    let (code, said, _) = checked(&guests, &[]);
    assert!(code == 0 && said.contains("1 file for the host's cow-unify\n"), "{said}");
    run(Command::new("touch")
        .args(["-d", "3 days ago"])
        .arg(guests.first().join("var/lib/cow-hooks/spool/changed")));
    let (code, said, findings) = checked(&guests, &[]);
    assert_eq!((code, findings[0].1.as_str()), (1, "waiting"), "{said}");
    assert!(findings[0].2.starts_with("1 file, some for 3 days: "), "{said}");
    run(Command::new("touch").arg(guests.first().join("var/lib/cow-hooks/spool/changed")));

    let lock = fs::File::open(guests.first().join("var/lib/cow-hooks/lock")).unwrap();
    lock.lock().unwrap();
    assert_eq!(checked(&guests, &[]).2[0].1, "lock");
    lock.unlock().unwrap();
    assert_eq!(checked(&guests, &[]).0, 0);
}

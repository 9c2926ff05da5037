//! What would fail half way is refused before anything is touched.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Command, Output};

use cow_hooks::sys::file::inode::Time;

use crate::support::{
    FILESYSTEMS, Guests, assert_same, chroot, feed, files, inode, picture, removal, set_mtime, text,
};

fn guests(kind: &str) -> Guests {
    let guests = Guests::new(kind, 20, true);
    guests.own("pkg", &(0..20).step_by(2).map(|n| format!("/usr/bin/file-{n}")).collect::<Vec<_>>());
    guests
}

fn hook(guests: &Guests, wrapper: &[&str]) -> Output {
    feed(chroot(wrapper, &guests.first(), "cow-dpkg").arg("apt-pre"), removal("pkg").as_bytes())
}

fn prepare(guests: &Guests, wrapper: &[&str]) -> Output {
    chroot(wrapper, &guests.first(), "cow-prepare").arg("/usr").output().unwrap()
}

/// Hook and command are refused, say why, and change nothing.
fn refused(guests: &Guests, wrapper: &[&str], reason: &str, remedy: &str) {
    let all = || -> (BTreeMap<PathBuf, String>, _) { (picture(&guests.first()), files(&guests.second())) };
    let before = all();
    let output = hook(guests, wrapper);
    let said = text(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    for part in [
        "cow-hooks: error: refused, before dpkg has touched anything: files would stay unified\n",
        "/usr/bin/file-0: ",
        reason,
        "\ncow-hooks: error: remedy: ",
        remedy,
        "\ncow-hooks: error: to run without cow-hooks once: set COW_HOOKS=off in the environment\n",
    ] {
        assert!(said.contains(part), "{part:?} is not in {said}");
    }
    assert!(!said.contains("os error"), "{said}");
    let output = prepare(guests, wrapper);
    let said = text(&output);
    assert_eq!(output.status.code(), Some(3), "{said}");
    for part in [
        "cow-prepare: error: refused, nothing was made private: /usr/",
        reason,
        "\ncow-prepare: error: remedy: ",
        remedy,
    ] {
        assert!(said.contains(part), "{part:?} is not in {said}");
    }
    assert!(!said.contains("os error"), "{said}");
    let after = all();
    assert_same(&before.0, &after.0, reason);
    assert_eq!(before.1, after.1);
    // The switch that the message names.
    let mut command = chroot(wrapper, &guests.first(), "cow-dpkg");
    let output = feed(command.arg("apt-pre").env("COW_HOOKS", "off"), removal("pkg").as_bytes());
    assert_eq!((output.status.code(), text(&output).as_str()), (Some(0), ""));
}

const DROP: [&str; 6] = ["capsh", "--drop=cap_linux_immutable", "--", "-c", "exec \"$@\"", "sh"];

#[test]
#[ignore = "needs root"]
fn privileged_without_the_capability() {
    for kind in FILESYSTEMS {
        let guests = guests(kind);
        let reason = "the immutable flag cannot be cleared: Operation not permitted\n";
        let remedy = "give the guest CAP_LINUX_IMMUTABLE in the initial user namespace";
        for wrapper in [&DROP[..], &["unshare", "--user", "--map-root-user"]] {
            refused(&guests, wrapper, reason, remedy);
            let status = text(&chroot(wrapper, &guests.first(), "cow-status").output().unwrap());
            let expected =
                "  supervision    none, a run that touches unified files is refused: /usr/bin/file-";
            assert!(status.contains(expected) && status.contains(reason.trim()), "{status}");
            assert!(status.contains(&format!("  remedy         {remedy}")), "{status}");
            let mut command = chroot(wrapper, &guests.first(), "cow-status");
            let status = text(&command.arg("/usr/bin/file-0").output().unwrap());
            let expected =
                "  next           upgrade, configuration and removal of pkg are refused: /usr/bin/file-0: ";
            assert!(status.contains(expected) && status.contains(remedy), "{status}");
        }
    }
}

#[test]
#[ignore = "needs root"]
fn privileged_on_a_full_filesystem() {
    for kind in FILESYSTEMS {
        let guests = guests(kind);
        // With copy on write nothing is copied beforehand.
        guests.policy("supervise = 'never'\n");
        guests.filesystem.fill();
        refused(&guests, &[], "not enough space for private copies of ", "free ");
    }
}

#[test]
#[ignore = "needs root"]
fn privileged_on_a_read_only_filesystem() {
    for used in [false, true] {
        let guests = guests("ext4");
        if used {
            // There is a ledger already.
            assert!(guests.program("cow-prepare").arg("/usr/bin/file-18").status().unwrap().success());
        }
        guests.filesystem.remount("ro");
        refused(&guests, &[], "the filesystem is mounted read-only\n", "remount it for writing\n");
        // What asks for nothing is not refused.
        let output = feed(guests.program("cow-dpkg").arg("apt-pre"), removal("none").as_bytes());
        assert_eq!((output.status.code(), text(&output).as_str()), (Some(0), ""), "{used}");
        guests.filesystem.remount("rw");
    }
}

#[test]
#[ignore = "needs root"]
fn privileged_with_too_few_descriptors_all_or_nothing() {
    let mut codes = Vec::new();
    for limit in 3..32 {
        let guests = guests("ext4");
        let before = (picture(&guests.first()), files(&guests.second()));
        let limit = format!("--nofile={limit}");
        let output = hook(&guests, &["prlimit", &limit]);
        let said = text(&output);
        let unified = (0..20).step_by(2).filter(|n| guests.shared(&format!("usr/bin/file-{n}"))).count();
        match output.status.code() {
            Some(0) => assert_eq!(unified, 0, "{limit}: {said}"),
            // The loader needs descriptors, too.
            Some(code @ (1 | 127)) => {
                assert_same(&before.0, &picture(&guests.first()), &format!("{limit} {code}: {said}"));
            }
            code => panic!("{limit}: {code:?} {said}"),
        }
        assert!(!said.contains("os error"), "{said}");
        assert_eq!(before.1, files(&guests.second()));
        codes.push(output.status.code());
    }
    assert!(codes.contains(&Some(1)) && codes.ends_with(&[Some(0)]), "{codes:?}");
}

#[test]
#[ignore = "needs root"]
fn privileged_a_policy_may_only_warn() {
    let guests = guests("ext4");
    guests.policy("mode = 'warn'");
    let before = picture(&guests.first());
    let output = hook(&guests, &DROP);
    let said = text(&output);
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(
        said.starts_with(
            "cow-hooks: warning: dpkg may fail, or change files of other guests: files would stay unified\n"
        ),
        "{said}"
    );
    assert!(said.contains("cannot be cleared") && !said.contains("COW_HOOKS"), "{said}");
    assert_same(&before, &picture(&guests.first()), "warn");
    guests.policy("mode = 'off'");
    let output = hook(&guests, &DROP);
    assert_eq!((output.status.code(), text(&output).as_str()), (Some(0), ""));
}

#[test]
#[ignore = "needs root"]
fn privileged_where_nothing_is_unified_nothing_is_said() {
    for wrapper in [&[][..], &DROP] {
        let guests = guests("ext4");
        assert!(guests.program("cow-prepare").arg("/usr").status().unwrap().success());
        std::fs::remove_dir_all(guests.first().join("var/lib/cow-hooks")).unwrap();
        let before = picture(&guests.first());
        for _ in 0..2 {
            let output = hook(&guests, wrapper);
            assert_eq!((output.status.code(), text(&output).as_str()), (Some(0), ""));
        }
        assert!(!guests.first().join("var/lib/cow-hooks/ledger.db").exists());
        assert_same(&before, &picture(&guests.first()), "nothing to do");
        assert!(inode(&guests.second().join("usr/bin/file-0")).immutable);
    }
}

/// A capability of its own is dropped by a wrapper that must itself be there.
#[test]
#[ignore = "needs root"]
fn privileged_the_wrappers_run_programs() {
    for wrapper in [&DROP[..], &["unshare", "--user", "--map-root-user"], &["prlimit", "--nofile=64"]] {
        let output = Command::new(wrapper[0]).args(&wrapper[1..]).args(["echo", "a b"]).output().unwrap();
        assert_eq!(text(&output), "a b\n");
    }
}

#[test]
#[ignore = "needs root"]
fn privileged_a_guest_that_cannot_detach_is_not_unified_behind_its_back() {
    let guests = Guests::new("ext4", 0, false);
    let path = "usr/bin/program";
    for guest in [guests.first(), guests.second()] {
        std::fs::write(guest.join(path), "equal").unwrap();
        set_mtime(&guest.join(path), Time { secs: 1_600_000_000, nanos: 0 });
    }
    guests.own("pkg", &[format!("/{path}")]);
    let unify = |arguments: &[&str], guests: &[PathBuf]| {
        // What has only just changed is left for the next run.
        std::thread::sleep(std::time::Duration::from_millis(30));
        let mut command = Command::new(env!("CARGO_BIN_EXE_cow-unify"));
        let output =
            command.arg("--pool").arg(guests[0].with_file_name(".pool")).args(arguments).args(guests);
        let output = output.output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {}", text(&output));
        text(&output)
    };
    let both = [guests.first(), guests.second()];
    let shows = |unable: bool| {
        let shown = text(&guests.program("cow-status").arg("--json").output().unwrap());
        assert!(shown.contains(&format!(r#""unable":{unable}"#)), "{shown}");
        let shown = unify(&["status"], &both);
        assert_eq!(shown.contains("g1: left as it is: "), unable, "{shown}");
    };
    unify(&["--scope", "all"], &both);
    assert!(guests.shared(path));
    shows(false);

    let output = hook(&guests, &DROP);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(text(&output).contains("or run `cow-unify detach DIR` on the host"), "{}", text(&output));
    shows(true);
    // The remedy, as it was told.
    unify(&["detach"], &both[..1]);
    assert!(!guests.shared(path));
    assert_eq!(hook(&guests, &DROP).status.code(), Some(0));
    for arguments in [&["--changed"][..], &["--scope", "all"], &["-n", "--scope", "all"]] {
        guests.write("var/lib/cow-hooks/spool/changed", format!("/{path}\0"));
        let said = unify(arguments, &both);
        assert!(!guests.shared(path), "{said}");
        assert!(said.contains("g1: left as it is: its hooks may not clear the immutable flag"), "{said}");
        assert!(said.contains(" 0 linked") || said.contains(" 0 would be linked"), "{said}");
    }

    // It may now.
    assert_eq!(hook(&guests, &[]).status.code(), Some(0));
    shows(false);
    let _ = std::fs::remove_dir_all(guests.first().join("var/lib/cow-hooks/members"));
    unify(&["--scope", "all"], &both);
    assert!(guests.shared(path));
}

#[test]
#[ignore = "needs root"]
fn privileged_remedies_fit_whoever_reads_them() {
    let guests = guests("ext4");
    let mut detach = Command::new("capsh");
    detach.args(["--drop=cap_linux_immutable", "--", "-c", "exec \"$@\"", "sh"]);
    detach.arg(env!("CARGO_BIN_EXE_cow-unify")).arg("detach").arg(guests.first());
    let output = detach.output().unwrap();
    assert_eq!(output.status.code(), Some(3), "{}", text(&output));
    assert!(text(&output).contains("remedy: run it as root of the host, "), "{}", text(&output));
}

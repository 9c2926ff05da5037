//! Behind a filter that forbids system calls which we need, by an error or by death: package managers do what they do
//! without us, or do not begin; and a message names the call.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::guests::{self, DEBS};
use crate::support::bed::{Bed, file, start};
use crate::support::chroots::{Chroots, PRIVATE, RPMS};
use crate::support::pair::Scope;
use crate::support::{Guests, chroot, feed, files, program, removal, run, text};

/// Where the shared files of small guests are.
const DIRS: [&str; 2] = ["bin", "share/doc"];

/// What becomes of a forbidden call: `EPERM`, `EACCES`, `ENOSYS`, death.
const ACTIONS: [&str; 4] = ["1", "13", "38", "kill"];

/// What supervision needs, and package managers do not.
const CALLS: [(&str, libc::c_long); 25] = [
    ("ptrace", libc::SYS_ptrace),
    ("seccomp", libc::SYS_seccomp),
    ("process_vm_readv", libc::SYS_process_vm_readv),
    ("process_vm_writev", libc::SYS_process_vm_writev),
    ("pidfd_open", libc::SYS_pidfd_open),
    ("pidfd_getfd", libc::SYS_pidfd_getfd),
    ("pidfd_send_signal", libc::SYS_pidfd_send_signal),
    ("kcmp", libc::SYS_kcmp),
    ("fanotify_init", libc::SYS_fanotify_init),
    ("fanotify_mark", libc::SYS_fanotify_mark),
    ("name_to_handle_at", libc::SYS_name_to_handle_at),
    ("open_by_handle_at", libc::SYS_open_by_handle_at),
    ("fsopen", libc::SYS_fsopen),
    ("fsmount", libc::SYS_fsmount),
    ("openat2", libc::SYS_openat2),
    ("statx", libc::SYS_statx),
    ("sendmsg", libc::SYS_sendmsg),
    ("recvmsg", libc::SYS_recvmsg),
    ("socketpair", libc::SYS_socketpair),
    ("accept4", libc::SYS_accept4),
    ("unshare", libc::SYS_unshare),
    ("close_range", libc::SYS_close_range),
    ("chroot", libc::SYS_chroot),
    ("copy_file_range", libc::SYS_copy_file_range),
    ("mlock", libc::SYS_mlock),
];

/// What private copies cannot be made without.
const NEEDED: [(&str, libc::c_long); 8] = [
    ("linkat", libc::SYS_linkat),
    ("renameat2", libc::SYS_renameat2),
    ("flock", libc::SYS_flock),
    ("flistxattr", libc::SYS_flistxattr),
    ("fchown", libc::SYS_fchown),
    ("utimensat", libc::SYS_utimensat),
    ("syncfs", libc::SYS_syncfs),
    ("pwrite64", libc::SYS_pwrite64),
];

/// A filter: what it is, and the words that make it so.
type Filter = (String, [String; 2]);

/// Each of the calls with each of these actions.
fn each(calls: &[(&str, libc::c_long)], actions: &[&str]) -> Vec<Filter> {
    let of = |action: &&str| {
        let action = action.to_string();
        calls
            .iter()
            .map(move |(name, number)| (format!("{name} {action}"), [action.clone(), number.to_string()]))
    };
    actions.iter().flat_map(of).collect()
}

/// All of [`CALLS`] at once, with each action.
fn all() -> Vec<Filter> {
    let numbers: Vec<String> = CALLS.iter().map(|(_, number)| number.to_string()).collect();
    ACTIONS.iter().map(|action| (format!("all {action}"), [action.to_string(), numbers.join(",")])).collect()
}

/// Puts the program that makes filters into a directory.
fn put_forbid(to: &Path) {
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/forbid.c");
    run(Command::new("cc").args(["-O1", "-Wall", "-static", "-o"]).arg(to.join("forbid")).arg(from));
}

/// Whether it says that it cannot do its work, and which call it is that a filter forbids.
fn is_named(said: &str) -> bool {
    CALLS
        .iter()
        .chain(&NEEDED)
        .any(|(name, _)| said.contains(&format!("a system call filter forbids {name}")))
}

/// A script that runs a line of shell behind each filter, and tells what has come of it.
fn script(filters: &[Filter], line: impl Fn(usize) -> String) -> String {
    let lines = filters.iter().enumerate().map(|(number, (filter, [action, calls]))| {
        format!("echo '== {filter}'; forbid {action} {calls} {} 2>&1; echo \"code $?\"\n", line(number))
    });
    lines.collect()
}

/// What has come of each.
fn codes(output: &str) -> Vec<&str> {
    output.lines().filter(|line| line.starts_with("code ")).collect()
}

#[test]
#[ignore = "needs root"]
fn privileged_dpkg_works_behind_any_filter() {
    let pair = guests::pair(Scope::Owned);
    put_forbid(&pair.path("g1/usr/local/bin"));
    let filters = [each(&CALLS, &["1", "kill"]), all()].concat();
    let line = |number| format!("dpkg --force-unsafe-io -i {DEBS}/cow-links_{}.deb", 2 - number % 2);
    pair.watch(|| {
        let output = pair.succeed(&script(&filters, line));
        assert_eq!(codes(&output), vec!["code 0"; filters.len()]);
        assert!(!output.contains("error"));
    });
    // The message is the policy's whose wish cannot be fulfilled.
    pair.policy("supervise = 'always'\n");
    let always = format!("forbid kill {} dpkg -i {DEBS}/cow-odd_2.deb", libc::SYS_ptrace);
    pair.watch(|| {
        let output = pair.exits(2, &always);
        assert!(is_named(&output) && output.contains("remedy: "), "{output}");
    });
}

#[test]
#[ignore = "needs root"]
fn privileged_rpm_works_behind_any_filter() {
    let chroots = Chroots::of("bookworm");
    for guest in ["g1", PRIVATE] {
        put_forbid(&chroots.pair.path(guest).join("usr/bin"));
    }
    let filters = [each(&CALLS, &["1", "kill"]), all()].concat();
    let line = |number| format!("rpm -U --oldpackage {RPMS}/cow-plain-{}.rpm", 2 - number % 2);
    let script = script(&filters, line);
    let [ours, alone] = ["g1", PRIVATE].map(|guest| text(&chroots.pair.run_in(guest, &script)));
    assert_eq!(codes(&ours), codes(&alone));
    assert!(!ours.contains("not permitted"), "{ours}");
    chroots.assert_clean("filters");
}

#[test]
#[ignore = "needs root"]
fn privileged_apts_hook_lives_behind_any_filter() {
    let guests = Guests::new("ext4", 120, true);
    put_forbid(&guests.first());
    fs::write(guests.first().join("usr/bin/private"), "private").unwrap();
    let paths: Vec<_> = (0..120).map(|number| format!("/usr/{}/file-{number}", DIRS[number % 2])).collect();
    for (number, path) in paths.iter().enumerate() {
        guests.own(&format!("pkg{number}"), std::slice::from_ref(path));
    }
    guests.own("pkg", &["/usr/bin/private".to_owned()]);
    let others = files(&guests.second());
    let hook = |[action, calls]: &[String; 2], package: &str| {
        let mut command = chroot(&[], &guests.first(), "forbid");
        let output = feed(command.args([action, calls, "/cow-dpkg", "apt-pre"]), removal(package).as_bytes());
        (output.status.code(), text(&output))
    };
    for (number, (filter, words)) in [each(&CALLS, &ACTIONS), all()].concat().iter().enumerate() {
        let (code, said) = hook(words, &format!("pkg{number}"));
        assert!(code == Some(0) && said.contains("1 file made private"), "{filter}: {code:?} {said}");
        assert!(!guests.shared(&paths[number][1..]), "{filter}");
    }
    for (filter, words) in each(&NEEDED, &ACTIONS) {
        let (code, said) = hook(&words, "pkg119");
        assert!(code == Some(1) && is_named(&said) && said.contains("remedy: "), "{filter}: {code:?} {said}");
        let (code, said) = hook(&words, "pkg");
        assert!(code == Some(0) && said.is_empty(), "{filter}: {code:?} {said}");
        let mut recover = chroot(&[], &guests.first(), "forbid");
        let output = recover.args(&words).args(["/cow-prepare", "--recover"]).output().unwrap();
        let (code, said) = (output.status.code(), text(&output));
        assert!(code == Some(3) && is_named(&said), "{filter}: {code:?} {said}");
    }
    assert!(guests.shared(&paths[119][1..]));
    assert_eq!(others, files(&guests.second()));
}

#[test]
#[ignore = "needs root"]
fn privileged_cow_run_serves_behind_any_filter_or_does_not_begin() {
    let filters = [each(&CALLS, &ACTIONS), all()].concat();
    let bed = Bed::new(filters.len());
    put_forbid(bed.filesystem.path());
    for (number, (filter, [action, calls])) in filters.iter().enumerate() {
        let name = file(number);
        let script = format!("echo x >>{name}");
        let run = [program("cow-run"), "sh", "-c", &script];
        let words = [&["/var/lib/forbid", action, calls][..], &run].concat();
        let output = start(&mut bed.command(&words)).done();
        let said = text(&output);
        match output.status.code() {
            Some(0) => assert!(bed.is_private(&name), "{filter}: {said}"),
            Some(125) => assert!(is_named(&said) && !bed.is_private(&name), "{filter}: {said}"),
            code => panic!("{filter}: {code:?} {said}"),
        }
    }
    bed.assert_over();
    bed.assert_clean();
}

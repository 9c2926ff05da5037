//! What others run around a package manager: their hooks write to unified files, and the runs of package managers that a
//! supervisor of somebody else's serves come to what any run comes to.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::guests::{self, DEBS};
use crate::support::chroots::{Chroots, RPMS};
use crate::support::pair::{Pair, Scope, ours};
use crate::support::{Seen, files, litter, program, text};

/// apt's lists of commands, and a file that a command of each changes.
const LISTS: [(&str, &str); 6] = [
    ("APT::Update::Pre-Invoke", "bash"),
    ("APT::Update::Post-Invoke", "coreutils"),
    ("APT::Install::Pre-Invoke", "login"),
    ("DPkg::Pre-Invoke", "passwd"),
    ("DPkg::Pre-Install-Pkgs", "sudo"),
    ("DPkg::Post-Invoke", "tzdata"),
];

fn copyright(package: &str) -> String {
    format!("/usr/share/doc/{package}/copyright")
}

/// Hooks of others, each of which changes a file in place, puts another in the place of one, and removes one.
fn add_hooks(pair: &Pair) {
    let line = |(list, package): (&str, &str)| {
        let file = copyright(package);
        format!(
            "{list} {{\"cat >/dev/null; echo more >>{file}; sed -i s/more/other/ {file}; chmod 600 {file}\";}};\n"
        )
    };
    let purge = "DPkg::Post-Invoke {\"rm -rf /usr/share/locale/de\";};\n";
    let hooks = LISTS.map(line).concat() + purge;
    fs::write(pair.path("g1/etc/apt/apt.conf.d/99other"), hooks).unwrap();
    fs::create_dir_all(pair.path("g1/usr/share/locale/de")).unwrap();
}

/// Which of the lists' files were changed.
fn changed(pair: &Pair) -> Vec<&'static str> {
    let is_changed = |file: &String| {
        let content = fs::read(pair.path("g1").join(&file[1..])).unwrap();
        content.ends_with(b"other\n")
    };
    LISTS.into_iter().filter(|(_, package)| is_changed(&copyright(package))).map(|(list, _)| list).collect()
}

/// What the second guest has that the hooks of the first one change.
fn neighbour(pair: &Pair) -> BTreeMap<PathBuf, Seen> {
    let mut seen = files(&pair.path("g2/usr/share/doc"));
    seen.extend(files(&pair.path("g2/usr/share/locale/de")));
    seen
}

/// Asserts that apt's run serves the hooks of others, and that nobody else notices.
#[track_caller]
fn serves(pair: &Pair, line: &str, lists: &[&str]) {
    let before = neighbour(pair);
    let output = pair.succeed(line);
    assert!(!output.contains("not permitted"), "{output}");
    assert_eq!(changed(pair), lists, "{output}");
    assert_eq!(before, neighbour(pair));
    assert!(!pair.exists("/usr/share/locale/de"));
    pair.assert_settled(line);
    assert_eq!(litter(&pair.path("g1")), Vec::<PathBuf>::new());
}

#[test]
#[ignore = "needs root"]
fn privileged_hooks_of_others_change_what_is_unified() {
    let pair = guests::pair(Scope::Owned);
    add_hooks(&pair);
    let all = LISTS.map(|(list, _)| list);
    serves(
        &pair,
        "apt-get update -o Dir::Etc::sourceparts=- -o Dir::Etc::sourcelist=/dev/null -o APT::Get::List-Cleanup=0; \
                apt-get install --reinstall less",
        &all,
    );
}

#[test]
#[ignore = "needs root"]
fn privileged_hooks_of_others_are_served_where_the_front_end_cannot_be() {
    let pair = guests::pair(Scope::Owned);
    add_hooks(&pair);
    // Of a process that is traced nobody else can be the tracer; its children are nobody's.
    guests::copy_strace(&pair);
    let traced = "LD_LIBRARY_PATH=/usr/local/lib strace -o /dev/null -e trace=none apt-get";
    let lists = ["APT::Install::Pre-Invoke", "DPkg::Pre-Invoke", "DPkg::Post-Invoke"];
    fs::write(pair.path("g1/etc/apt/apt.conf.d/99zz"), "#clear DPkg::Pre-Install-Pkgs;\n").unwrap();
    serves(&pair, &format!("{traced} install --reinstall less"), &lists);
}

#[test]
#[ignore = "needs root"]
fn privileged_under_somebody_elses_supervisor_a_run_settles_like_any() {
    let pair = guests::pair(Scope::Owned);
    let again = |line: &str| {
        let shared = pair.watch(|| {
            let output = pair.succeed(line);
            assert!(ours(&output).iter().any(|line| line.contains("shared again")), "{line}: {output}");
            assert!(!output.contains("made private"), "{line}: {output}");
        });
        assert_eq!(shared.now, shared.before, "{line}");
    };
    again(&format!("cow-run dpkg -i {DEBS}/cow-links_1.deb {DEBS}/cow-odd_1.deb"));
    again(&format!("cow-run sh -c 'cow-run dpkg -i {DEBS}/cow-plain_1.deb; dpkg -i {DEBS}/cow-odd_1.deb'"));
    again("cow-run apt-get install --reinstall less");
    // Hooks of others that run a dpkg of their own, in apt's run and after it.
    let run = |list: &str, package: &str| format!("{list} {{\"dpkg -i {DEBS}/{package}_1.deb\";}};\n");
    let hooks = run("DPkg::Pre-Invoke", "cow-links") + &run("DPkg::Post-Invoke", "cow-shape");
    let file = pair.path("g1/etc/apt/apt.conf.d/99other");
    fs::write(&file, hooks).unwrap();
    again("apt-get install --reinstall less");
    fs::remove_file(file).unwrap();

    let spooled = || fs::read(pair.path("g1/var/lib/cow-hooks/spool/changed")).unwrap_or_default();
    pair.watch(|| drop(pair.succeed(&format!("cow-run dpkg -i {DEBS}/cow-plain_2.deb"))));
    let spool = String::from_utf8_lossy(&spooled()).into_owned();
    assert!(spool.contains("/usr/share/cow-plain/data\0"), "{spool}");
}

#[test]
#[ignore = "needs root"]
fn privileged_under_a_supervisor_outside_of_the_guest_a_run_settles_like_any() {
    let pair = guests::pair(Scope::Owned);
    let inner = pair.command(&format!("dpkg -i {DEBS}/cow-links_1.deb {DEBS}/cow-odd_1.deb"));
    // A state directory of its own for the supervisor.
    let script = "mount -t tmpfs none /var/lib && exec \"$@\"";
    let mut outer = Command::new("unshare");
    outer.args(["--mount", "--propagation", "private", "sh", "-c", script, "sh"]);
    outer.arg(program("cow-run")).arg(inner.get_program()).args(inner.get_args());
    let shared = pair.watch(|| {
        let output = text(&outer.stdin(Stdio::null()).output().unwrap());
        assert!(ours(&output).iter().any(|line| line.contains("shared again")), "{output}");
    });
    assert_eq!(shared.now, shared.before);
}

#[test]
#[ignore = "needs root"]
fn privileged_rpm_under_somebody_elses_supervisor_settles_like_any() {
    let chroots = Chroots::of("trixie");
    let pair = &chroots.pair;
    for line in [
        format!("cow-run rpm -U --force {RPMS}/cow-links-1.rpm {RPMS}/cow-plain-1.rpm"),
        format!(
            "cow-run sh -c 'cow-run rpm -U --force {RPMS}/cow-links-1.rpm; rpm -U --force {RPMS}/cow-same-1.rpm'"
        ),
    ] {
        let (before, after) = (chroots.shared("usr/bin/cow-program"), pair.succeed(&line));
        assert!(ours(&after).iter().any(|line| line.contains("shared again")), "{line}: {after}");
        assert!(!after.contains("made private"), "{line}: {after}");
        assert_eq!((before, chroots.shared("usr/bin/cow-program")), (true, true), "{line}");
        pair.assert_settled(&line);
    }
}

#[test]
#[ignore = "needs root"]
fn privileged_many_runs_of_one_front_end_say_one_line() {
    let pair = guests::pair(Scope::Owned);
    let front_end = pair.path("g1/usr/local/bin/unattended-upgrade");
    let script = "#!/usr/bin/python3\nimport os, subprocess, sys\nfor package in sys.argv[1:]:\n    if os.fork() == 0:\n        \
                  os._exit(subprocess.call(['apt-get', 'install', '--reinstall', package]))\n    os.wait()\n";
    fs::write(&front_end, script).unwrap();
    fs::set_permissions(&front_end, fs::Permissions::from_mode(0o755)).unwrap();
    let wait = "while [ -e /var/lib/cow-hooks/series ]; do sleep 0.1; done";
    pair.watch(|| {
        let said = pair.succeed(&format!("unattended-upgrade less tzdata; {wait}"));
        let ours = ours(&said);
        assert_eq!(ours.len(), 1, "{said}");
        assert!(ours[0].ends_with(" shared again"), "{said}");
    });
}

//! What settling costs for each file that a package manager has unpacked, in system calls.

use std::fs;

use crate::support::bed::with_shell;
use crate::support::tiny::{Package, Tiny};
use crate::support::{ended, run, same_inode};

/// System calls for each new file that the pool has an object for, at most, in one run of a hook.
const CALLS_PER_FILE: usize = 36;

/// Makes a package of these files.
fn deb(tiny: &Tiny, name: &str, names: &[String], contents: &[String]) -> String {
    let names: Vec<[&str; 1]> = names.iter().map(|name| [name.as_str()]).collect();
    let files: Vec<(&[&str], &str)> =
        names.iter().zip(contents).map(|(name, content)| (&name[..], content.as_str())).collect();
    tiny.deb(1, Package { name, files: &files, postinst: None })
}

/// Installs a package of so many files in a guest, after two others have shared it; in that guest one of the files has
/// another content, and nothing else that tells it from the object. The system calls of the hook that settled it.
fn calls(tiny: &Tiny, number: u32, count: usize) -> usize {
    let names: Vec<String> = (0..count).map(|at| format!("opt/p{number}/{}/{at}", at % 20)).collect();
    let mut contents: Vec<String> = (0..count).map(|at| format!("{at}\n").repeat(at + 1)).collect();
    let name = format!("p{number}");
    let install = format!("dpkg --force-unsafe-io -i {}", deb(tiny, &name, &names, &contents));
    tiny.both(&install);
    tiny.unify(&["--protection", "none", "g3"]);
    let original = contents[count - 1].clone();
    contents[count - 1].replace_range(original.len() - 2.., "x\n");
    let other = deb(tiny, &name, &names, &contents);
    fs::copy(tiny.path("g1").join(&other[1..]), tiny.path("g3").join(&other[1..])).unwrap();
    ended(&tiny.command("g3", &install).output().unwrap(), 0, &install);
    for name in &names[..count - 1] {
        assert!(same_inode(&tiny.path("g1").join(name), &tiny.path("g3").join(name)), "{name}");
    }
    let last = &names[count - 1];
    assert_eq!(tiny.read(&format!("g1/{last}")), original);
    assert_eq!(tiny.read(&format!("g3/{last}")), contents[count - 1]);
    let log = fs::read_to_string(tiny.path("g3/calls")).unwrap();
    // The standard library looks at each descriptor in a debug build.
    let is_call = |line: &&str| !line.contains("F_GETFD") && !line.contains("resumed>");
    log.lines().filter(is_call).count()
}

#[test]
#[ignore = "needs root"]
fn privileged_settling_a_new_file_takes_few_system_calls() {
    let tiny = Tiny::new();
    let base = deb(&tiny, "base", &["opt/base".into()], &["x".into()]);
    tiny.both(&format!("dpkg -i {base}"));
    run(std::process::Command::new("cp").arg("-a").arg(tiny.path("g1")).arg(tiny.path("g3")));
    tiny.unify(&["--protection", "none", "g3"]);
    // From here on there is a ledger: new files are handed over by whoever has ever had a shared one.
    ended(&tiny.command("g3", &format!("dpkg -i {base}")).output().unwrap(), 0, "base");
    with_shell(&tiny.path("g3"), &["/usr/bin/strace"]);
    let hook = "/usr/libexec/cow-hooks/cow-dpkg dpkg-post";
    let configuration = tiny.read("g3/etc/dpkg/dpkg.cfg.d/cow-hooks");
    let traced = configuration.replace(hook, &format!("strace -fqqo /calls {hook}"));
    fs::write(tiny.path("g3/etc/dpkg/dpkg.cfg.d/cow-hooks"), traced).unwrap();
    let (few, many) = (calls(&tiny, 1, 200), calls(&tiny, 2, 600));
    let each = (many - few) as f64 / 400.0;
    println!("{each} system calls for each file: {few} for 200, {many} for 600");
    assert!(each <= CALLS_PER_FILE as f64, "{each} system calls for each file");
}

//! What somebody keeps from changing before its transaction is settled stays as it is: that is said once.

use std::fs;

use crate::support::tiny::{Package, Tiny};
use crate::support::{same_inode, set_immutable};

const FILE: &str = "opt/kept/file";
const TEXT: &str = "what it was\n";
const WAYS: [&str; 2] = ["supervise = 'always'\n", "supervise = 'never'\n"];

/// Guests that share a file, and the same package in a second version, with such a script.
fn shared(way: &str, script: &str) -> (Tiny, String) {
    let tiny = Tiny::new();
    tiny.policy(way);
    let files: [(&[&str], &str); 2] = [(&[FILE], TEXT), (&["opt/beside"], TEXT)];
    tiny.both(&format!("dpkg -i {}", tiny.deb(1, Package { name: "kept", files: &files, postinst: None })));
    tiny.unify(&[]);
    assert!(tiny.shared(FILE));
    let two = tiny.deb(2, Package { name: "kept", files: &files, postinst: Some(script) });
    (tiny, two)
}

/// Nothing is owed any more, and nobody hears of it again.
#[track_caller]
fn assert_over(tiny: &Tiny, output: &str) {
    assert_eq!(tiny.left(), (0, 0), "{output}");
    assert!(tiny.shared("opt/beside"), "{output}");
    assert_eq!(tiny.succeed("cow-prepare --recover"), "nothing to recover\n");
    let other = tiny.deb(1, Package { name: "other", files: &[(&["opt/other"], "other\n")], postinst: None });
    let next = tiny.succeed(&format!("dpkg -i {other}"));
    let ours: Vec<&str> = next.lines().filter(|line| line.starts_with("cow-hooks: ")).collect();
    assert!(ours.iter().all(|line| line.contains("1 new file waits")), "{next}");
}

#[test]
#[ignore = "needs root"]
fn privileged_what_a_script_protects_is_let_go_and_that_is_said_once() {
    for (script, reason) in [
        (format!("chattr +i /{FILE}"), "file: became immutable during the run"),
        (format!("chattr +a /{FILE}"), "file: became append-only during the run"),
        ("chattr +i /opt/kept".to_owned(), "file: its directory became immutable during the run"),
    ] {
        for way in WAYS {
            let (tiny, two) = shared(way, &script);
            let output = tiny.succeed(&format!("dpkg -i {two}"));
            assert_eq!(output.matches(reason).count(), 1, "{output}");
            assert_over(&tiny, &output);
            assert!(!tiny.shared(FILE));
            assert_eq!(tiny.read(&format!("g1/{FILE}")), TEXT);
            tiny.succeed(&format!("chattr -i -a /{FILE} /opt/kept"));
        }
    }
}

#[test]
#[ignore = "needs root"]
fn privileged_what_another_program_shares_meanwhile_is_its_own() {
    // Files made private beforehand would be made so once more, for the second run.
    let (tiny, two) = shared(WAYS[0], "");
    tiny.succeed(&format!("dpkg --unpack {two}"));
    let file = tiny.path("g1").join(FILE);
    fs::hard_link(&file, tiny.path("foreign")).unwrap();
    set_immutable(&file, true);
    let output = tiny.succeed("dpkg --configure -a");
    assert_eq!(output.matches("file: became immutable during the run").count(), 1, "{output}");
    assert_over(&tiny, &output);
    assert!(same_inode(&file, &tiny.path("foreign")));
}

#[test]
#[ignore = "needs root"]
fn privileged_a_name_that_is_no_file_any_more_owes_nothing() {
    let scripts = [
        format!("rm /{FILE} && mkdir /{FILE}"),
        format!("rm /{FILE} && ln -s /opt/beside /{FILE}"),
        "rm -r /opt/kept".to_owned(),
        "rm -r /opt/kept && ln -s / /opt/kept".to_owned(),
    ];
    for (script, way) in scripts.iter().zip(WAYS.iter().cycle()) {
        let (tiny, two) = shared(way, script);
        let output = tiny.succeed(&format!("dpkg -i {two}"));
        assert!(!output.contains("cow-hooks: warning"), "{output}");
        assert_over(&tiny, &output);
    }
}

#[test]
#[ignore = "needs root"]
fn privileged_an_original_that_is_gone_from_the_stash_owes_nothing() {
    for way in WAYS {
        let (tiny, two) = shared(way, "");
        tiny.succeed(&format!("dpkg --unpack {two}"));
        let stash = tiny.path("g1/var/lib/cow-hooks/stash");
        for original in fs::read_dir(stash).unwrap().map(|entry| entry.unwrap().path()) {
            set_immutable(&original, false);
            fs::remove_file(original).unwrap();
        }
        let output = tiny.succeed("dpkg --configure -a");
        assert!(!output.contains("cow-hooks: warning"), "{output}");
        assert_eq!(tiny.left(), (0, 0), "{output}");
        assert_eq!(tiny.succeed("cow-prepare --recover"), "nothing to recover\n");
    }
}

//! cow-guard and cow-unify under the guard, killed at any step, and without power at any step: guests that start
//! afterwards can write to no file that they share. And what can be wrong when a host boots.

use std::path::Path;

use crate::support::faults::steps;
use crate::support::machine::Machine;
use crate::support::pair::support;
use crate::support::text;

/// The scenarios of `support/guard-steps`, and which steps are tried without `COW_TESTS_EVERY_CALL`: every so many, and
/// the last.
const SCENARIOS: [(&str, usize); 9] = [
    ("boot", 40),
    ("boot-after-failure", 50),
    ("boot-without-guard", 20),
    ("load-again", 30),
    ("to-guard", 60),
    ("to-immutable", 10),
    ("unify-first", 120),
    ("unify-next", 70),
    ("unload", 30),
];

/// Faults at boot, and commands that come at a wrong time, with their exit codes.
const FAULTS: [(&str, i32); 12] = [
    ("bpffs not mounted", 0),
    ("filesystem mounted after the load", 0),
    ("filesystem mounted after a failed load, the second try", 3),
    ("register damaged", 0),
    ("register lost", 3),
    ("killed", 0),
    ("program missing", 0),
    ("unload while cow-unify works", 3),
    ("unload", 0),
    ("unload while cow-unify turns to the guard", 0),
    ("lockdown=confidentiality", 0),
    ("lsm=lockdown,capability,yama,apparmor", 3),
];

/// What `support/guard-steps` says; nothing if there is no such machine.
fn said(kernel_words: &str, words: &[String]) -> Option<String> {
    let Some(guard) = option_env!("CARGO_BIN_EXE_cow-guard") else {
        eprintln!("skipped: tested with the feature `guard` alone");
        return None;
    };
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut machine = Machine::new("trixie").disk("ext4", "32M", "blank").words(kernel_words);
    for input in [
        support("guard-steps").get_program().as_ref(),
        steps(),
        guard.as_ref(),
        env!("CARGO_BIN_EXE_cow-unify").as_ref(),
        &top.join("packaging/systemd/cow-guard.service"),
    ] {
        machine = machine.input(input);
    }
    let command = [&["/in/guard-steps".to_owned()], words].concat();
    let output = machine.run(&command.iter().map(String::as_str).collect::<Vec<_>>())?;
    let said = text(&output);
    assert!(output.status.success(), "{said}");
    Some(said)
}

fn assert_faults(said: &str, number: usize) {
    let mut seen = 0;
    for (fault, code) in FAULTS {
        let Some(line) = said.lines().find_map(|line| line.strip_prefix(&format!("fault {fault}: "))) else {
            continue;
        };
        assert_eq!(line, format!("exit code {code}, shared 3, open 0"), "{fault}: {said}");
        seen += 1;
    }
    assert_eq!(seen, number, "{said}");
}

#[test]
#[ignore = "needs root"]
fn privileged_killed_or_without_power_at_any_step_no_shared_file_is_open() {
    let every = std::env::var_os("COW_TESTS_EVERY_CALL").is_some();
    let words = SCENARIOS.map(|(name, few)| format!("{name}:{}", if every { 1 } else { few }));
    let Some(said) = said("", &[&["faults", "busy"].map(str::to_owned), words.as_slice()].concat()) else {
        return;
    };
    assert_faults(&said, FAULTS.len() - 2);
    for (name, _) in SCENARIOS {
        let line = said.lines().find_map(|line| line.strip_prefix(&format!("{name}: steps ")));
        let numbers: Vec<u32> = line
            .unwrap_or_else(|| panic!("{name}: {said}"))
            .split(|c: char| !c.is_ascii_digit())
            .filter_map(|number| number.parse().ok())
            .collect();
        let [all, killed, boots, wrong] = numbers[..] else { panic!("{name}: {said}") };
        assert!(killed >= 2 && killed <= all && boots == 2 * killed, "{name}: {said}");
        assert_eq!(wrong, 0, "{name}: {said}");
    }
    print!("{said}");
}

#[test]
#[ignore = "needs root"]
fn privileged_a_kernel_that_is_locked_down_or_without_bpf_leaves_no_shared_file_open() {
    for words in ["lockdown=confidentiality", "lsm=lockdown,capability,yama,apparmor"] {
        let Some(said) = said(words, &["kernel".to_owned()]) else { return };
        assert_faults(&said, 1);
    }
}

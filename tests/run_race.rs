//! `cow-run` and many threads, many signals, and programs that change paths under its eyes.

use std::fs;
use std::os::unix::fs::symlink;

use super::support::bed::{Bed, file};
use super::support::{set_immutable, text};

#[test]
#[ignore = "needs root"]
fn privileged_threads_are_served_at_once() {
    for same in ["0", "1"] {
        let bed = Bed::new(160);
        let act = bed.compiled("act.c");
        let output = bed.ran(&[&act, "threads", same]);
        assert!(text(&output).contains("0 errors"), "{same}: {}", text(&output));
        let (files, lines) = if same == "1" { (20, 8) } else { (160, 1) };
        for number in 0..files {
            let name = file(number);
            let expected = format!("content of {number}\n{}", "x\n".repeat(lines));
            assert_eq!(fs::read_to_string(bed.first(&name)).unwrap(), expected);
            assert!(bed.is_private(&name));
        }
        bed.assert_over();
        bed.assert_clean();
    }
}

/// Opens 2000 times under a 1 kHz timer; returns how many were interrupted.
fn interrupted(restart: &str) -> u32 {
    let bed = Bed::new(100);
    let act = bed.compiled("act.c");
    let output = bed.ran(&[&act, "signals", restart, "2000", "100"]);
    println!(
        "restart {restart}: {}",
        text(&output).lines().filter(|l| !l.contains("made private")).collect::<Vec<_>>().join(", ")
    );
    let line = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(line.ends_with(" 0 failed\n"), "{}", text(&output));
    bed.assert_over();
    bed.assert_clean();
    line.split(' ').next().unwrap().parse().unwrap()
}

#[test]
#[ignore = "needs root"]
fn privileged_signals_whose_handlers_restart_calls_are_not_seen() {
    assert_eq!(interrupted("1"), 0);
}

#[test]
#[ignore = "needs root"]
fn privileged_signals_whose_handlers_restart_nothing_interrupt_at_most() {
    interrupted("0");
}

/// Changes what a path leads to while that flips between a shared file and another.
fn flip(how: &str, what: &str, rounds: usize, names: usize) {
    let bed = Bed::new(1);
    for number in 0..names {
        let dir = bed.first(format!("n{number:04}"));
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("p"), "private\n").unwrap();
        symlink("f", dir.join("l")).unwrap();
    }
    set_immutable(&bed.second("f000"), false);
    for number in 0..names {
        fs::hard_link(bed.second("f000"), bed.first(format!("n{number:04}/f"))).unwrap();
    }
    set_immutable(&bed.second("f000"), true);
    let flip = bed.compiled("flip.c");
    let output = bed.ran(&[&flip, how, what, &rounds.to_string(), &names.to_string()]);
    let said = text(&output);
    println!("{how}, {what}: {}", String::from_utf8_lossy(&output.stdout).trim_end());
    let odd = said.lines().filter(|line| line.contains("cow-run: ") && !line.contains("made private"));
    println!("{:?}", odd.collect::<Vec<_>>());
    assert!(said.contains(" 0 leaked\n"));
    assert!(output.status.success(), "{said}");
    bed.assert_over();
    bed.recover();
    bed.assert_clean();
}

#[test]
#[ignore = "needs root"]
fn privileged_a_path_that_changes_in_memory_never_opens_the_shared_file() {
    flip("memory", "open", 10_000, 5_000);
}

#[test]
#[ignore = "needs root"]
fn privileged_a_name_that_changes_places_never_opens_the_shared_file() {
    flip("rename", "open", 2_000, 1_000);
}

#[test]
#[ignore = "needs root"]
fn privileged_a_symlink_that_changes_never_opens_the_shared_file() {
    flip("symlink", "open", 2_000, 1_000);
}

#[test]
#[ignore = "needs root"]
fn privileged_a_path_that_changes_never_changes_the_shared_files_mode() {
    flip("memory", "chmod", 2_000, 1_000);
    flip("rename", "chmod", 2_000, 1_000);
}

#[test]
#[ignore = "needs root"]
fn privileged_a_path_that_changes_never_cuts_the_shared_file() {
    flip("memory", "truncate", 2_000, 1_000);
    flip("rename", "truncate", 2_000, 1_000);
}

//! What the guard does in real kernels: every operation and attack of `support/guard`, by root with all capabilities,
//! root without `CAP_LINUX_IMMUTABLE`, root of a user namespace and programs of 32 bits, on each filesystem. One boot a
//! kernel.
//!
//! `COW_TESTS_GUARD=FILE` writes down what came of every attack.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Once;

use crate::support::machine::Machine;
use crate::support::pair::support;
use crate::support::{run, text};

const FILESYSTEMS: [&str; 3] = ["ext4", "xfs", "btrfs"];
/// What a kernel or a filesystem answers about what it does not have.
const UNKNOWN: [&str; 4] = ["ENOSYS", "EOPNOTSUPP", "ENOTTY", "EINVAL"];

/// One line: what came of an operation.
struct Tried {
    kind: String,
    result: String,
    state: String,
}

impl Tried {
    fn is(&self, result: &str, state: &str) -> bool {
        self.result == result && self.state == state
    }

    fn shown(&self) -> String {
        format!("{}, {}", self.result, self.state)
    }
}

/// What was printed about each subject: operations by name, in a stage such as `after ext4 marked full`.
struct Report {
    stages: BTreeMap<String, BTreeMap<String, Tried>>,
    text: String,
}

impl Report {
    fn new(text: String) -> Report {
        let mut stages: BTreeMap<String, BTreeMap<String, Tried>> = BTreeMap::new();
        let mut stage = String::new();
        for line in text.lines().filter(|line| !line.starts_with(' ')) {
            if let Some(name) = line.strip_prefix("= ") {
                name.clone_into(&mut stage);
            } else if let [name, kind, result, state] = line.split(' ').collect::<Vec<_>>()[..] {
                let tried = Tried { kind: kind.into(), result: result.into(), state: state.into() };
                let before = stages.entry(stage.clone()).or_default().insert(name.into(), tried);
                assert!(before.is_none(), "{stage}: {name} is told twice");
            }
        }
        Report { stages, text }
    }

    fn stage(&self, name: &str) -> &BTreeMap<String, Tried> {
        self.stages.get(name).unwrap_or_else(|| panic!("no stage \"{name}\" in:\n{}", self.text))
    }

    /// What is wrong with the operations on marked files.
    fn wrong_on_marked(&self, filesystem: &str, mode: &str) -> String {
        let [before, after] =
            ["before", "after"].map(|when| self.stage(&format!("{when} {filesystem} marked {mode}")));
        let may_change_flags = ["full", "i386"].contains(&mode);
        let mut wrong = String::new();
        for (name, without) in before {
            let Some(with) = after.get(name) else {
                let _ = writeln!(wrong, "{filesystem} {mode} {name}: not tried");
                continue;
            };
            let as_before = with.is(&without.result, &without.state);
            let right = match with.kind.as_str() {
                "flags" if may_change_flags => as_before,
                "change" | "flags" => {
                    let unknown = UNKNOWN.contains(&without.result.as_str()) && as_before;
                    with.state == "same" && (with.result == "EPERM" || unknown)
                }
                "capability" => with.is("ENODATA", "same"),
                _ => as_before && with.state == "same",
            };
            if !right {
                let _ = writeln!(
                    wrong,
                    "{filesystem} {mode} {name}: {}; without the guard: {}",
                    with.shown(),
                    without.shown()
                );
            }
        }
        wrong
    }

    /// What differs between two stages, which should be alike.
    fn different(&self, one: &str, other: &str) -> String {
        let (first, second) = (self.stage(one), self.stage(other));
        let mut wrong = String::new();
        for (name, with) in second {
            if !first.get(name).is_some_and(|without| with.is(&without.result, &without.state)) {
                let _ = writeln!(wrong, "{other} {name}: {}", with.shown());
            }
        }
        wrong
    }

    /// How many operations changed a file when there was no guard: a table that cannot fail proves nothing.
    fn changing(&self, filesystem: &str) -> usize {
        let stage = self.stage(&format!("before {filesystem} marked full"));
        stage.values().filter(|tried| tried.kind == "change" && tried.state == "changed").count()
    }
}

fn programs(guard: &str) -> Vec<PathBuf> {
    static COMPILED: Once = Once::new();
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("guard");
    COMPILED.call_once(|| drop(run(support("guard/build").arg(&directory))));
    let mut programs: Vec<_> = ["guard", "guard-i386"].map(|name| directory.join(name)).into();
    programs.retain(|program| program.exists());
    programs.push(guard.into());
    programs
}

/// What a script of `support/guard` prints in a machine.
fn tried(kernel: &'static str, script: &str) -> Option<Report> {
    let Some(guard) = option_env!("CARGO_BIN_EXE_cow-guard") else {
        eprintln!("skipped: tested with the feature `guard` alone");
        return None;
    };
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/guard").join(script);
    let machine = Machine::new(kernel)
        .input(here)
        .input(env!("CARGO_BIN_EXE_cow-unify"))
        .disk("ext4", "300M", "ext4")
        .disk("xfs", "320M", "xfs")
        .disk("btrfs", "300M", "btrfs")
        .disk("ext4", "100M", "plain");
    let machine = programs(guard).iter().fold(machine, |machine, program| machine.input(program));
    let output = machine.run(&[&format!("/in/{script}")])?;
    assert!(output.status.success(), "{kernel}: {}", text(&output));
    Some(Report::new(String::from_utf8_lossy(&output.stdout).into_owned()))
}

fn everything(kernel: &'static str) {
    let Some(report) = tried(kernel, "run") else { return };
    assert!(report.text.contains("= load\nexit code 0"), "the guard is not loaded:\n{}", report.text);
    let mut wrong = String::new();
    for filesystem in FILESYSTEMS {
        let changing = report.changing(filesystem);
        assert!(changing > 30, "{filesystem}: only {changing} operations change anything without the guard");
        for mode in ["full", "without", "userns", "i386"] {
            if mode != "i386" || cfg!(target_arch = "x86_64") {
                wrong += &report.wrong_on_marked(filesystem, mode);
            }
        }
        for mode in ["full", "userns"] {
            let [before, after] =
                ["before", "after"].map(|when| format!("{when} {filesystem} single {mode}"));
            wrong += &report.different(&before, &after);
        }
        for mode in ["without", "userns"] {
            wrong += &attacked(&report, kernel, &format!("attacks {filesystem} {mode}"));
        }
    }
    // What changes nothing without the guard proves nothing with it.
    let changing =
        report.stage("attacks plain without").values().filter(|tried| tried.state == "changed").count();
    assert!(changing >= 15, "only {changing} attacks succeed where the guard does nothing");
    for mode in ["full", "userns"] {
        wrong +=
            &report.different(&format!("before plain marked {mode}"), &format!("after plain marked {mode}"));
    }
    assert_eq!(wrong, "", "{kernel}");
}

#[test]
#[should_panic(expected = "after ext4 marked full: open_write is told twice")]
fn no_line_of_a_report_can_hide_another() {
    let lines = "= after ext4 marked full\nopen_write change ok changed\nopen_write change EPERM same\n";
    Report::new(lines.to_owned());
}

/// Attacks that changed the inode.
fn attacked(report: &Report, kernel: &str, stage: &str) -> String {
    let attacks = report.stage(stage);
    assert!(attacks.len() >= 86, "{stage}: only {} attacks", attacks.len());
    if let Some(path) = std::env::var_os("COW_TESTS_GUARD") {
        let mut all = fs::read_to_string(&path).unwrap_or_default();
        for (name, tried) in attacks {
            let _ =
                writeln!(all, "{kernel} {} {name} {}", stage.trim_start_matches("attacks "), tried.shown());
        }
        fs::write(path, all).unwrap();
    }
    not_the_same(attacks, stage)
}

fn not_the_same(stage: &BTreeMap<String, Tried>, name: &str) -> String {
    let changed = stage.iter().filter(|(_, tried)| tried.state != "same");
    changed.fold(String::new(), |all, (what, tried)| all + &format!("{name} {what}: {}\n", tried.shown()))
}

#[test]
#[ignore = "needs root"]
fn privileged_guard_refuses_changes_and_no_others_bookworm() {
    everything("bookworm");
}

#[test]
#[ignore = "needs root"]
fn privileged_guard_refuses_changes_and_no_others_trixie() {
    everything("trixie");
}

#[test]
#[ignore = "needs root"]
fn privileged_guard_refuses_changes_and_no_others_newer() {
    everything("newer");
}

/// A tenant whose guests have all names of an object removes them, keeps a descriptor, and tries with it whatever changes a
/// file.
#[test]
#[ignore = "needs root"]
fn privileged_guard_refuses_changes_of_an_object_that_has_no_name_in_a_guest() {
    let Some(report) = tried("trixie", "tenant") else { return };
    let mut wrong = String::new();
    for (filesystem, mode) in
        [("ext4", "without"), ("ext4", "userns"), ("xfs", "without"), ("btrfs", "without")]
    {
        let stage = format!("tenant {filesystem} {mode}");
        let tried = report.stage(&stage);
        assert!(tried.len() > 120, "{stage}: only {} operations", tried.len());
        wrong += &not_the_same(tried, &stage);
        let unharmed =
            format!("= unify {filesystem} victim\nexit code 0\n= verify {filesystem}\nexit code 0\n");
        assert!(report.text.contains(&unharmed), "another guest's files are damaged:\n{}", report.text);
    }
    assert_eq!(wrong, "");
}
